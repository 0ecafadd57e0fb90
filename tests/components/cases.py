"""The cases of the laws, generated from the registered components.

Every registered name gives a case with its defaults; a component also gives a case for each inverted switch, for each
named choice, and for the settings of EXTRAS. A component without EXTRAS (of a plugin) is covered by the generic cases;
one inside modular_gpt must have an entry there, and every one of its settings must change in some case
(``test_coverage.py``).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

import pytest

from modular_gpt import ConfigError, GPTConfig
from modular_gpt.core.registry import Component, Entry, entries
from modular_gpt.model.config import SLOTS

TOKENS = 20
MODEL: dict[str, Any] = dict(vocab_size=31, d_model=32, n_heads=4, n_layers=2, context_length=24, pos="rope")
LAYERS = 4  # of a model of stacked cases
NO_CHOICE = "no-such-choice"
KERNELS = ("flash", "flex")  # device or width limits, or slow to compile: in EXTRAS and test_backends.py

M = TypeVar("M")
G = TypeVar("G", "Joined", "Stack")
Settings = dict[str, Any]
PLAIN: Settings = {}

# (slot, name) -> settings of the component and of the model that the generic cases do not cover
EXTRAS: dict[tuple[str, str], list[tuple[Settings, Settings]]] = {
    ("attention", "mha"): [
        ({"n_kv_heads": 2, "head_dim": 6, "qkv_bias": False, "out_bias": True}, {"bias": False}),
        ({"n_kv_heads": 1, "window": 5, "sinks": True}, {"pos": "alibi"}),
        ({"window": 5, "softcap": 3.0, "scale": 0.3}, {"pos": "learned"}),
        ({"window": 1}, PLAIN),
        ({"backend": "flash"}, PLAIN),
        ({"backend": "flash", "window": 5, "n_kv_heads": 2}, {"pos": "alibi"}),
        ({"window": 5, "backend": "math", "n_kv_heads": 2, "sinks": True}, PLAIN),
        ({"qk_norm": "rmsnorm", "qk_norm_scope": "full", "qk_norm_eps": 0.1, "n_kv_heads": 2}, PLAIN),
        ({"qk_norm": "rmsnorm", "qk_norm_after_rope": True}, PLAIN),
        ({"clip_qkv": 0.5, "out_bias": False, "dropout": 0.3}, {"topology": "parallel", "dropout": 0.1}),
        ({"conv": 3}, {"pos": "none"}),
        ({"qk_norm": {"name": "rmsnorm", "weight_offset": True, "eps": 0.1}, "output_gate_per_head": True}, PLAIN),
        ({"qk_norm": {"name": "layernorm", "bias": True}, "output_gate": "softplus", "n_kv_heads": 2}, PLAIN),
        ({"qk_norm": "layernorm", "qk_norm_scope": "per_head", "n_kv_heads": 2, "v_head_dim": 6}, PLAIN),
        ({"v_head_dim": 12, "value_scale": 0.5, "output_gate": "sigmoid", "output_gate_per_head": True}, PLAIN),
        ({"query_temperature": {"beta": 0.5, "length": 4.0, "shift": 1}, "window": 7}, PLAIN),
    ],
    ("attention", "gqa"): [({"window": 7}, {"pos": "alibi"})],
    ("attention", "mqa"): [(PLAIN, {"pos": "alibi"}), ({"window": 7}, PLAIN)],
    ("attention", "swa"): [
        ({"window": 5}, PLAIN),
        ({"window": 5}, {"pos": "alibi"}),
        ({"window": 5, "conv": 4}, PLAIN),
    ],
    ("attention", "mla"): [
        ({"kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 2, "out_bias": False}, PLAIN),
        ({"qk_nope_head_dim": 6, "v_head_dim": 10, "scale": 0.5, "qkv_bias": False}, {"pos": "learned"}),
        ({"window": 5, "latent_norm_eps": 0.1}, PLAIN),
        ({"window": 5, "softcap": 3.0}, {"pos": "alibi"}),
        ({"query_temperature": {"beta": 0.5, "length": 4.0}}, {"topology": "parallel_two_norms"}),
        ({"qk_rope_head_dim": 4}, {"pos": "none"}),
        ({"backend": "flash"}, {"pos": "learned"}),
        ({"dropout": 0.3}, {"topology": "sandwich"}),
        ({"conv": 2}, {"topology": "parallel"}),
    ],
    ("attention", "linear"): [
        ({"chunk": 3, "head_dim": 6, "qkv_bias": False}, PLAIN),
        ({"chunk": 1, "out_bias": False, "eps": 0.1}, {"pos": "learned"}),
        ({"conv": 3}, {"topology": "post"}),
    ],
    ("attention", "shortconv"): [({"kernel": 5, "bias": False, "conv": 2}, PLAIN), ({"kernel": 1}, {"pos": "learned"})],
    ("attention", "lightning"): [
        ({"chunk": 3, "head_dim": 6, "decay_scale": 0.3, "eps": 0.1, "conv": 3}, {"pos": "learned"}),
        ({"decay_rates": "geometric", "head_dim": 6}, {"n_heads": 3}),
    ],
    ("attention", "gated_delta"): [
        ({"chunk": 3, "key_heads": 2, "key_dim": 6, "value_dim": 10, "kernel": 2, "negative": True}, PLAIN),
        ({"value_heads": 6, "rank": 5, "eps": 0.1, "gate_activation": "sigmoid"}, {"pos": "none"}),
    ],
    ("attention", "kda"): [({"chunk": 4, "rank": 6, "key_heads": 2, "conv": 3}, {"topology": "sandwich"})],
    ("attention", "sparse"): [
        ({"v_head_dim": 6, "value_scale": 0.5, "query_temperature": {"beta": 0.5, "length": 4.0}}, PLAIN),
        (
            {"pattern": "bigbird", "window": 3, "global_tokens": 2, "random_blocks": 1, "seed": 3, "block": 2},
            {"pos": "alibi"},
        ),
        ({"pattern": "longformer", "window": 3, "dilation": 2, "global_tokens": 3, "block": 4, "n_kv_heads": 2}, PLAIN),
        ({"pattern": "strided", "window": 3, "stride": 3, "block": 2, "softcap": 3.0, "scale": 0.3}, PLAIN),
        ({"pattern": "streaming", "window": 4, "global_tokens": 2, "block": 2, "sinks": True}, {"pos": "alibi"}),
        ({"pattern": "streaming", "window": 4, "global_tokens": 3, "block": 2, "qk_norm": "rmsnorm"}, PLAIN),
        ({"pattern": "chunked", "chunk": 6, "block": 4, "dropout": 0.3}, {"pos": "learned"}),
        ({"head_dim": 6, "qkv_bias": False, "out_bias": True, "clip_qkv": 0.5, "backend": "flash"}, {"bias": False}),
        ({"qk_norm": "rmsnorm", "qk_norm_scope": "full", "qk_norm_eps": 0.1, "conv": 3}, PLAIN),
        ({"qk_norm": "rmsnorm", "qk_norm_after_rope": True}, PLAIN),
    ],
    ("ffn", "mlp"): [({"hidden": 20, "bias": False}, PLAIN)],
    ("ffn", "swiglu"): [({"hidden": 20, "bias": False}, PLAIN)],
    ("ffn", "geglu"): [(PLAIN, {"topology": "post"})],
    ("ffn", "reglu"): [(PLAIN, {"topology": "post_residual"})],
    ("ffn", "moe"): [
        ({"n_experts": 4, "top_k": 1, "norm_topk": False, "hidden": 12}, PLAIN),
        ({"n_experts": 4, "top_k": 4, "shared_experts": 2}, {"topology": "parallel"}),
        ({"score": "sigmoid", "balance": "bias", "bias_step": 0.1, "routed_scale": 2.5}, PLAIN),
        ({"groups": 4, "top_groups": 2, "group_score": "top2", "shared_experts": 1}, PLAIN),
        ({"expert": "mlp", "activation": "gelu", "bias": False, "router_bias": True}, PLAIN),
        ({"balance_weight": 0.5, "z_weight": 0.1}, PLAIN),
        ({"shared_experts": 1, "shared_hidden": 12, "shared_gate": True}, PLAIN),
        ({"score": "sigmoid", "rank_by": "logit", "weight_on_input": True, "balance": "bias"}, PLAIN),
        ({"activation": "clamped_swish", "clamp_limit": 0.5, "clamp_alpha": 1.0}, PLAIN),
    ],
    ("norm", "layernorm"): [
        ({"eps": 0.1, "bias": False}, {"embed_norm": True}),
        (PLAIN, {"bias": False}),
        ({"weight_offset": True}, PLAIN),
    ],
    ("norm", "rmsnorm"): [({"eps": 0.1}, {"topology": "sandwich"})],
    ("norm", "scalenorm"): [({"eps": 3.0}, {"topology": "post"})],
    ("pos", "learned"): [(PLAIN, {"attention": "mla"})],
    ("pos", "sinusoidal"): [({"theta": 100.0}, PLAIN)],
    ("pos", "alibi"): [
        ({"max_bias": 4.0}, PLAIN),
        (PLAIN, {"n_heads": 6, "d_model": 36}),
        ({"scale": 0.5, "rounded": True}, {"attention": "gqa"}),
    ],
    ("pos", "none"): [(PLAIN, {"attention": "linear"})],
    ("pos", "rope"): [
        ({"theta": 100.0, "rotary_dim": 4}, PLAIN),
        ({"rotary_dim": 4, "layout": "interleaved"}, {"attention": "mla", "d_model": 48}),
        ({"scaling": {"kind": "linear", "factor": 4.0}}, {"attention": "swa"}),
        ({"scaling": {"kind": "dynamic", "factor": 2.0}}, PLAIN),
        ({"scaling": {"kind": "llama3", "factor": 8.0, "original_context_length": 8}}, PLAIN),
        ({"scaling": {"kind": "yarn", "factor": 4.0, "original_context_length": 8}}, {"attention": "linear"}),
        (
            {
                "rotary_dim": 4,
                "scaling": {
                    "kind": "longrope",
                    "factor": 3.0,
                    "original_context_length": 24,
                    "short_factors": [1.0, 1.5],
                    "long_factors": [2.0, 4.0],
                },
            },
            PLAIN,
        ),
    ],
}


@dataclass(frozen=True)
class Case:
    """One component with some settings, in a model of default components."""

    slot: str
    name: str
    settings: Settings = field(default_factory=dict)
    model: Settings = field(default_factory=dict)
    generic: bool = False  # a single switch or choice; skipped by laws that compile

    def config(self, **changes: Any) -> GPTConfig:
        """Two layers with default settings, one with others, which do not affect how layers work together."""
        layers = 1 if self.settings or self.model else 2
        component = {self.slot: {"name": self.name, **self.settings}}
        return GPTConfig(**{**MODEL, "n_layers": layers, **self.model, **component, **changes})

    @property
    def id(self) -> str:
        def text(settings: Settings) -> str:
            return ",".join(f"{key}={value}" for key, value in settings.items()).replace(" ", "")

        return "-".join(filter(None, [self.slot, self.name, text(self.settings), text(self.model)]))


def choices(entry: Entry, setting: str) -> list[str]:
    """Choices of a text setting, parsed from the message about a wrong one; empty if any text is accepted."""
    try:
        Case(entry.component.slot, entry.name, {setting: NO_CHOICE}).config()
    except ConfigError as error:
        return str(error).partition("there are: ")[2].split(", ")
    return []


def text_settings(component: type[Component]) -> list[str]:
    return [f.name for f in fields(component.Config) if f.name != "name" and "str" in str(f.type)]


def accepted(case: Case) -> bool:
    """False for a switch that needs another setting, which EXTRAS must provide."""
    try:
        case.config()
    except ConfigError as error:
        assert " needs " in str(error)
        return False
    return True


def switched(entry: Entry) -> Iterator[Case]:
    """One case for each inverted switch and each other choice."""
    default = entry.default()
    for setting in fields(entry.component.Config):
        value = getattr(default, setting.name)
        if isinstance(value, bool):
            case = Case(entry.component.slot, entry.name, {setting.name: not value}, generic=True)
            if accepted(case):
                yield case
    for setting in text_settings(entry.component):
        for choice in choices(entry, setting):
            if choice not in (getattr(default, setting), *KERNELS):
                yield Case(entry.component.slot, entry.name, {setting: choice}, generic=True)


def cases(slot: str) -> list[Case]:
    """All cases of a slot; the switches of a component are tested under its own name only, not for its presets."""
    found = []
    for name, entry in entries(slot).items():
        found.append(Case(slot, name))
        if not entry.settings:
            found += switched(entry)
        found += [Case(slot, name, settings, model) for settings, model in EXTRAS.get((slot, name), [])]
    return found


def packed(members: Iterable[M], begin: Callable[[M], G], extended: Callable[[G, M], G | None]) -> list[G]:
    """Add each member to the first group that takes it, or else begin a group with it.

    extended: the group with one more member, or None if it does not take it
    """
    groups: list[G] = []
    for member in members:
        for place, group in enumerate(groups):
            larger = extended(group, member)
            if larger is not None:
                groups[place] = larger
                break
        else:
            groups.append(begin(member))
    return groups


def if_valid(group: G) -> G | None:
    """The group, if its config is accepted."""
    try:
        group.config()
    except ConfigError:
        return None
    return group


@dataclass(frozen=True)
class Joined:
    """Cases of different slots in one model, for slow laws; a failure names all of them."""

    cases: tuple[Case, ...]

    def config(self, **changes: Any) -> GPTConfig:
        settings = dict(MODEL)
        for case in self.cases:
            settings |= {**case.model, case.slot: {"name": case.name, **case.settings}}
        return GPTConfig(**{**settings, **changes})

    @property
    def id(self) -> str:
        return "+".join(case.id for case in self.cases)

    @property
    def default(self) -> bool:
        return not any(case.settings or case.model for case in self.cases)

    @cached_property
    def shared_settings(self) -> tuple[bool, Settings]:
        """Whether the cases are defaults, and the settings of the model that no layer overrides."""
        config = self.config().to_dict()
        return self.default, {name: value for name, value in config.items() if name not in ("topology", *SLOTS)}

    def extended(self, case: Case) -> "Joined | None":
        """With one more case; None if a setting would be set twice, or the config is refused."""
        taken = {key for other in self.cases for key in (other.slot, *other.model)}
        if self.default != Joined((case,)).default or taken & {case.slot, *case.model}:
            return None
        return if_valid(Joined((*self.cases, case)))


def joined(which: list[Case]) -> list[Joined]:
    """Pack all cases into few models, about as many as cases of the largest slot; defaults go with defaults."""
    return packed(which, lambda case: Joined((case,)), Joined.extended)


@dataclass(frozen=True)
class Stack:
    """Joined cases as the layers of one model, for laws whose time depends on the number of models."""

    layers: tuple[Joined, ...]

    def config(self) -> GPTConfig:
        single = [layer.config(n_layers=1).to_dict() for layer in self.layers]
        layers = {str(i): {"block": each["topology"], **{s: each[s] for s in SLOTS}} for i, each in enumerate(single)}
        pattern = {"variants": layers, "cycle": [*layers]}
        return GPTConfig.from_dict({**single[0], "n_layers": len(single), "layers": pattern})

    @property
    def id(self) -> str:
        return "|".join(layer.id for layer in self.layers)

    @property
    def default(self) -> bool:
        return self.layers[0].default

    def extended(self, layer: Joined) -> "Stack | None":
        """With one more layer; None if it is full, a setting that layers share differs, or the config is refused."""
        if len(self.layers) == LAYERS or layer.shared_settings != self.layers[0].shared_settings:
            return None
        return if_valid(Stack((*self.layers, layer)))


def stacked(which: list[Joined]) -> list[Stack]:
    """Pack joined cases into models of a few layers that share all other settings; defaults go with defaults."""
    return packed(which, lambda layer: Stack((layer,)), Stack.extended)


ALL = [case for slot in SLOTS for case in cases(slot)]
CHOSEN = [case for case in ALL if not case.generic]


def parametrize(which: Sequence[Case | Joined | Stack]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", which, ids=lambda case: case.id)
