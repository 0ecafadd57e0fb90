"""Keys of mixtures of experts: their sizes, their router, shared experts, and the layers that have experts."""

from collections.abc import Sequence
from typing import Any

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping import Flags, HFConfig, Keys, KeyTree, ModelView, Pattern, by_names, by_number, key, layers
from modular_gpt.mapping.setting_map import layer_count, needed
from modular_gpt.pretrained.families.decoder_keys import activation_key

COUNT = "ffn@moe.n_experts"


def moe(**settings: Any) -> KeyTree:
    """Settings of all mixtures of a family."""
    return {f"ffn@moe.{name}": value for name, value in settings.items()}


def experts(count: str, hidden: str = "moe_intermediate_size", act: str = "hidden_act") -> KeyTree:
    """The sizes of the experts, which are gated; ``act``: empty if their activation has no key."""
    sizes = (needed(count, COUNT), needed("num_experts_per_tok", "ffn@moe.top_k"), f"{hidden} = ffn@moe.hidden")
    return (
        moe(bias=False, balance="none", z_weight=0.0),
        sizes,
        activation_key(act, "ffn@moe.activation") if act else (),
    )


def router_loss(name: str = "router_aux_loss_coef") -> Keys:
    """The weight of the load-balancing loss.

    transformers counts every choice of a token, and averages over layers where this package sums.
    """

    def read(settings: HFConfig) -> PlainDict:
        weight = settings[name] * settings["num_experts_per_tok"] / layer_count(settings)
        return {"ffn@moe.balance": "loss", "ffn@moe.balance_weight": float(weight)}

    def write(view: ModelView) -> PlainDict:
        weight, top_k = view["ffn@moe.balance_weight"], view["ffn@moe.top_k"]
        return {} if weight is None else {name: weight * view["n_layers"] / top_k}

    return Keys(read, write)


NORM_TOPK = "norm_topk_prob = ffn@moe.norm_topk"
GROUPS = "{n_group,topk_group} = ffn@moe.{groups,top_groups}"
SCALE = "routed_scaling_factor = ffn@moe.routed_scale"
SIGMOID = moe(score="sigmoid", balance="bias", group_score="top2")
ALL_SPARSE = {"ffn.name": "moe"}


def sparse(flags: Flags) -> Keys:
    """The layers that have experts; the others have a gated network."""
    return layers(flags, ALL_SPARSE, {"ffn.name": "swiglu"}, COUNT)


def mlp_types(pattern: Pattern, otherwise: Sequence[str] = ()) -> Flags:
    """Experts in the layers whose type in mlp_layer_types is ``sparse``; without that key, by the pattern."""
    return by_names("mlp_layer_types", ("sparse", "dense"), pattern, otherwise)


def after_dense(i: int, settings: HFConfig) -> bool:
    """All layers but the first ones, which are dense."""
    return bool(i >= settings["first_k_dense_replace"])


AFTER_FIRST = sparse(mlp_types(lambda i, settings: i > 0))
FIRST_DENSE = sparse(
    by_number(after_dense, lambda has: {"first_k_dense_replace": has.index(True) if True in has else len(has)})
)
SPARSE_STEP = sparse(
    by_number(
        lambda i, s: all(((i + 1) % s["decoder_sparse_step"] == 0, i not in (s["mlp_only_layers"] or []))),
        lambda has: {"mlp_only_layers": [i for i, one in enumerate(has) if not one], "decoder_sparse_step": 1},
    )
)


def shared(count: str) -> Keys:
    """Shared experts, as one network of the width of ``count`` experts."""
    return key(count, "ffn@moe.shared_experts", null=0)


def shared_width(gate: bool = False) -> KeyTree:
    """One shared expert with its own width."""
    return (moe(shared_experts=1, shared_gate=gate), "shared_expert_intermediate_size = ffn@moe.shared_hidden")


# The router of DeepSeek-V3: https://arxiv.org/abs/2412.19437
ROUTED = (experts("n_routed_experts"), NORM_TOPK, SCALE, GROUPS, shared("n_shared_experts"))
DEEPSEEK_V3 = (ROUTED, SIGMOID)
QWEN = (experts("num_experts"), router_loss(), SPARSE_STEP, NORM_TOPK)
MIXTRAL = (experts("num_local_experts", "intermediate_size"), router_loss(), ALL_SPARSE)
OLMO = (experts("num_experts", "intermediate_size"), router_loss(), NORM_TOPK, ALL_SPARSE)
