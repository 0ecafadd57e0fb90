"""The loop of all strategies: advance, append, hand out, until everything has stopped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.compiled import compiled_step
from modular_gpt.generation.config import GenerationConfig
from modular_gpt.generation.protocol import LanguageModel
from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import RowGenerators, TokenBuffer, check_prompt
from modular_gpt.generation.stopping import StoppingState, StopStringStreamer, StreamDecoder
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


@dataclass
class Step:
    """One new token of every row.

    tokens: (B,); a row that has stopped repeats its last token
    log_probabilities: (B,) of the tokens by the model itself, where they were asked for
    stopped: (B,) whether the row is complete, with this token or before
    pieces: the text of each row that became certain, where a decoder was given
    """

    tokens: Tensor
    log_probabilities: Tensor | None
    stopped: Tensor
    pieces: list[str]


@dataclass
class Continuation:
    """What followed a prompt.

    ids: new tokens, with the one that stopped the text; log_probabilities: one for each, where asked for
    reason: ``length``, ``token`` or ``text``: what ended it
    text: the new text before any stop token or string, where a decoder was given
    score: of beam search
    """

    ids: list[int]
    log_probabilities: list[float] | None
    reason: str
    text: str | None = None
    score: float | None = None


class Generation:
    """One run over a batch of prompts. Iterate over it for its steps, or let ``finish`` do so.

    Tokens stay on the device. The host waits for it only to see whether all rows have stopped: at every step on a CPU,
    where that is free, and at every 16th elsewhere; never where nothing is to stop at. A decoder for text reads
    every token on the host, speculation waits once per round.

    draft_counts: how many drafted tokens were kept, with ``speculative`` and ``lookup``
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
    ) -> None:
        """ids: (B, T) prompts; padding: (B,) leading columns that are no text; draft: model for ``speculative``;
        decode_stream: makes a decoder of ids to text, for pieces of text and stop strings

        Raises:
            ConfigError: settings that cannot work, an empty prompt, ids outside the vocabulary, or a text longer than
                the context where positions or settings do not allow it.
        """
        vocab_size = model.config.vocab_size
        settings.check(vocab_size)
        check_prompt(ids, padding, vocab_size)
        self.model, self.settings, self.draft = model, settings, draft
        self._decode_stream = decode_stream
        self._check()
        self.prompts = len(ids)
        self.text = TokenBuffer(ids, settings.max_new_tokens, padding)
        self.stops = StoppingState(settings.stop_tokens, self.prompts * settings.samples, ids.device)
        self.draft_counts = DraftCounts()
        self._sampler = Sampler(settings, vocab_size, ids.device)
        self._readers = self._make_readers()
        self._scores: list[Tensor] = []
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

    def _make_readers(self) -> list[ModelRunner]:
        """The model's decoder, and the draft model's."""
        strategy = self.settings.strategy
        max_tokens = self.text.length + self.settings.max_new_tokens
        if strategy != "contrastive":
            max_tokens -= self.settings.max_new_tokens > 0  # the last token is never read
        searches = strategy in ("beam", "contrastive")  # they read more than becomes text
        step = compiled_step() if self.settings.compile else None
        text = self.text.clone() if searches else self.text
        readers = [ModelRunner(self.model, text, max_tokens, self.settings.overflow, step)]
        if self.draft is not None:
            overflow = "slide" if self.draft.slides else "window"
            readers.append(ModelRunner(self.draft, self.text, max_tokens, overflow))
        return readers

    def __iter__(self) -> Iterator[Step]:
        """The steps that are still to come; leaving a loop over them and going on later is fine."""
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
                self._transcript(prompt) for prompt in range(self.prompts) for _ in range(settings.samples)
            ]
        with evaluating(self.model, self.draft):
            strategy = self._start()
            while (max_tokens := settings.max_new_tokens - text.generated.shape[1]) > 0:
                tokens, logits = strategy.advance(max_tokens, stops.stopped)
                for index, token in enumerate(tokens.unbind(1)):
                    token = torch.where(stops.stopped, text.ids[:, -1], token)
                    text.append(token[:, None])
                    pieces = stops.update(token, last=index + 1 == max_tokens)
                    scores = None
                    if settings.log_probabilities:
                        scores = logits[:, index].float().log_softmax(-1).gather(1, token[:, None])[:, 0]
                        self._scores.append(scores)
                    yield Step(token, scores, stops.stopped, pieces)
                if stops.all():
                    return

    def _transcript(self, prompt: int) -> StopStringStreamer:
        assert self._decode_stream is not None
        start = 0 if self.text.padding is None else int(self.text.padding[prompt])
        ids = self.text.ids[prompt, start : self.text.prompt_length].tolist()
        return StopStringStreamer(self._decode_stream(), self.settings.stop, ids)

    def _start(self) -> Strategy:
        """Make the strategy; several samples of a prompt share one reading of it."""
        settings, readers, sampler = self.settings, self._readers, self._sampler
        if settings.strategy == "contrastive":
            candidates, alpha = settings.contrastive_candidates, settings.contrastive_alpha
            return ContrastiveSearch(readers[0], self.text, sampler, candidates, alpha)
        if settings.samples > 1 or settings.strategy != "sample":
            for reader in readers:
                reader.prefill()
                reader.cache.expand(settings.samples)
            self.text.expand(settings.samples)
        seed = 0 if settings.greedy else settings.seed  # nothing is drawn: leave the global generator alone
        noise = RowGenerators(seed, self.prompts, settings.samples, self.text.ids.device)
        if settings.strategy == "sample":
            return Sampling(readers[0], sampler, noise)
        drafter: Drafter = LookupDrafter(self.text, settings.lookup_ngram)
        if self.draft is not None:
            drafter = ModelDrafter(readers[1], sampler, noise)
        return SpeculativeDecoding(readers[0], drafter, sampler, noise, settings.draft_tokens, self.draft_counts)

    def finish(self) -> list[list[Continuation]]:
        """Run to the end; for each prompt its continuations."""
        return self._search() if self.settings.strategy == "beam" else self._collect()

    def _collect(self) -> list[list[Continuation]]:
        for _ in self._steps:
            pass
        stops, samples = self.stops, self.settings.samples
        lengths, by_token, stopped = stops.lengths.tolist(), stops.by_token.tolist(), stops.stopped.tolist()
        ids = self.text.generated.tolist() if self.settings.max_new_tokens else [[]] * len(lengths)
        scores = torch.stack(self._scores, dim=1).tolist() if self._scores else None
        found = []
        for row, length in enumerate(lengths):
            reason = "token" if by_token[row] else "text" if stopped[row] else "length"
            text = stops.transcripts[row].text if stops.transcripts else None
            found.append(Continuation(ids[row][:length], scores and scores[row][:length], reason, text))
        return [found[i : i + samples] for i in range(0, len(found), samples)]

    @torch.no_grad()
    def _search(self) -> list[list[Continuation]]:
        with evaluating(self.model):
            pool = BeamSearch(self._readers[0], self._sampler, self.settings).search()
        return [self._best(prompt, pool) for prompt in range(self.prompts)]

    def _best(self, prompt: int, pool: Pool) -> list[Continuation]:
        """The best texts of a prompt; fewer than asked for where fewer texts exist."""
        found = []
        for ids, score, per_token in pool.texts(prompt)[: self.settings.samples]:
            reason = "token" if ids and ids[-1] in self.settings.stop_tokens else "length"
            text = None
            if self._decode_stream is not None:
                transcript = self._transcript(prompt)
                for id in ids[:-1] if reason == "token" else ids:
                    transcript.push(id)
                transcript.finish()
                text = transcript.text
            scores = per_token if self.settings.log_probabilities else None
            found.append(Continuation(ids, scores, reason, text, score))
        return found

    def cache_bytes(self) -> int:
        """Bytes of all caches really allocated."""
        return sum(reader.cache.nbytes() for reader in self._readers)


@contextmanager
def evaluating(*models: LanguageModel | None) -> Iterator[None]:
    """Dropout off inside, and as it was after."""
    were = [(model, model.training) for model in models if model is not None]
    for model, _ in were:
        model.train(False)
    try:
        yield
    finally:
        for model, was in were:
            model.train(was)
