"""The generation loop of all strategies: advance, append the tokens, yield the step, until all rows have stopped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.former_names import former_names
from modular_gpt.core.stream_decoder import StreamDecoder
from modular_gpt.generation.compiled import compiled_step
from modular_gpt.generation.config import SEARCHES, GenerationConfig
from modular_gpt.generation.needs import check_memory
from modular_gpt.generation.prompt_cache import PromptCache
from modular_gpt.generation.protocol import LanguageModel, check_models
from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import RowGenerators, TokenBuffer, check_prompt
from modular_gpt.generation.stopping import StoppingState, StopStringStreamer
from modular_gpt.generation.strategies.base import Sampling, Strategy
from modular_gpt.generation.strategies.beam import BeamSearch, Pool
from modular_gpt.generation.strategies.contrastive import ContrastiveSearch
from modular_gpt.generation.strategies.speculative import (
    DraftCounts,
    Drafter,
    LookupDrafter,
    ModelDrafter,
    SpeculativeDecoding,
)


@former_names(log_probabilities="logprobs", pieces="texts")
@dataclass
class Step:
    """One new token of every row.

    tokens: (B,) new ids; a row that has stopped repeats its last token
    logprobs: (B,) log-probabilities of the tokens under the model, without filters; None unless the settings ask for it
    stopped: (B,) whether the row is complete, with this token or an earlier one
    texts: new text of each row, if there is a decoder; text that may begin a stop string is held back
    """

    tokens: Tensor
    logprobs: Tensor | None
    stopped: Tensor
    texts: list[str]


@former_names(log_probabilities="logprobs")
@dataclass
class Continuation:
    """A generated text.

    ids: new tokens, including the one that stopped the text
    logprobs: log-probability of each, if the settings ask for them
    reason: cause of the end: ``length``, ``token`` or ``text`` (a stop string)
    text: new text before any stop token or string, if there is a decoder
    score: of beam search
    """

    ids: list[int]
    logprobs: list[float] | None
    reason: str
    text: str | None = None
    score: float | None = None


class Generation:
    """One run over a batch of prompts. Iterate over it for its steps, or call ``finish``.

    Tokens stay on the device. On a CPU the host reads results at every step, which costs nothing there. On other
    devices it synchronises at every 16th step, to check whether all rows have stopped and the logits are finite, at
    each step if a decoder needs the tokens, and once in each round of speculation.

    draft_counts: numbers of drafted and kept tokens, with ``speculative`` and ``lookup``
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Tensor,
        settings: GenerationConfig,
        *,
        padding: Tensor | None = None,
        draft: LanguageModel | None = None,
        decode_stream: Callable[[], StreamDecoder] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Check the settings and allocate the token buffer.

        ids: (B, T) prompts; padding: (B,) number of leading columns that are padding
        draft: smaller model for ``speculative``
        decode_stream: creates a decoder of ids to text, for ``Step.texts`` and stop strings
        numbers: index of each prompt among all prompts, if this is one batch of many; selects its random numbers

        Raises:
            ConfigError: settings cannot work or need more memory than available, a prompt is empty, an id is outside
                the vocabulary, or a text exceeds the context and positional encoding or settings do not allow it.
        """
        check_models(model=model, draft=draft)
        vocab_size = model.config.vocab_size
        settings = settings.checked(vocab_size)
        check_prompt(ids, padding, vocab_size)
        self.model, self.settings, self.draft = model, settings, draft
        self._decode_stream = decode_stream
        self._check()
        self.prompts = len(ids)
        self._numbers = range(self.prompts) if numbers is None else numbers
        check_memory(model, ids, settings, draft)
        self.text = TokenBuffer(ids, settings.max_new_tokens, padding)
        self.stops = StoppingState(settings.stop_tokens, self.prompts * settings.num_return_sequences, ids.device)
        self.draft_counts = DraftCounts()
        self._sampler = Sampler(settings, vocab_size, ids.device)
        self._runners = self._make_runners()
        self._logprobs: list[Tensor] = []
        self._prompt_cache: PromptCache | None = None
        self._steps = self._run()

    def _check(self) -> None:
        strategy, draft = self.settings.strategy, self.draft
        if strategy == "speculative" and draft is None:
            raise ConfigError(
                "strategy=speculative needs a draft model: a smaller one with the same tokenizer; "
                "without one use strategy=lookup"
            )
        if strategy != "speculative" and draft is not None:
            raise ConfigError(f"strategy={strategy} has no use for a draft model; use strategy=speculative")
        if draft is not None and draft.config.vocab_size != self.model.config.vocab_size:
            raise ConfigError(
                f"the draft model has {draft.config.vocab_size} tokens and the model {self.model.config.vocab_size}; "
                "both must have the same tokenizer"
            )
        if self.settings.stop and self._decode_stream is None:
            raise ConfigError("stop strings need a tokenizer that decodes the text; without one use stop_tokens")

    def reuse(self, kept: PromptCache) -> None:
        """Continue from the cache in ``kept``, and return it at the end; called before the first step.

        Only the tokens that the cache lacks are read. The draft model of ``speculative`` reads its full text.

        Raises:
            ConfigError: there are several texts, padding, or a strategy that needs several rows of a cache.
        """
        settings = self.settings
        rows = self.prompts * settings.num_return_sequences
        if settings.strategy in SEARCHES or rows > 1 or self.text.padding is not None:
            raise ConfigError(
                f"a cache is kept for one text without padding, and strategy={settings.strategy} with {self.prompts}"
                f" prompts and num_return_sequences={settings.num_return_sequences} needs more; use a single text"
            )
        self._prompt_cache = kept

    def _make_runners(self) -> list[ModelRunner]:
        """The runner of the model, and that of the draft model if there is one."""
        strategy = self.settings.strategy
        max_tokens = self.text.length + self.settings.max_new_tokens
        if strategy != "contrastive":
            max_tokens -= self.settings.max_new_tokens > 0  # the last token is never read
        step = compiled_step() if self.settings.compile else None
        text = self.text.clone() if strategy in SEARCHES else self.text  # searches also read tokens that they discard
        runners = [ModelRunner(self.model, text, max_tokens, self.settings.overflow, step)]
        if self.draft is not None:
            overflow = "slide" if self.draft.slides else "window"
            runners.append(ModelRunner(self.draft, self.text, max_tokens, overflow))
        return runners

    def __iter__(self) -> Iterator[Step]:
        """The remaining steps. A loop over them may be left and continued later."""
        if self.settings.strategy == "beam":
            raise ConfigError("strategy=beam knows its texts at the end only; it cannot be streamed")
        return self._steps

    @torch.no_grad()
    def _run(self) -> Iterator[Step]:
        settings, text, stops = self.settings, self.text, self.stops
        if settings.max_new_tokens == 0:
            return
        if self._decode_stream is not None:
            stops.transcripts = [
                self._transcript(prompt) for prompt in range(self.prompts) for _ in range(settings.num_return_sequences)
            ]
        with evaluating(self.model, self.draft), self._keeping():
            strategy = self._start()
            while (max_tokens := settings.max_new_tokens - text.generated.shape[1]) > 0:
                tokens, logits = strategy.advance(max_tokens, stops.stopped)
                for index, token in enumerate(tokens.unbind(1)):
                    yield self._append(token, logits[:, index], last=index + 1 == max_tokens)
                if stops.all():
                    return

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Context manager: use the cache of ``reuse``, and return it at the end unless a step fails."""
        if self._prompt_cache is not None:
            self._runners[0].reuse(self._prompt_cache)
        try:
            yield
        except GeneratorExit:  # left between two steps
            if self._prompt_cache is not None:
                self._runners[0].keep(self._prompt_cache)
            raise
        if self._prompt_cache is not None:
            self._runners[0].keep(self._prompt_cache)

    def _append(self, token: Tensor, logits: Tensor, last: bool) -> Step:
        """Add a token (B,) to the text; logits (B, V): of the model, unfiltered; last: no more tokens follow."""
        token = torch.where(self.stops.stopped, self.text.ids[:, -1], token)
        self.text.append(token[:, None])
        texts = self.stops.update(token, last)
        logprobs = None
        if self.settings.logprobs:
            logprobs = logits.float().log_softmax(-1).gather(1, token[:, None])[:, 0]
            self._logprobs.append(logprobs)
        return Step(token, logprobs, self.stops.stopped, texts)

    def _transcript(self, prompt: int) -> StopStringStreamer:
        assert self._decode_stream is not None
        start = 0 if self.text.padding is None else int(self.text.padding[prompt])
        ids = self.text.ids[prompt, start : self.text.prompt_length].tolist()
        return StopStringStreamer(self._decode_stream(), self.settings.stop, ids)

    def _start(self) -> Strategy:
        """Create the strategy. Several texts of a prompt share one pass over it."""
        settings, runners, sampler = self.settings, self._runners, self._sampler
        if settings.strategy == "contrastive":
            candidates, alpha = settings.contrastive_candidates, settings.contrastive_alpha
            return ContrastiveSearch(runners[0], self.text, sampler, candidates, alpha)
        if settings.num_return_sequences > 1 or settings.strategy != "sample":
            for runner in runners:
                runner.prefill()
                runner.cache.expand(settings.num_return_sequences)
            self.text.expand(settings.num_return_sequences)
        seed = 0 if settings.greedy else settings.seed  # nothing is drawn: leave the global generator alone
        generators = RowGenerators(seed, self._numbers, settings.num_return_sequences, self.text.ids.device)
        if settings.strategy == "sample":
            return Sampling(runners[0], sampler, generators)
        drafter: Drafter = LookupDrafter(self.text, settings.prompt_lookup_ngram)
        if self.draft is not None:
            drafter = ModelDrafter(runners[1], sampler, generators)
        return SpeculativeDecoding(runners[0], drafter, sampler, generators, settings.draft_tokens, self.draft_counts)

    def finish(self) -> list[list[Continuation]]:
        """Run to the end. Returns the continuations of each prompt."""
        if self.settings.strategy == "beam":
            return self._search()
        for _ in self._steps:
            pass
        count = self.settings.num_return_sequences
        texts = self.continuations(range(self.prompts * count))
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def continuations(self, rows: Sequence[int]) -> list[Continuation]:
        """The texts generated so far in some rows; row ``p * num_return_sequences + s`` is text s of prompt p.

        Not for beam search, whose texts exist at the end only.
        """
        stops, selected = self.stops, torch.tensor(list(rows), dtype=torch.long, device=self.text.ids.device)
        lengths, by_token, stopped = (
            per_row[selected].tolist() for per_row in (stops.lengths, stops.by_token, stops.stopped)
        )
        started = self.text.length > self.text.prompt_length
        ids = self.text.generated[selected].tolist() if started else [[]] * len(rows)
        logprobs = torch.stack(self._logprobs, dim=1)[selected].tolist() if self._logprobs else None
        texts = []
        for index, row in enumerate(rows):
            length = lengths[index]
            reason = "token" if by_token[index] else "text" if stopped[index] else "length"
            text = stops.transcripts[row].text if stops.transcripts else None
            texts.append(Continuation(ids[index][:length], logprobs and logprobs[index][:length], reason, text))
        return texts

    @torch.no_grad()
    def _search(self) -> list[list[Continuation]]:
        with evaluating(self.model):
            pool = BeamSearch(self._runners[0], self._sampler, self.settings).search()
        return [self._best(prompt, pool) for prompt in range(self.prompts)]

    def _best(self, prompt: int, pool: Pool) -> list[Continuation]:
        """The best ``num_return_sequences`` texts of a prompt, or all if there are fewer."""
        best = []
        for ids, score, per_token in pool.texts(prompt)[: self.settings.num_return_sequences]:
            reason = "token" if ids and ids[-1] in self.settings.stop_tokens else "length"
            text = None
            if self._decode_stream is not None:
                transcript = self._transcript(prompt)
                for id in ids[:-1] if reason == "token" else ids:
                    transcript.push(id)
                transcript.finish()
                text = transcript.text
            best.append(Continuation(ids, per_token if self.settings.logprobs else None, reason, text, score))
        return best

    def cache_bytes(self) -> int:
        """Bytes of the allocated caches of all runners."""
        return sum(runner.cache.nbytes() for runner in self._runners)


# By a model's id: the number of runs that use it now, and its mode before the first of them. It is global, since runs
# do not know of each other: when the first one ends, the model must stay in evaluation mode for the others.
_in_use: dict[int, tuple[int, bool]] = {}
_lock = Lock()


@contextmanager
def evaluating(*models: LanguageModel | None) -> Iterator[None]:
    """Context manager: the models are in evaluation mode; the last run that uses a model restores its mode."""
    used = [model for model in models if model is not None]  # a reference, so that no other model gets the same id
    for model in used:
        with _lock:
            count, mode = _in_use.get(id(model), (0, model.training))
            _in_use[id(model)] = (count + 1, mode)
            model.train(False)
    try:
        yield
    finally:
        for model in used:
            with _lock:
                count, mode = _in_use.pop(id(model))
                if count > 1:
                    _in_use[id(model)] = (count - 1, mode)
                else:
                    model.train(mode)
