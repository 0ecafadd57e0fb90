"""Every key of a config.json is read, harmless, or refused: no change of one alters transformers' logits in silence."""

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

# families that together read keys in all the ways that there are
SWEPT = ["gpt2", "llama", "mistral", "qwen3", "gemma2", "mixtral", "gpt_oss", "deepseek_v3", "bloom", "mpt", "falcon"]
ROTARY = [kind for kind in FAMILIES if kind not in ("gpt2", "bloom", "mpt")]
# Keys whose values transformers takes for other families than the one of the file.
FURTHER: dict[str, Any] = {
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


def others(value: Any) -> Iterator[Any]:
    """Other values that a key could have."""
    yield None
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, float):
        yield value * 2 + 0.1
    elif value is None:
        yield 2


def nested(settings: dict[str, Any], common: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what was changed, the settings with one key changed), nested keys included.

    common: also those keys that are harmless in every family
    """
    for key, value in settings.items():
        if key == "model_type" or (key in HARMLESS and not common):
            continue
        if isinstance(value, dict) and value:
            for inner, changed in nested(value, common):
                yield f"{key}.{inner}", {**settings, key: changed}
        for other in others(value):
            yield f"{key}={other}", {**settings, key: other}


def theirs(folder: Path, weights: dict[str, Tensor], tokens: Tensor) -> Tensor | None:
    """The logits that transformers computes with a folder's config and these weights; None if they do not fit it."""
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


def ours(config: GPTConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor | None:
    """The logits that we compute with a config and these weights; None if they do not fit it."""
    model = GPTModel(config).eval()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        return None
    model.load_state_dict(weights)
    return model(tokens)


@pytest.mark.parametrize("kind", SWEPT)
@torch.no_grad()
def test_no_key_changes_logits_in_silence(kind: str, tmp_path: Path) -> None:
    case = next(iter(CASES[kind].values()))
    settings = {**case, "rope_parameters": {**YARN, "truncate": False}} if kind in ROTARY else case
    model = reference(kind, settings, strong=True)
    model.save_pretrained(tmp_path)
    weights, tokens = model.state_dict(), ids(61)
    given = json.loads((tmp_path / "config.json").read_text()) | settings
    full = json.loads(model.config.to_json_string(use_diff=False)) | {"model_type": kind}
    wrong, compared = [], 0
    loaded = load_pretrained(tmp_path).state_dict()
    configs: list[GPTConfig] = []
    logits: list[Tensor | None] = []  # by config
    further = ((key, {**full, **given, key: value}) for key, value in FURTHER.items())
    for change, changed in chain(further, nested({**full, **given}, common=kind in ("gpt2", "llama"))):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            config = FAMILIES[kind].config(changed)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        if config not in configs:
            configs.append(config)
            logits.append(ours(config, loaded, tokens))
        got, expected = logits[configs.index(config)], theirs(tmp_path, weights, tokens)
        if got is not None and expected is not None:
            compared += 1
            if not difference(got, expected) < 1e-4:
                wrong.append(change)
    assert not wrong
    assert compared >= 4, "so few changes were accepted that the sweep says nothing"


# the keys of files on the hub, from before transformers' own class renamed them
OLD_NAMES: dict[str, dict[str, str]] = {
    "bloom": {"n_head": "num_attention_heads", "hidden_size": "n_embed"},
    "gpt2": {"n_embd": "hidden_size", "n_head": "num_attention_heads"},
    "mpt": {"d_model": "hidden_size", "n_layers": "num_hidden_layers"},
    "mixtral": {"num_local_experts": "num_experts"},
}


@pytest.mark.parametrize("kind", OLD_NAMES)
@torch.no_grad()
def test_other_names_of_a_setting(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]["six heads"] if kind == "bloom" else next(iter(CASES[kind].values()))
    model = reference(kind, case, strong=True)
    model.save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    given |= {name: model.config.to_dict()[name] for name in OLD_NAMES[kind]}
    renamed = {OLD_NAMES[kind].get(key, key): value for key, value in given.items()}
    (tmp_path / "config.json").write_text(json.dumps(renamed))
    tokens = ids(61)
    assert difference(load_pretrained(tmp_path)(tokens), model(tokens).logits) < 2e-5
    first = next(iter(OLD_NAMES[kind]))
    (tmp_path / "config.json").write_text(json.dumps({**renamed, first: 1}))
    with pytest.raises(CheckpointError, match=f"{first}=1 and "):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("types", [["full_attention", "sliding_attention", "full_attention"], None], ids=str)
@torch.no_grad()
def test_layer_types_of_mistral(types: list[str] | None, tmp_path: Path) -> None:
    """transformers takes such a file for one of Ministral, whose layers may differ."""
    import transformers

    reference("mistral", {**CASES["mistral"]["window"], "sliding_window": 3}, strong=True).save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "layer_types": types}))
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ours, tokens = load_pretrained(tmp_path), ids(61)
    windows = [None, 3, None] if types else [3, 3, 3]
    assert [layer.attention.window for layer in ours.config.layer_configs] == windows
    assert difference(ours(tokens), expected(tokens).logits) < 2e-5


def test_strange_keys_are_printed_harmless(tmp_path: Path) -> None:
    GPTModel(pos="learned").save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "evil\n\x1b[31m": "y" * 10**6}))
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
