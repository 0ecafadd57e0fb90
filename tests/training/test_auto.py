"""``auto`` settings: depend on sizes only, agree for variants of a model, are reported, and are kept at a resume."""

import json
from pathlib import Path

import pytest
import torch

from modular_gpt import GPTConfig
from modular_gpt.runtime import device as device_module
from modular_gpt.runtime.device import BF16_WIDTH, choose_precision
from modular_gpt.training import TrainerConfig, train
from modular_gpt.training.compile import compiles, dense_flops
from modular_gpt.training.estimate import flops_per_token
from tests.training.small import config, stop_after

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "has_bf16", lambda device: device.type != "mps")


@pytest.mark.usefixtures("with_units")
@pytest.mark.parametrize(
    ("device", "width", "expected"),
    [
        (CPU, BF16_WIDTH, "bf16"),
        (CPU, BF16_WIDTH - 1, "float32"),
        (CUDA, BF16_WIDTH - 1, "bf16"),
        (MPS, BF16_WIDTH, "float32"),
    ],
)
def test_the_precision_follows_from_device_and_width(device: torch.device, width: int, expected: str) -> None:
    decision, reason = choose_precision("auto", device, width)
    assert decision == expected
    assert reason
    assert choose_precision("auto", device, width, compiled=True)[0] == ("bf16" if device.type != "mps" else "float32")
    assert choose_precision("bf16_products", device, width) == ("bf16_products", "")


@pytest.mark.usefixtures("with_units")
def test_a_resumed_run_keeps_its_precision(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_module, "BF16_WIDTH", 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        directory = train(config(folder, precision="auto")).directory
    assert "Auto      precision=bf16, since this device has bf16 units" in capsys.readouterr().out
    monkeypatch.setattr(device_module, "BF16_WIDTH", 1000)
    assert train(config(folder, precision="auto", resume=str(directory))).outcome is not None
    assert "precision=bf16, since the run began with it" in capsys.readouterr().out
    assert json.loads((directory / "run.json").read_text())["precision"] == "bf16"


def test_variants_of_a_model_have_equal_auto_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the length of the run is near the threshold of compilation."""
    monkeypatch.setattr("modular_gpt.training.compile.has_compiler", lambda device: True)
    variants = [{"attention": name} for name in ("mha", "gqa", "mqa", "mla", "swa", "linear")]
    variants += [{"ffn": name} for name in ("mlp", "swiglu", "moe")]
    decisions = set()
    for steps in range(50, 1000, 50):
        found = {compiles(TrainerConfig(max_steps=steps), GPTConfig(**variant), CPU, 1)[0] for variant in variants}
        assert len(found) == 1
        decisions |= found
    assert decisions == {True, False}


def test_the_estimated_work_of_a_dense_model_is_near_the_counted_one() -> None:
    for sizes in ({}, {"d_model": 256, "n_heads": 8, "n_layers": 6}, {"context_length": 1024}):
        model = GPTConfig(**{"attention": "mha", "ffn": "mlp", **sizes})
        assert dense_flops(model) == pytest.approx(flops_per_token(model), rel=0.1)
