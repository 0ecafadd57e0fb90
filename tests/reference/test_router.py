"""The mixture of experts equals a loop over tokens; its losses equal those of ``transformers`` and their formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt import GPTConfig
from modular_gpt.nn.activations import ACTIVATIONS, gated
from modular_gpt.nn.ffn.moe import MixtureOfExperts
from tests.reference.conftest import Parity

WIDTH, HIDDEN = 16, 12


def experts(**settings: Any) -> MixtureOfExperts:
    """Return a mixture of 6 experts with large random weights, in training mode."""
    config = GPTConfig(d_model=WIDTH, ffn={"name": "moe", "hidden": HIDDEN, "n_experts": 6, **settings})
    moe = MixtureOfExperts(config.layer_configs[0].ffn, config.dims)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
        if moe.select_bias is not None:
            moe.select_bias.copy_(torch.randn(moe.select_bias.shape) * 0.2)
    return moe


def chosen_by_loop(moe: MixtureOfExperts, scores: Tensor) -> list[int]:
    """Return the experts chosen for one token, from its scores (E,)."""
    config = moe.config
    ranking = scores if moe.select_bias is None else scores + moe.select_bias
    size = config.n_experts // config.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(config.groups)]
    best = 2 if config.group_score == "top2" else 1
    groups.sort(key=lambda members: -sum(sorted((ranking[e].item() for e in members), reverse=True)[:best]))
    allowed = [expert for members in groups[: config.top_groups] for expert in members]
    return sorted(allowed, key=lambda expert: -ranking[expert].item())[: config.top_k]


def expert_by_loop(moe: MixtureOfExperts, token: Tensor, e: int) -> Tensor:
    """Return the output (D,) of expert ``e`` for one token (D,)."""

    def biased(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return weight[e] @ x + (0 if bias is None else bias[e])

    up = biased(moe.up, moe.up_bias, token)
    if moe.gate is None:
        hidden = ACTIVATIONS[moe.config.activation](up)
    else:
        hidden = gated(moe.config.activation, biased(moe.gate, moe.gate_bias, token), up)
    return biased(moe.down, moe.down_bias, hidden)


def by_loop(moe: MixtureOfExperts, x: Tensor) -> Tensor:
    """Mixture of experts (M, D) -> (M, D), one token and one expert at a time."""
    out = []
    for token in x:
        logits = moe.router(token)
        scores = logits.softmax(-1) if moe.config.score == "softmax" else logits.sigmoid()
        chosen = chosen_by_loop(moe, scores)
        weights = scores[chosen]
        if moe.config.norm_topk:
            weights = weights / weights.sum()
        weighted = [weight * expert_by_loop(moe, token, e) for weight, e in zip(weights, chosen, strict=True)]
        shared = 0 if moe.shared is None else moe.shared(token)[0]
        out.append(moe.config.routed_scale * torch.stack(weighted).sum(0) + shared)
    return torch.stack(out)


SETTINGS: dict[str, dict[str, Any]] = {
    "glu": {},
    "mlp": {"expert": "mlp", "activation": "relu2", "top_k": 3},
    "sigmoid by bias": {"score": "sigmoid", "balance": "bias", "top_k": 3},
    "softmax by bias, unnormalised": {"balance": "bias", "norm_topk": False, "routed_scale": 2.5},
    "groups by the best": {"groups": 3, "top_groups": 2, "top_k": 3, "bias": False},
    "groups by the best two": {"groups": 2, "top_groups": 1, "score": "sigmoid", "group_score": "top2"},
    "shared": {"shared_experts": 2, "router_bias": True},
    "shared mlp": {"expert": "mlp", "activation": "gelu", "shared_experts": 1},
    "all experts": {"top_k": 6},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_mixture_equals_a_loop_over_tokens(name: str, parity: Parity) -> None:
    moe, x = experts(**SETTINGS[name]), torch.randn(40, WIDTH)
    parity("moe, a loop over tokens", moe(x)[0], by_loop(moe, x))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_load_balancing_loss_equals_that_of_transformers(top_k: int, parity: Parity) -> None:
    """transformers divides the choices by the number of tokens; ours by the number of choices, top_k times as large."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    moe, x = experts(top_k=top_k, balance_weight=0.3), torch.randn(40, WIDTH)
    actual = moe(x)[1]["load_balancing"] / 0.3 * top_k
    expected = load_balancing_loss_func((moe.router(x),), 6, top_k)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, moe.router.weight)[0] for loss in (actual, expected)]
    parity("load-balancing loss, its gradient", *gradients)


def test_the_load_balancing_loss_of_even_routing_is_its_weight() -> None:
    moe = experts(top_k=6, balance_weight=0.3)  # every expert takes every token
    assert moe(torch.randn(40, WIDTH))[1]["load_balancing"].item() == pytest.approx(0.3)


def test_the_z_loss_equals_its_formula(parity: Parity) -> None:
    """https://arxiv.org/abs/2202.08906, equation 5, one token at a time."""
    moe, x = experts(z_weight=0.2), torch.randn(40, WIDTH)
    logits = moe.router(x)
    naive = sum(torch.log(sum(torch.exp(logit) for logit in row)) ** 2 for row in logits) / len(logits)
    actual = moe(x)[1]["router_z"] / 0.2
    torch.testing.assert_close(actual, naive, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, moe.router.weight)[0] for loss in (actual, naive)]
    parity("router z-loss, its gradient", *gradients)


def test_the_selection_bias_follows_its_formula() -> None:
    """https://arxiv.org/abs/2412.19437, section 2.1.2: one step up below the mean load, one step down above it."""
    moe = experts(balance="bias", score="sigmoid", top_k=2, bias_step=0.01)
    assert moe.select_bias is not None
    before, load = moe.select_bias.clone(), [0] * 6
    for _ in range(3):  # the loads of several passes are added
        x = torch.randn(40, WIDTH)
        for token in x:
            for expert in chosen_by_loop(moe, moe.router(token).sigmoid()):
                load[expert] += 1
        assert "load_balancing" not in moe(x)[1]
    moe.after_optimizer_step()
    mean = sum(load) / 6
    steps = [0.01 * ((count < mean) - (count > mean)) for count in load]
    torch.testing.assert_close(moe.select_bias, before + torch.tensor(steps))
    moe.after_optimizer_step()  # the loads were reset: without tokens the bias stays
    torch.testing.assert_close(moe.select_bias, before + torch.tensor(steps))


def test_the_selection_bias_evens_the_load() -> None:
    moe = experts(balance="bias", score="sigmoid", top_k=2, bias_step=0.02)
    x = torch.randn(400, WIDTH)

    def spread() -> float:
        moe(x)
        assert moe.load is not None
        return (moe.load.max() / moe.load.mean()).item()

    first = spread()
    for _ in range(100):
        moe.after_optimizer_step()
        last = spread()
    assert last < 1.1 < 1.3 < first
