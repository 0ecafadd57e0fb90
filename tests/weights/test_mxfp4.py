"""GPT-OSS in MXFP4, as published, is dequantised while it is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from modular_gpt import CheckpointError
from modular_gpt.pretrained import load_pretrained
from modular_gpt.weights.mxfp4 import dequantise
from tests.reference.cases import CASES, ids, reference
from tests.reference.conftest import difference

QUANTISATION = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def blocks(experts: int, rows: int, columns: int, spread: int = 4) -> tuple[Tensor, Tensor]:
    """Random bytes of blocks, and exponents around that of 2^-3."""
    packed = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
    return packed, (124 + torch.randint(-spread, spread + 1, packed.shape[:-1])).to(torch.uint8)


def test_dequantised_blocks_equal_those_of_transformers() -> None:
    """Every byte, and every exponent in the range of bfloat16."""
    packed, scales = blocks(3, 70, 96, spread=100)
    packed[0].view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    got = dequantise(packed, scales)
    assert got.dtype == torch.bfloat16 and got.shape == (3, 96, 70)
    assert torch.equal(got, convert_moe_packed_tensors(packed, scales))


def test_by_hand() -> None:
    """0x1f: the low bits 0xf are -6, and the high bits 1 are 0.5; times 2^(128 - 127)."""
    packed = torch.zeros(1, 1, 1, 16, dtype=torch.uint8)
    packed[..., 0] = 0x1F
    assert dequantise(packed, torch.full((1, 1, 1), 128, dtype=torch.uint8))[0, :3, 0].tolist() == [-12.0, 1.0, 0.0]


def test_one_expert_at_a_time() -> None:
    """Apart from the result, no tensor has more elements than one expert."""
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
                sizes.append(out.numel())
            return out

    packed, scales = blocks(16, 8, 64)
    with Sizes():
        out = dequantise(packed, scales)
    *others, largest = sorted(sizes)
    assert largest == out.numel() and max(others) <= largest // 16


@pytest.fixture
def quantised(tmp_path: Path) -> tuple[Path, Any]:
    """A GPT-OSS of transformers, and a folder with its experts in MXFP4."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
    model = reference("gpt_oss", {**CASES["gpt_oss"]["yarn"], **sizes}, strong=True)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer, block in enumerate(model.model.layers):
        for name in ("gate_up_proj", "down_proj"):
            key, weight = f"model.layers.{layer}.mlp.experts.{name}", getattr(block.mlp.experts, name)
            packed, scales = blocks(weight.shape[0], weight.shape[2], weight.shape[1])
            weight.data = convert_moe_packed_tensors(packed, scales).float()
            del tensors[key]
            tensors |= {f"{key}_blocks": packed, f"{key}_scales": scales}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "quantization_config": QUANTISATION}))
    return tmp_path, model


@torch.no_grad()
def test_logits(quantised: tuple[Path, Any]) -> None:
    folder, model = quantised
    tokens = ids(61)
    loaded = load_pretrained(folder)
    assert difference(loaded(tokens), model(tokens).logits) < 2e-5
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}, "that of the embedding"
    assert {p.dtype for p in load_pretrained(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_blocks_without_exponents(quantised: tuple[Path, Any]) -> None:
    folder, _ = quantised
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    for wrong in (tensors[name][:, :-1], None):
        changed = {key: value for key, value in tensors.items() if key != name}
        changed |= {} if wrong is None else {name: wrong.contiguous()}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"down_proj_blocks' needs one exponent for every 16 bytes"):
            load_pretrained(folder)


@pytest.mark.parametrize("method", ["fp8", None])
def test_other_methods_are_refused(method: str | None, quantised: tuple[Path, Any]) -> None:
    folder, _ = quantised
    given = json.loads((folder / "config.json").read_text())
    given["quantization_config"] = {"quant_method": method} if method else ["mxfp4"]
    (folder / "config.json").write_text(json.dumps(given))
    with pytest.raises(CheckpointError, match="is quantised, which is not supported"):
        load_pretrained(folder)
