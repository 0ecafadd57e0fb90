"""Datasets and a DataLoader of windows of tokens, with the names and arguments of other code bases."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from modular_gpt.core.errors import DataError
from modular_gpt.data import SlidingWindowDataset, Tokenizer, build_tokenizer, make_dataloader

END_OF_TEXT = "<|endoftext|>"


class Encoder(Protocol):
    """An object with ``encode``, such as a Tokenizer or an encoding of tiktoken."""

    def encode(self, text: str, /, **settings: Any) -> list[int]: ...


class TextDataset(SlidingWindowDataset):
    """Pairs (input, target) of windows of token ids, (block_size,) each; windows begin ``stride`` tokens apart.

    A text of at most ``block_size`` tokens is one window.

    Raises:
        DataError: there are fewer than two tokens.
    """

    def __init__(self, data: Sequence[int] | Tensor, block_size: int = 128, stride: int = 1) -> None:
        if len(data) < 2:
            raise DataError(f"a TextDataset needs two tokens or more, got {len(data)}: encode a longer text")
        super().__init__(data, context_length=min(block_size, len(data) - 1), stride=stride)


class GPTDatasetV1(SlidingWindowDataset):
    """Pairs (input, target) of windows of a text, (max_length,) each; windows begin ``stride`` tokens apart."""

    def __init__(self, txt: str, tokenizer: Encoder, max_length: int = 256, stride: int = 128) -> None:
        super().__init__(_encode(txt, tokenizer), context_length=max_length, stride=stride)


def _encode(text: str, tokenizer: Encoder) -> list[int]:
    if hasattr(tokenizer, "special_tokens_set"):  # tiktoken raises for special tokens that are not allowed
        return tokenizer.encode(text, allowed_special={END_OF_TEXT})
    return tokenizer.encode(text)


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    *,
    tokenizer: Tokenizer | None = None,
    **loading: Any,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """A DataLoader of the windows of a text: pairs (input, target), (batch_size, max_length) each.

    tokenizer: None: GPT-2's
    loading: ``shuffle``, ``drop_last``, ``num_workers`` and ``seed``, as for ``modular_gpt.data.make_dataloader``

    Raises:
        ConfigError, DataError: as ``make_dataloader``.
    """
    tokenizer = build_tokenizer("gpt2") if tokenizer is None else tokenizer
    return make_dataloader(txt, tokenizer, max_length, batch_size, stride, **loading)
