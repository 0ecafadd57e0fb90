"""Keys that many families share: sizes, heads, biases, windows, feed-forward, norms, dropout."""

import warnings
from functools import partial
from typing import Any

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping import HFConfig, Keys, KeyTree, ModelView, Pattern, by_names, key, layers
from modular_gpt.mapping.setting_map import enabled_by, named, only

# keys that matter only without layer_types
OTHERWISE = ("max_window_layers", "sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval")
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
HEADS, WINDOW_PATH = "attention@mha.n_kv_heads", "attention@mha.window"
LENGTH, INIT = "max_position_embeddings = context_length", "initializer_range = init_std"
SIZES = (
    ("vocab_size", "{hidden_size,num_hidden_layers,num_attention_heads} = {d_model,n_layers,n_heads}"),
    ("tie_word_embeddings = tie_embeddings", {"bias": False}),
)
ATTENTION_DROPOUT = "attention_dropout = attention@{mha,mla}.dropout"  # recurrent mixers have none
PLAIN_HEADS = {"attention.name": "mha"}  # as many key/value heads as query heads, together as wide as the model
WINDOW, CLIP = f"sliding_window = {WINDOW_PATH}", "clip_qkv = attention@mha.clip_qkv"
SILU = only(hidden_act="silu")  # where it is also that of convolutions, or of queries, keys and values
ACTIVATIONS = {
    "gelu": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh"),
    **{"relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu"},
}
# keeps the family's own name for the tanh approximation of GELU
activation_key = partial(named, names=ACTIVATIONS, noun="activation function")


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


def stated(name: str | bool | float, path: str) -> KeyTree:
    """A setting with the key ``name``, or with this value in all models."""
    return f"{name} = {path}" if isinstance(name, str) else {path: name}


def biases(qkv: str | bool = "attention_bias", out: str | bool | None = None) -> KeyTree:
    """Biases of queries, keys and values, and of the output: the name of a key, or the value in all models."""
    last = qkv if out is None else out
    return (stated(qkv, "attention@mha.qkv_bias"), stated(last, "attention@mha.out_bias"))


def dense(
    component: str = "swiglu",
    bias: str | bool = False,
    hidden: str = "intermediate_size",
    act: str = "hidden_act",
    times: int = 0,
) -> KeyTree:
    """A feed-forward network in all layers; ``hidden`` is ``times`` the model's width where its key is null or ""."""
    path = f"ffn@{component}"

    def width(settings: HFConfig) -> PlainDict:
        given = settings[hidden] if hidden else None
        return {f"{path}.hidden": times * settings["hidden_size"] if given is None and times else given}

    return (
        {"ffn.name": component},
        Keys(width, key(hidden, f"{path}.hidden").to_hf if hidden else lambda view: {}),
        stated(bias, f"{path}.bias"),
        activation_key(act, f"{path}.activation") if act else (),
    )


def norm(component: str, eps: str | float, **settings: Any) -> KeyTree:
    """The norm of all layers; ``eps``: the name of its key, or the value in all models."""
    fixed = {f"norm.{name}": value for name, value in settings.items()}
    return ({"norm.name": component, **fixed}, stated(eps, "norm.eps"))


RMSNORM = norm("rmsnorm", "rms_norm_eps")
layernorm = partial(norm, "layernorm", bias=True)
QK_NORM = "attention@mha.qk_norm"


def qk_norm(
    scope: str = "head",
    component: str = "rmsnorm",
    eps: str = "rms_norm_eps",
    after_rope: bool = False,
    **settings: Any,
) -> KeyTree:
    """A norm of queries and keys; ``settings``: of the norm."""
    norm = {"name": component, **settings} if settings else component
    fixed = {QK_NORM: norm, f"{QK_NORM}_scope": scope, f"{QK_NORM}_after_rope": after_rope}
    return (fixed, f"{eps} => {QK_NORM}_eps")


def every(count: int, key: str = "", first: bool = False) -> Pattern:
    """Every ``count``-th layer attends to all tokens, and the ``first``; ``key``: one that may have another number."""
    return lambda i, s: (i + 1) % ((s.get(key) if key else None) or count) == 0 or (first and i == 0)


def no_layer(i: int, settings: HFConfig) -> bool:
    """No layer attends to all tokens."""
    return False


ALL_LAYERS = every(1)


def by_type(pattern: Pattern, keys: KeyTree, full: KeyTree = (), mark: str = "", other: str = SLIDING) -> Keys:
    """Mappings of the layers of the type ``other``, and of those that attend to all tokens.

    mark: a setting that only layers of the type ``other`` have, from which the types are written
    """
    flags = by_names("layer_types", (other, FULL), lambda i, settings: not pattern(i, settings), OTHERWISE)
    return layers(flags, keys, full, mark)


def windows(pattern: Pattern = ALL_LAYERS) -> Keys:
    """A window in the layers whose type is ``sliding_attention``."""
    return by_type(pattern, WINDOW, mark=WINDOW_PATH)


def switched_windows(keys: KeyTree) -> KeyTree:
    """Windows that a key turns on, which is written as null where there are none."""
    return (enabled_by("use_sliding_window", WINDOW_PATH, keys), f"sliding_window <= {WINDOW_PATH}")


def growth(beta: str, length: str, shift: int, component: str = "mha") -> Keys:
    """The growth of scores with the position of the query, by the names of its keys."""

    def read(settings: HFConfig) -> PlainDict:
        found = {"beta": float(settings[beta]), "length": float(settings[length]), "shift": shift}
        return {f"attention@{component}.query_temperature": found}

    def write(view: ModelView) -> PlainDict:
        found = view["attention.query_temperature"]
        return {beta: found["beta"], length: round(found["length"])} if found else {}

    return Keys(read, write)


def dropouts(residual: str, embeddings: str | None = None, attention: str | None = None) -> KeyTree:
    """Dropout of the residual branches, of embeddings, and of attention weights.

    ``GPTConfig.dropout`` is one rate for the first two; a warning is issued if those of the config.json differ.
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
    return (both, f"{attention} = attention.dropout" if attention else ())


# all layers but every fourth one have rotary positions, unless they are listed
_INTERVAL = "no_rope_layer_interval"
ROTATED = by_names("no_rope_layers", (1, 0), lambda i, settings: (i + 1) % settings[_INTERVAL], [_INTERVAL])
NO_ROPE_LAYERS = layers(ROTATED, (), {"pos.name": "none"}, "pos@rope.theta")
