"""Padding is ignored: in router losses and expert load; a row does not depend on other rows."""

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from tests.components.cases import MODEL
from tests.components.laws import build, close, text


def moe(**settings: object) -> GPTModel:
    return build(GPTConfig(**{**MODEL, "ffn": {"name": "moe", "balance_weight": 0.5, "z_weight": 0.3, **settings}}))


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_router_losses_and_load_ignore_padding(balance: str) -> None:
    model = moe(balance=balance).train()
    ids = text(model.config, rows=1, tokens=12)
    loads = [block.ffn.load for block in model.blocks]
    plain = model(ids, ids)
    expected = [load.clone() for load in loads if load is not None]
    model.after_skipped_step()
    padded = torch.cat([torch.zeros(1, 24, dtype=torch.long), ids], dim=1)
    targets = torch.cat([torch.full((1, 24), -100), ids], dim=1)
    got = model(padded, targets, padding=torch.tensor([24]))
    assert set(got.parts) == set(plain.parts)
    torch.testing.assert_close(got.loss, plain.loss, rtol=1e-5, atol=1e-5)
    for load, before in zip([load for load in loads if load is not None], expected, strict=True):
        assert torch.equal(load, before)


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "llama3", "linear"])
def test_scaled_rope_of_a_row_ignores_other_rows(kind: str) -> None:
    scaling = {"kind": kind, "factor": 4.0, "original_context_length": 8}
    model = build(GPTConfig(**{**MODEL, "context_length": 64, "pos": {"name": "rope", "scaling": scaling}}))
    long, short = text(model.config, rows=1, tokens=40), text(model.config, rows=1, tokens=6, seed=5)
    both = torch.cat([long, torch.cat([torch.zeros(1, 34, dtype=torch.long), short], dim=1)])
    with torch.no_grad():
        close(model(both, padding=torch.tensor([0, 34]))[1:, 34:], model(short), 1e-5)
        close(model(both, padding=torch.tensor([0, 34]))[:1], model(long), 1e-5)


def test_dynamic_rope_does_not_slide() -> None:
    scaling = {"kind": "dynamic", "factor": 2.0}
    assert not GPTModel(**{**MODEL, "pos": {"name": "rope", "scaling": scaling}}).slides
    assert GPTModel(**{**MODEL, "pos": "rope"}).slides


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": {"name": "layernorm", "eps": 0.0}},
        {"norm": {"name": "rmsnorm", "eps": 0.0}},
        {"norm": {"name": "scalenorm", "eps": 0.0}},
        {"attention": {"name": "linear", "eps": 0.0}, "pos": "rope"},
        {"attention": {"name": "mha", "qk_norm": "rmsnorm", "qk_norm_eps": 0.0}},
        {"attention": {"name": "mla", "latent_norm_eps": 0.0}},
    ],
)
def test_eps_of_zero_is_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match="eps must be above 0"):
        GPTModel(**{**MODEL, **settings})


def test_yarn_needs_a_growing_base() -> None:
    scaling = {"kind": "yarn", "factor": 2.0}
    with pytest.raises(ConfigError, match=r"needs pos\.theta above 1"):
        GPTModel(**{**MODEL, "pos": {"name": "rope", "theta": 1.0, "scaling": scaling}})


@pytest.mark.parametrize("settings", [{"norm": "scalenorm"}, {"attention": {"name": "mha", "qk_norm": "scalenorm"}}])
def test_float64_keeps_its_digits(settings: dict) -> None:
    model = build(GPTConfig(**{**MODEL, **settings})).double()
    ids = text(model.config)
    with torch.no_grad():
        logits = model(ids)
        assert logits.dtype == torch.float64
        close(logits, model.float()(ids), 1e-4)
