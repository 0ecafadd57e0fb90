"""Exported programs equal the model, for prompts, decoding steps, wrapped windows, other batch sizes and in ONNX."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config
from torch import Tensor

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.registry import entries
from modular_gpt.deploy.export import ExportedModel, export_model, export_onnx

LENGTH, WINDOW = 14, 5
LOCAL = {"variants": {"local": {"attention": {"window": WINDOW}}}, "cycle": ["local", "base"]}
# Further components by attention, so that every component is exported with some attention.
SETTINGS_BESIDE: dict[str, dict[str, Any]] = {
    "mha": {"layers": LOCAL, "n_layers": 2, "ffn": "swiglu", "norm": "rmsnorm"},
    "gqa": {"pos": "alibi"},
    "mqa": {"ffn": {"name": "moe", "n_experts": 4, "top_k": 2}},
    "mla": {"pos": "learned"},
    "swa": {"attention": {"name": "swa", "window": WINDOW, "conv": 3}},
}
FURTHER: list[dict[str, Any]] = [
    {"attention": {"name": "swa", "window": 1}},
    {"attention": {"name": "sparse", "pattern": "streaming", "window": 4, "global_tokens": 2}},
]


@pytest.fixture(autouse=True)
def no_cache_of_operators() -> Iterator[None]:
    """Do not cache the results of operators on symbolic shapes: a model of one layer uses few of them twice."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


def settings() -> list[dict[str, Any]]:
    """Return settings with every registered attention, combined with other components."""
    return [*({"attention": name, **SETTINGS_BESIDE.get(name, {})} for name in entries("attention")), *FURTHER]


def small(**changes: Any) -> GPTModel:
    torch.manual_seed(0)
    plain: dict[str, Any] = dict(vocab_size=31, d_model=32, n_heads=4, n_layers=1, context_length=LENGTH, pos="rope")
    return GPTModel(GPTConfig(**{**plain, "init_std": 0.3, **changes}))


Programs = tuple[torch.nn.Module, torch.nn.Module]  # (prefill, decoding step)


def logits_of(exported: ExportedModel, programs: Programs, ids: Tensor, prefilled: int) -> Tensor:
    """Logits (B, T - prefilled + 1, V) of the programs: the prompt in one pass, then token by token."""
    prefill, step = programs
    if prefilled:
        logits, cache = prefill(ids[:, :prefilled])
        found = [logits]
    else:
        found, cache = [], exported.empty_cache(len(ids))
    for position in range(prefilled, ids.shape[1]):
        logits, cache = step(ids[:, position : position + 1], torch.tensor(position), cache)
        found.append(logits)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("changes", settings(), ids=lambda c: str(c).replace(" ", ""))
def test_exported_programs_equal_the_model(changes: dict[str, Any]) -> None:
    model = small(**changes)
    model.train()
    exported = export_model(model)
    assert model.training
    assert exported.longest_prompt > exported.shortest_prompt
    model.eval()
    programs = exported.prefill.module(), exported.step.module()
    for batch, prefilled in ((1, 0), (3, exported.shortest_prompt), (2, exported.longest_prompt)):
        ids = torch.randint(0, 31, (batch, LENGTH))
        with torch.no_grad():
            expected = model(ids)[:, max(prefilled - 1, 0) :]
        torch.testing.assert_close(logits_of(exported, programs, ids, prefilled), expected, atol=1e-4, rtol=1e-4)
    check_cache(exported, programs, model.config)


def check_cache(exported: ExportedModel, programs: Programs, config: GPTConfig) -> None:
    """The cache has the predicted size, and a step does not modify its input cache."""
    empty = exported.empty_cache(2)
    assert sum(tensor.nbytes for tensor in empty) == config.cache_bytes(2, LENGTH)
    _, cache = programs[1](torch.zeros(2, 1, dtype=torch.long), torch.tensor(0), empty)
    assert all(not tensor.any() for tensor in empty)
    assert [tensor.shape for tensor in cache] == [tensor.shape for tensor in empty]
    assert all(tensor.any() for tensor in cache)


def test_a_saved_program_is_loaded_with_equal_logits(tmp_path: Path) -> None:
    model, ids = small().eval(), torch.randint(0, 31, (2, 7))
    exported = export_model(model, max_length=9)
    assert exported.longest_prompt == 8
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        exported.save(tmp_path / "file")
    prefill, _ = exported.save(tmp_path / "new")
    logits, _ = torch.export.load(prefill).module()(ids)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids)[:, -1])


def test_models_that_cannot_be_exported_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"export\.max_length must be above 0"):
        export_model(small(), max_length=0)
    plain = GPTModel.logits
    monkeypatch.setattr(
        GPTModel, "logits", lambda self, x: plain(self, x) if x.sum() > 0 else x
    )  # data-dependent control flow
    with pytest.raises(ConfigError, match="this model cannot be exported"):
        export_model(small())


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "mla"},
        {"attention": "linear"},
        {"layers": LOCAL, "n_layers": 2, "attention": "gqa", "pos": "alibi"},
    ],
    ids=lambda c: str(c).replace(" ", ""),
)
def test_onnx_programs_equal_the_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, ids = small(**changes).eval(), torch.randint(0, 31, (3, 12))
    prefill, step = (runtime.InferenceSession(path) for path in export_onnx(model, tmp_path))
    with torch.no_grad():
        expected = model(ids)
    logits, *cache = prefill.run(None, {"ids": ids[:, :3].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected[:, 2], atol=1e-4, rtol=1e-4)
    for position in range(3, ids.shape[1]):
        inputs = {"ids": ids[:, position : position + 1].numpy(), "start": torch.tensor(position).numpy()}
        logits, *cache = step.run(None, {**inputs, **{f"cache_{i}": tensor for i, tensor in enumerate(cache)}})
        torch.testing.assert_close(torch.from_numpy(logits), expected[:, position], atol=1e-4, rtol=1e-4)


def test_onnx_of_a_moe_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    with pytest.raises(ConfigError, match="this model cannot be exported"):
        export_onnx(small(ffn={"name": "moe", "n_experts": 4, "top_k": 2}), tmp_path)
