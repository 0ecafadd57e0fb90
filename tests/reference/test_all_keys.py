"""In each family, every key of a config.json is harmless, refused, or has the effect that it has in transformers.

``tests/pretrained/test_keys.py`` compares each change separately for a few families. Here all accepted changes of a
family are compared together, and bisected if the logits differ.
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
from tests.reference.model_pairs import ModelPair, model_pair

FIRST = [(model_type, next(iter(settings))) for model_type, settings in CASES.items()]
Path = tuple[str, ...]  # keys from the outermost object to a nested one
# settings that change the shapes of weights, so that logits with the same weights cannot be compared
SIZES = {
    *("vocab_size", "d_model", "n_heads", "n_layers", "tie_embeddings", "embed_width", "n_kv_heads", "head_dim"),
    *("v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "q_lora_rank", "qkv_bias", "out_bias"),
    *("key_dim", "value_dim", "key_heads", "value_heads", "kernel", "rank", "hidden", "bias", "n_experts"),
    *("shared_experts", "shared_hidden", "shared_gate", "qk_norm", "topology", "affine"),
}
MAX_DIFFERENCE = 1e-4


def leaves(settings: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path, value) of every key whose value is no object."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        elif key not in ("model_type", "return_dict"):  # fixed; changes the type of the output
            yield (*above, key), value


def another_value(value: Any) -> Any:
    """Return another value that a key could have."""
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
    """Return ``settings`` with other values at some paths."""
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


def accepted(pair: ModelPair, family: Family) -> dict[Path, Any]:
    """Return the changes of single keys that are not refused and keep the shapes of the weights."""
    before = dict(leaves(family.config(pair.all_settings).to_dict()))
    found: dict[Path, Any] = {}
    for path, value in leaves(pair.all_settings):
        other = another_value(value)
        config = None if value == other else read(family, changed(pair.all_settings, {path: other}))
        if config is None:
            continue
        after = dict(leaves(config.to_dict()))
        differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        if not {name[-1] for name in differing} & SIZES:
            found[path] = other
    return found


def differing(pair: ModelPair, family: Family, changes: Mapping[Path, Any]) -> tuple[list[str], int]:
    """Return the changes after which the logits differ from those of transformers, and the number compared."""
    if not changes:
        return [], 0
    actual, expected = our_logits(pair, family, changes), hf_logits(pair, changes)
    if actual is not None and expected is not None and difference(actual, expected) < MAX_DIFFERENCE:
        return [], len(changes)
    if len(changes) == 1:  # not compared if transformers refuses it
        path, value = next(iter(changes.items()))
        refused = actual is None or expected is None
        return ([] if refused else [f"{'.'.join(path)}={value}"]), 1 - refused
    items = list(changes.items())
    halves = [differing(pair, family, dict(half)) for half in (items[: len(items) // 2], items[len(items) // 2 :])]
    return [*halves[0][0], *halves[1][0]], halves[0][1] + halves[1][1]


def our_logits(pair: ModelPair, family: Family, changes: Mapping[Path, Any]) -> Tensor | None:
    config = read(family, changed(pair.all_settings, changes))
    if config is None or shapes(config) != shapes(pair.model.config):
        return None
    model = GPTModel(config).eval()
    model.load_state_dict(pair.model.state_dict())
    return model(pair.tokens)


def hf_logits(pair: ModelPair, changes: Mapping[Path, Any]) -> Tensor | None:
    try:
        settings = changed(pair.all_settings, changes)
        del settings["model_type"]
        hf_model: Any = reference(pair.model_type, settings, strong=False)
        hf_model.load_state_dict(pair.hf_model.state_dict())
        logits: Tensor = hf_model(pair.tokens, return_dict=True, use_cache=False).logits
    except Exception:
        return None
    return logits if logits.isfinite().all() else None


@pytest.mark.parametrize(("model_type", "case"), FIRST)
@torch.no_grad()
def test_every_key_is_read_harmless_or_refused(model_type: str, case: str) -> None:
    pair, family = model_pair(model_type, case), FAMILIES[model_type]
    changes, compared = differing(pair, family, accepted(pair, family))
    assert changes == []
    assert compared >= 4, "too few changes were accepted for a meaningful sweep"


@pytest.mark.parametrize(("model_type", "case"), FIRST)
def test_extra_keys_of_common_files_are_accepted(model_type: str, case: str) -> None:
    """It has every key that transformers writes, and those that older versions and other tools add."""
    pair, family = model_pair(model_type, case), FAMILIES[model_type]
    extra = {
        "_name_or_path": "x", "torch_dtype": "float32", "tokenizer_class": "x", "task_specific_params": {"a": {"b": 1}},
        "auto_map": {"AutoModel": "x.Y"}, "do_sample": True, "max_length": 50, "temperature": 0.6, "pretraining_tp": 1,
        "unsloth_version": "2025.1", "eos_token_id": [1, 2], "some_null": None, "transformers_version": "4.1.0",
    }  # fmt: skip
    assert family.config({**pair.all_settings, **extra}) == pair.model.config
