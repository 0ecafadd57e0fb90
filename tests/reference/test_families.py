"""Models of every family that ``transformers`` saved give the same logits here, with and without a cache."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modular_gpt import GPTModel
from modular_gpt.pretrained import FAMILIES, save_pretrained
from tests.reference.cases import CASES, ids
from tests.reference.conftest import TOLERANCE, Parity, difference
from tests.reference.model_pairs import INITS, loaded_by_transformers, model_pair

FIRST = [(model_type, next(iter(settings))) for model_type, settings in CASES.items()]
ALL = [(model_type, case) for model_type, settings in CASES.items() for case in settings]
every_case = pytest.mark.parametrize(("model_type", "case"), ALL)
first_cases = pytest.mark.parametrize(("model_type", "case"), FIRST)
# number of tokens in the long texts of recurrences, more than two chunks; their tolerance in standard deviations
LONG, DELTA = 150, 3e-4
HYBRID = [
    (model_type, case)
    for model_type, case in ALL
    if "linear_attention" in str(CASES[model_type][case]) or case == "interval"
]


def test_every_family_has_cases() -> None:
    assert set(CASES) == set(FAMILIES)


@pytest.mark.parametrize("init", INITS)
@every_case
def test_logits_equal_those_of_transformers(model_type: str, case: str, init: str, parity: Parity) -> None:
    pair = model_pair(model_type, case, init)
    parity(f"{model_type}, {init}", pair.logits, pair.hf_logits)


@every_case
@torch.no_grad()
def test_a_model_that_is_loaded_and_saved_again_is_unchanged(
    model_type: str, case: str, tmp_path: Path, parity: Parity
) -> None:
    """The logits in transformers after loading and saving are bitwise those of the original model.

    The exception are cases in which transformers multiplies in another order, as for another name of the same GELU.
    """
    pair = model_pair(model_type, case)
    save_pretrained(pair.model, tmp_path, model_type=model_type)
    reloaded = loaded_by_transformers(tmp_path)
    assert type(reloaded) is type(pair.hf_model)
    logits = reloaded(pair.tokens, use_cache=False).logits
    parity(f"{model_type}, written", logits, pair.hf_logits)
    reordered = case == "gelu_new" or CASES[model_type][case].get("reorder_and_upcast_attn")
    assert reordered or torch.equal(logits, pair.hf_logits)
    original, written = (load_file(folder / "model.safetensors") for folder in (pair.folder, tmp_path))
    assert original.keys() == written.keys()
    partly_unused = "model.decoder.embed_positions.weight"  # the first two rows of OPT's table belong to no position
    assert all(torch.equal(original[key], written[key]) for key in original if key != partly_unused)


@first_cases
@torch.no_grad()
def test_cached_decoding_equals_the_full_pass(model_type: str, case: str) -> None:
    pair = model_pair(model_type, case)
    assert difference(decoded(pair.model, pair.tokens, prompt=16), pair.logits) < TOLERANCE


def decoded(model: GPTModel, tokens: Tensor, prompt: int) -> Tensor:
    """Return the logits (B, T, V) with a cache: the first ``prompt`` tokens in one pass, then token by token."""
    cache = model.new_cache(*tokens.shape)
    steps = [tokens[:, :prompt], *tokens[:, prompt:].split(1, dim=1)]
    return torch.cat([model(step, cache=cache) for step in steps], dim=1)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("model_type", "case"), HYBRID)
@torch.no_grad()
def test_recurrences_equal_transformers_over_several_chunks(
    model_type: str, case: str, init: str, parity: Parity
) -> None:
    pair = model_pair(model_type, case, init)
    tokens = ids(61, LONG)
    logits = pair.model(tokens)
    parity(f"{model_type}, {init}, {LONG} tokens", logits, pair.hf_model(tokens, use_cache=False).logits, DELTA)
    assert difference(decoded(pair.model, tokens, prompt=LONG - 6), logits) < DELTA


@first_cases
@torch.no_grad()
def test_the_rounding_error_in_bfloat16_is_that_of_transformers(model_type: str, case: str) -> None:
    """The root-mean-square error against the float32 model is at most 1.15 times that of transformers.

    With experts the factor is 4, since a rounded router may choose another expert for a token.
    """
    pair = model_pair(model_type, case, "own init")
    hf_logits = pair.hf_model_in_bfloat16()(pair.tokens, use_cache=False).logits.float()
    logits = copy.deepcopy(pair.model).bfloat16()(pair.tokens).float()
    error, hf_error = ((rounded - pair.hf_logits).square().mean().sqrt() for rounded in (logits, hf_logits))
    has_experts = any(layer.ffn.name == "moe" for layer in pair.model.config.layer_configs)
    assert error <= (4.0 if has_experts else 1.15) * hf_error, (error, hf_error)


@torch.no_grad()
def test_the_rounding_error_in_bfloat16_of_a_long_text() -> None:
    pair = model_pair("llama", "gqa", "own init")
    tokens = ids(61, 200)
    exact = pair.hf_model(tokens).logits
    hf_logits = pair.hf_model_in_bfloat16()(tokens).logits.float()
    logits = copy.deepcopy(pair.model).bfloat16()(tokens).float()
    assert (logits - exact).square().mean().sqrt() <= 1.25 * (hf_logits - exact).square().mean().sqrt()


# (model type, case, change of the config that misreading one key would cause)
MISREAD: list[tuple[str, str, dict[str, Any]]] = [
    ("gpt2", "inverse layer scale", {"layers": {}}),
    ("gpt2", "no scale, untied", {"attention": {"scale": None}}),
    ("gpt2", "erf gelu, eps", {"ffn": {"activation": "gelu_tanh"}}),
    ("gpt2", "erf gelu, eps", {"norm": {"eps": 1e-5}}),
    ("llama", "own head_dim, gelu, eps", {"norm": {"eps": 1e-6}}),
    ("llama", "own head_dim, gelu, eps", {"ffn": {"activation": "gelu_tanh"}}),
    *(
        ("llama", f"rope {scaling}", {"pos": {"scaling": {}}})
        for scaling in ("linear", "dynamic", "llama3", "yarn", "yarn, untruncated")
    ),
    ("llama", "rope yarn", {"pos": {"scaling": {"truncate": False}}}),
    ("llama", "rope yarn", {"pos": {"scaling": {"attention_factor": 1.0}}}),
    ("llama", "rope yarn", {"pos": {"scaling": {"beta_slow": 1.0}}}),
    ("llama", "rope llama3", {"pos": {"scaling": {"high_frequency_factor": 2.0}}}),
    ("llama", "gqa", {"pos": {"layout": "interleaved"}}),
    ("mistral", "window", {"attention": {"window": 8}}),
    ("mistral", "window", {"attention": {"window": 6}}),
    ("qwen2", "last layers windowed", {"layers": {}}),
    ("qwen3", "plain", {"attention": {"qk_norm_after_rope": True}}),
    ("qwen3", "alternating windows", {"layers": {"cycle": ["sliding"]}}),
    ("mixtral", "top 2", {"ffn": {"top_k": 1}}),
    ("mixtral", "top 2", {"ffn": {"norm_topk": False}}),
    ("deepseek_v2", "query latent", {"attention": {"latent_norm_eps": 1e-3}}),
    ("deepseek_v2", "query latent", {"ffn": {"norm_topk": True}}),
    ("deepseek_v2", "groups, scaled", {"ffn": {"groups": 1, "top_groups": 1}}),
    ("deepseek_v2", "groups, scaled", {"ffn": {"group_score": "top2"}}),
    ("deepseek_v2", "groups, scaled", {"ffn": {"routed_scale": 1.0}}),
    ("deepseek_v2", "biases, yarn", {"attention": {"scale": None}}),
    ("deepseek_v3", "groups", {"ffn": {"score": "softmax"}}),
    ("deepseek_v3", "groups", {"ffn": {"group_score": "max"}}),
    ("deepseek_v3", "half layout, unnormalised", {"pos": {"layout": "interleaved"}}),
    ("bloom", "plain", {"ffn": {"activation": "gelu"}}),
    ("mpt", "plain", {"ffn": {"activation": "gelu_tanh"}}),
    ("mpt", "plain", {"pos": {"max_bias": 7.0}}),
    ("mpt", "clipped", {"attention": {"clip_qkv": None}}),
    ("gemma2", "windows", {"layers": {}}),
    ("gemma2", "windows", {"embed_scale": 1.0}),
    ("gemma2", "softcaps", {"attention": {"softcap": None}}),
    ("gemma2", "softcaps", {"logit_softcap": None}),
    ("gpt_oss", "yarn", {"layers": {}}),
    ("gpt_oss", "yarn", {"ffn": {"activation": "silu"}}),
]


@pytest.mark.parametrize(("model_type", "case", "change"), MISREAD)
def test_misreading_a_key_changes_the_logits(model_type: str, case: str, change: dict[str, Any]) -> None:
    """The cases above detect each misread key, with at least one of the initialisations."""
    found = []
    for init in INITS:
        pair = model_pair(model_type, case, init)
        misread = GPTModel(merged(pair.model.config.to_dict(), change)).eval()
        misread.load_state_dict(pair.model.state_dict())
        with torch.no_grad():
            found.append(difference(misread(pair.tokens), pair.logits))
    assert max(found) > 10 * TOLERANCE, found


def merged(settings: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` with some changed, at any depth; an empty mapping replaces the former one."""
    for name, value in change.items():
        deeper = isinstance(value, dict) and value and isinstance(settings.get(name), dict)
        settings = {**settings, name: merged(settings[name], value) if deeper else value}
    return settings
