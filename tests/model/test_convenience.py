"""Further ways to call a model."""

import copy
import pickle

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig
from tests.components.cases import CHOSEN, MODEL, Case, parametrize
from tests.components.laws import build, close, feed, text


@parametrize([case for case in CHOSEN if case.slot == "attention"])
def test_use_cache_equals_an_explicit_cache(case: Case) -> None:
    model, ids = build(case.config()), text(case.config())
    expected = feed(model, ids, model.new_cache(len(ids)), [7, 1, 1, 4])
    for _ in range(2):
        chunks = [model(chunk, use_cache=True) for chunk in ids.split([7, 1, 1, 4, 7], dim=1)]
        close(torch.cat(chunks, dim=1), expected)
        assert not any(logits.requires_grad for logits in chunks)
        model.reset_kv_cache()


def test_a_forgotten_reset_is_reported() -> None:
    model, ids = build(GPTConfig(**MODEL)), text(GPTConfig(**MODEL))
    model(ids, use_cache=True)
    with pytest.raises(ConfigError, match="the cache was made for 3 rows, got 2") as error:
        model(ids[:2], use_cache=True)
    assert "\n" not in str(error.value)
    model.reset_kv_cache()
    model(ids[:2], use_cache=True)


def test_the_kept_cache_is_not_saved() -> None:
    model, ids = build(GPTConfig(**MODEL)), text(GPTConfig(**MODEL))
    names = list(model.state_dict())
    model(ids, use_cache=True)
    assert list(model.state_dict()) == names


@torch.no_grad()
def test_last_only() -> None:
    model, ids = build(GPTConfig(**MODEL)), text(GPTConfig(**MODEL))
    close(model(ids, last_only=True), model(ids)[:, -1:], 1e-6)
    assert model(ids, last_only=True).shape == (3, 1, 31)


@torch.no_grad()
def test_a_model_can_be_copied_and_converted_between_dtypes() -> None:
    model, ids = build(GPTConfig(**{**MODEL, "pos": "learned"})), text(GPTConfig(**MODEL))
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids), model(ids))
    twin.embedding.weight.zero_()
    assert model.embedding.weight.any()
    assert twin.blocks[0].attention.position is twin.positions[0]
    close(model.double()(ids), copy.deepcopy(model).float()(ids))
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(ids), model(ids))
