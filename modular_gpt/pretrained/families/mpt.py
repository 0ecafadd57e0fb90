"""MPT: https://www.databricks.com/blog/mpt-7b"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.family import Family, dropout, must_be
from modular_gpt.pretrained.tensor_map import FUSED, TensorMapping

_BLOCK = "transformer.blocks.{layer}"
_ATTENTION_DEFAULTS = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_pdrop": 0.0,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}


def from_hf(settings: HFConfig) -> PlainDict:
    must_be(settings, no_bias=True, logit_scale=None)
    attention = settings["attn_config"].with_defaults(_ATTENTION_DEFAULTS)
    # transformers computes with a largest bias of 8, whatever the file has; the authors' own code reads it
    must_be(attention, alibi=True, alibi_bias_max=8, prefix_lm=False, qk_ln=False)
    clip = attention["clip_qkv"]
    return {
        "vocab_size": settings["vocab_size"],
        "d_model": settings["d_model"],
        "n_heads": settings["n_heads"],
        "n_layers": settings["n_layers"],
        "context_length": settings["max_seq_len"],
        "dropout": dropout(attention, "attn_pdrop"),
        "bias": False,
        "attention": {"name": "mha", "scale": attention["softmax_scale"], "clip_qkv": clip or None},
        "ffn": {"name": "mlp", "hidden": 4 * settings["d_model"], "activation": "gelu"},
        "norm": {"name": "layernorm", "eps": settings["layer_norm_epsilon"]},
        "pos": {"name": "alibi", "max_bias": 8},
        "tie_embeddings": settings["tie_word_embeddings"],
        "init_std": settings["initializer_range"],
    }


FAMILY = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    rules=(
        TensorMapping("transformer.wte.weight", ("embedding.weight",)),
        TensorMapping("transformer.norm_f.weight", ("final_norm.weight",)),
        TensorMapping("lm_head.weight", ("head.weight",)),
        TensorMapping(f"{_BLOCK}.norm_1.weight", ("blocks.{layer}.attention_norm.weight",)),
        TensorMapping(f"{_BLOCK}.norm_2.weight", ("blocks.{layer}.ffn_norm.weight",)),
        TensorMapping(
            f"{_BLOCK}.attn.Wqkv.weight",
            tuple(f"blocks.{{layer}}.attention.{name}.weight" for name in ("query", "key", "value")),
            FUSED,
        ),
        TensorMapping(f"{_BLOCK}.attn.out_proj.weight", ("blocks.{layer}.attention.out.weight",)),
        TensorMapping(f"{_BLOCK}.ffn.up_proj.weight", ("blocks.{layer}.ffn.up.weight",)),
        TensorMapping(f"{_BLOCK}.ffn.down_proj.weight", ("blocks.{layer}.ffn.down.weight",)),
    ),
    from_hf=from_hf,
    prefix="transformer.",
    layers="n_layers",
    synonyms={"num_attention_heads": "n_heads", "hidden_size": "d_model", "num_hidden_layers": "n_layers"},
    harmless={
        **dict.fromkeys(
            (
                "expansion_ratio",
                "resid_pdrop",
                "emb_pdrop",
                "learned_pos_emb",
                "init_device",
                "init_config",
                "embedding_fraction",
                "norm_type",
                "verbose",
                "attn_config.attn_impl",
            ),
            ANY,
        ),
        "attn_config.attn_type": ("multihead_attention",),
        "attn_config.attn_uses_sequence_id": (False,),
    },
    defaults={
        "vocab_size": 50368,
        "d_model": 2048,
        "n_heads": 16,
        "n_layers": 24,
        "max_seq_len": 2048,
        "layer_norm_epsilon": 1e-5,
        "no_bias": True,
        "logit_scale": None,
        "initializer_range": 0.02,
        "attn_config": {},
        "tie_word_embeddings": True,
    },
)
