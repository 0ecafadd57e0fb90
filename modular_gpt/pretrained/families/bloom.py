"""BLOOM: https://arxiv.org/abs/2211.05100"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.family import Family, dropout, must_be
from modular_gpt.pretrained.tensor_map import FUSED_PER_HEAD, TensorMapping, affine

_LAYER = "transformer.h.{layer}"
_ANY_LENGTH = 2048  # the trained length; its config has none, and ALiBi has no limit


def from_hf(settings: HFConfig) -> PlainDict:
    must_be(settings, apply_residual_connection_post_layernorm=False)
    return {
        "vocab_size": settings["vocab_size"],
        "d_model": settings["hidden_size"],
        "n_heads": settings["n_head"],
        "n_layers": settings["n_layer"],
        "context_length": _ANY_LENGTH,
        "dropout": dropout(settings, "hidden_dropout"),
        "attention": {"name": "mha", "dropout": float(settings["attention_dropout"])},
        "ffn": {"name": "mlp", "activation": "gelu_tanh"},
        "norm": {"name": "layernorm", "eps": settings["layer_norm_epsilon"]},
        "pos": "alibi",
        "embed_norm": True,
        "tie_embeddings": settings["tie_word_embeddings"],
        "init_std": settings["initializer_range"],
    }


FAMILY = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    rules=(
        TensorMapping("transformer.word_embeddings.weight", ("embedding.weight",)),
        *affine("transformer.word_embeddings_layernorm", "embedding_norm"),
        *affine("transformer.ln_f", "final_norm"),
        TensorMapping("lm_head.weight", ("head.weight",)),
        *affine(f"{_LAYER}.input_layernorm", "blocks.{layer}.attention_norm"),
        *affine(f"{_LAYER}.post_attention_layernorm", "blocks.{layer}.ffn_norm"),
        *affine(
            f"{_LAYER}.self_attention.query_key_value",
            "blocks.{layer}.attention.query",
            "blocks.{layer}.attention.key",
            "blocks.{layer}.attention.value",
            weight=FUSED_PER_HEAD,
            bias=FUSED_PER_HEAD,
        ),
        *affine(f"{_LAYER}.self_attention.dense", "blocks.{layer}.attention.out"),
        *affine(f"{_LAYER}.mlp.dense_h_to_4h", "blocks.{layer}.ffn.up"),
        *affine(f"{_LAYER}.mlp.dense_4h_to_h", "blocks.{layer}.ffn.down"),
    ),
    from_hf=from_hf,
    prefix="transformer.",
    layers="n_layer",
    synonyms={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"},
    harmless=dict.fromkeys(
        (
            "slow_but_exact",
            "seq_length",
            "n_inner",
            "offset_alibi",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "attention_softmax_in_fp32",
            "masked_softmax_fusion",
            "bias_dropout_fusion",
        ),
        ANY,
    ),
    defaults={
        "vocab_size": 250880,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 8,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
    },
)
