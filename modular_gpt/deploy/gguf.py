"""GGUF files, which llama.cpp and the programs built on it run: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

The file is made from a model as one of a published family: its config.json, and its tensors by the names of
transformers. A row of ``ARCHITECTURES`` says where each setting goes; one that has no place in the file is refused.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modular_gpt.core.atomic_files import temporary_name, write_problem
from modular_gpt.core.errors import CheckpointError, ConfigError, printable
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.deploy.gguf_vocabulary import GGUFVocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

SUFFIXES = (".weight", ".bias")
FIXED = "rope_parameters"  # checked by itself


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves (i with i + half) to pairs (2i with 2i + 1), which llama.cpp rotates for Llama."""
    return torch.cat([torch.stack(head.chunk(2), dim=1).flatten(0, 1) for head in tensor.chunk(heads)])


@dataclass(frozen=True)
class Architecture:
    """How models of one model_type are written.

    name: general.architecture of the file
    numbers: key of the config.json -> methods of the library's writer that take its value
    only: key -> the values that the architecture implies
    pairs: whether rotated dimensions lie side by side, as for Llama
    transposed: whether matrices of layers are stored as (in, out), as GPT-2's are
    norm_offset: added to the weights of norms
    alternates: whether the layers have a window in turn, the first one included
    """

    name: str
    numbers: Mapping[str, tuple[str, ...]]
    only: Mapping[str, tuple[object, ...]]
    pairs: bool = False
    transposed: bool = False
    norm_offset: float = 0.0
    alternates: bool = False
    ignored: frozenset[str] = field(
        default=frozenset(
            {
                *("vocab_size", "tie_word_embeddings", "initializer_range", "attention_dropout", "resid_pdrop"),
                *("embd_pdrop", "attn_pdrop", "layer_types"),
            }
        )
    )


NUMBERS = {
    "max_position_embeddings": ("add_context_length",),
    "hidden_size": ("add_embedding_length",),
    "num_hidden_layers": ("add_block_count",),
    "intermediate_size": ("add_feed_forward_length",),
    "num_attention_heads": ("add_head_count",),
    "num_key_value_heads": ("add_head_count_kv",),
    "head_dim": ("add_key_length", "add_value_length", "add_rope_dimension_count"),
    "rms_norm_eps": ("add_layer_norm_rms_eps",),
}
SILU = {"hidden_act": ("silu",)}
NO_WINDOW = {"sliding_window": (None,), "use_sliding_window": (False,), "max_window_layers": ()}
GELU_TANH = {"hidden_activation": ("gelu_pytorch_tanh",), "hidden_act": ("gelu_pytorch_tanh",)}
GEMMA2 = {
    **NUMBERS,
    "sliding_window": ("add_sliding_window",),
    "attn_logit_softcapping": ("add_attn_logit_softcapping",),
    "final_logit_softcapping": ("add_final_logit_softcapping",),
}
GPT2 = {
    "n_positions": ("add_context_length",),
    "n_embd": ("add_embedding_length",),
    "n_layer": ("add_block_count",),
    "n_inner": ("add_feed_forward_length",),
    "n_head": ("add_head_count",),
    "layer_norm_epsilon": ("add_layer_norm_eps",),
}
GPT2_ONLY = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("gpt2", GPT2, GPT2_ONLY, transposed=True),
    "llama": Architecture(
        "llama", NUMBERS, {**SILU, "attention_bias": (False, True), "mlp_bias": (False,)}, pairs=True
    ),
    "qwen2": Architecture("qwen2", NUMBERS, {**SILU, **NO_WINDOW}),
    "qwen3": Architecture("qwen3", NUMBERS, {**SILU, **NO_WINDOW, "attention_bias": (False,)}),
    "olmo2": Architecture("olmo2", NUMBERS, {**SILU, "attention_bias": (False,)}),
    "gemma": Architecture("gemma", NUMBERS, {**GELU_TANH, "attention_bias": (False,)}, norm_offset=1.0),
    "gemma2": Architecture(
        "gemma2", GEMMA2, {**GELU_TANH, "attention_bias": (False,)}, norm_offset=1.0, alternates=True
    ),
}


