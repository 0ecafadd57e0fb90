"""Packed models, in the format of oneDNN or in int8, equal the original, for every attention and ffn."""

import copy
import json
from pathlib import Path

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.cli import evaluate, generate, train
from modular_gpt.core.registry import entries
from modular_gpt.data.tokenizers import build_tokenizer
from modular_gpt.deploy.cpu_packing import (
    MAX_ROWS,
    Int8Experts,
    Int8Linear,
    PackedExperts,
    PackedLinear,
    can_pack,
    pack,
    pack_int8,
    packing_pays,
    quantise_rows,
)
from modular_gpt.nn.ffn.moe import MixtureOfExperts

COMPONENTS = [("attention", name) for name in entries("attention")] + [("ffn", name) for name in entries("ffn")]


def tiny(**settings: object) -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, init_std=0.2, **settings)).eval()


@pytest.mark.parametrize(("slot", "name"), COMPONENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_a_packed_model_equal_those_of_the_original(slot: str, name: str, dtype: torch.dtype) -> None:
    plain = tiny(**{slot: name}).to(dtype)
    packed = pack(copy.deepcopy(plain))
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    for module in packed.modules():
        if isinstance(module, MixtureOfExperts):
            assert {type(product) for product in module._products.values()} == {PackedExperts}
    pack(packed)  # packing again has no effect
    ids = torch.arange(24).view(2, 12)
    with torch.inference_mode():
        expected = plain(ids)
        cache = packed.new_cache(2, 12)
        actual = torch.cat(
            [packed(ids[:, :7], cache=cache), *(packed(ids[:, i : i + 1], cache=cache) for i in range(7, 12))], 1
        )
    tolerance = 1e-5 if dtype == torch.float32 else 0.1  # bfloat16 rounds sums in another order
    assert (actual - expected).abs().max() <= tolerance * expected.std()


def test_untied_head_and_biases_are_packed() -> None:
    plain = tiny(tie_embeddings=False, head_bias=True)
    torch.nn.init.normal_(plain.head_bias)
    packed = pack(copy.deepcopy(plain))
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids), plain(ids), rtol=1e-5, atol=1e-5)
    assert isinstance(packed.head, PackedLinear)


def test_unsupported_models_are_refused() -> None:
    model = tiny().double()
    assert not can_pack(model)
    with pytest.raises(ConfigError, match="float32 and bfloat16"):
        pack(model)


