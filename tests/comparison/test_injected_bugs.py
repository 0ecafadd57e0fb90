"""Each of twelve injected bugs is found by its probe, and no probe fails on a correct model."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.comparison.diagnostics import PROBES
from modular_gpt.core.cache import TokenCache
from modular_gpt.core.positions import Positions
from modular_gpt.nn.pos import alibi
from modular_gpt.nn.pos.rope import RoPE

MODEL: dict[str, Any] = dict(vocab_size=31, d_model=32, n_heads=4, n_layers=2, context_length=24)
Plant = Callable[[GPTModel, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """plant: injects the bug into a model; found_by: the probe that must fail"""

    config: dict[str, Any]
    plant: Plant
    found_by: str


def scoring(**changes: Any) -> Plant:
    """Change settings of the attention scores; numbers are added to those of the config, others replace them."""

    def plant(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
        for block in model.blocks:
            present = block.attention.scoring
            new = {**changes, **({"window": present.window + changes["window"]} if "window" in changes else {})}
            block.attention.scoring = replace(present, **new)

    return plant


def rope_dropped_on_keys(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
    rotate = RoPE.rotate

    def queries_only(self: RoPE, x: Tensor, pos: Positions) -> Tensor:
        return x if x.shape[1] == 2 else rotate(self, x, pos)  # two key heads, four query heads

    patch.setattr(RoPE, "rotate", queries_only)


def latent_norm_removed(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
    for block in model.blocks:
        block.attention.latent_norm = nn.Identity()


def slopes_off_by_a_head(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(alibi, "slopes", lambda n, largest=8.0: [2.0 ** (-largest * head / n) for head in range(n)])


def router_cut_from_the_loss(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
    for block in model.blocks:
        block.ffn.router.register_forward_hook(lambda module, arguments, output: output.detach())


def cache_off_by_one(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
    append = TokenCache.append

    def shifted(self: TokenCache, pos: Positions, *new: Tensor) -> tuple[list[Tensor], Tensor]:
        rows, columns = append(self, pos, *new)
        if pos.count > 1 or columns.shape[0] == 1:
            return rows, columns
        return [torch.cat([row[:, :, :1], row[:, :, :-1]], dim=2) for row in rows], columns

    patch.setattr(TokenCache, "append", shifted)


def groups_shuffled(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
    attention = F.scaled_dot_product_attention

    def shuffled(q: Tensor, k: Tensor, v: Tensor, *arguments: Any, enable_gqa: bool = False, **others: Any) -> Tensor:
        if enable_gqa:
            k, v = (x.repeat(1, q.shape[1] // x.shape[1], 1, 1) for x in (k, v))
        return attention(q, k, v, *arguments, **others)

    patch.setattr(F, "scaled_dot_product_attention", shuffled)


def dropout_at_evaluation(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nn.Dropout, "forward", lambda self, x: F.dropout(x, self.p, training=True))


def tied_head_untied(model: GPTModel, patch: pytest.MonkeyPatch) -> None:
    model.head = nn.Linear(model.config.d_model, model.config.vocab_size, bias=False)
    model.head.weight = nn.Parameter(deepcopy(model.embedding.weight.data))


WINDOW: dict[str, Any] = {"attention": {"name": "swa", "window": 5}}
GROUPS: dict[str, Any] = {"attention": {"name": "gqa", "n_kv_heads": 2}}
BUGS = {
    "window + 1": Bug(WINDOW, scoring(window=1), "receptive field"),
    "window - 1": Bug(WINDOW, scoring(window=-1), "receptive field"),
    "rope dropped on keys": Bug(GROUPS, rope_dropped_on_keys, "scores do not depend on the place"),
    "latent norm removed": Bug({"attention": "mla"}, latent_norm_removed, "norms inside the attention act"),
    "slopes off by a head": Bug({"pos": "alibi"}, slopes_off_by_a_head, "ALiBi slopes"),
    "router cut from the loss": Bug(
        {"ffn": {"name": "moe", "balance": "none"}}, router_cut_from_the_loss, "every parameter gets a gradient"
    ),
    "cache off by one": Bug({}, cache_off_by_one, "the cache gives the same"),
    "softcap dropped": Bug(
        {"attention": {"name": "mha", "softcap": 0.5}}, scoring(softcap=None), "scores are scaled products"
    ),
    "scale wrong": Bug({}, scoring(scale=32**-0.5), "scores are scaled products"),
    "groups shuffled": Bug(GROUPS, groups_shuffled, "heads are weighted values"),
    "dropout at evaluation": Bug({"dropout": 0.3}, dropout_at_evaluation, "evaluation is deterministic"),
    "tied head untied": Bug({}, tied_head_untied, "the head is the embedding"),
}


def failed(model: GPTModel) -> set[str]:
    """The names of the probes that fail."""
    answers = {name: probe(model) for name, probe in PROBES.items()}
    return {name for name, answer in answers.items() if answer is not None and not answer.passed}


@pytest.mark.parametrize("name", BUGS)
def test_a_probe_finds_the_bug(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(**{**MODEL, **bug.config}))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert not failed(model)
    bug.plant(model, monkeypatch)
    assert bug.found_by in failed(model)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items() if key in weights)
