"""Llama and the models that differ from it in few settings: https://arxiv.org/abs/2407.21783"""

from modular_gpt.core.errors import CheckpointError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families.decoder_keys import (
    ATTENTION_DROPOUT,
    FULL,
    INIT,
    LENGTH,
    RMSNORM,
    SIZES,
    SLIDING,
    WINDOW,
    all_of,
    biases,
    dense,
    dropouts,
    every,
    heads,
    inverse,
    layernorm,
    norm,
    qk_norm,
    windows,
)
from modular_gpt.pretrained.families.rope_config import Layers, rope, temperature, temperature_to_hf
from modular_gpt.pretrained.families.tensor_names import (
    ATTENTION,
    ENDS,
    FUSED_GATED,
    FUSED_QKV,
    GATED,
    LAYER,
    LLAMA,
    POST_NORMS,
    PRE_NORMS,
    QK_NORM,
    SINKS,
    UP_DOWN,
    in_layer,
)
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, key, layer_count, per_layer

START = (*SIZES, LENGTH, INIT, heads(), ATTENTION_DROPOUT)
BASE = (START, RMSNORM, dense(), rope())
BIASED = (START, RMSNORM, dense(bias="mlp_bias"), rope(), biases())
PARTLY_ROTATED = (START, RMSNORM, dense(), rope(partial=True))
POST_RESIDUAL = always({"block.topology": "post_residual"})
SANDWICH = always({"block.topology": "sandwich"})


def last_layers(settings: HFConfig) -> list[str]:
    """Layer types where the layers from ``max_window_layers`` on have a window."""
    first = settings["max_window_layers"]
    return [SLIDING if index >= first else FULL for index in range(layer_count(settings))]


def _window_of_all(view: ModelView) -> PlainDict:
    return {"sliding_window": view["attention@mha.window"]}


# with layer_types, which Ministral has, transformers takes a file of Mistral for one of that family
MISTRAL_WINDOW = Keys(windows(all_of(SLIDING)).from_hf, _window_of_all)
QWEN_WINDOWS = windows(last_layers, switch="use_sliding_window")
SCALES = (
    key("attention_multiplier", "attention@mha.scale"),
    key("embedding_multiplier", "embed_scale", float),
    key("residual_multiplier", "residual_multiplier", float),
)
GRANITE = (SCALES, key("logits_scaling", "logit_scale", inverse, inverse))


def _rotated_layers(settings: HFConfig) -> list[bool]:
    """SmolLM3's layers with rotary positions: all but every fourth one, unless they are listed."""
    given, interval = settings["no_rope_layers"], settings["no_rope_layer_interval"]
    if given is not None:
        return [bool(rotates) for rotates in given]
    return [(index + 1) % interval != 0 for index in range(layer_count(settings))]


NO_ROPE_LAYERS = Layers(_rotated_layers, lambda rotates: {"no_rope_layers": [int(has) for has in rotates]})


def _windows_without_rope(settings: HFConfig) -> list[str]:
    if not settings["use_sliding_window"]:
        return [FULL] * layer_count(settings)
    return [FULL if rotates else SLIDING for rotates in _rotated_layers(settings)]


def _read_thetas(settings: HFConfig) -> PlainDict:
    """Granite's base of the wavelengths of each layer; 0: no positions."""
    thetas = settings["layer_rope_theta"]
    if thetas is None:
        return {}
    if len(thetas) != layer_count(settings):
        raise CheckpointError(f"layer_rope_theta has {len(thetas)} layers, but the model has {layer_count(settings)}")
    return {
        "pos.name": per_layer("rope" if theta else "none" for theta in thetas),
        "pos@rope.theta": per_layer(float(theta) if theta else 10000.0 for theta in thetas),
    }


def _write_thetas(view: ModelView) -> PlainDict:
    return {"layer_rope_theta": [theta or 0 for theta in view.each("pos@rope.theta")]}


THETAS = Keys(_read_thetas, _write_thetas)
HUNYUAN_NORMS = in_layer(
    f"{LAYER}.self_attn", attention__query_norm="query_layernorm", attention__key_norm="key_layernorm"
)
STARCODER = (
    layernorm("norm_epsilon"),
    dense("mlp", "use_bias"),
    dropouts("residual_dropout", "embedding_dropout", "attention_dropout"),
)
GLM = (START, RMSNORM, dense(), rope(layout="interleaved", partial=True), biases("attention_bias", False))
GLM4_NORMS = in_layer(LAYER, attention_post_norm="post_self_attn_layernorm", ffn_post_norm="post_mlp_layernorm")
# residual_dropout is for training, and no embedding has it
RESIDUAL_DROPOUT = {"residual_dropout": ANY}
PHI3_DROPOUT = dropouts("resid_pdrop", "embd_pdrop", "attention_dropout")
SMOLLM_WINDOWS = windows(_windows_without_rope, switch="use_sliding_window")
POST_NORM_SWITCH = key(
    "use_post_norm",
    "block.topology",
    lambda has: "sandwich" if has else "pre",
    lambda topology: topology == "sandwich",
)


