"""GGUF files, which llama.cpp and the programs built on it run: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

The input is a model of a published family: its config.json, and its tensors under their names in transformers.
``ARCHITECTURES`` maps each setting to a key of the file; a setting without a counterpart is an error.
"""

import math
import os
import re
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
ROPE, FULL, SLIDING = "rope_parameters", "full_attention", "sliding_attention"
EXPERT = re.compile(r"(?P<stack>.+\.experts)\.\d+(?P<matrix>\..+)\.weight")
# RoPE scaling -> key of rope_parameters -> method of GGUFWriter, or the values that llama.cpp assumes
LINEAR: Mapping[str, str | tuple[object, ...]] = {"factor": "add_rope_scaling_factor"}
YARN: Mapping[str, str | tuple[object, ...]] = {
    **LINEAR,
    "original_max_position_embeddings": "add_rope_scaling_orig_ctx_len",
    **{"beta_fast": (32.0,), "beta_slow": (1.0,), "truncate": (True,), "attention_factor": ()},
}
SCALINGS = {"default": {}, "linear": LINEAR, "yarn": YARN}


def _interleave(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head so that row i and row i + half, which RoPE rotates together, become neighbours."""
    return torch.cat([torch.stack(head.chunk(2), dim=1).flatten(0, 1) for head in tensor.chunk(heads)])


@dataclass(frozen=True)
class Architecture:
    """The mapping of one model_type to GGUF.

    name: general.architecture of the file
    written: key of config.json -> methods of GGUFWriter that write its value
    assumed: key of config.json -> the values that llama.cpp assumes for the architecture
    interleaved: whether RoPE rotates neighbouring dimensions (2i, 2i + 1), as llama.cpp does for Llama
    transposed: whether transformers stores the matrices of layers as (in, out), as for GPT-2
    norm_offset: added to the weights of norms
    full_every: every n-th layer, counted from 1, has full attention, the others a sliding window; 0: the architecture
        has no layer_types
    wide_scale_layers: number of layers of the model for which llama.cpp scales scores by 1 / sqrt(hidden_size /
        num_attention_heads) instead of 1 / sqrt(head_dim); 0: none
    ignored: keys of config.json without effect on the result
    """

    name: str
    written: Mapping[str, tuple[str, ...]]
    assumed: Mapping[str, tuple[object, ...]]
    interleaved: bool = False
    transposed: bool = False
    norm_offset: float = 0.0
    full_every: int = 0
    wide_scale_layers: int = 0
    ignored: frozenset[str] = field(
        default=frozenset(
            {
                *("vocab_size", "tie_word_embeddings", "initializer_range", "attention_dropout", "resid_pdrop"),
                *("embd_pdrop", "attn_pdrop", "layer_types", "router_aux_loss_coef", "query_pre_attn_scalar"),
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
MIXTRAL = {**NUMBERS, "num_local_experts": ("add_expert_count",), "num_experts_per_tok": ("add_expert_used_count",)}
SILU = {"hidden_act": ("silu",)}
NO_WINDOW = {"sliding_window": (None,), "use_sliding_window": (False,), "max_window_layers": ()}
GELU_TANH = {"hidden_activation": ("gelu_pytorch_tanh",), "hidden_act": ("gelu_pytorch_tanh",)}
GEMMA3 = {**NUMBERS, "sliding_window": ("add_sliding_window",)}
GEMMA2 = {
    **GEMMA3,
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
        "llama", NUMBERS, {**SILU, "attention_bias": (False, True), "mlp_bias": (False,)}, interleaved=True
    ),
    "qwen2": Architecture("qwen2", NUMBERS, {**SILU, **NO_WINDOW}),
    "qwen3": Architecture("qwen3", NUMBERS, {**SILU, **NO_WINDOW, "attention_bias": (False,)}),
    "olmo2": Architecture("olmo2", NUMBERS, {**SILU, "attention_bias": (False,)}),
    "gemma": Architecture("gemma", NUMBERS, {**GELU_TANH, "attention_bias": (False,)}, norm_offset=1.0),
    "gemma2": Architecture(
        "gemma2", GEMMA2, {**GELU_TANH, "attention_bias": (False,)}, norm_offset=1.0, full_every=2, wide_scale_layers=46
    ),
    "gemma3_text": Architecture(
        "gemma3",
        GEMMA3,
        {**GELU_TANH, **dict.fromkeys(("attention_bias", "use_bidirectional_attention"), (False,))},
        norm_offset=1.0,
        full_every=6,
        wide_scale_layers=62,
    ),
    "mixtral": Architecture("llama", MIXTRAL, {**SILU, "sliding_window": (None,)}, interleaved=True),
}


def write_gguf(
    path: Path, settings: PlainMapping, tensors: Mapping[str, Tensor], vocabulary: GGUFVocabulary | None
) -> None:
    """Write a model of a published family as a GGUF file, atomically.

    settings: content of its config.json, with a model_type of ``ARCHITECTURES``
    tensors: the tensors by their names in transformers, in float32, float16 or bfloat16
    vocabulary: None writes a file without a tokenizer

    Raises:
        ConfigError: the extra ``gguf`` is not installed.
        CheckpointError: a setting has no counterpart in GGUF, or the file cannot be written.
    """
    gguf = _import_gguf()
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


def _import_gguf():  # type: ignore[no-untyped-def]  # returns the module
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("GGUF needs another package: pip install 'modular-gpt[gguf]'") from error
    return gguf


def check_settings(settings: PlainMapping, architecture: Architecture) -> None:
    """Raise a CheckpointError for a setting that has no counterpart in files of the architecture."""
    unused = ("model_type", "architectures", "dtype", "bos_token_id", "eos_token_id", "pad_token_id")
    scalar, width = settings.get("query_pre_attn_scalar"), settings.get("head_dim")
    if settings.get("num_hidden_layers") == architecture.wide_scale_layers:
        width = settings["hidden_size"] / settings["num_attention_heads"]
    if scalar not in (None, width):
        _refuse(architecture, "query_pre_attn_scalar", scalar)
    if architecture.full_every:
        types = settings["layer_types"]
        if types != [SLIDING if (i + 1) % architecture.full_every else FULL for i in range(len(types))]:
            _refuse(architecture, "layer_types", types)
    for name, value in settings.items():
        if name == ROPE:
            _check_rope(value, architecture)
        elif name in (*unused, *architecture.ignored) or (name in architecture.written and value is not None):
            continue
        elif value not in architecture.assumed.get(name, ()):
            _refuse(architecture, name, value)


def _check_rope(parameters: PlainMapping, architecture: Architecture) -> None:
    """Raise a CheckpointError for RoPE parameters that llama.cpp does not support in this architecture."""
    if SLIDING in parameters:
        if parameters[SLIDING] != {"rope_type": "default", "rope_theta": 10000.0}:
            _refuse(architecture, ROPE, parameters)
        parameters = parameters.get(FULL, {})
    rope_type = parameters.get("rope_type", "default")
    by_tensor = rope_type == "llama3" and architecture.name == "llama"  # scaled by the tensor rope_freqs
    if not (rope_type in SCALINGS or by_tensor) or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        _refuse(architecture, ROPE, parameters)
    for name, target in SCALINGS.get(rope_type, {}).items():
        value = parameters.get(name)
        assumed = (0.1 * math.log(parameters["factor"]) + 1.0,) if name == "attention_factor" else target
        if value is not None and not isinstance(assumed, str) and value not in assumed:
            _refuse(architecture, f"{ROPE}.{name}", value)


def _refuse(architecture: Architecture, name: str, value: object) -> None:
    raise CheckpointError(
        f"{name}={printable(str(value))} has no counterpart in a GGUF file of the architecture {architecture.name}; use"
        " to=hf instead"
    )


def _add_settings(writer: "GGUFWriter", settings: PlainMapping, architecture: Architecture) -> None:
    writer.add_vocab_size(int(settings["vocab_size"]))
    for name, methods in architecture.written.items():
        if settings.get(name) is not None:
            for method in methods:
                getattr(writer, method)(settings[name])
    rope = settings.get(ROPE, {})
    rope = rope.get(FULL, {}) if SLIDING in rope else rope
    if "rope_theta" in rope:
        writer.add_rope_freq_base(float(rope["rope_theta"]))
    scaling = SCALINGS.get(rope.get("rope_type", "default"), {})
    if scaling:
        writer.add_rope_scaling_type(_import_gguf().RopeScalingType(rope["rope_type"]))
    for name, target in scaling.items():
        if isinstance(target, str) and rope.get(name) is not None:
            getattr(writer, target)(rope[name])


def gguf_tensors(settings: PlainMapping, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the tensors of a model from transformers: names, layout and offsets as llama.cpp expects them."""
    gguf, architecture = _import_gguf(), ARCHITECTURES[str(settings["model_type"])]
    layers = settings.get("num_hidden_layers", settings.get("n_layer"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name.upper()], layers)
    converted = {}
    for name, tensor in _stack_experts(tensors).items():
        new = names.get_name(name, try_suffixes=SUFFIXES)
        assert new is not None, f"the package gguf has no name for {name}"
        converted[new] = _convert(name, tensor, settings, architecture)
    rope = settings.get(ROPE, {})
    if rope.get("rope_type") == "llama3":
        width = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
        converted["rope_freqs.weight"] = _llama3_factors(rope, width)
    return converted


def _stack_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack the matrices of the experts of each layer: (experts, rows, columns); other tensors are unchanged."""
    stacked: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        expert = EXPERT.fullmatch(name)
        if expert is None:
            stacked[name] = tensor
        else:
            experts.setdefault(f"{expert['stack']}{expert['matrix']}.weight", []).append(tensor)
    return stacked | {name: torch.stack(matrices) for name, matrices in experts.items()}


def _llama3_factors(rope: PlainMapping, width: int) -> Tensor:
    """The factors (width / 2,) by which llama.cpp divides RoPE frequencies: https://arxiv.org/abs/2407.21783"""
    frequencies: Tensor = float(rope["rope_theta"]) ** -(torch.arange(0, width, 2) / width)
    turns = frequencies * float(rope["original_max_position_embeddings"]) / (2 * math.pi)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    unscaled = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return ((1.0 - unscaled) / float(rope["factor"]) + unscaled).reciprocal()


def _convert(name: str, tensor: Tensor, settings: PlainMapping, architecture: Architecture) -> Tensor:
    if architecture.transposed and tensor.dim() == 2 and ".h." in name:
        return tensor.T
    if architecture.interleaved and (".q_proj." in name or ".k_proj." in name):
        return _interleave(tensor, settings["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
    if architecture.norm_offset and name.endswith("norm.weight"):
        return tensor.float() + architecture.norm_offset
    return tensor


def _add_tensor(writer: "GGUFWriter", name: str, tensor: Tensor) -> None:
    """Add a tensor. Vectors and positions are written in float32, which llama.cpp requires."""
    import gguf

    if tensor.dim() == 1 or name.startswith("position_embd"):
        tensor = tensor.float()
    if tensor.dtype == torch.bfloat16:  # which NumPy lacks
        dtype = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().contiguous().numpy(), dtype), raw_dtype=dtype)
    else:
        writer.add_tensor(name, tensor.contiguous().numpy())
