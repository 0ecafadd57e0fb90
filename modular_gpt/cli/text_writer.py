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
INTERRUPTED = "interrupted"  # why a text ended, besides the reasons of generation
MEMORY_SHARE = 4  # one part in so many of the free memory may hold the caches and logits of a batch
LARGEST_BATCH = 64  # prompts; larger batches are hardly faster and show the first text later
COPIES = 6  # tensors of the size of the logits that choosing a token holds at once


class Written(NamedTuple):
    """A complete text: the index of its prompt, its number among the texts of that prompt, and the text."""

    prompt: int
    sample: int
    text: Continuation


@dataclass
class Throughput:
    """Totals of all texts: new tokens, seconds, and bytes of the largest cache."""

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
    """Continues texts with one model and measures the throughput; ``draft`` is for strategy=speculative.

    chat: makes each prompt a message of the user, which the model answers; None: prompts are continued
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
        """The ids of a prompt, as ``Tokenizer.prompt_ids`` gives them, or of a conversation that the prompt begins.

        Raises:
            DataError: a character is not in the vocabulary.
            ConfigError: it is empty and the tokenizer has no token to begin with.
        """
        if self.chat is not None:
            return self.chat.prompt_ids(prompt)
        return self.tokenizer.prompt_ids(prompt, self.special)

    def reads(self, prompt: str) -> bool:
        """Whether the tokenizer knows all characters of a prompt."""
        with suppress(DataError):
            return bool(self.encode(prompt))
        return False

    def write(self, prompt: Sequence[int], settings: GenerationConfig, show: Show) -> Continuation:
        """Continue one prompt; Ctrl-C ends the text early.

        show: called with "" when the model begins, then with new text as soon as it is final

        Raises:
            ConfigError: settings that do not fit the model or the prompt.
            NonFiniteError: the model's logits are NaN or infinite.
        """
        return self.follow(self._generation([prompt], settings), show)

    def follow(self, run: Generation, show: Show) -> Continuation:
        """Show the text of a run of one prompt as it arrives; Ctrl-C ends it early.

        Raises:
            NonFiniteError: the model's logits are NaN or infinite.
        """
        show("")
        begun = time.perf_counter()
        try:
            text = self._shown(run, show)
        except NonFiniteError:
            show("\n")
            raise
        self._count(run, time.perf_counter() - begun, [text])
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

        A text depends on the seed and on the index of its prompt, not on its batch. Ctrl-C ends the texts of the batch
        early, which are yielded as far as they have come; no further batch begins.

        batch_size: prompts at once; None: as many as memory allows, at most 64

        Raises:
            ConfigError: settings that do not fit the model or the prompts.
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
        begun = time.perf_counter()
        for ended in self._ended(run):
            self._count(run, time.perf_counter() - begun, [text for _, _, text in ended])
            for row, sample, text in sorted(ended, key=lambda row: (batch[row[0]], row[1])):
                yield Written(batch[row], sample, text)
            begun = time.perf_counter()  # the time to print is not the model's

    def _ended(self, run: Generation) -> Iterator[list[tuple[int, int, Continuation]]]:
        """After each step, the texts that it has completed, as (row of the prompt, number of the text, text)."""
        if run.settings.strategy == "beam":
            yield [(row, place, text) for row, texts in enumerate(run.finish()) for place, text in enumerate(texts)]
            return
        count = run.settings.num_return_sequences
        growing = set(range(run.prompts * count))
        steps = cast(Generator[Step, None, None], iter(run))
        with suppress(StopIteration):
            while growing:
                try:
                    stopped = next(steps).stopped.tolist()
                except KeyboardInterrupt:
                    steps.close()
                    self.interrupted = True
                    break
                rows = sorted(row for row in growing if stopped[row])
                growing.difference_update(rows)
                yield [(*divmod(row, count), text) for row, text in zip(rows, run.continuations(rows), strict=True)]
        rows = sorted(growing)
        rest = run.continuations(rows)
        for text in rest:
            text.reason = INTERRUPTED if self.interrupted and text.reason == "length" else text.reason
        yield [(*divmod(row, count), text) for row, text in zip(rows, rest, strict=True)]

    def batch_that_fits(self, tokens: int, settings: GenerationConfig) -> int:
        """Number of prompts, of up to ``tokens`` tokens with their texts, whose caches and logits fit into memory."""
        available = memory.available_bytes(self.device)
        if available is None:
            return LARGEST_BATCH
        dtype = self.model.embedding.weight.dtype
        models = [self.model] if self.draft is None else [self.model, self.draft]
        row = sum(model.config.cache_bytes(1, tokens, dtype) for model in models)
        row += COPIES * 4 * self.model.config.vocab_size
        rows = settings.num_beams if settings.strategy == "beam" else settings.num_return_sequences
        rows = settings.contrastive_candidates if settings.strategy == "contrastive" else rows
        return min(max(1, available // MEMORY_SHARE // (row * rows)), LARGEST_BATCH)

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
