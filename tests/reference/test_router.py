"""Mixture of experts: its losses against ``transformers``, the whole of it against a loop over tokens."""

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
    """A mixture with strong weights, in training mode."""
    config = GPTConfig(d_model=WIDTH, ffn={"name": "moe", "hidden": HIDDEN, "n_experts": 6, **settings})
    part = MixtureOfExperts(config.layer_configs[0].ffn, config.dims)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
        if part.select_bias is not None:
            part.select_bias.copy_(torch.randn(part.select_bias.shape) * 0.2)
    return part


def chosen_by_loop(part: MixtureOfExperts, scores: Tensor) -> list[int]:
    """The experts of one token, from its scores (E,)."""
    config = part.config
    ranking = scores if part.select_bias is None else scores + part.select_bias
    size = config.n_experts // config.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(config.groups)]
    best = 2 if config.group_score == "top2" else 1
    groups.sort(key=lambda members: -sum(sorted((ranking[e].item() for e in members), reverse=True)[:best]))
    allowed = [expert for members in groups[: config.top_groups] for expert in members]
    return sorted(allowed, key=lambda expert: -ranking[expert].item())[: config.top_k]


def expert_by_loop(part: MixtureOfExperts, token: Tensor, e: int) -> Tensor:
    def biased(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return weight[e] @ x + (0 if bias is None else bias[e])

    up = biased(part.up, part.up_bias, token)
    if part.gate is None:
        hidden = ACTIVATIONS[part.config.activation](up)
    else:
        hidden = gated(part.config.activation, biased(part.gate, part.gate_bias, token), up)
    return biased(part.down, part.down_bias, hidden)


def by_loop(part: MixtureOfExperts, x: Tensor) -> Tensor:
    """(M, D) -> (M, D), one token and one expert at a time."""
    out = []
    for token in x:
        logits = part.router(token)
        scores = logits.softmax(-1) if part.config.score == "softmax" else logits.sigmoid()
        chosen = chosen_by_loop(part, scores)
        weights = scores[chosen]
        if part.config.norm_topk:
            weights = weights / weights.sum()
        parts = [weight * expert_by_loop(part, token, e) for weight, e in zip(weights, chosen, strict=True)]
        shared = 0 if part.shared is None else part.shared(token)[0]
        out.append(part.config.routed_scale * torch.stack(parts).sum(0) + shared)
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
def test_as_a_loop_over_tokens(name: str, parity: Parity) -> None:
    part, x = experts(**SETTINGS[name]), torch.randn(40, WIDTH)
    parity("moe, a loop over tokens", part(x)[0], by_loop(part, x))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_load_balancing_loss(top_k: int, parity: Parity) -> None:
    """Theirs counts every choice of a token, ours takes the share of all choices: a factor of top_k."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    part, x = experts(top_k=top_k, balance_weight=0.3), torch.randn(40, WIDTH)
    ours = part(x)[1]["load_balancing"] / 0.3 * top_k
    theirs = load_balancing_loss_func((part.router(x),), 6, top_k)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, part.router.weight)[0] for loss in (ours, theirs)]
    parity("load-balancing loss, its gradient", *gradients)


def test_load_balancing_loss_of_even_routing_is_its_weight() -> None:
    part = experts(top_k=6, balance_weight=0.3)  # every expert takes every token
    assert part(torch.randn(40, WIDTH))[1]["load_balancing"].item() == pytest.approx(0.3)


def test_z_loss(parity: Parity) -> None:
    """https://arxiv.org/abs/2202.08906, equation 5, one token at a time."""
    part, x = experts(z_weight=0.2), torch.randn(40, WIDTH)
    logits = part.router(x)
    naive = sum(torch.log(sum(torch.exp(each) for each in row)) ** 2 for row in logits) / len(logits)
    ours = part(x)[1]["router_z"] / 0.2
    torch.testing.assert_close(ours, naive, rtol=1e-5, atol=0)
    parity("router z-loss, its gradient", *(torch.autograd.grad(loss, part.router.weight)[0] for loss in (ours, naive)))


def test_balancing_by_a_bias() -> None:
    """https://arxiv.org/abs/2412.19437, section 2.1.2: a fixed step up for idle experts and down for busy ones."""
    part = experts(balance="bias", score="sigmoid", top_k=2, bias_step=0.01)
    assert part.select_bias is not None
    before, load = part.select_bias.clone(), [0] * 6
    for _ in range(3):  # what several passes saw counts together
        x = torch.randn(40, WIDTH)
        for token in x:
            for expert in chosen_by_loop(part, part.router(token).sigmoid()):
                load[expert] += 1
        assert "load_balancing" not in part(x)[1]
    part.after_optimizer_step()
    mean = sum(load) / 6
    steps = [0.01 * ((count < mean) - (count > mean)) for count in load]
    torch.testing.assert_close(part.select_bias, before + torch.tensor(steps))
    part.after_optimizer_step()  # the counts were forgotten: without tokens nothing moves
    torch.testing.assert_close(part.select_bias, before + torch.tensor(steps))


def test_balancing_by_a_bias_evens_the_load() -> None:
    part = experts(balance="bias", score="sigmoid", top_k=2, bias_step=0.02)
    x = torch.randn(400, WIDTH)

    def spread() -> float:
        part(x)
        assert part.load is not None
        return (part.load.max() / part.load.mean()).item()

    first = spread()
    for _ in range(100):
        part.after_optimizer_step()
        last = spread()
    assert last < 1.1 < 1.3 < first
