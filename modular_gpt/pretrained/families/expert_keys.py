"""Keys of mixtures of experts: their sizes, their router, shared experts, and the layers that have experts."""

from collections.abc import Callable, Sequence
from typing import Any

from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families.decoder_keys import activation_key
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, key, layer_count, per_layer


def moe(**settings: Any) -> Keys:
    """Settings of all mixtures of a family."""
    return always({f"ffn@moe.{name}": value for name, value in settings.items()})


def needed(name: str, path: str) -> Keys:
    """A key that must not be null."""

    def read(settings: HFConfig) -> PlainDict:
        if settings[name] is None:
            raise KeyError(name)
        return {path: settings[name]}

    return Keys(read, key(name, path).to_hf)


def experts(
    count: str, hidden: str = "moe_intermediate_size", top_k: str = "num_experts_per_tok", act: str = "hidden_act"
) -> tuple[Keys, ...]:
    """The sizes of the experts, which are gated; ``act``: empty if their activation has no key."""
    return (
        moe(bias=False, balance="none", z_weight=0.0),
        needed(count, "ffn@moe.n_experts"),
        needed(top_k, "ffn@moe.top_k"),
        key(hidden, "ffn@moe.hidden"),
        *([activation_key(act, "ffn@moe.activation")] if act else []),
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


def sigmoid_router(scale: str = "", norm_topk: str = "norm_topk_prob", groups: bool = True) -> tuple[Keys, ...]:
    """The router of DeepSeek-V3: https://arxiv.org/abs/2412.19437"""
    rows = [moe(score="sigmoid", balance="bias", group_score="top2")]
    rows += [key(norm_topk, "ffn@moe.norm_topk")] if norm_topk else []
    rows += [key(scale, "ffn@moe.routed_scale", float)] if scale else []
    rows += [key("n_group", "ffn@moe.groups"), key("topk_group", "ffn@moe.top_groups")] if groups else []
    return tuple(rows)


def sparse(
    from_hf: Callable[[HFConfig], Sequence[bool]], to_hf: Callable[[list[bool]], PlainMapping], dense: str = "swiglu"
) -> Keys:
    """The layers that have experts; the others have a network of the type ``dense``."""

    def write(view: ModelView) -> PlainMapping:
        return to_hf([layer.ffn.name == "moe" for layer in view.layers])

    return Keys(lambda settings: {"ffn.name": per_layer("moe" if has else dense for has in from_hf(settings))}, write)


ALL_SPARSE = always({"ffn.name": "moe"})


def first_dense(name: str = "first_k_dense_replace") -> Keys:
    """Experts in all layers but the first ones."""
    return sparse(
        lambda settings: [index >= settings[name] for index in range(layer_count(settings))],
        lambda has: {name: has.index(True) if True in has else len(has)},
    )


def mlp_layer_types(pattern: Callable[[HFConfig], Sequence[str]]) -> Keys:
    """Experts in the layers whose type in mlp_layer_types, by default in ``pattern``, is ``sparse``."""

    def has_experts(settings: HFConfig) -> list[bool]:
        given = settings["mlp_layer_types"]
        return [name == "sparse" for name in (pattern(settings) if given is None else given)]

    return sparse(has_experts, lambda has: {"mlp_layer_types": ["sparse" if one else "dense" for one in has]})


def after_first(settings: HFConfig) -> list[str]:
    """Layer types where all layers but the first have experts."""
    return ["dense", *["sparse"] * (layer_count(settings) - 1)]


def _sparse_steps(settings: HFConfig) -> list[bool]:
    step, dense = settings["decoder_sparse_step"], settings["mlp_only_layers"] or []
    return [index not in dense and (index + 1) % step == 0 for index in range(layer_count(settings))]


SPARSE_STEP = sparse(
    _sparse_steps,
    lambda has: {"mlp_only_layers": [index for index, one in enumerate(has) if not one], "decoder_sparse_step": 1},
)
NORM_TOPK = key("norm_topk_prob", "ffn@moe.norm_topk")


def shared(count: str) -> Keys:
    """Shared experts, as one network of the width of ``count`` experts."""
    return Keys(
        lambda settings: {"ffn@moe.shared_experts": settings[count] or 0},
        key(count, "ffn@moe.shared_experts").to_hf,
    )


def shared_width(width: str, gate: bool = False) -> Keys:
    """One shared expert of a width of its own."""
    return Keys(
        lambda settings: {
            "ffn@moe.shared_experts": 1,
            "ffn@moe.shared_hidden": settings[width],
            "ffn@moe.shared_gate": gate,
        },
        key(width, "ffn@moe.shared_hidden").to_hf,
    )


DEEPSEEK_V3 = (experts("n_routed_experts"), sigmoid_router("routed_scaling_factor"), shared("n_shared_experts"))
