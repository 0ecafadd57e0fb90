"""Prompts to texts with one model: encoding, generating in batches, streaming, and the throughput at the end."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

from modular_gpt.chat import Chat
from modular_gpt.checkpoint.resolve import Loaded
from modular_gpt.core import memory
from modular_gpt.core.errors import DataError, NonFiniteError
from modular_gpt.generation import Continuation, Generation, GenerationConfig, Step, left_pad
from modular_gpt.model import GPTModel

Show = Callable[[str], object]
INTERRUPTED = "interrupted"  # the reason for which Ctrl-C ended a text, besides the reasons of generation
MEMORY_SHARE = 4  # the caches and logits of a batch take at most 1 / MEMORY_SHARE of the available memory
LARGEST_BATCH = 64  # prompts; larger batches are hardly faster and show the first text later
COPIES = 6  # number of tensors of the size of the logits that are held at once while a token is chosen


class Written(NamedTuple):
    """A complete text: the index of its prompt, its number among the texts of that prompt, and the text."""

    prompt: int
    sample: int
    text: Continuation


@dataclass
class Throughput:
    """Totals over all texts: generated tokens, seconds, and bytes of the largest cache."""

    tokens: int = 0
    seconds: float = 0.0
    cache_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens in {self.seconds:.2f} s: {self.rate}, cache {_size(self.cache_bytes)}"

    @property
    def rate(self) -> str:
        return f"{self.tokens / self.seconds if self.seconds else 0.0:,.1f} tokens/s"


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 2**20 else f"{count / 2**20:,.1f} MiB"


class Writer:
    """Generates texts with one model and measures the throughput.

    draft: the smaller model of strategy=speculative
    chat: renders each prompt as a message of the user, which the model answers; None: prompts are continued
    special: encode special tokens that prompts spell as such
    interrupted: whether Ctrl-C ended the last texts early
    """

    def __init__(
        self, loaded: Loaded, draft: GPTModel | None = None, chat: Chat | None = None, special: bool = False
    ) -> None:
        self.model, self.tokenizer = loaded
        self.draft, self.chat, self.special = draft, chat, special
        self.device = self.model.embedding.weight.device
        self.throughput = Throughput()
        self.interrupted = False

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt (``Tokenizer.prompt_ids``), or of a conversation whose first message it is.

        Raises:
            DataError: a character is not in the vocabulary.
            ConfigError: the prompt is empty, and the tokenizer has no token that begins or ends a text.
        """
        if self.chat is not None:
            return self.chat.prompt_ids(prompt)
        return self.tokenizer.prompt_ids(prompt, self.special)

    def can_encode(self, prompt: str) -> bool:
        """Whether the tokenizer has all characters of a prompt."""
        with suppress(DataError):
            return bool(self.encode(prompt))
        return False

    def write(self, prompt: Sequence[int], settings: GenerationConfig, show: Show) -> Continuation:
        """Continue one prompt; Ctrl-C ends the text early.

        show: called with "" before the first step of the model, then with each new stretch of text that is final

        Raises:
            ConfigError: the settings do not fit the model or the prompt.
            NonFiniteError: the model's logits are NaN or infinite.
        """
        return self.follow(self._generation([prompt], settings), show)

    def follow(self, run: Generation, show: Show) -> Continuation:
        """Generate the text of one prompt and show it as it arrives; Ctrl-C ends it early.

        Raises:
            NonFiniteError: the model's logits are NaN or infinite.
        """
        show("")
        start = time.perf_counter()
        try:
            text = self._shown(run, show)
        except NonFiniteError:
            show("\n")
            raise
        self._count(run, time.perf_counter() - start, [text])
        return text

    def _shown(self, run: Generation, show: Show) -> Continuation:
        self.interrupted = False
        if run.settings.strategy == "beam":
            text = run.finish()[0][0]
            show(text.text or "")
            return text
        steps = cast(Generator[Step, None, None], iter(run))
        try:
            for step in steps:
                show(step.texts[0])
        except KeyboardInterrupt:
            steps.close()
            self.interrupted = True
        text = run.continuations([0])[0]
        text.reason = INTERRUPTED if self.interrupted and text.reason == "length" else text.reason
        return text

    def write_all(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, batch_size: int | None = None
    ) -> Iterator[Written]:
        """Continue many prompts, the longest first, and yield each text as soon as it is complete.

        A text depends on the seed and on the index of its prompt, not on its batch. Ctrl-C ends the texts of the
        current batch, whose beginnings are yielded; no further batch begins.

        batch_size: number of prompts in a batch; None: as many as memory allows, at most 64

        Raises:
            ConfigError: the settings do not fit the model or the prompts.
            NonFiniteError: the model's logits are NaN or infinite.
        """
        self.interrupted = False
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        while order and not self.interrupted:
            longest = len(prompts[order[0]]) + settings.max_new_tokens
            count = batch_size or self.batch_that_fits(longest, settings)
            batch, order = order[:count], order[count:]
            run = self._generation([prompts[index] for index in batch], settings, batch)
            yield from self._write_batch(run, batch)

    def _write_batch(self, run: Generation, batch: Sequence[int]) -> Iterator[Written]:
        """Yield the complete texts of a batch; ``batch``: the index of each of its prompts."""
        start = time.perf_counter()
        for completed in self._completed(run):
            self._count(run, time.perf_counter() - start, [text for _, _, text in completed])
            for row, sample, text in sorted(completed, key=lambda item: (batch[item[0]], item[1])):
                yield Written(batch[row], sample, text)
            start = time.perf_counter()  # printing does not count

    def _completed(self, run: Generation) -> Iterator[list[tuple[int, int, Continuation]]]:
        """Yield, after each step, the texts that are complete, as (row of the prompt, number of the text, text)."""
        if run.settings.strategy == "beam":
            yield [(row, number, text) for row, texts in enumerate(run.finish()) for number, text in enumerate(texts)]
            return
        count = run.settings.num_return_sequences
        incomplete = set(range(run.prompts * count))
        steps = cast(Generator[Step, None, None], iter(run))
        with suppress(StopIteration):
            while incomplete:
                try:
                    stopped = next(steps).stopped.tolist()
                except KeyboardInterrupt:
                    steps.close()
                    self.interrupted = True
                    break
                rows = sorted(row for row in incomplete if stopped[row])
                incomplete.difference_update(rows)
                yield [(*divmod(row, count), text) for row, text in zip(rows, run.continuations(rows), strict=True)]
        rows = sorted(incomplete)
        remaining = run.continuations(rows)
        for text in remaining:
            text.reason = INTERRUPTED if self.interrupted and text.reason == "length" else text.reason
        yield [(*divmod(row, count), text) for row, text in zip(rows, remaining, strict=True)]

    def batch_that_fits(self, tokens: int, settings: GenerationConfig) -> int:
        """The number of prompts whose caches and logits fit into memory, at most ``LARGEST_BATCH``.

        tokens: largest length of a prompt with its text
        """
        available = memory.available_bytes(self.device)
        if available is None:
            return LARGEST_BATCH
        dtype = self.model.embedding.weight.dtype
        models = [self.model] if self.draft is None else [self.model, self.draft]
        row_bytes = sum(model.config.cache_bytes(1, tokens, dtype) for model in models)
        row_bytes += COPIES * 4 * self.model.config.vocab_size
        rows = settings.num_beams if settings.strategy == "beam" else settings.num_return_sequences
        rows = settings.contrastive_candidates if settings.strategy == "contrastive" else rows
        return min(max(1, available // MEMORY_SHARE // (row_bytes * rows)), LARGEST_BATCH)

    def _generation(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, numbers: Sequence[int] | None = None
    ) -> Generation:
        ids, padding = left_pad(prompts, self.device)
        unused = self.tokenizer.unused_ids(self.model.config.vocab_size)
        settings = replace(
            settings,
            stop_tokens=[*settings.stop_tokens, *self.tokenizer.eos_ids],
            suppress_tokens=[*settings.suppress_tokens, *unused],
        )
        return Generation(
            self.model,
            ids,
            settings if self.chat is None else self.chat.format.with_stops(settings),
            padding=padding,
            draft=self.draft,
            decode_stream=self.tokenizer.decode_stream,
            numbers=numbers,
        )

    def _count(self, run: Generation, seconds: float, texts: Sequence[Continuation]) -> None:
        self.throughput.seconds += seconds
        self.throughput.tokens += sum(len(text.ids) for text in texts)
        self.throughput.cache_bytes = max(self.throughput.cache_bytes, run.cache_bytes())
