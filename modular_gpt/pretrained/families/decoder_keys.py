"""Keys that many families share: sizes, heads, biases, windows, feed-forward, norms, dropout."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.family import activation, dropout, hf_activation, must_be
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, key, layer_count, per_layer

FULL, SLIDING = "full_attention", "sliding_attention"
SIZES = (
    key("vocab_size", "vocab_size"),
    key("hidden_size", "d_model"),
    key("num_hidden_layers", "n_layers"),
    key("num_attention_heads", "n_heads"),
    key("tie_word_embeddings", "tie_embeddings"),
    always({"bias": False}),
)
LENGTH = key("max_position_embeddings", "context_length")
INIT = key("initializer_range", "init_std")
# recurrent mixers have none
ATTENTION_DROPOUT = tuple(key("attention_dropout", f"attention@{name}.dropout", float) for name in ("mha", "mla"))


def heads() -> Keys:
    """Attention with its key/value heads and the width of a head."""

    def read(settings: HFConfig) -> PlainDict:
        n_heads = settings["num_attention_heads"]
        n_kv_heads = settings.get("num_key_value_heads") or n_heads
        return {
            "attention.name": "mha" if n_kv_heads == n_heads else "gqa",
            "attention@mha.n_kv_heads": n_kv_heads,
            "attention@mha.head_dim": settings.get("head_dim") or settings["hidden_size"] // n_heads,
        }

    def write(view: ModelView) -> PlainDict:
        return {
            "num_key_value_heads": view["attention@mha.n_kv_heads"],
            "head_dim": view["attention@mha.head_dim"],
        }

    return Keys(read, write)


# as many key/value heads as query heads, whose widths are those of the model together
PLAIN_HEADS = always({"attention.name": "mha"})


def biases(qkv: str | bool = "attention_bias", out: str | bool | None = None, component: str = "mha") -> Keys:
    """Biases of queries, keys and values, and of the output: the name of a key, or the value in all models."""
    names = {"qkv_bias": qkv, "out_bias": qkv if out is None else out}

    def read(settings: HFConfig) -> PlainDict:
        return {
            f"attention@{component}.{ours}": settings[name] if isinstance(name, str) else name
            for ours, name in names.items()
        }

    def write(view: ModelView) -> PlainDict:
        return {name: view[f"attention@{component}.{ours}"] for ours, name in names.items() if isinstance(name, str)}

    return Keys(read, write)


def activation_key(name: str, path: str) -> Keys:
    """An activation function, which keeps the family's own name for the tanh approximation of GELU."""
    return Keys(
        lambda settings: {path: activation(settings[name])},
        lambda view: {name: hf_activation(view[path], view.default(name))} if view[path] else {},
    )


def dense(
    component: str = "swiglu",
    bias: str | bool = False,
    hidden: str = "intermediate_size",
    act: str = "hidden_act",
    times: int = 0,
) -> tuple[Keys, ...]:
    """A feed-forward network in all layers; ``hidden`` is ``times`` the model's width where its key is null."""
    path = f"ffn@{component}"

    def read(settings: HFConfig) -> PlainDict:
        width = settings[hidden]
        return {
            "ffn.name": component,
            f"{path}.bias": settings[bias] if isinstance(bias, str) else bias,
            f"{path}.hidden": times * settings["hidden_size"] if width is None and times else width,
        }

    def write(view: ModelView) -> PlainDict:
        if not view.has(f"{path}.hidden"):
            return {}
        return {hidden: view[f"{path}.hidden"], **({bias: view[f"{path}.bias"]} if isinstance(bias, str) else {})}

    return Keys(read, write), activation_key(act, f"{path}.activation")


def norm(component: str, eps: str | float, **settings: Any) -> tuple[Keys, ...]:
    """The norm of all layers; ``eps``: the name of its key, or the value in all models."""
    fixed = always({"norm.name": component, **{f"norm.{name}": value for name, value in settings.items()}})
    return (fixed, key(eps, "norm.eps") if isinstance(eps, str) else always({"norm.eps": eps}))


RMSNORM = norm("rmsnorm", "rms_norm_eps")
layernorm = partial(norm, "layernorm", bias=True)


