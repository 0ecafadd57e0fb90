"""Prompts to texts: encoding, generating, streaming, and the figures at the end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from modular_gpt.cli._sources import Loaded
from modular_gpt.core.cache import ModelCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.generation import GenerationSettings, left_pad, steps
from modular_gpt.model import GPTModel

Show = Callable[[str], Any]


@dataclass
class Text:
    """A continuation: its text, its token ids, and why there are no more (end, length or interrupted)."""

    text: str
    ids: list[int]
    stopped: str


@dataclass
class Figures:
    """What generating took: new tokens of all texts, seconds, and bytes of the largest cache in use."""

    tokens: int = 0
    seconds: float = 0.0
    cache_bytes: int = 0

    def __str__(self) -> str:
        speed = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens:,} tokens in {self.seconds:.2f} s: {speed:,.1f} tokens/s, cache {size(self.cache_bytes)}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count:,} bytes" if count < 2**20 else f"{count / 2**20:,.1f} MiB"


class Writer:
    """Continues texts with one model, and adds up what that takes."""

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.tokenizer = loaded
        self.device = next(self.model.parameters()).device
        self.figures = Figures()

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt; an empty one is the token that stands between documents.

        Raises:
            DataError: a character is not in the vocabulary.
            ConfigError: it is empty and the tokenizer has no such token.
        """
        ids = self.tokenizer.encode(prompt)
        if ids:
            return ids
        if self.tokenizer.eos_id is None:
            raise ConfigError(f"the prompt is empty, and a {self.tokenizer.name} tokenizer has no token to begin with")
        return [self.tokenizer.eos_id]

    def write(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, show: Show | None = None
    ) -> list[Text]:
        """The continuations, ``settings.samples`` of each prompt in turn; ``show`` is given the first one as it grows.

        Ctrl-C ends them early, with what they have so far.
        """
        end = self.tokenizer.eos_id
        settings = replace(settings, stop_tokens=[] if end is None else [end])
        ids, padding = left_pad(prompts, self.device)
        growing = [_Growing(self.tokenizer, end) for _ in range(len(prompts) * settings.samples)]
        model = _Watched(self.model)
        begun = time.perf_counter()
        interrupted = False
        try:
            for step in steps(model, ids, settings, padding=padding):
                for row, token in enumerate(step.tokens.tolist()):
                    new = growing[row].push(token)
                    if row == 0 and show is not None:
                        show(new)
        except KeyboardInterrupt:
            interrupted = True
        self.figures.seconds += time.perf_counter() - begun
        self.figures.cache_bytes = max(self.figures.cache_bytes, model.cache_bytes())
        for row, text in enumerate(growing):
            rest = text.finish(interrupted)
            if row == 0 and show is not None:
                show(rest)
            self.figures.tokens += len(text.ids)
        return [Text(each.text, each.ids, each.stopped) for each in growing]


class _Growing:
    """One continuation, token by token."""

    def __init__(self, tokenizer: Tokenizer, end: int | None) -> None:
        self.decoder, self.end = tokenizer.decode_stream(), end
        self.text, self.stopped = "", ""
        self.ids: list[int] = []

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        if self.stopped:
            return ""
        self.ids.append(token)
        if token == self.end:
            self.stopped = "end"
            return self._add(self.decoder.flush())
        return self._add(self.decoder.push(token))

    def finish(self, interrupted: bool) -> str:
        """What is left when no more tokens come."""
        if self.stopped:
            return ""
        self.stopped = "interrupted" if interrupted else "length"
        return self._add(self.decoder.flush())

    def _add(self, new: str) -> str:
        self.text += new
        return new


class _Watched:
    """A model that remembers the cache it made, to say how large it was."""

    def __init__(self, model: GPTModel) -> None:
        self._model = model
        self._cache: ModelCache | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **keywords: Any) -> Tensor:
        return self._model(*args, **keywords)

    def new_cache(self, *args: Any, **keywords: Any) -> ModelCache:
        self._cache = self._model.new_cache(*args, **keywords)
        return self._cache

    def cache_bytes(self) -> int:
        return 0 if self._cache is None else self._cache.nbytes()
