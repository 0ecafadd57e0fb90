"""Several documents in a window of tokens: separation in attention, and the targets at the borders."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.targets import IGNORED
from modular_gpt.data.batches import BatchSource, as_array, read_windows
from modular_gpt.data.prepared import Batch
from modular_gpt.data.token_files import TokenSplit


@dataclass
class TextConfig(ComponentConfig):
    """Settings of every corpus of text.

    documents: Keep the documents within a window apart in attention and loss; the next two settings change this.
    attend_across: With documents=true, let tokens attend to earlier documents of their window too. By default (null)
        they do not, and positions restart at each document.
    predict_across: With documents=true, count the first token of a document in the loss, as the target of the token
        before it. By default (null) it does not count.
    """

    documents: bool = field(default=False, kw_only=True)
    attend_across: bool | None = field(default=None, kw_only=True)
    predict_across: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("attend_across", "predict_across"):
            if not self.documents and getattr(self, name) is False:
                raise ConfigError(f"data.{name}=false keeps documents apart: add data.documents=true")
        if self.documents and self.attend_across and self.predict_across:
            raise ConfigError(
                "data.documents=true has no effect with data.attend_across=true and data.predict_across=true:"
                " leave out one of the three"
            )

    @property
    def packing(self) -> "Packing | None":
        """The settings that separate documents in a window; None: documents are not separated."""
        return Packing(bool(self.attend_across), bool(self.predict_across)) if self.documents else None


@dataclass(frozen=True)
class Packing:
    """Settings that separate the documents in a window.

    attend_across: tokens attend to earlier documents; predict_across: the first token of a document counts as a target
    """

    attend_across: bool
    predict_across: bool

    def apply(self, ids: Tensor, targets: Tensor, starts: np.ndarray, split: TokenSplit) -> Batch:
        """A batch of windows that begin at ``starts`` (B,), with document ids unless tokens attend across documents.

        ids, targets: (B, T); split: the tokens that the windows are read from
        """
        positions = starts[:, None] + np.arange(ids.shape[1] + 1)
        documents = torch.from_numpy(np.searchsorted(split.document_starts, positions, side="right"))
        if not self.predict_across:
            targets = targets.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
        return (ids, targets) if self.attend_across else (ids, targets, documents[:, :-1].contiguous())


class PackedBatches:
    """The windows of a ``BatchSource`` with their documents separated."""

    def __init__(self, source: BatchSource, split: TokenSplit, packing: Packing) -> None:
        self.source, self.split, self.packing = source, split, packing

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """As ``BatchSource.batch``, with the document id of each token (rows, block) unless tokens attend across."""
        starts = self.source.starts_of(step, rank, world)
        ids, targets = read_windows(as_array(self.split), starts, self.source.block)
        return self.packing.apply(ids, targets, starts, self.split)
