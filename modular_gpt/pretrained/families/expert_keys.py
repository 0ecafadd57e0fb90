"""Keys of mixtures of experts: their sizes, their router, shared experts, and the layers that have experts."""

from collections.abc import Callable, Sequence
from typing import Any

from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.mapping import HFConfig, Keys, KeyTree, ModelView, key, layers
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


def sparse(
    flags: Callable[[HFConfig], Sequence[object]], to_hf: Callable[[list[bool]], PlainMapping], dense: str = "swiglu"
) -> Keys:
    """The layers that have experts; the others have a network of the type ``dense``."""
    return layers(flags, ALL_SPARSE, {"ffn.name": dense}, COUNT, to_hf)


# experts in all layers but the first ones
FIRST_DENSE = sparse(
    lambda settings: [index >= settings["first_k_dense_replace"] for index in range(layer_count(settings))],
    lambda has: {"first_k_dense_replace": has.index(True) if True in has else len(has)},
)


def mlp_layer_types(first: Callable[[HFConfig], int]) -> Keys:
    """Experts in the layers whose type in mlp_layer_types is ``sparse``, by default in those from ``first`` on."""

    def has_experts(settings: HFConfig) -> list[bool]:
        given = settings["mlp_layer_types"]
        usual = [index >= first(settings) for index in range(layer_count(settings))]
        return usual if given is None else [name == "sparse" for name in given]

    return sparse(has_experts, lambda has: {"mlp_layer_types": ["sparse" if one else "dense" for one in has]})


AFTER_FIRST = mlp_layer_types(lambda settings: 1)


def _sparse_steps(settings: HFConfig) -> list[bool]:
    step, dense = settings["decoder_sparse_step"], settings["mlp_only_layers"] or []
    return [index not in dense and (index + 1) % step == 0 for index in range(layer_count(settings))]


SPARSE_STEP = sparse(
    _sparse_steps,
    lambda has: {"mlp_only_layers": [index for index, one in enumerate(has) if not one], "decoder_sparse_step": 1},
)


def shared(count: str) -> Keys:
    """Shared experts, as one network of the width of ``count`` experts."""
    return key(count, "ffn@moe.shared_experts", null=0)


def shared_width(gate: bool = False) -> KeyTree:
    """One shared expert of a width of its own."""
    return (moe(shared_experts=1, shared_gate=gate), "shared_expert_intermediate_size = ffn@moe.shared_hidden")


# The router of DeepSeek-V3: https://arxiv.org/abs/2412.19437
ROUTED = (experts("n_routed_experts"), NORM_TOPK, SCALE, GROUPS, shared("n_shared_experts"))
DEEPSEEK_V3 = (ROUTED, SIGMOID)
QWEN = (experts("num_experts"), router_loss(), SPARSE_STEP, NORM_TOPK)
MIXTRAL = (experts("num_local_experts", "intermediate_size"), router_loss(), ALL_SPARSE)
OLMO = (experts("num_experts", "intermediate_size"), router_loss(), NORM_TOPK, ALL_SPARSE)
