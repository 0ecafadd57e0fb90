"""GGUF files have the tensors and settings of the model. ``benchmarks/llama_cpp.py`` runs such files in llama.cpp."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

from modular_gpt import CheckpointError, ConfigError, GPTModel  # noqa: E402
from modular_gpt.checkpoint.gguf_file import gguf_vocabulary, save_gguf  # noqa: E402
from modular_gpt.cli import convert  # noqa: E402
from modular_gpt.core.registry import decode  # noqa: E402
from modular_gpt.data.corpora import build_corpus  # noqa: E402
from modular_gpt.data.templates import JinjaTemplate, SpecialTexts, build_template  # noqa: E402
from modular_gpt.data.tokenizers import Tokenizer, build_tokenizer  # noqa: E402
from modular_gpt.deploy.gguf import ARCHITECTURES  # noqa: E402
from modular_gpt.pretrained import FAMILIES, as_published  # noqa: E402

SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 32),
    **{"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "intermediate_size": 44},
    **{"sliding_window": 16, "n_inner": 44, "vocab_size": 61},
}


CHANGES: dict[str, dict[str, Any]] = {"mixtral": {"sliding_window": None}, "gemma3_text": {"num_hidden_layers": 7}}
GGUF_NAMES = {"mixtral": "llama", "gemma3_text": "gemma3"}


def random_model(model_type: str, **changes: Any) -> GPTModel:
    family = FAMILIES[model_type]
    sizes = {**{key: size for key, size in SIZES.items() if key in family.defaults}, **CHANGES.get(model_type, {})}
    config = family.config({**sizes, **changes})
    torch.manual_seed(0)
    model = GPTModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


class GGUFFile:
    """The settings, tensors and quantisation types of a GGUF file, read by the package gguf."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.settings = {name: field.contents() for name, field in reader.fields.items()}
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {tensor.name: self._tensor(tensor) for tensor in reader.tensors}

    def _tensor(self, found: Any) -> Tensor:
        values = gguf.quants.dequantize(found.data, found.tensor_type)
        return torch.tensor(values).reshape(*reversed(found.shape.tolist()))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.txt"
    path.write_text("the cat sat on the mat.\nA dog barks at 12 cats, isn't it?\n" * 40)
    return str(path)


def tokenizer(corpus: str, name: str, **settings: Any) -> Tokenizer:
    text = build_corpus(decode("data", {"name": "text", "path": corpus}))
    return build_tokenizer(decode("tokenizer", {"name": name, **settings}), text)


