"""GPT-OSS weights in MXFP4, the published format, are dequantised while they are read."""

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


def random_blocks(experts: int, rows: int, columns: int, spread: int = 4) -> tuple[Tensor, Tensor]:
    """Return random packed bytes (E, rows, columns / 32, 16) and exponents within ``spread`` of that of 2^-3."""
    packed = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
    return packed, (124 + torch.randint(-spread, spread + 1, packed.shape[:-1])).to(torch.uint8)


def test_dequantised_blocks_equal_those_of_transformers() -> None:
    """The blocks have every byte, and exponents over the range of bfloat16."""
    packed, scales = random_blocks(3, 70, 96, spread=100)
    packed[0].view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    actual = dequantise(packed, scales)
    assert actual.dtype == torch.bfloat16 and actual.shape == (3, 96, 70)
    assert torch.equal(actual, convert_moe_packed_tensors(packed, scales))


def test_the_low_bits_of_a_byte_are_the_first_value() -> None:
    """0x1f has the low bits 0xf, -6, and the high bits 1, 0.5; both are multiplied by 2^(128 - 127)."""
    packed = torch.zeros(1, 1, 1, 16, dtype=torch.uint8)
    packed[..., 0] = 0x1F
    assert dequantise(packed, torch.full((1, 1, 1), 128, dtype=torch.uint8))[0, :3, 0].tolist() == [-12.0, 1.0, 0.0]


def test_experts_are_dequantised_one_at_a_time() -> None:
    """Apart from the result, no tensor has more elements than one expert."""
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            inputs = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in inputs:
                sizes.append(out.numel())
            return out

    packed, scales = random_blocks(16, 8, 64)
    with Sizes():
        out = dequantise(packed, scales)
    *others, largest = sorted(sizes)
    assert largest == out.numel() and max(others) <= largest // 16


@pytest.fixture
def quantised(tmp_path: Path) -> tuple[Path, Any]:
    """Return a folder with a GPT-OSS whose experts are in MXFP4, and the dequantised model of transformers."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
    model = reference("gpt_oss", {**CASES["gpt_oss"]["yarn"], **sizes}, strong=True)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer, block in enumerate(model.model.layers):
        for name in ("gate_up_proj", "down_proj"):
            key, weight = f"model.layers.{layer}.mlp.experts.{name}", getattr(block.mlp.experts, name)
            packed, scales = random_blocks(weight.shape[0], weight.shape[2], weight.shape[1])
            weight.data = convert_moe_packed_tensors(packed, scales).float()
            del tensors[key]
            tensors |= {f"{key}_blocks": packed, f"{key}_scales": scales}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "quantization_config": QUANTISATION}))
    return tmp_path, model


@torch.no_grad()
def test_logits_equal_those_of_transformers(quantised: tuple[Path, Any]) -> None:
    folder, model = quantised
    tokens = ids(61)
    loaded = load_pretrained(folder)
    assert difference(loaded(tokens), model(tokens).logits) < 2e-5
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}, "the dtype of the embedding"
    assert {p.dtype for p in load_pretrained(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_blocks_without_matching_exponents_are_refused(quantised: tuple[Path, Any]) -> None:
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
def test_other_quantisation_methods_are_refused(method: str | None, quantised: tuple[Path, Any]) -> None:
    folder, _ = quantised
    given = json.loads((folder / "config.json").read_text())
    given["quantization_config"] = {"quant_method": method} if method else ["mxfp4"]
    (folder / "config.json").write_text(json.dumps(given))
    with pytest.raises(CheckpointError, match="is quantised, which is not supported"):
        load_pretrained(folder)