def write_gguf(
    path: Path, settings: PlainMapping, tensors: Mapping[str, Tensor], vocabulary: GGUFVocabulary | None
) -> None:
    """Write a model of a published family as a GGUF file, atomically.

    settings: its config.json, with a model_type of ``ARCHITECTURES``; tensors: by their names in transformers, in
        float32, float16 or bfloat16; vocabulary: None leaves the file without a tokenizer

    Raises:
        ConfigError: the extra ``gguf`` is not installed.
        CheckpointError: a setting has no place in the file, or it cannot be written.
    """
    gguf = _library()
    architecture = ARCHITECTURES[str(settings["model_type"])]
    check_settings(settings, architecture)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(temporary, architecture.name)
        _add_settings(writer, settings, architecture)
        if vocabulary is None:
            writer.add_tokenizer_model("none")
        else:
            vocabulary.add_to(writer, int(settings["vocab_size"]))
        for name, tensor in gguf_tensors(settings, tensors).items():
            _add_tensor(writer, name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, path)
    except OSError as error:
        reason, remedy = write_problem(error, path.parent)
        raise CheckpointError(f"cannot write '{path}' ({reason}): {remedy}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _library():  # type: ignore[no-untyped-def]  # the module itself
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("GGUF needs another package: pip install 'modular-gpt[gguf]'") from error
    return gguf


def check_settings(settings: PlainMapping, architecture: Architecture) -> None:
    """Raise a CheckpointError for a setting that the architecture has no place for."""
    notes = ("model_type", "architectures", "dtype", "bos_token_id", "eos_token_id", "pad_token_id")
    scalar, width = settings.get("query_pre_attn_scalar"), settings.get("head_dim")
    if scalar not in (None, width):
        _refuse(architecture, "query_pre_attn_scalar", scalar)
    if architecture.alternates:
        types = settings["layer_types"]
        if types != [("full" if i % 2 else "sliding") + "_attention" for i in range(len(types))]:
            _refuse(architecture, "layer_types", types)
    for name, value in settings.items():
        if name in (*notes, *architecture.ignored, *architecture.numbers, "query_pre_attn_scalar"):
            continue
        if name == FIXED:
            if value.get("rope_type", "default") != "default" or value.get("partial_rotary_factor", 1.0) != 1.0:
                _refuse(architecture, name, value)
        elif value not in architecture.only.get(name, ()):
            _refuse(architecture, name, value)


def _refuse(architecture: Architecture, name: str, value: object) -> None:
    raise CheckpointError(
        f"{name}={printable(str(value))} has no place in a GGUF file of the architecture {architecture.name}; write"
        " to=hf instead"
    )


def _add_settings(writer: "GGUFWriter", settings: PlainMapping, architecture: Architecture) -> None:
    writer.add_vocab_size(int(settings["vocab_size"]))
    for name, methods in architecture.numbers.items():
        if settings.get(name) is not None:
            for method in methods:
                getattr(writer, method)(settings[name])
    if FIXED in settings:
        writer.add_rope_freq_base(float(settings[FIXED]["rope_theta"]))


def gguf_tensors(settings: PlainMapping, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model by their names in a GGUF file, as llama.cpp expects them."""
    gguf, architecture = _library(), ARCHITECTURES[str(settings["model_type"])]
    known = gguf.MODEL_ARCH[architecture.name.upper()]
    layers = settings.get("num_hidden_layers", settings.get("n_layer"))
    names = gguf.get_tensor_name_map(known, layers)
    found = {}
    for name, tensor in tensors.items():
        new = names.get_name(name, try_suffixes=SUFFIXES)
        assert new is not None, f"the library has no name for {name}"
        found[new] = _converted(name, tensor, settings, architecture)
    return found


def _converted(name: str, tensor: Tensor, settings: PlainMapping, architecture: Architecture) -> Tensor:
    if architecture.transposed and tensor.dim() == 2 and ".h." in name:
        return tensor.T
    if architecture.pairs and (".q_proj." in name or ".k_proj." in name):
        return _interleaved(tensor, settings["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
    if architecture.norm_offset and name.endswith("norm.weight"):
        return tensor.float() + architecture.norm_offset
    return tensor


def _add_tensor(writer: "GGUFWriter", name: str, tensor: Tensor) -> None:
    """Add a tensor; vectors and positions are float32, as llama.cpp needs them, and NumPy has no bfloat16."""
    import gguf

    if tensor.dim() == 1 or name.startswith("position_embd"):
        tensor = tensor.float()
    if tensor.dtype == torch.bfloat16:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().contiguous().numpy(), kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, tensor.contiguous().numpy())