def halves(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from adjacent pairs to halves."""
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in tensor.chunk(heads)])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_tensors_and_settings_are_read_back(model_type: str, tmp_path: Path) -> None:
    model = random_model(model_type)
    architecture = save_gguf(model, tmp_path / "model.gguf")
    file, (settings, tensors) = GGUFFile(tmp_path / "model.gguf"), as_published(model, [model_type])
    assert file.settings["general.architecture"] == architecture == GGUF_NAMES.get(model_type, model_type)
    layers = model.config.n_layers
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], layers)
    for hf_name, tensor in tensors.items():
        merged = re.sub(r"\.experts\.(\d+)\.", ".experts.", hf_name)
        found = file.tensors[names.get_name(merged, try_suffixes=(".weight", ".bias"))]
        if merged != hf_name:
            found = found[int(hf_name.split(".experts.")[1].split(".")[0])]
        if architecture == "llama" and (".q_proj" in hf_name or ".k_proj" in hf_name):
            found = halves(found, 4 if ".q_proj" in hf_name else 2)
        if model_type == "gpt2" and hf_name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            found = found.T
        if model_type.startswith("gemma") and hf_name.endswith("norm.weight"):
            tensor = tensor + 1.0
        assert torch.equal(found, tensor), hf_name
    assert len(file.tensors) == len({re.sub(r"\.experts\.\d+\.", ".experts.", name) for name in tensors})
    metadata = {name.partition(".")[2]: value for name, value in file.settings.items()}
    assert (metadata["block_count"], metadata["embedding_length"], metadata["context_length"]) == (layers, 32, 32)
    assert (metadata["attention.head_count"], metadata["feed_forward_length"], metadata["vocab_size"]) == (4, 44, 61)
    epsilon = metadata.get("attention.layer_norm_rms_epsilon", metadata.get("attention.layer_norm_epsilon"))
    assert epsilon == pytest.approx(model.config.norm.eps)
    if model_type != "gpt2":
        heads = (
            metadata["attention.head_count_kv"],
            metadata["attention.key_length"],
            metadata["rope.dimension_count"],
        )
        assert heads == (model.config.attention.n_kv_heads, 8, 8)
        rope = settings["rope_parameters"]
        assert metadata["rope.freq_base"] == rope.get("full_attention", rope)["rope_theta"]
        assert "rope.scaling.type" not in metadata
    if model_type == "mixtral":
        assert (metadata["expert_count"], metadata["expert_used_count"]) == (8, 2)
    if model_type == "gemma3_text":
        assert metadata["attention.sliding_window"] == 16
    if model_type == "gemma2":
        assert (metadata["attention.sliding_window"], metadata["final_logit_softcapping"]) == (16, 30.0)


THETA = {"rope_theta": 100.0}
ORIGINAL = {**THETA, "original_max_position_embeddings": 16}
LINEAR = {**THETA, "rope_type": "linear", "factor": 2.0}
YARN = {**ORIGINAL, "rope_type": "yarn", "factor": 2.0}
LLAMA3 = {
    **ORIGINAL,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def test_linear_and_yarn_scaling_are_written_as_settings(tmp_path: Path) -> None:
    for model_type, rope in (("llama", LINEAR), ("qwen3", YARN)):
        save_gguf(random_model(model_type, rope_parameters=rope), tmp_path / "model.gguf")
        settings = GGUFFile(tmp_path / "model.gguf").settings
        assert settings[f"{model_type}.rope.freq_base"] == 100.0
        found = {name.rpartition(".")[2]: value for name, value in settings.items() if ".rope.scaling." in name}
        assert (
            found
            == {
                "linear": {"type": "linear", "factor": 2.0},
                "yarn": {"type": "yarn", "factor": 2.0, "original_context_length": 16},
            }[rope["rope_type"]]
        )


def test_linear_scaling_of_gemma_3_applies_to_layers_without_window(tmp_path: Path) -> None:
    rope = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    save_gguf(random_model("gemma3_text", rope_parameters=rope), tmp_path / "model.gguf")
    settings = GGUFFile(tmp_path / "model.gguf").settings
    assert settings["gemma3.rope.freq_base"] == 100.0 and settings["gemma3.rope.scaling.factor"] == 2.0


def test_llama3_scaling_is_a_table_of_divisors_of_the_frequencies(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    save_gguf(random_model("llama", rope_parameters=LLAMA3), tmp_path / "model.gguf")
    file = GGUFFile(tmp_path / "model.gguf")
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=32, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = 100.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(unscaled / file.tensors["rope_freqs.weight"], scaled)
    assert file.tensors["rope_freqs.weight"].unique().numel() > 2, "unscaled, divided, and interpolated frequencies"
    assert not [name for name in file.settings if ".rope.scaling." in name]


def test_queries_and_keys_of_llama_are_in_the_order_of_rotated_pairs(tmp_path: Path) -> None:
    """llama.cpp rotates adjacent pairs; a model with that layout and the file's weights has equal logits."""
    model = random_model("llama", attention_bias=True)
    save_gguf(model, tmp_path / "model.gguf")
    tensors = GGUFFile(tmp_path / "model.gguf").tensors
    paired = GPTModel({**model.config.to_dict(), "pos": {"name": "rope", "layout": "interleaved"}}).eval()
    weights = model.state_dict()
    for layer in range(2):
        for name, gguf_name in (("query", "attn_q"), ("key", "attn_k")):
            for end in ("weight", "bias"):
                found = tensors[f"blk.{layer}.{gguf_name}.{end}"]
                assert not torch.equal(found, weights[f"blocks.{layer}.attention.{name}.{end}"])
                weights[f"blocks.{layer}.attention.{name}.{end}"] = found
    paired.load_state_dict(weights)
    ids = torch.arange(24)[None] % 61
    with torch.no_grad():
        torch.testing.assert_close(paired(ids), model(ids), atol=1e-5, rtol=1e-5)


def test_bfloat16_matrices_and_float32_vectors(tmp_path: Path) -> None:
    model = random_model("gpt2").bfloat16()
    save_gguf(model, tmp_path / "model.gguf")
    file = GGUFFile(tmp_path / "model.gguf")
    assert torch.equal(file.tensors["token_embd.weight"], model.embedding.weight.float())
    assert {file.types[name] for name in ("token_embd.weight", "blk.0.ffn_up.weight")} == {"BF16"}
    assert {file.types[name] for name in ("output_norm.weight", "blk.0.ffn_up.bias", "position_embd.weight")} == {"F32"}


def test_an_untied_head_is_written_and_a_tied_one_is_not(tmp_path: Path) -> None:
    for tied in (True, False):
        save_gguf(random_model("llama", tie_word_embeddings=tied), tmp_path / "model.gguf")
        assert ("output.weight" in GGUFFile(tmp_path / "model.gguf").tensors) != tied


def test_byte_level_vocabularies(corpus: str, tmp_path: Path) -> None:
    """Tokens by id, merges by rank, and the end of text as a control token; further rows are unused."""
    bpe = tokenizer(corpus, "bpe", vocab_size=280)
    content = bpe.definition()["tokenizer"]["model"]
    save_gguf(random_model("llama", vocab_size=bpe.vocab_size + 3), tmp_path / "model.gguf", bpe)
    settings = {
        name.removeprefix("tokenizer.ggml."): v for name, v in GGUFFile(tmp_path / "model.gguf").settings.items()
    }
    assert (settings["model"], settings["pre"]) == ("gpt2", "gpt-2")
    assert settings["tokens"][: bpe.vocab_size] == sorted(content["vocab"], key=content["vocab"].get)
    assert settings["merges"] == [" ".join(pair) for pair in content["merges"]] and settings["merges"]
    assert settings["token_type"][bpe.eos_id] == 3 and settings["token_type"][-3:] == [5, 5, 5]
    assert settings["eos_token_id"] == bpe.eos_id and not settings["add_bos_token"]
    byte = gguf_vocabulary(tokenizer(corpus, "byte"))
    assert len(byte.tokens) == 256 and byte.tokens[ord("a")] == b"a" and len(byte.merges) == 1


def test_a_sentencepiece_vocabulary_is_written(corpus: str) -> None:
    pytest.importorskip("sentencepiece", reason="the extra sentencepiece is not installed")
    found = gguf_vocabulary(tokenizer(corpus, "sentencepiece", vocab_size=300, algorithm="bpe"))
    assert found.model == "llama" and found.types[:2] == [2, 3] and found.types.count(6) == 256
    assert found.types[found.tokens.index(b"\n")] == 4 and not found.flags["add_space_prefix"]
    with pytest.raises(CheckpointError, match="not a unigram model"):
        gguf_vocabulary(tokenizer(corpus, "sentencepiece", vocab_size=300))


@pytest.mark.parametrize("name", ["plain", "chatml", "alpaca"])
def test_the_chat_template_is_written(name: str, corpus: str, tmp_path: Path) -> None:
    bpe = tokenizer(corpus, "bpe", vocab_size=280)
    template = build_template(name, bpe)
    path = tmp_path / "model.gguf"
    save_gguf(random_model("llama", vocab_size=bpe.vocab_size), path, bpe.with_template(template))
    settings = GGUFFile(path).settings
    source = settings["tokenizer.chat_template"]
    assert "generation %" not in source
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    read = JinjaTemplate({"default": source}, {}, SpecialTexts.of(bpe))
    assert read.render(messages) == template.render(messages)
    assert read.render(messages[:1], open_turn=True) == template.render(messages[:1], open_turn=True)
    assert settings.get("tokenizer.ggml.eot_token_id") == (None if name == "chatml" else bpe.eos_id)


@pytest.mark.parametrize("name", ["char", "wordpiece", "ids"])
def test_other_tokenizers_are_refused(name: str, corpus: str) -> None:
    with pytest.raises(CheckpointError, match=f"tokenizer={name}") as caught:
        gguf_vocabulary(tokenizer(corpus, name))
    assert "\n" not in str(caught.value)


def test_pre_tokenizers_unknown_to_llama_cpp_are_refused(corpus: str) -> None:
    from modular_gpt.deploy.gguf_vocabulary import SPLITS, from_library

    content = tokenizer(corpus, "bpe", vocab_size=280).definition()["tokenizer"]
    letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    for regex, name in SPLITS.items():
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        stages = {"type": "Sequence", "pretokenizers": [split, letters]}
        assert from_library({**content, "pre_tokenizer": stages}, None, None).split == name
    split = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
    unknown = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, letters]}}
    spaced = {"pre_tokenizer": {**letters, "add_prefix_space": True, "use_regex": True}}
    for change in (unknown, spaced, {"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": letters}):
        with pytest.raises(CheckpointError, match=r"llama\.cpp lacks the normalizer"):
            from_library({**content, **change}, None, None)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("mixtral", {"sliding_window": 16}, "sliding_window=16 has no counterpart"),
        ("olmoe", {}, "attention.qk_norm="),
        ("glm", {}, "pos.rotary_dim="),
        ("qwen3", {"rope_parameters": LLAMA3}, "rope_parameters=.* of the architecture qwen3"),
        (
            "llama",
            {"rope_parameters": {**YARN, "beta_fast": 8.0}},
            r"rope_parameters\.beta_fast=8\.0 has no counterpart",
        ),
        ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.5}}, r"attention_factor=1\.5 has no counterpart"),
        ("gemma3_text", {"rope_local_base_freq": 77.0}, "rope_parameters=.* of the architecture gemma3"),
        ("gemma3_text", {"sliding_window_pattern": 3}, "layer_types="),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping=None has no counterpart"),
        ("gemma2", {"num_hidden_layers": 46, "hidden_size": 48}, "query_pre_attn_scalar=8 has no counterpart"),
        ("mistral", {}, "attention.window=16"),
        (
            "llama",
            {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}},
            "rope_parameters=.* has no counterpart in a GGUF file of the architecture llama",
        ),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu has no counterpart"),
        ("gemma2", {"query_pre_attn_scalar": 3}, "query_pre_attn_scalar=3 has no counterpart"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True has no counterpart"),
    ],
)
def test_models_without_an_architecture_are_refused(
    model_type: str, changes: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        save_gguf(random_model(model_type, **changes), tmp_path / "model.gguf")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"modular-gpt\[gguf\]"):
        save_gguf(random_model("llama"), tmp_path / "model.gguf")


def test_mgpt_convert_writes_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = random_model("qwen3"), tmp_path / "new" / "model.gguf"
    model.save_pretrained(tmp_path / "hf")
    arguments = [f"checkpoint={tmp_path / 'hf'}", "to=gguf", f"path={path}"]
    assert convert.main([*arguments, "dtype=bf16"]) == 0
    assert "of the architecture qwen3 without a tokenizer" in capsys.readouterr().out
    file = GGUFFile(path)
    assert file.settings["tokenizer.ggml.model"] == "none" and file.types["output.weight"] == "BF16"
    assert convert.main(arguments) == 2 and "exists already" in capsys.readouterr().err
    assert convert.main([*arguments[:2]]) == 2 and "path=<file>" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert convert.main([*arguments[:2], f"path={tmp_path / 'file' / 'x'}"]) == 2
    assert "cannot write" in capsys.readouterr().err
