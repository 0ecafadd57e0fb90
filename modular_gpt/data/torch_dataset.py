"""Sliding windows as an ordinary PyTorch Dataset and DataLoader, for notebooks."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.validation import positive
from modular_gpt.data.batches import Tokens, as_array, check_length
from modular_gpt.data.token_files import TokenSplit
from modular_gpt.data.tokenizers.base import Tokenizer


class SlidingWindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Windows of ``context_length`` tokens, one every ``stride`` tokens.

    Item i is (input, target), each (context_length,) int64; the target is the input one token later. With a
    stride of ``context_length``, the default, windows are adjacent; with a smaller one they overlap.
    """

    def __init__(
        self,
        data: str | Tokens,
        tokenizer: Tokenizer | None = None,
        context_length: int = 256,
        stride: int | None = None,
    ) -> None:
        """
        data: a text, which ``tokenizer`` encodes, or token ids (n,)

        Raises:
            ConfigError: a size is below 1, or there is a text but no tokenizer.
            DataError: the text is shorter than one window and its last target.
        """
        stride = context_length if stride is None else stride
        positive("windows", context_length=context_length, stride=stride)
        if isinstance(data, str):
            if tokenizer is None:
                raise ConfigError("a text needs a tokenizer, such as build_tokenizer('byte')")
            if not data:
                raise DataError("the text is empty: give a text of more than context_length tokens")
            data = np.array(tokenizer.encode(data), dtype=np.int64)
        check_length(data, context_length + 1, context_length)
        self._tokens = data if isinstance(data, TokenSplit) else as_array(data)
        self.context_length, self.stride = context_length, stride
        self._count = (len(data) - 1 - context_length) // stride + 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -self._count <= index < self._count:
            raise IndexError(f"window {index} of {self._count}")
        start = index % self._count * self.stride
        ids = torch.tensor(as_array(self._tokens)[start : start + self.context_length + 1].astype("int64"))
        return ids[:-1], ids[1:]


def make_dataloader(
    data: str | Tokens,
    tokenizer: Tokenizer | None = None,
    context_length: int = 256,
    batch_size: int = 8,
    stride: int | None = None,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    seed: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of sliding windows: (input, target), each (batch_size, context_length) int64.

    The order depends on ``seed`` and the epoch alone, not on PyTorch's global generator.

    Raises:
        ConfigError, DataError: as ``SlidingWindowDataset``.
    """
    dataset = SlidingWindowDataset(data, tokenizer, context_length, stride)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
        generator=generator,
    )
