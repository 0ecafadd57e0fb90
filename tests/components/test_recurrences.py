"""Chunked forms of recurrent mixers equal their recurrences token by token: float64, gradients, strong decays."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt import ConfigError, GPTConfig
from modular_gpt.core.contracts import Positions
from modular_gpt.core.positions import document_starts
from modular_gpt.nn.decay import decayed_products
from modular_gpt.nn.delta_rule import delta_rule
from modular_gpt.nn.pos.alibi import slopes
from modular_gpt.nn.short_conv import causal_conv
from tests.components.cases import MODEL
from tests.components.laws import build

TOKENS, HEADS, KEYS, VALUES = 23, 3, 4, 5
Results = tuple[Tensor, Tensor]


def naive_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, gates: tuple[Tensor, Tensor], memory: Tensor, starts: Tensor | None
) -> Results:
    """Reference: the recurrence for one token, row and head at a time."""
    decay, rate = gates[0].exp().expand(k.shape), gates[1]
    outs, memories = [], []
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            state = memory[row, head]
            for t in range(q.shape[2]):
                if starts is not None and starts[row, t] == t:
                    state = torch.zeros_like(state)
                state = decay[row, head, t, :, None] * state
                stored = state.T @ k[row, head, t]
                state = state + rate[row, head, t] * torch.outer(k[row, head, t], v[row, head, t] - stored)
                outs.append(state.T @ q[row, head, t])
            memories.append(state)
    return torch.stack(outs).view(*v.shape), torch.stack(memories).view(memory.shape)


def naive_decayed(
    q: Tensor, k: Tensor, v: Tensor, gates: tuple[Tensor, Tensor], memory: Tensor, starts: Tensor | None
) -> Results:
    outs = []
    decay = gates[0].exp()
    for t in range(q.shape[2]):
        if starts is not None:
            memory = memory * (starts[:, t] != t)[:, None, None, None]
        memory = decay[:, :, t, :, None] * memory + k[:, :, t, :, None] * v[:, :, t, None, :]
        outs.append((q[:, :, t, None, :] @ memory)[..., 0, :])
    return torch.stack(outs, dim=2), memory


def drawn(per_channel: bool, strength: float, negative: bool = False) -> list[Tensor]:
    """q, k, v, log_decay, rate, memory of two rows; keys are unit vectors."""
    torch.manual_seed(5)
    shapes = [(KEYS,), (KEYS,), (VALUES,), (KEYS if per_channel else 1,), (1,)]
    q, k, v, decay, rate = (torch.randn(2, HEADS, TOKENS, *shape, dtype=torch.float64) for shape in shapes)
    memory = torch.randn(2, HEADS, KEYS, VALUES, dtype=torch.float64)
    decay = -strength * F.softplus(decay)
    tensors = [q, k / k.norm(dim=-1, keepdim=True), v, decay, rate.sigmoid() * (2.0 if negative else 1.0), memory]
    return [tensor.requires_grad_() for tensor in tensors]


def assert_equal(function: Callable[..., Results], twin: Callable[..., Results], tensors: list[Tensor]) -> None:
    """Equal values, memories, and gradients of a weighted sum with a different weight for every element."""
    found = []
    for compute in (function, twin):
        q, k, v, decay, rate, memory = tensors
        out, state = compute(q, k, v, (decay, rate), memory)
        weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in (out, state)]
        total = (out * weights[0]).sum() + (state * weights[1]).sum()
        found.append([out, state, *torch.autograd.grad(total, tensors, allow_unused=True)])
    for got, wanted in zip(*found, strict=True):
        if wanted is None:  # the memory before packed documents, which no token reads
            assert got is None or not got.any()
            continue
        assert got.isfinite().all()
        assert (got - wanted).abs().max() <= 1e-12 * (1 + wanted.abs().max())


DOCUMENTS = torch.tensor([[0] * 4 + [1] * 2 + [2] * (TOKENS - 6), [0] * 11 + [1] * 9 + [2] * (TOKENS - 20)])


@pytest.mark.parametrize("packed", [False, True], ids=["one text", "documents"])
@pytest.mark.parametrize("strength", [0.05, 2.0, 400.0])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per head", "per channel"])
@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
def test_the_delta_rule_in_chunks_is_the_recurrence(
    chunk: int, per_channel: bool, strength: float, packed: bool
) -> None:
    """Within 1e-12 in float64, with gradients, also where a decay clears the memory."""
    starts = document_starts(DOCUMENTS) if packed else None
    tensors = drawn(per_channel, strength, negative=chunk == 4)
    if packed:
        tensors[-1] = torch.zeros_like(tensors[-1]).requires_grad_()
    assert_equal(
        lambda q, k, v, gates, memory: delta_rule(q, k, v, gates, memory, chunk, starts),
        lambda q, k, v, gates, memory: naive_delta_rule(q, k, v, gates, memory, starts),
        tensors,
    )


@pytest.mark.parametrize("packed", [False, True], ids=["one text", "documents"])
@pytest.mark.parametrize("strength", [0.05, 2.0, 400.0])
@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
def test_decayed_products_in_chunks_are_the_recurrence(chunk: int, strength: float, packed: bool) -> None:
    starts = document_starts(DOCUMENTS) if packed else None
    tensors = drawn(False, strength)
    assert_equal(
        lambda q, k, v, gates, memory: decayed_products(q, k, v, gates[0], memory, chunk, starts),
        lambda q, k, v, gates, memory: naive_decayed(q, k, v, gates, memory, starts),
        tensors,
    )


@pytest.mark.parametrize("strength", [1e-4, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", ["gated_delta", "kda", "lightning"])
def test_gradients_of_long_texts_are_finite(name: str, strength: float) -> None:
    """In float32, from almost no decay to one that clears the memory at every token."""
    settings = {"decay_scale": strength} if name == "lightning" else {}
    model = build(GPTConfig(**{**MODEL, "n_layers": 1, "context_length": 600, "attention": {"name": name, **settings}}))
    attention = model.blocks[0].attention
    if name != "lightning":
        attention.log_decay.data.fill_(strength).log_()
    x = torch.randn(1, 600, MODEL["d_model"], requires_grad=True)
    attention(x, Positions(0, 600, None, x.device)).square().mean().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad[:, :-1].any()
    for parameter in attention.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_a_short_convolution_is_a_sum_over_the_last_tokens(kernel: int, state: bool) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(3, kernel, dtype=torch.float64)
    before = torch.randn(2, 3, kernel - 1, dtype=torch.float64) if state else torch.zeros(2, 3, kernel - 1).double()
    pos = Positions(0, 9, None, x.device)
    y, last = causal_conv(x, weight, pos, before if state else None)
    inputs = torch.cat([before.mT, x], dim=1)
    for t in range(9):
        expected = sum(inputs[:, t + tap] * weight[:, tap] for tap in range(kernel))
        assert (y[:, t] - expected).abs().max() < 1e-13
    assert torch.equal(last, inputs[:, 9:].mT)


def test_documents_of_a_short_convolution_begin_with_zeros() -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(2, TOKENS, 3), torch.randn(3, 4)
    starts = document_starts(DOCUMENTS)
    y, _ = causal_conv(x, weight, Positions(0, TOKENS, None, x.device, document_starts=starts), None)
    for row in range(2):
        for start in starts[row].unique().tolist():
            chosen = starts[row] == start
            alone, _ = causal_conv(
                x[row : row + 1, chosen], weight, Positions(0, int(chosen.sum()), None, x.device), None
            )
            torch.testing.assert_close(y[row, chosen], alone[0])


@pytest.mark.parametrize(
    ("decays", "n_heads", "expected_rates"),
    [
        ("alibi", 4, slopes(4)),
        ("alibi", 6, slopes(6)),
        ("geometric", 6, [2 ** (-8 / 6 * i) for i in range(1, 7)]),
        ("geometric", 4, slopes(4)),
    ],
)
@torch.no_grad()
def test_decays_of_lightning(decays: str, n_heads: int, expected_rates: list[float]) -> None:
    """Compared with an explicit sum over earlier tokens."""
    mixer = {"name": "lightning", "decay_scale": 0.7, "chunk": 5, "decay_rates": decays, "head_dim": 8}
    config = GPTConfig(**{**MODEL, "n_heads": n_heads, "attention": mixer})
    attention = build(config).double().blocks[0].attention
    x = torch.randn(2, TOKENS, MODEL["d_model"], dtype=torch.float64)
    heads = [
        F.silu(layer(x)).unflatten(-1, (n_heads, -1)).transpose(1, 2) for layer in (attention.query, attention.key)
    ]
    v = F.silu(attention.value(x)).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    rates = 0.7 * torch.tensor(expected_rates, dtype=torch.float64)[:, None, None]
    factors = torch.where(distance >= 0, (-rates * distance).exp(), 0.0)
    mixed = ((heads[0] @ heads[1].mT) * factors) @ v
    expected = attention.out(attention.norm(mixed.transpose(1, 2).flatten(2)) * attention.gate(x).sigmoid())
    got = attention(x, Positions(0, TOKENS, None, x.device))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)  # slopes are rounded to float32


@torch.no_grad()
def test_shortconv_equals_the_reference() -> None:
    attention = build(GPTConfig(**{**MODEL, "attention": "shortconv"})).double().blocks[0].attention
    x = torch.randn(2, 9, MODEL["d_model"], dtype=torch.float64)
    inputs = attention.input_gate(x) * attention.value(x)
    padded = F.pad(inputs, (0, 0, 2, 0))
    mixed = sum(padded[:, tap : tap + 9] * attention.conv.weight[:, tap] for tap in range(3)) + attention.conv.bias
    torch.testing.assert_close(
        attention(x, Positions(0, 9, None, x.device)), attention.out(attention.output_gate(x) * mixed)
    )


def test_key_heads_divide_value_heads() -> None:
    with pytest.raises(ConfigError, match=r"attention\.value_heads=4 does not divide into attention\.key_heads=3"):
        GPTConfig(**{**MODEL, "attention": {"name": "gated_delta", "key_heads": 3}})
