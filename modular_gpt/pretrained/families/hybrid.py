"""Families with recurrent mixers in most layers and softmax attention in the others.

Qwen3-Next: https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct, Kimi Linear: https://arxiv.org/abs/2510.26692,
OLMo Hybrid: https://huggingface.co/allenai/Olmo-Hybrid-7B, MiniMax-01: https://arxiv.org/abs/2501.08313
"""

import torch
from torch import Tensor

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import encode
from modular_gpt.mapping import HFConfig, Keys, KeyTree, PerLayer, Transform, harmless, modules, tensors
from modular_gpt.mapping.setting_map import computed, inside, layer_count
from modular_gpt.mapping.tensor_map import FUSED, FUSED_PER_HEAD, Tensors, unless, where
from modular_gpt.model.config import GPTConfig
from modular_gpt.pretrained.families import decoder_keys as keys
from modular_gpt.pretrained.families import expert_keys as experts
from modular_gpt.pretrained.families import gemma
from modular_gpt.pretrained.families import tensor_names as names
from modular_gpt.pretrained.families.decoder_keys import LINEAR, RMSNORM, SILU, START, biases, dense, qk_norm
from modular_gpt.pretrained.families.latent import LATENT
from modular_gpt.pretrained.families.moe import W123
from modular_gpt.pretrained.families.rope_config import rope
from modular_gpt.pretrained.families.tensor_names import ATTENTION, ATTN, ENDS, LAYER, PRE_NORMS, QK_NORM, QKV
from modular_gpt.pretrained.family import Family
from modular_gpt.weights import recut, renamed

DELTA, MIXER, RATE = f"{LAYER}.linear_attn", "attention@gated_delta", "attention.rate.weight"


def mixers(pattern: keys.Pattern, settings: KeyTree, full: KeyTree = (), mark: str = f"{MIXER}.kernel") -> Keys:
    """A recurrent mixer in the layers of the type ``linear_attention``."""
    return keys.by_type(pattern, settings, full, mark, LINEAR)


GATED_DELTA = {"attention.name": "gated_delta", "pos.name": "none"}
DELTA_SIZES = (
    "linear_{num_value_heads,num_key_heads,key_head_dim,value_head_dim,conv_kernel_dim}"
    f" = {MIXER}.{{value_heads,key_heads,key_dim,value_dim,kernel}}"
)
DELTA_EPS = f"rms_norm_eps => {MIXER}.eps"
QWEN = (
    (START, gemma.NORM, dense(), rope(partial=True), biases(), qk_norm(weight_offset=True), SILU),
    {"attention@mha.output_gate": "sigmoid"},
    (mixers(keys.every(4, "full_attention_interval"), GATED_DELTA), DELTA_SIZES, DELTA_EPS),
)
QWEN_NEXT = (QWEN, experts.QWEN, experts.shared_width(gate=True))
# kernels of depthwise convolutions, (channels, 1, width), concatenated by channel
CONVOLUTIONS = Transform(
    lambda hf, shapes, count: hf[:, 0].split([shape[0] for shape in shapes]),
    lambda tensors, count: torch.cat(list(tensors))[:, None],
)
DECAYS = tensors("{A_log,dt_bias} = attention.{log_decay,decay_offset}", DELTA)
CONVS = "attention.query_conv.weight + attention.key_conv.weight + attention.value_conv.weight"


def delta(lines: str, prefix: str = DELTA) -> Tensors:
    """Modules of a gated delta rule."""
    return where(RATE, modules(lines, prefix))


def split_convolutions(prefix: str) -> Tensors:
    """The convolutions of queries, keys and values as tensors of their own."""
    return tensors("{q,k,v}_conv1d.weight = attention.{query,key,value}_conv.weight", prefix, CONVOLUTIONS)


PROJECTIONS = "{q_proj,k_proj,v_proj,o_norm,o_proj} = attention.{query,key,value,norm,out}"
QWEN_DELTA = [
    *tensors(f"conv1d.weight = {CONVS}", DELTA, CONVOLUTIONS),
    *DECAYS,
    *delta("{norm,out_proj} = attention.{norm,out}"),
]
# for each key head, the queries, keys, values and gates, and the rates and decays
QWEN_NEXT_DELTA = [
    *where(RATE, modules(f"in_proj_qkvz = {QKV} + attention.gate", DELTA, FUSED_PER_HEAD, "key_heads")),
    *tensors(f"in_proj_ba.weight = {RATE} + attention.decay.weight", DELTA, FUSED_PER_HEAD, "key_heads"),
]
QWEN_3_5_DELTA = [
    *where(RATE, modules(f"in_proj_qkv = {QKV}", DELTA, FUSED)),
    *delta("in_proj_{z,b,a} = attention.{gate,rate,decay}"),
]
QWEN_ATTENTION = [
    *modules("q_proj = attention.query + attention.gate", ATTN, FUSED_PER_HEAD),  # for each head, both
    *modules("{k,v,o}_proj = attention.{key,value,out}", ATTN),
    *QK_NORM,
]
QWEN_TENSORS = (ENDS, PRE_NORMS, names.GATED, unless(RATE, QWEN_ATTENTION), QWEN_DELTA)
PREDICTOR = (r"mtp\..*",)  # predicts a further token while training


