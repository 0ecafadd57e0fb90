"""Models of ``transformers`` saved in a temporary folder."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.reference.cases import CASES, reference


class Saved:
    """A model of ``transformers`` and the folder that it was saved in."""

    def __init__(self, folder: Path, model_type: str, settings: dict[str, Any], **save_options: Any) -> None:
        self.folder = folder
        self.model: nn.Module = reference(model_type, settings, strong=True)
        self.model.save_pretrained(folder, **save_options)


@pytest.fixture
def gpt2(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "gpt2", "gpt2", CASES["gpt2"]["plain"])
