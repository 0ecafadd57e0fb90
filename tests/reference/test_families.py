"""Every published kind of model, saved by ``transformers`` and loaded by us, gives the logits that it gives there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.pretrained import FAMILIES, load_pretrained
from tests.reference.cases import CASES, TOKENS, ids, reference
from tests.reference.conftest import TOLERANCE, Parity, difference

INITS = {"own init": False, "strong init": True}


ALL = [(kind, case, init) for kind, settings in CASES.items() for case in settings for init in INITS]


def test_every_family_has_cases() -> None:
    assert set(CASES) == set(FAMILIES)


@pytest.mark.parametrize(("kind", "case", "init"), ALL)
def test_logits(kind: str, case: str, init: str, tmp_path: Path, parity: Parity) -> None:
    theirs = reference(kind, CASES[kind][case], strong=INITS[init])
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    tokens = ids(ours.config.vocab_size)
    with torch.no_grad():
        parity(f"{kind}, {init}", ours(tokens), theirs(tokens).logits)


@pytest.mark.parametrize(("kind", "case"), [(k, c) for k in ("gpt2", "llama", "gemma2") for c in CASES[k]])
@torch.no_grad()
def test_bfloat16(kind: str, case: str, tmp_path: Path) -> None:
    """In bfloat16 ours is as near to the float32 model as theirs is."""
    exact = reference(kind, CASES[kind][case], strong=False)
    exact.save_pretrained(tmp_path)
    tokens = ids(exact.config.vocab_size, 200 if kind == "llama" else TOKENS)
    ours = load_pretrained(tmp_path, dtype=torch.bfloat16)(tokens).float()
    right = exact(tokens).logits
    theirs = exact.bfloat16()(tokens).logits.float()
    error, their_error = (ours - right).square().mean().sqrt(), (theirs - right).square().mean().sqrt()
    assert error <= 1.25 * their_error, (error, their_error)


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
def test_a_misread_setting_would_show(kind: str, case: str, change: dict[str, Any], tmp_path: Path) -> None:
    """The cases above are worth something: each part they are about matters in them, with one of the inits at least."""
    apart = []
    for strong in INITS.values():
        reference(kind, CASES[kind][case], strong).save_pretrained(tmp_path)
        right = load_pretrained(tmp_path)
        wrong = GPTModel(merged(right.config.to_dict(), change)).eval()
        wrong.load_state_dict(right.state_dict())
        tokens = ids(right.config.vocab_size)
        with torch.no_grad():
            apart.append(difference(wrong(tokens), right(tokens)))
    assert max(apart) > 10 * TOLERANCE, apart


def merged(settings: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """``settings`` with some changed, at any depth; an empty mapping replaces what was there."""
    for name, value in change.items():
        deeper = isinstance(value, dict) and value and isinstance(settings.get(name), dict)
        settings = {**settings, name: merged(settings[name], value) if deeper else value}
    return settings
