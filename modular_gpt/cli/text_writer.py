"""Prompts to texts with one model: encoding, generating, streaming, and the figures at the end."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from modular_gpt.checkpoint.resolve import Loaded
from modular_gpt.core.errors import DataError
from modular_gpt.generation import Continuation, Generation, GenerationConfig, Step, left_pad
from modular_gpt.model import GPTModel

Show = Callable[[str], Any]
INTERRUPTED = "interrupted"  # besides the reasons that generation knows for the end of a text


@dataclass
class Figures:
    """What generating took: new tokens of all texts, seconds, and bytes of the largest cache."""

    tokens: int = 0
    seconds: float = 0.0
    cache_bytes: int = 0

    def __str__(self) -> str:
        speed = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens:,} tokens in {self.seconds:.2f} s: {speed:,.1f} tokens/s, cache {_size(self.cache_bytes)}"


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 2**20 else f"{count / 2**20:,.1f} MiB"


class Writer:
    """Continues texts with one model, and adds up what that takes; ``draft`` is for strategy=speculative."""

    def __init__(self, loaded: Loaded, draft: GPTModel | None = None) -> None:
        self.model, self.tokenizer = loaded
        self.draft = draft
        self.device = self.model.embedding.weight.device
        self.figures = Figures()

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt, as ``Tokenizer.prompt_ids`` gives them.

        Raises:
            DataError: a character is not in the vocabulary.
            ConfigError: it is empty and the tokenizer has no token to begin with.
        """
        return self.tokenizer.prompt_ids(prompt)

    def reads(self, prompt: str) -> bool:
        """Whether the tokenizer knows all characters of a prompt."""
        with suppress(DataError):
            return bool(self.encode(prompt))
        return False

    def write(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, show: Show | None = None
    ) -> list[list[Continuation]]:
        """For each prompt its continuations, which Ctrl-C ends early, with what they have so far.

        show: is given nothing when all is well to begin, then the first text piece by piece as it becomes certain

        Raises:
            ConfigError: settings that do not fit the model or the prompts.
        """
        settings = replace(
            settings,
            stop_tokens=[*settings.stop_tokens, *self.tokenizer.eos_ids],
            suppress_tokens=[*settings.suppress_tokens, *self.tokenizer.unused_ids(self.model.config.vocab_size)],
        )
        ids, padding = left_pad(prompts, self.device)
        run = Generation(
            self.model, ids, settings, padding=padding, draft=self.draft, decode_stream=self.tokenizer.decode_stream
        )
        if show is not None:
            show("")
        begun = time.perf_counter()
        interrupted = settings.strategy != "beam" and _follow(run, show)
        found = run.finish()
        if settings.strategy == "beam" and show is not None:
            show(found[0][0].text or "")
        texts = [text for each in found for text in each]
        self.figures.seconds += time.perf_counter() - begun
        self.figures.tokens += sum(len(text.ids) for text in texts)
        self.figures.cache_bytes = max(self.figures.cache_bytes, run.cache_bytes())
        if interrupted:
            for text in texts:
                text.reason = INTERRUPTED if text.reason == "length" else text.reason
        return found


def _follow(run: Generation, show: Show | None) -> bool:
    """Generate to the end -> False, or until Ctrl-C -> True."""
    steps = cast(Generator[Step, None, None], iter(run))
    try:
        for step in steps:
            if show is not None:
                show(step.pieces[0])
    except KeyboardInterrupt:
        steps.close()
        return True
    return False
