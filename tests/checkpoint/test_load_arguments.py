"""Models are loaded with a dtype and a device by name; an invalid name gets one sentence."""

from pathlib import Path

import pytest
import torch

from modular_gpt import GPTModel, load_model
from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.core.errors import ConfigError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same model as a checkpoint, and as folders of both types."""
    folder = tmp_path_factory.mktemp("models")
    model = GPTModel(vocab_size=9, d_model=16, n_heads=2, n_layers=1, context_length=8, pos="learned")
    save_checkpoint(folder / "checkpoint", model, None, meta={})
    model.save_pretrained(folder / "own", format="modular_gpt")
    model.save_pretrained(folder / "family", format="family")
    return [folder / "checkpoint", folder / "own", folder / "family"]


def test_data_types_by_name(models: list[Path]) -> None:
    for path in models:
        for name in ("bf16", "bfloat16", torch.bfloat16):
            assert load_model(path, dtype=name).model.embedding.weight.dtype == torch.bfloat16
        assert GPTModel.from_pretrained(path, dtype="fp32").embedding.weight.dtype == torch.float32
        for wrong in ("int4", torch.int64, 3):
            with pytest.raises(ConfigError, match="dtype"):
                load_model(path, dtype=wrong)  # type: ignore[arg-type]


def test_devices_by_name(models: list[Path]) -> None:
    for path in models:
        assert load_model(path, device="auto").model.embedding.weight.device.type in ("cpu", "cuda", "mps")
        for wrong in ("tpu9", "cuda:99", 3.5):
            with pytest.raises(ConfigError, match=r"device=.* cannot be used here .*; device=auto can"):
                GPTModel.from_pretrained(path, device=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [None, 3, "", "a\0b", "x/" + "a" * 5000])
def test_an_invalid_name_of_a_model_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match=r"opened by its path or name|name of a model must be a path"):
        load_model(name)  # type: ignore[arg-type]