def _kimi_full(i: int, settings: HFConfig) -> bool:
    """Kimi's layers that attend to all tokens: those listed, counted from 1, or every fourth one after the first."""
    listed = settings["linear_attn_config"] or {}
    full, recurrent = listed.get("full_attn_layers"), listed.get("kda_layers")
    return bool(i and i % 4 == 0) if full is None or recurrent is None else i + 1 in full


KDA_SIZES = (
    f"linear_{{num_heads,head_dim,conv_kernel_dim}} = {MIXER}.{{value_heads,key_dim,kernel}}",
    f"linear_head_dim => {MIXER}.{{value_dim,rank}}",
    inside(  # of older files
        "linear_attn_config",
        f"{{num_heads,short_conv_kernel_size}} = {MIXER}.{{value_heads,kernel}}",
        f"head_dim = {MIXER}.{{key_dim,value_dim,rank}}",
    ),
)
KIMI = (
    (keys.SIZES, keys.LENGTH, keys.INIT, RMSNORM, dense(), LATENT, {"pos.name": "none"}, SILU),
    (mixers(_kimi_full, {"attention.name": "kda"}), KDA_SIZES, DELTA_EPS),
    (experts.experts("num_local_experts"), experts.SIGMOID, experts.NORM_TOPK, experts.SCALE, experts.GROUPS),
    experts.sparse(experts.mlp_types(experts.after_dense, ["first_k_dense_replace"])),
    experts.shared("n_shared_experts"),
)
KIMI_MLP = f"{LAYER}.block_sparse_moe"
FLAT = Transform(lambda hf, shapes, count: [hf.flatten()], lambda tensors, count: tensors[0].view(1, 1, -1, 1))
KIMI_DELTA = [
    *split_convolutions(ATTN),
    *tensors("A_log = attention.log_decay", ATTN, FLAT),
    *tensors("dt_bias = attention.decay_offset", ATTN),
    *delta(PROJECTIONS, ATTN),
    *delta("{b,g_a,g_b,f_a,f_b}_proj = attention.{rate,gate_down,gate,decay_down,decay}", ATTN),
]
KIMI_EXPERTS = [*names.experts(KIMI_MLP, "w1,w3,w2"), *modules("{gate,up,down}_proj = ffn.{gate,up,down}", KIMI_MLP)]


def _olmo_full(i: int, settings: HFConfig) -> bool:
    """Every fourth layer attends to all tokens; where there are fewer than four, the last one."""
    count = layer_count(settings)
    return (i + 1) % 4 == 0 or (count < 4 and i == count - 1)


def _read_olmo(settings: HFConfig) -> PlainDict:
    """OLMo's sizes of the mixer, which depend on each other."""
    n_heads, width = settings["num_attention_heads"], settings["linear_key_head_dim"]
    key_heads, value_width = settings["linear_num_key_heads"] or n_heads, settings["linear_value_head_dim"]
    width = int(0.75 * settings["hidden_size"] / key_heads) if width is None else width
    sizes = {
        "value_heads": settings["linear_num_value_heads"] or n_heads,
        "key_heads": key_heads,
        "key_dim": width,
        "value_dim": 2 * width if value_width is None else value_width,
        "eps": 1e-5,
    }
    return {f"{MIXER}.{name}": value for name, value in sizes.items()}


OLMO = (
    (START, RMSNORM, dense(), rope(), biases(), qk_norm("full"), SILU),
    mixers(_olmo_full, {**GATED_DELTA, "block.topology": "pre"}, {"block.topology": "post_residual"}),
    (DELTA_SIZES, f"linear_allow_neg_eigval = {MIXER}.negative", Keys(_read_olmo)),
)
OLMO_TENSORS = [
    *unless(RATE, [*ATTENTION, *QK_NORM]),
    *split_convolutions(DELTA),
    *DECAYS,
    *delta(PROJECTIONS),
    *delta("{b,a,g}_proj = attention.{rate,decay,gate}"),
    *modules("{attention,feedforward}_layer_norm = {attention,ffn}_norm", LAYER),
    *modules("{feedforward_layer_norm,post_feedforward_layernorm} = {attention,ffn}_post_norm", LAYER),
]
OLMO_NAMES = renamed(
    (r"\.input_layernorm\.", ".attention_layer_norm."), (r"\.post_attention_layernorm\.", ".feedforward_layer_norm.")
)
# transformers saves the convolutions cut into equal thirds, whatever the widths of queries, keys and values are
OLMO_CONVOLUTIONS = recut(*([f".{one}_{end}.weight" for one in "qkv"] for end in ("conv1d", "proj")))


