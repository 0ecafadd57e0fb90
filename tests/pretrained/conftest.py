"""A small GPT-2 on disk, as ``transformers`` writes it."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.reference.cases import CASES, reference


class Saved:
    """A model of ``transformers`` and the folder it was saved in."""

    def __init__(self, folder: Path, kind: str, settings: dict[str, Any], **how: Any) -> None:
        self.folder = folder
        self.model: nn.Module = reference(kind, settings, strong=True)
        self.model.save_pretrained(folder, **how)


@pytest.fixture
def gpt2(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "gpt2", "gpt2", CASES["gpt2"]["plain"])