def qk_norm(
    scope: str = "head",
    component: str = "rmsnorm",
    eps: str = "rms_norm_eps",
    switch: str = "",
    after_rope: bool = False,
    **settings: Any,
) -> Keys:
    """A norm of queries and keys; ``switch``: the key that turns it on; ``settings``: of the norm."""

    def read(given: HFConfig) -> PlainDict:
        if switch and not given[switch]:
            return {}
        return {
            "attention@mha.qk_norm": {"name": component, **settings} if settings else component,
            "attention@mha.qk_norm_eps": float(given[eps]),
            "attention@mha.qk_norm_scope": scope,
            "attention@mha.qk_norm_after_rope": after_rope,
        }

    return Keys(read, lambda view: {switch: view["attention@mha.qk_norm"] is not None} if switch else {})


Pattern = Callable[[HFConfig], Sequence[str]]


def every(count: int, last: str = FULL, other: str = SLIDING) -> Pattern:
    """The types of layers where every ``count``-th one is ``last``."""
    return lambda settings: [last if (i + 1) % count == 0 else other for i in range(layer_count(settings))]


def all_of(layer_type: str) -> Pattern:
    """The types of layers that are all of one type."""
    return lambda settings: [layer_type] * layer_count(settings)


def layer_types(settings: HFConfig, pattern: Pattern, known: Sequence[str] = (FULL, SLIDING)) -> list[str]:
    """The type of each layer: ``layer_types``, or else the pattern.

    Raises:
        CheckpointError: a type is not one of ``known``.
    """
    given = settings.get("layer_types")
    types = list(pattern(settings) if given is None else given)
    settings.ignore(
        *("max_window_layers", "sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval")
    )  # they matter only without layer_types
    for layer_type in types:
        if layer_type not in known:
            raise CheckpointError(unknown("layer type", str(layer_type), list(known)))
    if len(types) != layer_count(settings):
        raise CheckpointError(f"layer_types has {len(types)} layers, but the model has {layer_count(settings)}")
    return types


def types_of_windows(view: ModelView) -> list[str]:
    """The type of each of our layers by its window."""
    return [FULL if window is None else SLIDING for window in view.each("attention@mha.window")]


ALL_FULL = all_of(FULL)


def windows(pattern: Pattern = ALL_FULL, switch: str = "") -> Keys:
    """A window in the layers whose type is ``sliding_attention``; ``switch``: the key that turns windows on."""

    def read(settings: HFConfig) -> PlainDict:
        types, width = layer_types(settings, pattern), settings["sliding_window"]
        width = width if not switch or settings[switch] else None
        return {"attention@mha.window": per_layer(width if name == SLIDING else None for name in types)}

    def write(view: ModelView) -> PlainDict:
        width, types = view["attention@mha.window"], {"layer_types": types_of_windows(view)}
        if switch:
            return {**types, "sliding_window": width, switch: width is not None}
        return types if width is None else {**types, "sliding_window": width}

    return Keys(read, write)


WINDOW = key("sliding_window", "attention@mha.window")


def dropouts(residual: str, embeddings: str | None = None, attention: str | None = None) -> Keys:
    """Dropout of what attention and ffn add, of embeddings, and of attention weights."""

    def read(settings: HFConfig) -> PlainDict:
        rates = {"dropout": dropout(settings, residual, embeddings)}
        return rates | ({"attention.dropout": float(settings[attention])} if attention else {})

    def write(view: ModelView) -> PlainDict:
        rates = {name: view["dropout"] for name in (residual, embeddings) if name}
        weights = view["attention.dropout"]
        return rates | ({attention: weights} if attention and weights is not None else {})

    return Keys(read, write)


def only(**values: Any) -> Keys:
    """Keys that must have these values."""

    def read(settings: HFConfig) -> PlainDict:
        must_be(settings, **values)
        return {}

    return Keys(read, lambda view: values)


def inverse(value: float) -> float:
    """1 / value"""
    return 1.0 / value


def rounded(value: float) -> float:
    """A whole number if it is one up to rounding errors."""
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value
