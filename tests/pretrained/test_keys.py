"""Every key of a config.json is read, harmless, or refused.

A change of one key either raises an error or gives the logits that transformers computes with it.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt import CheckpointError, GPTConfig, GPTModel
from modular_gpt.core.errors import UserError
from modular_gpt.mapping.hf_config import HARMLESS
from modular_gpt.pretrained import FAMILIES, load_pretrained
from tests.reference.cases import CASES, YARN, ids, reference
from tests.reference.conftest import difference

# families that together use every way of reading a key
SWEPT_FAMILIES = [
    "gpt2",
    "llama",
    "mistral",
    "qwen3",
    "gemma2",
    "mixtral",
    "gpt_oss",
    "deepseek_v3",
    "bloom",
    "mpt",
    "falcon",
]
ROTARY = [model_type for model_type in FAMILIES if model_type not in ("gpt2", "bloom", "mpt")]
# keys that transformers reads for other families than that of the file
EXTRA_KEYS: dict[str, Any] = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 3,
    "original_max_position_embeddings": 8,
    "partial_rotary_factor": 0.5,
    "rope_theta": 50.0,
    "rope_scaling": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0},
    "clip_qkv": 0.1,
    "attention_multiplier": 2.0,
    "residual_multiplier": 2.0,
    "no_such_key": 1,
}


def other_values(value: Any) -> Iterator[Any]:
    """Yield other values that the key could have."""
    yield None
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, float):
        yield value * 2 + 0.1
    elif value is None:
        yield 2


def single_changes(settings: dict[str, Any], common: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (description of the change, the settings with one key changed), nested keys included.

    Args:
        common: also change the keys that are harmless in every family
    """
    for key, value in settings.items():
        if key == "model_type" or (key in HARMLESS and not common):
            continue
        if isinstance(value, dict) and value:
            for inner, changed in single_changes(value, common):
                yield f"{key}.{inner}", {**settings, key: changed}
        for other in other_values(value):
            yield f"{key}={other}", {**settings, key: other}


def hf_logits(folder: Path, weights: dict[str, Tensor], tokens: Tensor) -> Tensor | None:
    """Logits (B, T, V) of transformers with a folder's config and these weights; None if they do not match."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        eager = {} if getattr(config, "alibi", False) else {"attn_implementation": "eager"}  # Falcon: biases twice
        model = transformers.AutoModelForCausalLM.from_config(config, **eager)
        model.load_state_dict(weights)
        logits = model.eval()(tokens, return_dict=True, use_cache=False).logits
    except Exception:
        return None
    return logits if logits.isfinite().all() else None


def our_logits(config: GPTConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor | None:
    """Logits (B, T, V) of ``GPTModel`` with a config and these weights; None if their shapes do not match."""
    model = GPTModel(config).eval()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        return None
    model.load_state_dict(weights)
    return model(tokens)


@pytest.mark.parametrize("model_type", SWEPT_FAMILIES)
@torch.no_grad()
def test_no_change_of_a_key_alters_logits_silently(model_type: str, tmp_path: Path) -> None:
    case = next(iter(CASES[model_type].values()))
    settings = {**case, "rope_parameters": {**YARN, "truncate": False}} if model_type in ROTARY else case
    model = reference(model_type, settings, strong=True)
    model.save_pretrained(tmp_path)
    weights, tokens = model.state_dict(), ids(61)
    given = json.loads((tmp_path / "config.json").read_text()) | settings
    full = json.loads(model.config.to_json_string(use_diff=False)) | {"model_type": model_type}
    differing, compared = [], 0
    our_weights = load_pretrained(tmp_path).state_dict()
    configs: list[GPTConfig] = []
    logits: list[Tensor | None] = []  # by config
    extra = ((key, {**full, **given, key: value}) for key, value in EXTRA_KEYS.items())
    for change, changed in chain(extra, single_changes({**full, **given}, common=model_type in ("gpt2", "llama"))):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            config = FAMILIES[model_type].config(changed)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        if config not in configs:
            configs.append(config)
            logits.append(our_logits(config, our_weights, tokens))
        actual, expected = logits[configs.index(config)], hf_logits(tmp_path, weights, tokens)
        if actual is not None and expected is not None:
            compared += 1
            if not difference(actual, expected) < 1e-4:
                differing.append(change)
    assert not differing
    assert compared >= 4, "too few changes were accepted for a meaningful sweep"


# model type -> former name of a key in files on the hub, and its present name in transformers
OLD_NAMES: dict[str, dict[str, str]] = {
    "bloom": {"n_head": "num_attention_heads", "hidden_size": "n_embed"},
    "gpt2": {"n_embd": "hidden_size", "n_head": "num_attention_heads"},
    "mpt": {"d_model": "hidden_size", "n_layers": "num_hidden_layers"},
    "mixtral": {"num_local_experts": "num_experts"},
}


@pytest.mark.parametrize("model_type", OLD_NAMES)
@torch.no_grad()
def test_former_names_of_keys_are_read(model_type: str, tmp_path: Path) -> None:
    case = CASES[model_type]["six heads"] if model_type == "bloom" else next(iter(CASES[model_type].values()))
    model = reference(model_type, case, strong=True)
    model.save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    given |= {name: model.config.to_dict()[name] for name in OLD_NAMES[model_type]}
    renamed = {OLD_NAMES[model_type].get(key, key): value for key, value in given.items()}
    (tmp_path / "config.json").write_text(json.dumps(renamed))
    tokens = ids(61)
    assert difference(load_pretrained(tmp_path)(tokens), model(tokens).logits) < 2e-5
    first = next(iter(OLD_NAMES[model_type]))
    (tmp_path / "config.json").write_text(json.dumps({**renamed, first: 1}))
    with pytest.raises(CheckpointError, match=f"{first}=1 and "):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("types", [["full_attention", "sliding_attention", "full_attention"], None], ids=str)
@torch.no_grad()
def test_layer_types_of_mistral_are_read(types: list[str] | None, tmp_path: Path) -> None:
    """transformers reads such a file as Ministral, whose layers may differ."""
    import transformers

    reference("mistral", {**CASES["mistral"]["window"], "sliding_window": 3}, strong=True).save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "layer_types": types}))
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    model, tokens = load_pretrained(tmp_path), ids(61)
    windows = [None, 3, None] if types else [3, 3, 3]
    assert [layer.attention.window for layer in model.config.layer_configs] == windows
    assert difference(model(tokens), hf_model(tokens).logits) < 2e-5


def test_unknown_keys_are_printed_escaped_and_shortened(tmp_path: Path) -> None:
    GPTModel(pos="learned").save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "evil\n\x1b[31m": "y" * 10**6}))
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