def first_of_four(settings: HFConfig) -> list[str]:
    """Layer types where the first of each four layers attends to all tokens."""
    return [SLIDING if index % 4 else FULL for index in range(layer_count(settings))]


SINK = always({"attention@mha.sinks": True})
OLMO3_LAYERS = (rope(per_type=every(4), older=("rope_theta", "rope_local_base_freq")), windows(every(4)))
FIRST_TOKEN = Keys(lambda settings: {}, lambda view: {"bos_token_id": 0})  # which must not be null
NEMOTRON_NORM = layernorm("norm_eps", weight_offset=True)
OLMO_NORM = norm("layernorm", 1e-5, affine=False, bias=False)
CLIP = key("clip_qkv", "attention@mha.clip_qkv")
MLP = (ENDS, PRE_NORMS, ATTENTION, UP_DOWN)

FAMILIES = [
    Family("llama", BIASED, LLAMA),
    Family("mistral", (BASE, biases(False), MISTRAL_WINDOW), LLAMA),
    Family("qwen2", (BASE, biases(True, False), QWEN_WINDOWS), LLAMA),
    Family("qwen3", (BASE, biases(), QWEN_WINDOWS, qk_norm()), (*LLAMA, QK_NORM)),
    Family("ministral", (BASE, biases(False), windows(all_of(SLIDING))), LLAMA),
    Family(
        "cwm",
        (START, RMSNORM, dense(bias="mlp_bias"), rope(), biases(False), windows(first_of_four), FIRST_TOKEN),
        LLAMA,
    ),
    Family("seed_oss", (BIASED, biases("attention_bias", "attention_out_bias")), LLAMA, harmless=RESIDUAL_DROPOUT),
    Family("granite", (BIASED, GRANITE), LLAMA),
    Family("granite_swa", (BIASED, GRANITE, THETAS, windows(first_of_four), SINK), (*LLAMA, SINKS)),
    Family(
        "hyperclovax",
        (BIASED, SCALES, key("logits_scaling", "logit_scale", float), POST_NORM_SWITCH),
        (*LLAMA, in_layer(LAYER, attention_post_norm="post_norm1", ffn_post_norm="post_norm2")),
    ),
    Family("smollm3", (BIASED, rope(where=NO_ROPE_LAYERS), SMOLLM_WINDOWS), LLAMA),
    Family("arcee", (START, RMSNORM, dense("mlp", "mlp_bias"), rope(), biases()), MLP),
    Family("nemotron", (START, NEMOTRON_NORM, dense("mlp", "mlp_bias"), rope(partial=True), biases()), MLP),
    Family(
        "ministral3",
        (START, RMSNORM, dense(), rope(extra=temperature_to_hf), biases(False), WINDOW, temperature()),
        LLAMA,
        harmless={"rope_parameters.max_position_embeddings": ANY},
    ),
    Family("jais2", (START, layernorm("layer_norm_eps"), dense("mlp", "mlp_bias"), rope(), biases()), MLP),
    Family(
        "starcoder2",
        (START, STARCODER, rope(), biases("use_bias"), WINDOW),
        (ENDS, PRE_NORMS, ATTENTION, in_layer(f"{LAYER}.mlp", ffn__up="c_fc", ffn__down="c_proj")),
    ),
    Family("olmo", (START, OLMO_NORM, dense(), rope(), biases(), CLIP), LLAMA),
    Family("olmo2", (BASE, biases(), qk_norm("full"), POST_RESIDUAL), (ENDS, POST_NORMS, ATTENTION, QK_NORM, GATED)),
    Family(
        "olmo3",
        (START, RMSNORM, dense(), OLMO3_LAYERS, biases(), qk_norm("full"), POST_RESIDUAL),
        (ENDS, POST_NORMS, ATTENTION, QK_NORM, GATED),
    ),
    Family("hunyuan_v1_dense", (BASE, biases(), qk_norm(after_rope=True)), (*LLAMA, HUNYUAN_NORMS)),
    Family("phi3", (PARTLY_ROTATED, biases(False), WINDOW, PHI3_DROPOUT), (ENDS, PRE_NORMS, FUSED_QKV, FUSED_GATED)),
    Family("glm", GLM, (ENDS, PRE_NORMS, ATTENTION, FUSED_GATED)),
    Family("glm4", (GLM, SANDWICH), (ENDS, PRE_NORMS, GLM4_NORMS, ATTENTION, FUSED_GATED)),
]
