"""Keys that many families share: sizes, heads, biases, windows, feed-forward, norms, dropout."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.mapping.hf_config import HFConfig
from modular_gpt.mapping.setting_map import Keys, ModelView, always, computed, key, layer_count, layers, lines, only

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
HEADS, WINDOW_PATH = "attention@mha.n_kv_heads", "attention@mha.window"
LENGTH, INIT = key("max_position_embeddings", "context_length"), key("initializer_range", "init_std")
SIZES = (
    lines("vocab_size", "{hidden_size,num_hidden_layers,num_attention_heads} = {d_model,n_layers,n_heads}"),
    lines("tie_word_embeddings = tie_embeddings"),
    always({"bias": False}),
)
# recurrent mixers have none
ATTENTION_DROPOUT = tuple(key("attention_dropout", f"attention@{name}.dropout", float) for name in ("mha", "mla"))
PLAIN_HEADS = always({"attention.name": "mha"})  # as many key/value heads as query heads, together as wide as the model
WINDOW, CLIP = key("sliding_window", WINDOW_PATH), key("clip_qkv", "attention@mha.clip_qkv")
ACTIVATIONS = {
    "gelu": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh"),
    **{"relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu"},
}


def topology(name: str) -> Keys:
    """The arrangement of attention, feed-forward network and norms in all layers."""
    return always({"block.topology": name})


def grouped(n_kv_heads: int | None, n_heads: int) -> str:
    """Our name of attention with so many key/value heads; None: as many as query heads."""
    return "mha" if n_kv_heads in (None, n_heads) else "gqa"


def heads() -> Keys:
    """Attention with its key/value heads and the width of a head."""

    def read(settings: HFConfig) -> PlainDict:
        n_heads = settings["num_attention_heads"]
        n_kv_heads = settings.get("num_key_value_heads") or n_heads
        width = settings.get("head_dim") or settings["hidden_size"] // n_heads
        return {"attention.name": grouped(n_kv_heads, n_heads), HEADS: n_kv_heads, "attention@mha.head_dim": width}

    return Keys(read, lambda v: {"num_key_value_heads": v[HEADS], "head_dim": v["attention@mha.head_dim"]})


START = (SIZES, LENGTH, INIT, heads(), ATTENTION_DROPOUT)  # of llama and its relatives


def biases(qkv: str | bool = "attention_bias", out: str | bool | None = None) -> Sequence[Keys]:
    """Biases of queries, keys and values, and of the output: the name of a key, or the value in all models."""
    paths = {"attention@mha.qkv_bias": qkv, "attention@mha.out_bias": qkv if out is None else out}
    return [key(name, path) if isinstance(name, str) else always({path: name}) for path, name in paths.items()]


def activation_key(name: str, path: str, known: Mapping[str, str] = ACTIVATIONS) -> Keys:
    """An activation function, which keeps the family's own name for the tanh approximation of GELU."""

    def read(settings: HFConfig) -> PlainDict:
        if settings[name] not in known:
            raise CheckpointError(unknown("activation function", str(settings[name]), known))
        return {path: known[settings[name]]}

    def write(view: ModelView) -> PlainDict:
        names = [theirs for theirs, ours in known.items() if ours == view[path]] or [view[path]]
        return {name: view.default(name) if view.default(name) in names else names[0]} if view[path] else {}

    return Keys(read, write)


def dense(
    component: str = "swiglu",
    bias: str | bool = False,
    hidden: str = "intermediate_size",
    act: str = "hidden_act",
    times: int = 0,
) -> Sequence[Keys]:
    """A feed-forward network in all layers; ``hidden`` is ``times`` the model's width where its key is null or ""."""
    path = f"ffn@{component}"

    def width(settings: HFConfig) -> PlainDict:
        given = settings[hidden] if hidden else None
        return {f"{path}.hidden": times * settings["hidden_size"] if given is None and times else given}

    return (
        always({"ffn.name": component}),
        Keys(width, key(hidden, f"{path}.hidden").to_hf if hidden else lambda view: {}),
        key(bias, f"{path}.bias") if isinstance(bias, str) else always({f"{path}.bias": bias}),
        *([activation_key(act, f"{path}.activation")] if act else []),
    )


