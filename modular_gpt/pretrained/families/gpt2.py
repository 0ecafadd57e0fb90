"""GPT-2: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.family import Family, activation, component_configs, dropout, hf_activation, must_be
from modular_gpt.pretrained.tensor_map import COPY, FUSED, TensorMapping, affine, transposed

_LAYER = "transformer.h.{layer}"
_STORED_IN_OUT = transposed(COPY)

RULES = (
    TensorMapping("transformer.wte.weight", ("embedding.weight",)),
    TensorMapping("transformer.wpe.weight", ("positions.0.table.weight",)),
    TensorMapping("lm_head.weight", ("head.weight",)),
    *affine("transformer.ln_f", "final_norm"),
    *affine(f"{_LAYER}.ln_1", "blocks.{layer}.attention_norm"),
    *affine(f"{_LAYER}.ln_2", "blocks.{layer}.ffn_norm"),
    *affine(
        f"{_LAYER}.attn.c_attn",
        "blocks.{layer}.attention.query",
        "blocks.{layer}.attention.key",
        "blocks.{layer}.attention.value",
        weight=transposed(FUSED),
        bias=FUSED,
    ),
    *affine(f"{_LAYER}.attn.c_proj", "blocks.{layer}.attention.out", weight=_STORED_IN_OUT),
    *affine(f"{_LAYER}.mlp.c_fc", "blocks.{layer}.ffn.up", weight=_STORED_IN_OUT),
    *affine(f"{_LAYER}.mlp.c_proj", "blocks.{layer}.ffn.down", weight=_STORED_IN_OUT),
)


def from_hf(settings: HFConfig) -> PlainDict:
    must_be(settings, add_cross_attention=False)
    width, n_heads, n_layers = settings["n_embd"], settings["n_head"], settings["n_layer"]
    scale = None if settings["scale_attn_weights"] else 1.0
    attention = {"name": "mha", "scale": scale, "dropout": float(settings["attn_pdrop"])}
    layers: PlainDict = {}
    if settings["scale_attn_by_inverse_layer_idx"]:
        scale = scale or (width // n_heads) ** -0.5
        names = [f"layer_{index}" for index in range(n_layers)]
        variants = {name: {"attention": {"scale": scale / (i + 1)}} for i, name in enumerate(names)}
        layers = {"name": "scale_by_inverse_layer", "variants": variants, "cycle": names}
    return {
        "vocab_size": settings["vocab_size"],
        "d_model": width,
        "n_heads": n_heads,
        "n_layers": n_layers,
        "context_length": settings["n_positions"],
        "dropout": dropout(settings, "resid_pdrop", "embd_pdrop"),
        "attention": attention,
        "ffn": {
            "name": "mlp",
            "hidden": settings["n_inner"],
            "activation": activation(settings["activation_function"]),
        },
        "norm": {"name": "layernorm", "eps": settings["layer_norm_epsilon"]},
        "pos": "learned",
        "layers": layers,
        "tie_embeddings": settings["tie_word_embeddings"],
        "init_std": settings["initializer_range"],
    }


def to_hf(config: GPTConfig, layers: list[LayerConfig]) -> PlainDict:
    attention, ffn, norm, _ = component_configs(layers[0])
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": ffn.hidden,
        "activation_function": hf_activation(ffn.activation),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": attention.dropout,
        "layer_norm_epsilon": norm.eps,
        "initializer_range": config.init_std,
        "scale_attn_weights": attention.scale != 1.0,
        "scale_attn_by_inverse_layer_idx": component_configs(layers[-1])[0].scale != attention.scale,
        "tie_word_embeddings": config.tie_embeddings,
    }


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    rules=RULES,
    from_hf=from_hf,
    to_hf=to_hf,
    slots={"attention": "mha", "ffn": "mlp", "norm": "layernorm", "pos": "learned"},
    prefix="transformer.",
    layers="n_layer",
    synonyms={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    harmless=dict.fromkeys(
        (
            "n_ctx",
            "reorder_and_upcast_attn",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
        ),
        ANY,
    ),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),  # the causal mask, as a table
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
)
