"""For each family, every key of its config.json is read, harmless, or refused, and means what transformers reads.

``tests/pretrained/test_keys.py`` compares each change of a few families by itself. Here the accepted changes of all
keys are compared at once, and in halves where that fails.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.errors import UserError
from modular_gpt.model.materialize import meta_model, saved_tensors
from modular_gpt.pretrained import FAMILIES
from modular_gpt.pretrained.family import Family
from tests.reference.cases import CASES, reference
from tests.reference.conftest import difference
from tests.reference.published import Published, published

FIRST = [(kind, next(iter(settings))) for kind, settings in CASES.items()]
Path = tuple[str, ...]  # of a key, from the outermost object
# settings of ours that change the shapes of weights, which then cannot be compared
SIZES = {
    *("vocab_size", "d_model", "n_heads", "n_layers", "tie_embeddings", "embed_width", "n_kv_heads", "head_dim"),
    *("v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "q_lora_rank", "qkv_bias", "out_bias"),
    *("key_dim", "value_dim", "key_heads", "value_heads", "kernel", "rank", "hidden", "bias", "n_experts"),
    *("shared_experts", "shared_hidden", "shared_gate", "qk_norm", "topology", "affine"),
}
SAME = 1e-4


def leaves(settings: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, value) of every key that holds no object."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        elif key not in ("model_type", "return_dict"):  # the first is given; the second changes the type of results
            yield (*above, key), value


def another(value: Any) -> Any:
    """Another value that a key could have."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 1.5 + 0.1
        case _:
            return None


def changed(settings: Mapping[str, Any], changes: Mapping[Path, Any]) -> dict[str, Any]:
    """``settings`` with other values at some paths."""
    result = dict(settings)
    for (key, *inner), value in changes.items():
        result[key] = changed(result[key], {tuple(inner): value}) if inner else value
    return result


def read(family: Family, settings: Mapping[str, Any]) -> GPTConfig | None:
    try:
        return family.config(settings)
    except UserError as error:
        assert "\n" not in str(error)
        return None


def shapes(config: GPTConfig) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in saved_tensors(meta_model(config)).items()}


def accepted(model: Published, family: Family) -> dict[Path, Any]:
    """Changes of keys, one by one, that are not refused and keep the shapes of the weights."""
    before = dict(leaves(family.config(model.all_settings).to_dict()))
    found: dict[Path, Any] = {}
    for path, value in leaves(model.all_settings):
        other = another(value)
        config = None if value == other else read(family, changed(model.all_settings, {path: other}))
        if config is None:
            continue
        after = dict(leaves(config.to_dict()))
        differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        if not {name[-1] for name in differing} & SIZES:
            found[path] = other
    return found


def wrong(model: Published, family: Family, changes: Mapping[Path, Any]) -> tuple[list[str], int]:
    """The changes after which our logits are not those of transformers, and how many were compared."""
    if not changes:
        return [], 0
    ours, theirs = our_logits(model, family, changes), their_logits(model, changes)
    if ours is not None and theirs is not None and difference(ours, theirs) < SAME:
        return [], len(changes)
    if len(changes) == 1:  # one that transformers refuses is none of ours
        path, value = next(iter(changes.items()))
        refused = ours is None or theirs is None
        return ([] if refused else [f"{'.'.join(path)}={value}"]), 1 - refused
    items = list(changes.items())
    halves = [wrong(model, family, dict(half)) for half in (items[: len(items) // 2], items[len(items) // 2 :])]
    return [*halves[0][0], *halves[1][0]], halves[0][1] + halves[1][1]


def our_logits(model: Published, family: Family, changes: Mapping[Path, Any]) -> Tensor | None:
    config = read(family, changed(model.all_settings, changes))
    if config is None or shapes(config) != shapes(model.ours.config):
        return None
    ours = GPTModel(config).eval()
    ours.load_state_dict(model.ours.state_dict())
    return ours(model.tokens)


def their_logits(model: Published, changes: Mapping[Path, Any]) -> Tensor | None:
    try:
        settings = changed(model.all_settings, changes)
        del settings["model_type"]
        theirs: Any = reference(model.kind, settings, strong=False)
        theirs.load_state_dict(model.theirs.state_dict())
        logits: Tensor = theirs(model.tokens, return_dict=True, use_cache=False).logits
    except Exception:
        return None
    return logits if logits.isfinite().all() else None


@pytest.mark.parametrize(("kind", "case"), FIRST)
@torch.no_grad()
def test_every_key_is_read_harmless_or_refused(kind: str, case: str) -> None:
    model, family = published(kind, case), FAMILIES[kind]
    mistaken, compared = wrong(model, family, accepted(model, family))
    assert mistaken == []
    assert compared >= 4, "so few changes were accepted that the sweep says nothing"


@pytest.mark.parametrize(("kind", "case"), FIRST)
def test_an_ordinary_file_is_accepted(kind: str, case: str) -> None:
    """With every key that transformers writes, and those that older files and other tools add."""
    model, family = published(kind, case), FAMILIES[kind]
    more = {
        "_name_or_path": "x", "torch_dtype": "float32", "tokenizer_class": "x", "task_specific_params": {"a": {"b": 1}},
        "auto_map": {"AutoModel": "x.Y"}, "do_sample": True, "max_length": 50, "temperature": 0.6, "pretraining_tp": 1,
        "unsloth_version": "2025.1", "eos_token_id": [1, 2], "some_null": None, "transformers_version": "4.1.0",
    }  # fmt: skip
    assert family.config({**model.all_settings, **more}) == model.ours.config
