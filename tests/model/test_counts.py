"""Numbers of parameters: published values, and counts by hand."""

import pytest
import torch

from modular_gpt import GPTConfig, GPTModel
from tests.components.cases import ALL, MODEL, Case, parametrize


def count(**settings: object) -> tuple[int, int, int]:
    with torch.device("meta"):
        return GPTModel(**settings).num_parameters()


@pytest.mark.parametrize(
    ("n_layers", "d_model", "n_heads", "total"),
    [
        pytest.param(12, 768, 12, 124_439_808, id="gpt2"),
        pytest.param(24, 1024, 16, 354_823_168, id="medium"),
        pytest.param(36, 1280, 20, 774_030_080, id="large"),
        pytest.param(48, 1600, 25, 1_557_611_200, id="xl"),
    ],
)
def test_gpt2(n_layers: int, d_model: int, n_heads: int, total: int) -> None:
    size = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads}
    got = count(vocab_size=50257, context_length=1024, pos="learned", **size)
    assert got == (total, total - (50257 + 1024) * d_model, total)


def test_the_small_model_of_earlier_code() -> None:
    foreign = dict(num_layers=6, n_embd=256, num_heads=8, block_size=256, vocab_size=62, d_ff=341)
    components = dict(pos_type="sinusoidal", norm_type="rmsnorm", ffn_type="ff_swiglu")
    assert count(**foreign, **components, bias=True, tie_embeddings=True)[0] == 3_175_164


@pytest.mark.parametrize("bias", [True, False])
def test_llama_by_hand(bias: bool) -> None:
    d, layers, vocab, kv, hidden = 48, 3, 100, 2 * 12, 40
    attention = d * d * 2 + 2 * d * kv + bias * (2 * d + 2 * kv)
    ffn = 3 * d * hidden + bias * (2 * hidden + d)
    body = layers * (attention + ffn + 2 * d) + d
    got = count(
        vocab_size=vocab, d_model=d, n_heads=4, n_layers=layers, bias=bias, tie_embeddings=False,
        pos="rope", norm="rmsnorm", attention={"name": "gqa", "n_kv_heads": 2},
        ffn={"name": "swiglu", "hidden": hidden},
    )  # fmt: skip
    assert got == (body + 2 * vocab * d, body + vocab * d, body + 2 * vocab * d)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [0, 2])
def test_active_parameters_of_experts_by_hand(bias: bool, shared: int) -> None:
    d, hidden, experts, top_k, layers = 32, 24, 6, 2, 2
    settings = {"name": "moe", "n_experts": experts, "top_k": top_k, "hidden": hidden, "shared_experts": shared}
    expert = 3 * d * hidden + bias * (2 * hidden + d)
    total, _, active = count(**{**MODEL, "bias": bias, "n_layers": layers, "ffn": settings})
    assert total - active == layers * (experts - top_k) * expert
    dense = count(**{**MODEL, "bias": bias, "n_layers": layers, "ffn": {"name": "swiglu", "hidden": hidden}})[0]
    one_shared = 3 * d * hidden * shared + bias * (2 * hidden * shared + d) if shared else 0
    assert total - dense == layers * ((experts - 1) * expert + experts * d + one_shared)


@parametrize(ALL)
def test_counts_are_consistent(case: Case) -> None:
    model = GPTModel(case.config())
    total, non_embedding, active = model.num_parameters()
    assert total == sum({id(p): p.numel() for p in model.parameters()}.values())
    assert 0 < active <= total and 0 < non_embedding < total
    assert total == sum(tensor.numel() for tensor in model.state_dict().values()) - sum(
        buffer.numel() for name, buffer in model.named_buffers() if name in model.state_dict()
    )


def test_tying_saves_the_head() -> None:
    tied, untied = (count(**MODEL, tie_embeddings=tie)[0] for tie in (True, False))
    assert untied - tied == MODEL["vocab_size"] * MODEL["d_model"]
    assert GPTConfig(**MODEL).tie_embeddings