def residuals(name: str) -> Keys:
    """MiniMax's four weights of the residual connections of layers with one sort of attention."""
    factors = [f"{place}_{factor}_factor" for place in (f"{name}_attn", "mlp") for factor in ("alpha", "beta")]
    return Keys(
        lambda settings: {"block.residual_weights": [float(settings[factor]) for factor in factors]},
        lambda view: dict(zip(factors, view["block.residual_weights"] or [1.0] * 4, strict=True)),
    )


def minimax_tables(config: GPTConfig) -> dict[str, Tensor]:
    """The decays within a block of tokens, which the files of MiniMax have for each layer with lightning attention."""
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(config.layer_configs):
        if layer.attention.name != "lightning":
            continue
        mixer, heads = encode(layer.attention), torch.arange(config.n_heads) + 1
        steps = torch.arange(mixer["chunk"]) + 1
        rates = ((1 / (2 ** (8 / config.n_heads))) ** heads)[:, None, None] * mixer["decay_scale"]
        distance = (steps[:, None] - steps)[None, None]
        tables = {
            "slope_rate": rates,
            "query_decay": torch.exp(-rates * steps[:, None]),
            "key_decay": torch.exp(-rates * (mixer["chunk"] - steps[:, None])),
            "diagonal_decay": torch.exp((-rates * distance).where(distance >= 0, -torch.inf)),
        }
        found |= {f"model.layers.{index}.self_attn.{name}": table for name, table in tables.items()}
    return found


MINIMAX = (
    (START, RMSNORM, rope(), biases(False), keys.WINDOW, SILU, {"block.topology": "norm_residual"}),
    mixers(
        lambda i, settings: i % 2 == 0,
        ({"attention.name": "lightning", "pos.name": "none"}, residuals("linear")),
        residuals("full"),
        mark="attention@lightning.chunk",
    ),
    ({"attention@lightning.decay_rates": "geometric"}, "{head_dim,block_size} = attention@lightning.{head_dim,chunk}"),
    # decays that are slower in later layers
    computed(
        "attention@lightning.decay_scale",
        lambda s: PerLayer(1 - i / (layer_count(s) - 1 + 1e-5) + 1e-5 for i in range(layer_count(s))),
    ),
    experts.MIXTRAL,
)
LIGHTNING = "attention.norm.weight"
MINIMAX_TENSORS = [
    *unless(LIGHTNING, ATTENTION),
    *where(LIGHTNING, modules(f"qkv_proj = {QKV}", ATTN, FUSED_PER_HEAD)),
    *modules("{output_gate,norm} = attention.{gate,norm}", ATTN),
    *where(LIGHTNING, modules("out_proj = attention.out", ATTN)),
]

FAMILIES = [
    Family("qwen3_next", QWEN_NEXT, (*QWEN_TENSORS, QWEN_NEXT_DELTA, names.GATED_EXPERTS), ignored=PREDICTOR),
    Family(
        "qwen3_5_text",
        QWEN,
        (*QWEN_TENSORS, QWEN_3_5_DELTA),
        harmless=harmless("rope_parameters.mrope_section rope_parameters.mrope_interleaved"),
        ignored=PREDICTOR,
    ),
    Family(
        "kimi_linear",
        KIMI,
        (ENDS, PRE_NORMS, unless(RATE, names.LATENT_ATTENTION), KIMI_DELTA, KIMI_EXPERTS),
        harmless=harmless("head_dim qk_head_dim rope_theta use_grouped_topk", moe_router_activation_func="sigmoid",
                               moe_layer_freq=1, mla_use_nope=True),
        defaults={"linear_attn_config": None, "first_k_dense_replace": 1},
        views=(renamed((r"\.mlp\.", ".block_sparse_moe.")),),
    ),
    Family(
        "olmo_hybrid",
        OLMO,
        (ENDS, OLMO_TENSORS, names.GATED),
        harmless=harmless("linear_a_log_min linear_a_log_max linear_dt_min linear_dt_max linear_dt_init_floor"),
        views=(OLMO_NAMES, OLMO_CONVOLUTIONS),
    ),
    Family(
        "minimax",
        MINIMAX,
        (ENDS, PRE_NORMS, MINIMAX_TENSORS, W123),
        ignored=(r"model\.layers\.\d+\.self_attn\.(slope_rate|(query|key|diagonal)_decay)",),
        tables=minimax_tables,
    ),
]  # fmt: skip
