"""Token ids of growing texts, the random numbers of their rows, and checks of prompts."""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError

_EMPTY = "the prompt is empty: give at least one token, such as the one between documents"
_BLOCK = 256  # uniform numbers drawn at once for every row


class TokenBuffer:
    """Token ids of B rows in one preallocated tensor; shorter prompts are padded on the left.

    ids: (B, columns so far); padding: (B,) number of leading padding columns, or None; prompt_length: in columns
    """

    def __init__(self, prompt: Tensor, max_new: int, padding: Tensor | None = None) -> None:
        """prompt: (B, T) ids; max_new: largest number of columns to append"""
        batch, self.length = prompt.shape
        self.prompt_length = self.length
        self.padding = padding
        self._ids = prompt.new_zeros(batch, self.length + max_new)
        self._ids[:, : self.length] = prompt

    @property
    def ids(self) -> Tensor:
        return self._ids[:, : self.length]

    @property
    def generated(self) -> Tensor:
        """The generated ids, (B, columns since the prompt)."""
        return self._ids[:, self.prompt_length : self.length]

    def append(self, tokens: Tensor) -> None:
        """Append the ids (B, n)."""
        end = self.length + tokens.shape[1]
        self._ids[:, self.length : end] = tokens
        self.length = end

    def truncate(self, length: int) -> None:
        """Remove the columns from ``length`` on."""
        self.length = length

    def until(self, length: int) -> "TokenBuffer":
        """A view of the first ``length`` columns."""
        text = copy(self)
        text.length = length
        return text

    def clone(self) -> "TokenBuffer":
        """An independent copy."""
        text = copy(self)
        text._ids = self._ids.clone()
        return text

    def expand(self, n: int) -> None:
        """Repeat each row ``n`` times."""
        self.reorder(torch.arange(len(self._ids), device=self._ids.device).repeat_interleave(n))

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (B',), in that order."""
        self._ids = self._ids.index_select(0, rows)
        self.padding = None if self.padding is None else self.padding.index_select(0, rows)


class RowGenerators:
    """Draws one uniform number per row and step; the stream of text t of prompt p depends on (seed, p, t) alone."""

    def __init__(self, seed: int | None, prompts: Sequence[int], texts: int, device: torch.device) -> None:
        """
        seed: None: drawn from PyTorch's global generator
        prompts: index of each prompt among all prompts; texts: number of texts per prompt
        """
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self._streams = [np.random.default_rng([seed, prompt, text]) for prompt in prompts for text in range(texts)]
        self._device = device
        self._block = torch.empty(0)
        self._used = 0

    def uniform(self) -> Tensor:
        """Uniform numbers (B,) in [0, 1), in float64, or float32 on mps."""
        if self._used == self._block.shape[0]:
            dtype = np.float32 if self._device.type == "mps" else np.float64
            rows = [stream.random(_BLOCK, dtype=dtype) for stream in self._streams]
            self._block = torch.from_numpy(np.stack(rows, axis=1)).to(self._device)
            self._used = 0
        self._used += 1
        return self._block[self._used - 1]


def as_ids(values: object, name: str = "prompts", device: torch.device | None = None) -> Tensor:
    """Token ids, or other whole numbers, as a tensor on ``device``; a tensor is returned unchanged.

    Raises:
        ConfigError: ``values`` are text, numbers that are not whole, or lists of different lengths.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, str) or (isinstance(values, list | tuple) and any(isinstance(item, str) for item in values)):
        raise ConfigError(
            f"{name} are token ids, got text: encode it with the model's tokenizer, such as [tokenizer.encode(text)]"
        )
    try:
        array = np.asarray(values)
    except ValueError:
        raise ConfigError(
            f"{name} have different lengths: pad them with left_pad, or use modular_gpt.generation.complete"
        ) from None
    if array.size and array.dtype.kind not in "iu":
        raise ConfigError(f"{name} are whole token ids, got {type(values).__name__} of {array.dtype}")
    return torch.from_numpy(array.astype(np.int64)).to(device)


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor | None]:
    """Token lists of any lengths -> ids (B, T), padded with zeros on the left, and the padding (B,) or None."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        if len(prompt):
            row[longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts])
    return ids.to(device), padding.to(device) if bool(padding.any()) else None


def prompt_batch(
    prompts: Sequence[Sequence[int]], start_token: int | None, device: torch.device | None
) -> tuple[Tensor, Tensor | None]:
    """``left_pad`` with every empty prompt replaced by ``start_token``.

    Raises:
        ConfigError: there is no prompt, or an empty one and no start_token.
    """
    if start_token is not None:
        prompts = [prompt if len(prompt) else [start_token] for prompt in prompts]
    if not all(len(prompt) for prompt in prompts) or not prompts:
        raise ConfigError(_EMPTY)
    return left_pad(prompts, device)


def check_prompt(ids: Tensor, padding: Tensor | None, vocab_size: int) -> None:
    """Raise a ConfigError for prompts of a wrong shape or type, empty ones, and ids outside the vocabulary."""
    if ids.ndim != 2:
        raise ConfigError(f"prompts are token ids of shape (batch, tokens), got shape {tuple(ids.shape)}")
    if ids.dtype not in (torch.long, torch.int32):
        raise ConfigError(f"prompts are whole token ids, got {ids.dtype}")
    if padding is not None and padding.dtype not in (torch.long, torch.int32):
        raise ConfigError(f"padding gives whole numbers of columns, got {padding.dtype}")
    if padding is not None and (padding.shape != ids.shape[:1] or bool((padding < 0).any())):
        raise ConfigError(
            f"padding gives the leading columns to ignore of each of {len(ids)} rows, got {padding.tolist()}"
        )
    if ids.shape[0] == 0 or ids.shape[1] == 0 or (padding is not None and bool((padding >= ids.shape[1]).any())):
        raise ConfigError(_EMPTY)
    lowest, highest = ids.aminmax()
    if lowest < 0 or highest >= vocab_size:
        wrong = int(lowest if lowest < 0 else highest)
        raise ConfigError(
            f"the prompt has token {wrong}, but the model's ids run from 0 to {vocab_size - 1}; "
            "encode it with the tokenizer that the model was trained with"
        )
