"""Components without a published model here equal naive implementations of a few lines."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.contracts import Positions
from modular_gpt.nn.attention.linear import LinearAttention
from modular_gpt.nn.norm.scalenorm import ScaleNorm
from modular_gpt.nn.pos.none import NoPosition
from modular_gpt.nn.pos.rope import RoPE
from tests.reference.cases import TOKENS
from tests.reference.conftest import Parity

WIDTH, HEADS = 32, 4


def rotated(x: Tensor, t: int, theta: float = 10000.0) -> Tensor:
    """Rotate the vector (N,) of one head at position t, pair by pair; dimension i is paired with i + N/2."""
    half, result = len(x) // 2, x.clone()
    for i in range(half):
        angle = t * theta ** (-2 * i / len(x))
        result[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        result[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return result


def linear_by_loop(attention: LinearAttention, x: Tensor, rope: bool) -> Tensor:
    """Linear attention (T, D) -> (T, D) as a sum over past tokens; the normaliser is computed without rotation."""
    width = WIDTH // HEADS
    q, k = F.elu(attention.query(x)) + 1, F.elu(attention.key(x)) + 1
    q, k, v = (tensor.unflatten(-1, (HEADS, width)) for tensor in (q, k, attention.value(x)))
    out = torch.zeros(len(x), HEADS, width)
    for h in range(HEADS):
        for t in range(len(x)):
            total, normaliser = torch.zeros(width), torch.tensor(0.0)
            for s in range(t + 1):
                score = rotated(q[t, h], t) @ rotated(k[s, h], s) if rope else q[t, h] @ k[s, h]
                total, normaliser = total + score * v[s, h], normaliser + q[t, h] @ k[s, h]
            out[t, h] = total / normaliser
    return attention.out(out.flatten(1))


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("pos", ["none", "rope"])
@torch.no_grad()
def test_linear_attention_equals_a_loop_over_pairs(pos: str, chunk: int, parity: Parity) -> None:
    config = GPTConfig(d_model=WIDTH, n_heads=HEADS, attention={"name": "linear", "chunk": chunk}, pos=pos)
    layer = config.layer_configs[0]
    position = (RoPE if pos == "rope" else NoPosition)(layer.pos, config.dims)
    attention = LinearAttention(layer.attention, config.dims, position)
    for parameter in attention.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.4)
    x = torch.randn(1, TOKENS, WIDTH)
    actual = attention(x, Positions(0, TOKENS, None, x.device))[0]
    parity("linear attention, a loop over pairs", actual, linear_by_loop(attention, x[0], pos == "rope"))


@torch.no_grad()
def test_scalenorm_equals_its_formula(parity: Parity) -> None:
    """https://arxiv.org/abs/1910.05895, equation 5."""
    norm = ScaleNorm(ScaleNorm.Config(), WIDTH)
    norm.weight.fill_(1.7)
    x = torch.randn(3, 5, WIDTH) * 4
    naive = torch.stack([1.7 * row / math.sqrt(sum(element.item() ** 2 for element in row)) for row in x.flatten(0, 1)])
    parity("scalenorm, row by row", norm(x).flatten(0, 1), naive)
    assert ScaleNorm(ScaleNorm.Config(), WIDTH)(x).square().mean(-1).sqrt().allclose(torch.ones(3, 5))
    assert norm(torch.zeros(1, WIDTH)).isfinite().all()


@torch.no_grad()
def test_sinusoidal_embeddings_equal_their_formula(parity: Parity) -> None:
    """https://arxiv.org/abs/1706.03762, section 3.5, one element at a time; a model adds them to zeros."""
    sizes = {"vocab_size": 7, "d_model": WIDTH, "n_heads": HEADS, "n_layers": 1, "context_length": TOKENS}
    model = GPTModel(**sizes, pos="sinusoidal").eval()
    x = torch.zeros(1, TOKENS, WIDTH)
    actual = model.positions[0].embed(x, Positions(0, TOKENS, None, x.device))[0]
    naive = torch.tensor(
        [
            [
                math.sin(t / 10000 ** (i / WIDTH)) if i % 2 == 0 else math.cos(t / 10000 ** ((i - 1) / WIDTH))
                for i in range(WIDTH)
            ]
            for t in range(TOKENS)
        ]
    )
    parity("sinusoidal, number by number", actual, naive)


@torch.no_grad()
def test_without_positions_earlier_tokens_are_a_set() -> None:
    """With pos=none, the logits of the last token do not depend on the order of earlier tokens; with others they do."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 23, "d_model": WIDTH, "n_heads": HEADS, "n_layers": 1, "init_std": 0.3}
    ids = torch.randperm(23)[None, :12]
    shuffled = torch.cat([ids[:, torch.randperm(11)], ids[:, 11:]], dim=1)
    assert not torch.equal(ids, shuffled)
    for pos, same in (("none", True), ("rope", False), ("alibi", False), ("learned", False), ("sinusoidal", False)):
        model = GPTModel(**sizes, pos=pos).eval()
        assert torch.allclose(model(ids)[:, -1], model(shuffled)[:, -1], atol=1e-5) is same, pos


@pytest.mark.parametrize("heads", [4, 6, 7])
@pytest.mark.parametrize("max_bias", [4, 8])
def test_alibi_slopes_equal_those_of_mpt(heads: int, max_bias: int) -> None:
    """The function of transformers has max_bias as an argument, which its MPT model leaves at the default."""
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    from modular_gpt.nn.pos.alibi import slopes

    expected = -build_mpt_alibi_tensor(heads, 2, max_bias)[:, 0, 0]
    torch.testing.assert_close(torch.tensor(slopes(heads, max_bias)), expected)
