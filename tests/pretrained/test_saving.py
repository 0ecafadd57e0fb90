"""transformers loads the folders that are written with the same logits; a model without a family is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from modular_gpt import CheckpointError, ConfigError, GPTModel
from modular_gpt.pretrained import load_pretrained, save_pretrained
from tests.reference.cases import CASES, ids, reference
from tests.reference.conftest import difference
from tests.reference.model_pairs import loaded_by_transformers

WRITTEN_FILES = ["config.json", "generation_config.json", "model.safetensors"]


def test_the_most_general_family_with_the_same_result_is_chosen(tmp_path: Path) -> None:
    """A Mistral without a window is a Llama."""
    reference("mistral", CASES["mistral"]["no window"], strong=True).save_pretrained(tmp_path)
    load_pretrained(tmp_path).save_pretrained(tmp_path)  # over itself
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


SIZES = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 3, "context_length": 32, "pos": "learned"}
LLAMA = {**SIZES, "bias": False, "ffn": "swiglu", "norm": "rmsnorm", "pos": "rope"}
YARN = {"name": "rope", "scaling": {"kind": "yarn", "factor": 4, "original_context_length": 8}}
NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "the default": ("gpt2", SIZES),
    "gpt2 with dropout and relu": ("gpt2", {**SIZES, "dropout": 0.2, "ffn": {"name": "mlp", "activation": "relu"}}),
    "gpt2, untied, narrow": ("gpt2", {**SIZES, "tie_embeddings": False, "ffn": {"name": "mlp", "hidden": 50}}),
    "llama": ("llama", LLAMA),
    "llama, mqa, linear scaling": (
        "llama",
        {**LLAMA, "attention": "mqa", "pos": {"name": "rope", "scaling": {"kind": "linear", "factor": 2}}},
    ),
    "llama, biases, yarn": ("llama", {**LLAMA, "bias": True, "pos": YARN}),
    "llama, geglu, dynamic": (
        "llama",
        {**LLAMA, "ffn": "geglu", "pos": {"name": "rope", "scaling": {"kind": "dynamic", "factor": 2}}},
    ),
    "llama, attention biases, llama3": (
        "llama",
        {
            **LLAMA,
            "attention": {"name": "gqa", "n_kv_heads": 2, "qkv_bias": True, "out_bias": True, "head_dim": 6},
            "pos": {"name": "rope", "scaling": {"kind": "llama3", "factor": 8, "original_context_length": 16}},
        },
    ),
    "mistral": ("mistral", {**LLAMA, "attention": {"name": "swa", "window": 5}}),
    "qwen2": ("qwen2", {**LLAMA, "attention": {"name": "gqa", "n_kv_heads": 2, "qkv_bias": True}}),
    "qwen3": (
        "qwen3",
        {
            **LLAMA,
            "attention": {"name": "mha", "qk_norm": "rmsnorm"},
            "norm": {"name": "rmsnorm", "eps": 1e-6},
            "layers": {"variants": {"local": {"attention": {"window": 5}}}, "cycle": ["local", "base"]},
        },
    ),
}


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_a_composed_model_is_read_by_transformers_and_back(name: str, tmp_path: Path) -> None:
    """Logits in transformers agree within the tolerance; those of the model read back are bitwise equal."""
    model_type, settings = NATIVE[name]
    model = GPTModel(**settings, init_std=0.3).eval()
    save_pretrained(model, tmp_path, eos_token_id=7)
    hf_model = loaded_by_transformers(tmp_path)
    assert hf_model.config.model_type == model_type and hf_model.config.eos_token_id == 7
    tokens = ids(61)
    assert difference(model(tokens), hf_model(tokens).logits) < 2e-5
    assert torch.equal(load_pretrained(tmp_path)(tokens), model(tokens))


def test_the_dtype_of_the_weights_is_saved(tmp_path: Path) -> None:
    GPTModel(**SIZES).bfloat16().save_pretrained(tmp_path)
    assert loaded_by_transformers(tmp_path).dtype == torch.bfloat16
    assert load_pretrained(tmp_path).embedding.weight.dtype == torch.bfloat16


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"attention": "mla"}, "the nearest one, gpt2, is without attention=mla;"),
    ({**LLAMA, "attention": "linear"}, "attention=linear"),
    ({"ffn": "moe"}, "ffn=moe"),
    ({"pos": "alibi"}, "the nearest one, bloom, is without embed_norm=False;"),
    ({**LLAMA, "norm": "scalenorm"}, "without norm=scalenorm;"),
    ({"bias": False}, "attention.qkv_bias=False"),
    ({"attention": {"name": "swa", "window": 5}}, "the nearest one, gpt2, is without attention.window=5;"),
    ({"attention": {"name": "gqa", "n_kv_heads": 2}}, "attention.n_kv_heads=2"),
    ({**LLAMA, "attention": {"name": "mha", "softcap": 20.0}}, "attention.softcap=20.0"),
    ({**LLAMA, "attention": {"name": "mha", "output_gate": "sigmoid"}}, "attention.output_gate=sigmoid"),
    ({**LLAMA, "topology": "parallel"}, "topology=parallel"),
    ({**LLAMA, "topology": "post", "final_norm": True}, "topology=post"),
    ({**LLAMA, "final_norm": False}, "final_norm=False"),
    ({**LLAMA, "logit_softcap": 5.0}, "the nearest one, llama, is without logit_softcap=5.0;"),
    ({**SIZES, "embed_scale": 2.0}, "embed_scale=2.0"),
    ({**LLAMA, "head_bias": True}, "head_bias=True"),
    ({**LLAMA, "embed_norm": True}, "embed_norm=True"),
    ({**LLAMA, "pos": {"name": "rope", "theta": 5.0}, "bias": True, "norm": "layernorm"}, "is without"),
    ({**LLAMA, "norm": {"name": "rmsnorm", "weight_offset": True}}, "norm.weight_offset=True"),
    ({**LLAMA, "ffn": {"name": "swiglu", "activation": "clamped_swish"}}, "clamped_swish"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_setting_that_no_family_has_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = GPTModel(**{**SIZES, **settings})
    with pytest.raises(CheckpointError) as refusal:
        model.save_pretrained(tmp_path / "new", format="family")
    assert "is without" in str(refusal.value) and message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "new").exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format"):
        GPTModel(**SIZES).save_pretrained(tmp_path, format="gguf")


def test_other_files_of_the_folder_are_kept(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    GPTModel(**SIZES).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*WRITTEN_FILES, "tokenizer.json"])


def test_a_full_disk_leaves_the_previous_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPTModel(**SIZES).eval()
    model.save_pretrained(tmp_path)

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("modular_gpt.weights.write.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*it needs [0-9,]+ bytes"):
        GPTModel(**SIZES).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == WRITTEN_FILES
    assert torch.equal(load_pretrained(tmp_path).embedding.weight, model.embedding.weight)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the model"):
        GPTModel(**SIZES).save_pretrained(tmp_path / "file" / "model")


@torch.no_grad()
def test_model_type_chooses_among_families_of_equal_results(tmp_path: Path) -> None:
    """A plain model can be written as any family that computes the same logits."""
    model = GPTModel(**LLAMA, init_std=0.3).eval()
    tokens = ids(61)
    for model_type in ("granite", "smollm3", "seed_oss", "ministral"):
        settings = {"sliding_window": 64} if model_type == "ministral" else {}
        model.save_pretrained(tmp_path / model_type, model_type=model_type)
        written = json.loads((tmp_path / model_type / "config.json").read_text())
        assert written["model_type"] == model_type and not settings.keys() & written.keys()
        if model_type != "ministral":  # transformers requires a window there
            assert difference(loaded_by_transformers(tmp_path / model_type)(tokens).logits, model(tokens)) < 2e-5


def test_a_model_type_that_lacks_a_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_type=qwen3 are without attention\.qk_norm=None"):
        GPTModel(**LLAMA).save_pretrained(tmp_path / "a", model_type="qwen3")
    with pytest.raises(ConfigError, match="no model_type 'granit'; did you mean 'granite'"):
        GPTModel(**LLAMA).save_pretrained(tmp_path / "a", model_type="granit")
    with pytest.raises(ConfigError, match="has its own model type"):
        GPTModel(**LLAMA).save_pretrained(tmp_path / "a", format="modular_gpt", model_type="llama")
    assert not (tmp_path / "a").exists()