@pytest.mark.parametrize(
    ("cpu", "dtype", "rows", "pays"),
    [
        ("Intel(R) Xeon(R) Processor", torch.float32, 1, False),
        ("Intel(R) Xeon(R) Processor", torch.float32, 2, True),
        ("Intel(R) Xeon(R) Processor", torch.bfloat16, 1, True),
        ("AMD EPYC", torch.float32, 1, True),
        ("AMD EPYC", torch.float64, 2, False),
    ],
)
def test_packing_pays_by_processor_dtype_and_rows(
    cpu: str, dtype: torch.dtype, rows: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modular_gpt.deploy.cpu_packing.cpu_name", lambda: cpu)
    assert packing_pays(tiny().to(dtype), rows) == (pays and torch.backends.mkldnn.is_available())


def test_quantised_weights_are_within_half_a_step() -> None:
    """This includes rows of zeros, of tiny values, and with an outlier; the largest integer is 127."""
    torch.manual_seed(0)
    weight = torch.randn(64, 96) * torch.logspace(-6, 4, 64)[:, None]
    weight[0], weight[1] = 0.0, 1e-38
    weight[2, 5] = 1e5
    integers, scale = quantise_rows(weight)
    assert (integers.dtype, scale.dtype) == (torch.int8, torch.bfloat16) and integers.abs().max() == 127
    step = scale.float()[:, None]
    assert ((integers * step - weight).abs() <= step * 0.501).all()
    assert torch.equal(quantise_rows(weight.bfloat16())[1][3:], quantise_rows(weight.bfloat16().float())[1][3:])


def dequantised(linear: Int8Linear) -> torch.Tensor:
    """Return the weight (out, in) in float32."""
    return linear.weight[:, : linear.in_features] * linear.scale.float()[:, None]


class Rounded(torch.nn.Module):
    """Reference of Int8Linear in float32."""

    def __init__(self, linear: Int8Linear) -> None:
        super().__init__()
        self.weight, self.bias = dequantised(linear), linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = (x.bfloat16().float() @ self.weight.T).bfloat16().to(x.dtype)
        return out if self.bias is None else out + self.bias


class RoundedExperts:
    """Reference of Int8Experts in float32."""

    def __init__(self, experts: Int8Experts, width: int) -> None:
        self.weight = experts.weight[..., :width] * experts.scale.float()[..., None]

    def __call__(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        groups = torch.bucketize(torch.arange(len(x)), ends, right=True)
        return torch.einsum("mi,moi->mo", x.bfloat16().float(), self.weight[groups]).bfloat16().to(x.dtype)


@pytest.mark.parametrize(("slot", "name"), COMPONENTS)
def test_logits_of_an_int8_model_equal_those_of_the_reference(slot: str, name: str) -> None:
    """They are also near those of the original model, in one pass and token by token.

    After rounded attention, a token whose router scores are nearly equal may be routed to another expert.
    """
    plain = tiny(**{slot: name})
    packed = pack_int8(copy.deepcopy(plain))
    rounded = copy.deepcopy(packed)
    for module in list(rounded.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, Int8Linear):
                setattr(module, child_name, Rounded(child))
        if isinstance(module, MixtureOfExperts):
            for weight, product in module._products.items():
                assert isinstance(product, Int8Experts)
                module._products[weight] = RoundedExperts(product, getattr(module, weight).shape[2])
    ids = torch.arange(24).view(2, 12)
    with torch.inference_mode():
        expected, reference = plain(ids), rounded(ids)
        cache = packed.new_cache(2, 12)
        steps = [packed(ids[:, :7], cache=cache), *(packed(ids[:, i : i + 1], cache=cache) for i in range(7, 12))]
    actual, scale = torch.cat(steps, 1), expected.std()
    assert (actual - reference).abs().max() <= 0.05 * scale
    assert (actual - expected).square().mean().sqrt() <= (0.15 if name == "moe" else 0.05) * scale


@pytest.mark.parametrize("rows", [1, MAX_ROWS, MAX_ROWS + 1])
@pytest.mark.parametrize("width", [64, 88])  # the kernel of torch 2.13 is wrong for width 88 without padding
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_and_many_rows_give_equal_results(rows: int, width: int, dtype: torch.dtype) -> None:
    """From a number of rows on, the weight is converted before the product."""
    torch.manual_seed(0)
    linear = Int8Linear(torch.randn(40, width), torch.randn(40))
    x = torch.randn(rows, width, dtype=dtype)
    out = linear(x)
    assert out.shape == (rows, 40)
    expected = x.float() @ dequantised(linear).T + linear.bias
    assert (out - expected).abs().max() <= 0.02 * expected.std()


def test_int8_weights_have_half_the_bytes_of_bfloat16_and_cannot_be_trained() -> None:
    model = pack_int8(tiny().bfloat16())
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert len(layers) == 2 * 6 + 1  # six per block, and the head
    assert all(layer.weight.nbytes == layer.in_features * layer.out_features for layer in layers)
    with pytest.raises(ConfigError, match="for inference only"):
        model.train()
    with pytest.raises(ConfigError, match="float32 and bfloat16 models on a CPU"):
        pack_int8(tiny().double())


@pytest.mark.parametrize("rows", [[1, 0, 2], [0, MAX_ROWS + 1, 3]])
def test_int8_experts_multiply_only_their_rows(rows: list[int]) -> None:
    torch.manual_seed(0)
    experts, ends = Int8Experts(torch.randn(3, 40, 88)), torch.tensor(rows).cumsum(0).to(torch.int32)
    x = torch.randn(sum(rows), 88)
    expected = RoundedExperts(experts, 88)(x, ends)
    assert (
        experts(x, ends) - expected
    ).abs().max() <= 0.04 * expected.std()  # products of many rows are scaled in bfloat16


def test_int8_experts_have_one_byte_per_weight_and_an_unpacked_router() -> None:
    plain = tiny(ffn={"name": "moe", "n_experts": 4, "expert": "mlp", "bias": True})
    inactive, representation = plain.blocks[0].ffn.inactive_parameters(), plain.blocks[0].ffn.extra_repr()
    packed = pack_int8(copy.deepcopy(plain))
    ffn = packed.blocks[0].ffn
    assert isinstance(ffn, MixtureOfExperts) and type(ffn.router) is torch.nn.Linear
    products = [product for product in ffn._products.values() if isinstance(product, Int8Experts)]
    assert [product.weight.nbytes for product in products] == [ffn.up.numel(), ffn.down.numel()]
    assert ffn.up.is_meta and ffn.down.is_meta
    assert (ffn.inactive_parameters(), ffn.extra_repr()) == (inactive, representation)


def test_int8_experts_compile_to_one_graph() -> None:
    model, ids = pack_int8(tiny(ffn={"name": "moe", "n_experts": 4}, attention="gqa")), torch.arange(12)[None]
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(ids), model(ids))


def test_commands_for_inference_accept_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """mgpt-generate and mgpt-eval accept packing=int8; training refuses it with one sentence."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(vocab_size=256, d_model=32, n_heads=4, n_layers=1, init_std=0.2)).eval()
    save_checkpoint(tmp_path / "model", model, build_tokenizer("byte"))
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 20)
    losses = {}
    for packing in ("none", "onednn", "int8"):
        arguments = ["checkpoint=model", "device=cpu", f"packing={packing}"]
        assert evaluate.main([*arguments, "text=text.txt", "json=true"]) == 0
        losses[packing] = json.loads(capsys.readouterr().out.splitlines()[-1])["text"]["loss"]
        assert generate.main([*arguments, "prompt=the", "max_new_tokens=4", "greedy=true"]) == 0
    assert losses["onednn"] == pytest.approx(losses["none"], abs=1e-5)
    assert 1e-5 < abs(losses["int8"] - losses["none"]) < 0.02
    capsys.readouterr()
    assert generate.main(["checkpoint=model", "packing=int8", "pack=true"]) == 2
    assert "pack is the former name of packing" in capsys.readouterr().err
    assert generate.main(["checkpoint=model", "packing=int4"]) == 2 and "int8" in capsys.readouterr().err
    assert train.main(["packing=int8"]) == 2 and "mgpt-eval take packing=int8" in capsys.readouterr().err
