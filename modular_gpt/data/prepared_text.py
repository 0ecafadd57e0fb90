"""Text as data of a training: windows of two token files."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.targets import IGNORED
from modular_gpt.data.batches import EVALUATION_SEED, BatchSource, as_array, sequential
from modular_gpt.data.documents import PackedBatches, Packing
from modular_gpt.data.prepared import Batch, Batches, PreparedData
from modular_gpt.data.token_files import TokenSplit


@dataclass(frozen=True)
class PreparedText(PreparedData):
    """The token files of a text, one for each split.

    packing: settings that separate the documents in a window; None: they are not separated
    """

    train: TokenSplit
    validation: TokenSplit
    manifest: PlainDict
    packing: Packing | None = None
    notes: tuple[str, ...] = ()

    @property
    def separates_documents(self) -> bool:  # type: ignore[override]
        return self.packing is not None and not self.packing.attend_across

    @property
    def epoch_tokens(self) -> int:  # type: ignore[override]
        return self.train.count

    @property
    def zlib_bits_per_byte(self) -> float | None:  # type: ignore[override]
        return self.validation.zlib_bits_per_byte

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> Batches:
        return self._batches(self.train, block, batch_size, seed, order)

    def _batches(self, split: TokenSplit, block: int, batch_size: int, seed: int, order: str = "random") -> Batches:
        source = BatchSource(split, block, batch_size, seed, order)
        return source if self.packing is None else PackedBatches(source, split, self.packing)

    def evaluation(self, block: int, rows: int, windows: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Windows from anywhere in the validation text, or the whole text, window after window.

        Window i depends on the text and i alone, so that the loss does not depend on the batch size.
        """
        if not windows:
            yield from self._whole(block, rows, rank, world)
            return
        source, share = self._batches(self.validation, block, rows, EVALUATION_SEED), rows // world
        for number in range(math.ceil(windows / rows)):
            x, y, *documents = source.batch(number, rank, world)
            y[max(0, windows - number * rows - rank * share) :] = IGNORED
            yield x, y, *documents

    def _whole(self, block: int, rows: int, rank: int, world: int) -> Iterator[Batch]:
        share = rows // world
        for number, (x, y) in enumerate(sequential(self.validation, block, rows, rank, world)):
            if self.packing is None:
                yield x, y
            else:
                starts = (number * rows + rank * share + np.arange(share)) * block
                yield self.packing.apply(x, y, starts, self.validation)

    def evaluation_windows(self, block: int) -> int:
        return math.ceil((self.validation.count - 1) / block)

    def check_evaluation(self, block: int, windows: int) -> None:
        """Raise a DataError if the validation text is too short.

        An evaluation on windows needs one window and its last target; one on all text needs a token and its target.
        """
        needed, found = block + 1 if windows else 2, self.validation.count
        if found < needed:
            raise DataError(
                f"the validation text has {found} tokens, but a context_length of {block} needs {needed}:"
                " raise data.val_fraction, give more text, or lower model_size.context_length"
            )

    def beginning(self, windows: int, block: int) -> Batch:
        return next(sequential(as_array(self.validation)[: windows * block + 1], block, windows))

    def prompt(self, tokens: int) -> list[int]:
        out: list[int] = self.validation.array[:tokens].tolist()
        return out

    def sizes(self) -> str:
        return f"{self.train.count:,} tokens to train on, {self.validation.count:,} to validate"

    def bits_per_byte(self, loss: float) -> float:
        return self.validation.bits_per_byte(loss)
