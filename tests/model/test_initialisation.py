"""Initialisation of the weights."""

import math

import pytest
import torch
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.registry import entries
from modular_gpt.nn.residual import is_residual

WIDE = dict(vocab_size=300, d_model=96, n_heads=4, n_layers=3, context_length=64)
WRITERS = {"mlp": "down.weight", "swiglu": "down.weight", "moe": "down"}


def model_with(**changes: object) -> GPTModel:
    return GPTModel(GPTConfig(**{**WIDE, **changes}))


def std(tensor: Tensor) -> float:
    return tensor.std().item()


@pytest.mark.parametrize("ffn", WRITERS)
@pytest.mark.parametrize("attention", ["mha", "mla", "linear"])
def test_gpt2_by_default(attention: str, ffn: str) -> None:
    model = model_with(attention=attention, ffn=ffn, tie_embeddings=False, head_bias=True)
    scaled = 0.02 / math.sqrt(6)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            expected = scaled if name.endswith(("out.weight", "down.weight", "ffn.down")) else 0.02
            assert std(parameter) == pytest.approx(expected, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.2 * expected, name


@pytest.mark.parametrize("attention", entries("attention"))
@pytest.mark.parametrize("ffn", entries("ffn"))
def test_every_component_marks_its_residual_weights(attention: str, ffn: str) -> None:
    """With residual weights of zero a block is the identity: the logits are those of the embeddings."""
    model = model_with(attention=attention, ffn=ffn, init_residual="zero", pos="none")
    block = model.blocks[0]
    for component in (block.attention, block.ffn):
        marked = [
            name for m in component.modules() for name, _ in m.named_parameters(recurse=False) if is_residual(m, name)
        ]
        assert marked
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(model(ids), model.logits(model.final_norm(model.embedding(ids))))


@pytest.mark.parametrize(("how", "factor"), [("plain", 1.0), ("scaled", 1 / math.sqrt(6)), ("zero", 0.0)])
def test_residual(how: str, factor: float) -> None:
    model = model_with(init_residual=how, init_std=0.1)
    assert std(model.blocks[1].ffn.down.weight) == pytest.approx(0.1 * factor, rel=0.05)
    assert std(model.blocks[1].ffn.up.weight) == pytest.approx(0.1, rel=0.05)


def test_fan_in_keeps_the_variance() -> None:
    model = model_with(init="fan_in", init_residual="plain", ffn="moe")
    block = model.blocks[0]
    assert std(block.attention.query.weight) == pytest.approx(96**-0.5, rel=0.05)
    assert std(block.ffn.up) == pytest.approx(96**-0.5, rel=0.05)
    assert std(block.ffn.down) == pytest.approx(256**-0.5, rel=0.05)
    assert std(model.embedding.weight) == pytest.approx(0.02, rel=0.05)  # an embedding has no fan-in


def test_xavier() -> None:
    model = model_with(init="xavier", init_residual="plain")
    assert std(model.blocks[0].ffn.up.weight) == pytest.approx(math.sqrt(2 / (96 + 384)), rel=0.05)
    assert std(model.blocks[0].ffn.down.weight) == pytest.approx(math.sqrt(2 / (96 + 384)), rel=0.05)


def test_orthogonal() -> None:
    model = model_with(init="orthogonal", init_residual="plain", ffn="moe")
    weight = model.blocks[0].attention.out.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(96), rtol=0, atol=1e-5)
    for expert in model.blocks[0].ffn.up:
        torch.testing.assert_close(expert.T @ expert, torch.eye(96), rtol=0, atol=1e-5)
    assert not torch.equal(model.blocks[0].ffn.up[0], model.blocks[0].ffn.up[1])


@pytest.mark.parametrize("init", ["normal", "fan_in", "xavier", "orthogonal"])
def test_a_seed_repeats(init: str) -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in model_with(init=init).parameters()])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_a_head_of_zeros_starts_with_a_uniform_distribution() -> None:
    torch.manual_seed(0)
    zero = model_with(tie_embeddings=False, init_head="zero", init="fan_in", init_residual="zero")
    torch.manual_seed(0)
    drawn = model_with(tie_embeddings=False, init="fan_in", init_residual="zero")
    assert (zero.head.weight == 0).all() and std(drawn.head.weight) == pytest.approx(96**-0.5, rel=0.05)
    for name, parameter in zero.named_parameters():  # no other parameter changes
        assert name == "head.weight" or torch.equal(parameter, drawn.get_parameter(name)), name
    ids = torch.arange(30)[None]
    assert zero(ids, ids).loss.item() == pytest.approx(math.log(300))
