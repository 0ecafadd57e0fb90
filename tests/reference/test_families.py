"""Every published kind of model, saved by ``transformers`` and loaded by us, gives the logits that it gives there."""

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
from tests.reference.published import INITS, loaded_by_transformers, published

FIRST = [(kind, next(iter(settings))) for kind, settings in CASES.items()]
ALL = [(kind, case) for kind, settings in CASES.items() for case in settings]
each = pytest.mark.parametrize(("kind", "case"), ALL)
first_of_each = pytest.mark.parametrize(("kind", "case"), FIRST)
# recurrences have longer texts as well, of more than two chunks
LONG, DELTA = 150, 3e-4
HYBRID = [(kind, case) for kind, case in ALL if "linear_attention" in str(CASES[kind][case]) or case == "interval"]


def test_every_family_has_cases() -> None:
    assert set(CASES) == set(FAMILIES)


@pytest.mark.parametrize("init", INITS)
@each
def test_logits(kind: str, case: str, init: str, parity: Parity) -> None:
    model = published(kind, case, init)
    parity(f"{kind}, {init}", model.our_logits, model.logits)


@each
@torch.no_grad()
def test_there_and_back(kind: str, case: str, tmp_path: Path, parity: Parity) -> None:
    """A model of theirs, through ours, is the same again: its logits do not change in a single bit.

    Except where a config.json names the approximation of GELU in an unusual way for its family.
    """
    model = published(kind, case)
    save_pretrained(model.ours, tmp_path, model_type=kind)
    again = loaded_by_transformers(tmp_path)
    assert type(again) is type(model.theirs)
    logits = again(model.tokens, use_cache=False).logits
    parity(f"{kind}, written", logits, model.logits)
    reordered = case == "gelu_new" or CASES[kind][case].get("reorder_and_upcast_attn")  # of multiplications
    assert reordered or torch.equal(logits, model.logits)
    first, second = (load_file(folder / "model.safetensors") for folder in (model.folder, tmp_path))
    assert first.keys() == second.keys()
    unused = "model.decoder.embed_positions.weight"  # the first two rows of OPT's table stand for no position
    assert all(torch.equal(first[key], second[key]) for key in first if key != unused)


@first_of_each
@torch.no_grad()
def test_decoding_with_a_cache(kind: str, case: str) -> None:
    """A prompt, then token by token: the logits of the whole text."""
    model = published(kind, case)
    assert difference(decoded(model.ours, model.tokens, prompt=16), model.our_logits) < TOLERANCE


def decoded(model: GPTModel, tokens: Tensor, prompt: int) -> Tensor:
    """The logits of a text that is read with a cache, token by token after the first ``prompt`` tokens."""
    cache = model.new_cache(*tokens.shape)
    steps = [tokens[:, :prompt], *tokens[:, prompt:].split(1, dim=1)]
    return torch.cat([model(step, cache=cache) for step in steps], dim=1)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("kind", "case"), HYBRID)
@torch.no_grad()
def test_long_texts_of_recurrences(kind: str, case: str, init: str, parity: Parity) -> None:
    model = published(kind, case, init)
    tokens = ids(61, LONG)
    logits = model.ours(tokens)
    parity(f"{kind}, {init}, {LONG} tokens", logits, model.theirs(tokens, use_cache=False).logits, DELTA)
    assert difference(decoded(model.ours, tokens, prompt=LONG - 6), logits) < DELTA


@first_of_each
@torch.no_grad()
def test_bfloat16(kind: str, case: str) -> None:
    """In bfloat16 ours is as near to the float32 model as theirs is, up to a factor.

    It is larger with experts, since a rounded router may choose another one for a token.
    """
    model = published(kind, case, "own init")
    theirs = model.in_bfloat16()(model.tokens, use_cache=False).logits.float()
    ours = copy.deepcopy(model.ours).bfloat16()(model.tokens).float()
    error, their_error = ((got - model.logits).square().mean().sqrt() for got in (ours, theirs))
    has_experts = any(layer.ffn.name == "moe" for layer in model.ours.config.layer_configs)
    assert error <= (4.0 if has_experts else 1.15) * their_error, (error, their_error)


@torch.no_grad()
def test_bfloat16_of_a_long_text() -> None:
    model = published("llama", "gqa", "own init")
    tokens = ids(61, 200)
    right = model.theirs(tokens).logits
    theirs = model.in_bfloat16()(tokens).logits.float()
    ours = copy.deepcopy(model.ours).bfloat16()(tokens).float()
    assert (ours - right).square().mean().sqrt() <= 1.25 * (theirs - right).square().mean().sqrt()


# (kind, case) -> what our config would be if a setting of theirs were misread
MISREAD: list[tuple[str, str, dict[str, Any]]] = [
    ("gpt2", "inverse layer scale", {"layers": {}}),
    ("gpt2", "no scale, untied", {"attention": {"scale": None}}),
    ("gpt2", "erf gelu, eps", {"ffn": {"activation": "gelu_tanh"}}),
    ("gpt2", "erf gelu, eps", {"norm": {"eps": 1e-5}}),
    ("llama", "own head_dim, gelu, eps", {"norm": {"eps": 1e-6}}),
    ("llama", "own head_dim, gelu, eps", {"ffn": {"activation": "gelu_tanh"}}),
    *(
        ("llama", f"rope {kind}", {"pos": {"scaling": {}}})
        for kind in ("linear", "dynamic", "llama3", "yarn", "yarn, untruncated")
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


@pytest.mark.parametrize(("kind", "case", "change"), MISREAD)
def test_a_misread_setting_would_show(kind: str, case: str, change: dict[str, Any]) -> None:
    """The cases above are worth something: each part they are about matters in them, with one of the inits at least."""
    apart = []
    for init in INITS:
        model = published(kind, case, init)
        right = model.ours
        wrong = GPTModel(merged(right.config.to_dict(), change)).eval()
        wrong.load_state_dict(right.state_dict())
        with torch.no_grad():
            apart.append(difference(wrong(model.tokens), model.our_logits))
    assert max(apart) > 10 * TOLERANCE, apart


def merged(settings: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """``settings`` with some changed, at any depth; an empty mapping replaces what was there."""
    for name, value in change.items():
        deeper = isinstance(value, dict) and value and isinstance(settings.get(name), dict)
        settings = {**settings, name: merged(settings[name], value) if deeper else value}
    return settings
