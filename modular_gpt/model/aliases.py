"""The words in which other code bases describe a model, read into a GPTConfig through one table."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.core.registry import decode, encode, entries
from modular_gpt.model.config import SLOTS, GPTConfig

# Their word -> ours; a dot leads into a component.
WORDS = {
    "n_embd": "d_model",
    "emb_dim": "d_model",
    "embedding_dimension": "d_model",
    "embedding_dim": "d_model",
    "n_head": "n_heads",
    "num_heads": "n_heads",
    "n_layer": "n_layers",
    "num_layers": "n_layers",
    "block_size": "context_length",
    "max_seq_length": "context_length",
    "max_seq_len": "context_length",
    "drop_rate": "dropout",
    "dropout_rate": "dropout",
    "d_ff": "ffn.hidden",
    "qkv_bias": "attention.qkv_bias",
    "num_kv_groups": "attention.n_kv_heads",  # there it is the number of key/value heads, not of groups' members
    "latent_dim": "attention.kv_lora_rank",
    "sliding_window_size": "attention.window",
    "attention_type": "attention.name",
    "attention_class": "attention.name",
    "ffn_type": "ffn.name",
    "norm_type": "norm.name",
    "pos_type": "pos.name",
}

# Their names of parts -> ours, compared without case, underscores and hyphens.
NAMES = {
    "attention": {
        "flashattention": "mha",
        "multiheadattention": "mha",
        "groupedqueryattention": "gqa",
        "multiqueryattention": "mqa",
        "multiheadlatentattention": "mla",
        "latentattention": "mla",
        "linearattention": "linear",
        "localwindowattention": "swa",
        "slidingwindowattention": "swa",
    },
    "ffn": {"ffstandard": "mlp", "standard": "mlp", "ffswiglu": "swiglu", "ffmoe": "moe"},
    "norm": {},
    "pos": {"rotary": "rope", "learnedpositional": "learned", "sinusoidalpositional": "sinusoidal"},
}

# What a model in other words has where it says nothing of positions: they describe GPT-2 and its descendants.
THEIR_POSITIONS = "learned"

# A setting that only one kind of part has names that part, where nothing else does.
IMPLIED = {"kv_lora_rank": "mla"}


def read_config(config: Any = None, **keywords: Any) -> GPTConfig:
    """A GPTConfig from a GPTConfig, a mapping, a namespace, or keywords, in our words or those of the table.

    Raises:
        ConfigError: a word is unknown, two words say different things, or the model cannot work.
    """
    if isinstance(config, GPTConfig):
        if keywords:
            raise ConfigError(f"give either a GPTConfig or keywords, not both ({', '.join(keywords)})")
        return config
    if isinstance(config, SimpleNamespace):
        config = vars(config)
    if not isinstance(config, (Mapping, type(None))):
        raise ConfigError(f"a model is described by a GPTConfig, a dict, a SimpleNamespace or keywords, not {config!r}")
    return GPTConfig.from_dict(translate({**(config or {}), **keywords}))


def translate(words: Mapping[str, Any]) -> dict[str, Any]:
    """Our words for theirs; words that are ours already pass through."""
    values: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    ours = ["format", *GPTConfig.__dataclass_fields__]
    for word, value in words.items():
        if word not in WORDS and word not in ours:
            raise ConfigError(unknown("setting", str(word), [*ours, *WORDS]))
        target = WORDS.get(word, word)
        slot, _, setting = target.partition(".")
        if setting and value is None:
            continue
        if setting:
            _put(parts.setdefault(slot, {}), setting, value, word)
        elif slot in SLOTS:
            if isinstance(value, str):
                settings: Mapping[str, Any] = {"name": value}
            else:
                settings = value if isinstance(value, Mapping) else encode(decode(slot, value))
            for key, each in settings.items():
                _put(parts.setdefault(slot, {}), key, each, word)
        else:
            _put(values, target, value, word)
    if "pos" not in parts and any(word in WORDS for word in words):
        parts["pos"] = {"name": THEIR_POSITIONS}
    for slot, settings in parts.items():
        implied = next((name for setting, name in IMPLIED.items() if settings.get(setting) is not None), None)
        default = GPTConfig.__dataclass_fields__[slot].default
        name = _our_name(slot, settings.pop("name", implied or default))
        values[slot] = decode(slot, {"name": name, **settings})
    return values


def _put(values: dict[str, Any], key: str, value: Any, word: str) -> None:
    if key in values and values[key] != value:
        raise ConfigError(f"{word}={value!r} contradicts another word for {key}, which says {values[key]!r}")
    values[key] = value


def _our_name(slot: str, name: Any) -> Any:
    if not isinstance(name, str) or name in entries(slot):
        return name
    plain = name.lower().replace("_", "").replace("-", "")
    return NAMES[slot].get(plain, plain if plain in entries(slot) else name)
