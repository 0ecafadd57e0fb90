"""Keys of rotary positions and their scalings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.mapping.hf_config import HFConfig
from modular_gpt.mapping.setting_map import Keys, ModelView, PerLayer, layer_count, pairs
from modular_gpt.pretrained.families.decoder_keys import FULL, SLIDING, WINDOW_PATH, Pattern, layer_types

_LENGTHS = "{factor,original_max_position_embeddings} = {factor,original_context_length}"
# rope_type -> key of config.json -> our setting; the defaults are the same
SCALINGS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": dict(pairs(_LENGTHS, "{low_freq_factor,high_freq_factor} = {low,high}_frequency_factor")),
    "longrope": dict(pairs(_LENGTHS, "{short_factor,long_factor} = {short_factors,long_factors}", "attention_factor")),
    "yarn": dict(pairs(_LENGTHS, "beta_fast", "beta_slow", "truncate", "attention_factor")),
}
_SCALING_KEYS = {key for keys in SCALINGS.values() for key in keys} | {"mscale", "mscale_all_dim"}


@dataclass(frozen=True)
class RotaryKeys:
    """How a family stores rotary positions.

    layout: pairing of dimensions
    partial: a part of a head may be rotated, by partial_rotary_factor
    per_type: layers have the positions of their type, by default of the types of this pattern
    width: key with the width of the rotated vectors
    fraction_of: partial_rotary_factor is a fraction of this width, which must be the width of the rotated vectors
    older: where rope_parameters are not given by type, the keys with theta of full and of sliding attention
    extra: further entries of rope_parameters
    """

    layout: str = "half"
    partial: bool = False
    per_type: Pattern | None = None
    width: str = "head_dim"
    fraction_of: Callable[[HFConfig], int] | None = None
    older: tuple[str, str] | None = None
    extra: Callable[[ModelView], PlainMapping] = lambda view: {}

    def from_hf(self, settings: HFConfig) -> PlainDict:
        """Convert the keys to the ``pos`` settings of each layer."""
        made = self._positions(settings)
        names = dict.fromkeys(name for pos in made for name in pos if name != "name")
        usual = {"scaling": {}, "theta": 10000.0}
        found = {f"pos@rope.{name}": PerLayer(pos.get(name, usual.get(name)) for pos in made) for name in names}
        return {"pos.name": "rope", **found, "pos@rope.layout": self.layout}

    def _positions(self, settings: HFConfig) -> list[PlainDict]:
        parameters = rope_parameters(settings)
        size = settings.get(self.width) or settings["hidden_size"] // settings["num_attention_heads"]
        width = int(size) if self.partial else None
        if self.fraction_of is not None:
            _check_fraction(parameters, self.fraction_of(settings), int(size))
        if self.per_type is None:
            return [position(parameters, settings, width)] * layer_count(settings)
        if self.older is not None and settings.given("rope_parameters") is None:
            parameters = _by_type(settings, *self.older)
        types = layer_types(settings, self.per_type)
        by_type = {name: position(parameters[name], settings, width) for name in dict.fromkeys(types)}
        parameters.ignore(*(set(parameters) - set(types)))
        return [by_type[name] for name in types]

    def to_hf(self, view: ModelView) -> PlainDict:
        """Convert the ``pos`` settings of each layer to keys."""
        full = view["attention@mha.head_dim"] or view["attention@mla.qk_rope_head_dim"]
        width, dims = full if self.partial else None, view.config.dims
        written = [position_to_hf(layer.pos, width) if layer.uses_positions(dims) else {} for layer in view.layers]
        if self.per_type is not None:
            types = (FULL if window is None else SLIDING for window in view.each(WINDOW_PATH))
            return {"rope_parameters": {name: found for name, found in zip(types, written, strict=True) if found}}
        parameters = next((found for found in written if found), {})
        original = parameters.get("original_max_position_embeddings")
        outer = original is not None and view.default("original_max_position_embeddings") is not None
        keys = {"original_max_position_embeddings": original} if outer else {}
        return {**keys, "rope_parameters": {**parameters, **self.extra(view)}}


def rope(**stored: Any) -> Keys:
    """The keys of rotary positions; ``stored``: fields of ``RotaryKeys``."""
    keys = RotaryKeys(**stored)
    return Keys(keys.from_hf, keys.to_hf)


def _check_fraction(parameters: HFConfig, total: int, width: int) -> None:
    """Raise a CheckpointError unless partial_rotary_factor, if given, is ``width`` of ``total``."""
    fraction = parameters.get("partial_rotary_factor")
    parameters.pop("partial_rotary_factor")
    if fraction is not None and int(total * fraction) != width:
        raise CheckpointError(f"the checkpoint has partial_rotary_factor={fraction}, but rotates {width} of {total}")


def _by_type(settings: HFConfig, full: str, sliding: str) -> HFConfig:
    """``rope_parameters`` by type from older keys; ``rope_scaling`` is that of full attention."""
    found = {name: dict(values) for name, values in settings.defaults["rope_parameters"].items()}
    for name, key in ((FULL, full), (SLIDING, sliding)):
        if (theta := settings.given(key)) is not None:
            found[name]["rope_theta"] = theta
    scaling = settings.given("rope_scaling")
    if scaling:
        found[FULL] |= {"rope_type": scaling.get("type", "default"), **scaling}
    return HFConfig(found)


def rope_parameters(settings: HFConfig) -> HFConfig:
    """The object with the settings of rotary positions: ``rope_scaling`` if it is given, else ``rope_parameters``.

    ``rope_parameters`` that are null are the family's default ones.
    """
    scaling, parameters = settings.get("rope_scaling"), settings.get("rope_parameters")
    if scaling:
        settings.ignore("rope_parameters")
    found = scaling or parameters or settings.defaults.get("rope_parameters") or {}
    return found if isinstance(found, HFConfig) else HFConfig(found)


def position(given: HFConfig, settings: HFConfig, width: int | None) -> PlainDict:
    """Convert one ``rope_parameters``, or the older ``rope_theta`` and ``rope_scaling``, to our ``pos`` settings.

    width: width of the vectors of which a part may be rotated; None: all dimensions must be

    Raises:
        CheckpointError: the scaling is unknown, differs between layer types, or rotates some dimensions only.
    """
    if given.holds_mapping():
        raise CheckpointError("the checkpoint has rotary positions per layer type, which are not supported")
    old_type, outer_theta = given.get("type", "default"), settings["rope_theta"]
    rope_type, theta = given.get("rope_type", old_type), given.get("rope_theta", outer_theta)
    pos = {"name": "rope", "theta": float(theta), **_rotated(given, settings, width)}
    scaling = _scaling(str(rope_type), given, settings)
    given.ignore(*_SCALING_KEYS)  # keys of other scalings
    return {**pos, "scaling": scaling} if scaling else pos


def _rotated(given: HFConfig, settings: HFConfig, width: int | None) -> PlainDict:
    fractions = [holder.get("partial_rotary_factor") for holder in (given, settings)]
    if width is not None:
        return {"rotary_dim": int(width * next((one for one in fractions if one is not None), 1.0))}
    for fraction in fractions:
        if fraction not in (None, 1):
            raise CheckpointError(
                f"the checkpoint has partial_rotary_factor={fraction}, which is not supported: only 1 is"
            )
    return {}


def _scaling(rope_type: str, given: HFConfig, settings: HFConfig) -> PlainDict:
    length, trained = settings["max_position_embeddings"], settings.get("original_max_position_embeddings")
    if rope_type == "default":
        return {}
    if rope_type not in SCALINGS:
        raise CheckpointError(unknown("rope scaling", rope_type, ["default", *SCALINGS]))
    names = SCALINGS[rope_type]
    scaling = {our_name: given[key] for key, our_name in names.items() if given.get(key) is not None}
    if "truncate" in names and "truncate" in given and given["truncate"] is None:
        scaling["truncate"] = False  # transformers reads null as false
    if trained is not None and "original_max_position_embeddings" in names:
        scaling["original_context_length"] = trained  # transformers prefers it to the nested one
    if rope_type == "dynamic":
        scaling["original_context_length"] = length
    if rope_type in ("yarn", "longrope") and "factor" not in scaling:
        scaling["factor"] = length / scaling.setdefault("original_context_length", length)
    over, under = (given.get(name) for name in ("mscale", "mscale_all_dim"))  # DeepSeek's
    if rope_type == "yarn" and "attention_factor" not in scaling and over and under:
        scaling["attention_factor"] = yarn_magnitude(scaling["factor"], over) / yarn_magnitude(scaling["factor"], under)
    return {"kind": rope_type, **scaling}


def yarn_magnitude(factor: float, weight: float) -> float:
    """Yarn's factor on queries and keys, with DeepSeek's ``weight`` of the logarithm."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def position_to_hf(pos: Any, width: int | None) -> PlainDict:
    """Convert our rotary positions to ``rope_parameters``, {} for other positions.

    width: width of the vectors of which a part may be rotated; None: their keys have no such part
    """
    if pos.name != "rope":
        return {}
    parameters = {"rope_type": "default", "rope_theta": pos.theta}
    parameters |= {"partial_rotary_factor": pos.rotary_dim / width} if width else {}
    if not pos.scaling:
        return parameters
    names = SCALINGS[pos.scaling["kind"]]
    keys = {key: pos.scaling[our_name] for key, our_name in names.items() if pos.scaling[our_name] is not None}
    return {**parameters, "rope_type": pos.scaling["kind"], **keys}


def temperature(component: str = "mha") -> Keys:
    """The growth of scores with the position of the query, stored with the rotary positions."""

    def read(settings: HFConfig) -> PlainDict:
        given = rope_parameters(settings)
        beta, length = given.get("llama_4_scaling_beta"), given.get("original_max_position_embeddings")
        growth = {"beta": float(beta), "length": float(length), "shift": 0} if beta and length else {}
        return {f"attention@{component}.query_temperature": growth}

    return Keys(read)


def temperature_to_hf(view: ModelView) -> PlainDict:
    """The entries of rope_parameters for the growth of scores."""
    growth = view["attention.query_temperature"]
    if not growth:
        return {}
    return {"llama_4_scaling_beta": growth["beta"], "original_max_position_embeddings": round(growth["length"])}