def norm(component: str, eps: str | float, **settings: Any) -> Sequence[Keys]:
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


Pattern = Callable[[int, HFConfig], object]  # (number of a layer from 0, keys) -> whether it attends to all tokens


def every(count: int, key: str = "") -> Pattern:
    """Every ``count``-th layer attends to all tokens; ``key``: one that may have another number."""
    return lambda i, settings: (i + 1) % ((settings.get(key) if key else None) or count) == 0


def no_layer(i: int, settings: HFConfig) -> bool:
    """No layer attends to all tokens."""
    return False


def layer_types(settings: HFConfig, pattern: Pattern, other: str = SLIDING) -> list[str]:
    """The type of each layer: ``layer_types``, or else FULL by the pattern, and ``other``.

    Raises:
        CheckpointError: a type is neither of these.
    """
    given, count = settings.get("layer_types"), layer_count(settings)
    types = [FULL if pattern(i, settings) else other for i in range(count)] if given is None else list(given)
    settings.ignore(
        *("max_window_layers", "sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval")
    )  # they matter only without layer_types
    for layer_type in types:
        if layer_type not in (FULL, other):
            raise CheckpointError(unknown("layer type", str(layer_type), [FULL, other]))
    if len(types) != count:
        raise CheckpointError(f"layer_types has {len(types)} layers, but the model has {count}")
    return types


def by_type(
    pattern: Pattern, settings: PlainMapping, full: PlainMapping | None = None, mark: str = "", other: str = SLIDING
) -> Keys:
    """Settings of the layers of the type ``other``, and of those that attend to all tokens.

    mark: a setting that only layers of the type ``other`` have, from which the types are written
    """
    return layers(
        lambda given: [name == other for name in layer_types(given, pattern, other)], settings, full, mark,
        lambda has: {"layer_types": [other if one else FULL for one in has]},
    )  # fmt: skip


def windows(pattern: Pattern = lambda i, settings: True, switch: str = "", types: bool = True) -> Keys:
    """A window in the layers whose type is ``sliding_attention``.

    switch: the key that turns windows on; types: whether the types of layers are written
    """

    def width(settings: HFConfig) -> Any:
        found = settings["sliding_window"]
        return found if not switch or settings[switch] else None

    typed = by_type(pattern, {WINDOW_PATH: width}, {WINDOW_PATH: None}, WINDOW_PATH)

    def write(view: ModelView) -> PlainDict:
        found = view[WINDOW_PATH]
        given = {"sliding_window": found} if switch or not types or found is not None else {}
        return {**(typed.to_hf(view) if types else {}), **given, **({switch: found is not None} if switch else {})}

    return Keys(typed.from_hf, write)


def dropouts(residual: str, embeddings: str | None = None, attention: str | None = None) -> Sequence[Keys]:
    """Dropout after attention and ffn, of embeddings, and of attention weights.

    Ours has one rate for the first two: a warning tells if theirs differ.
    """

    def read(settings: HFConfig) -> PlainDict:
        rate, other = float(settings[residual]), float(settings[embeddings]) if embeddings else 0.0
        if rate != other:
            has = f"{embeddings}={other}" if embeddings else "none"
            warnings.warn(
                f"while training, the embeddings get the dropout {residual}={rate}, where the checkpoint has {has}",
                stacklevel=2,
            )
        return {"dropout": rate}

    both = Keys(read, lambda view: {name: view["dropout"] for name in (residual, embeddings) if name})
    if attention is None:
        return (both,)
    path = "attention.dropout"
    weights = computed(path, lambda settings: float(settings[attention]))
    return (both, Keys(weights.from_hf, key(attention, path).to_hf))


def rotated(settings: HFConfig) -> list[bool]:
    """Whether each layer has rotary positions: all but every fourth one, unless they are listed."""
    listed, interval = settings["no_rope_layers"], settings["no_rope_layer_interval"]
    return [bool(one) for one in listed or ((i + 1) % interval for i in range(layer_count(settings)))]


NO_ROPE_LAYERS = layers(
    rotated, {}, {"pos.name": "none"}, "pos@rope.theta", lambda has: {"no_rope_layers": [int(one) for one in has]}
)
SILU = only(hidden_act="silu")  # where it is also that of convolutions, or of queries, keys and values
