"""Keys of rotary positions and their scalings."""

import math
from collections.abc import Callable
from typing import Any

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.mapping import HFConfig, Keys, KeyTree, ModelView, Pattern
from modular_gpt.mapping.notation import pairs
from modular_gpt.pretrained.families.decoder_keys import FULL, SLIDING, WINDOW_PATH, by_type, growth

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
_LENGTH, _ROPE = "original_max_position_embeddings", {"pos.name": "rope"}


def rope(
    layout: str = "half",
    partial: bool = False,
    width: str = "head_dim",
    fraction_of: Callable[[HFConfig], int] | None = None,
) -> KeyTree:
    """The same rotary positions in all layers that have them.

    layout: pairing of dimensions
    partial: a part of a head may be rotated, by partial_rotary_factor
    width: key with the width of the rotated vectors
    fraction_of: partial_rotary_factor is a fraction of this width, which must be the width of the rotated vectors
    """

    def read(settings: HFConfig) -> PlainDict:
        parameters, size = rope_parameters(settings), _size(settings, width)
        if fraction_of is not None:
            _check_fraction(parameters, fraction_of(settings), size)
        return _by_path(position(parameters, settings, size if partial else None))

    def write(view: ModelView) -> PlainDict:
        parameters = _parameters(view, partial)
        outer = _LENGTH in parameters and view.default(_LENGTH) is not None
        return {**({_LENGTH: parameters[_LENGTH]} if outer else {}), "rope_parameters": parameters}

    return (_ROPE, {"pos@rope.layout": layout}, Keys(read, write))


def rope_by_type(pattern: Pattern, older: tuple[str, str] | None = None, partial: bool = False) -> KeyTree:
    """Rotary positions of full attention and of attention with a window.

    pattern: of the types of layers; partial: a part of a head may be rotated, by partial_rotary_factor
    older: where rope_parameters are not given by type, the keys with theta of full and of sliding attention
    """

    def of(name: str) -> Keys:
        def read(settings: HFConfig) -> PlainDict:
            parameters = rope_parameters(settings)
            if older is not None and settings.given("rope_parameters") is None:
                parameters = _by_type(settings, *older)
            parameters.ignore(*(set(parameters) - {FULL, SLIDING}))
            return _by_path(position(parameters[name], settings, _size(settings) if partial else None))

        return Keys(read, lambda v: {f"rope_parameters.{name}": found} if (found := _parameters(v, partial)) else {})

    return (_ROPE, by_type(pattern, of(SLIDING), of(FULL), WINDOW_PATH))


def _size(settings: HFConfig, width: str = "head_dim") -> Any:
    return settings.get(width) or settings["hidden_size"] // settings["num_attention_heads"]


def _by_path(position: PlainDict) -> PlainDict:
    return {f"pos@rope.{name}": value for name, value in position.items()}


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
    """Convert one ``rope_parameters``, or the older ``rope_theta`` and ``rope_scaling``, to settings of ``pos=rope``.

    width: width of the vectors of which a part may be rotated; None: all dimensions must be

    Raises:
        CheckpointError: the scaling is unknown, differs between layer types, or rotates some dimensions only.
    """
    if given.holds_mapping():
        raise CheckpointError("the checkpoint has rotary positions per layer type, which are not supported")
    rope_type = given.get("rope_type", given.get("type", "default"))
    theta = given.get("rope_theta", settings["rope_theta"])
    scaling = _scaling(str(rope_type), given, settings)
    given.ignore(*_SCALING_KEYS)  # keys of other scalings
    return {"theta": theta, **_rotated(given, settings, width), **({"scaling": scaling} if scaling else {})}


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
    length, trained = settings["max_position_embeddings"], settings.get(_LENGTH)
    if rope_type == "default":
        return {}
    if rope_type not in SCALINGS:
        raise CheckpointError(unknown("rope scaling", rope_type, ["default", *SCALINGS]))
    names = SCALINGS[rope_type]
    scaling = {our_name: given[key] for key, our_name in names.items() if given.get(key) is not None}
    if "truncate" in names and "truncate" in given and given["truncate"] is None:
        scaling["truncate"] = False  # transformers reads null as false
    if trained is not None and _LENGTH in names:
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


def _parameters(view: ModelView, partial: bool) -> PlainDict:
    """The ``rope_parameters`` of the first layer with rotary positions; {} if there is none."""
    found = (layer.pos for layer in view.layers if layer.uses_positions(view.config.dims) and layer.pos.name == "rope")
    pos: Any = next(found, None)
    if pos is None:
        return {}
    parameters = {"rope_type": "default", "rope_theta": pos.theta}
    if partial and (width := view["attention@mha.head_dim"] or view["attention@mla.qk_rope_head_dim"]):
        parameters["partial_rotary_factor"] = pos.rotary_dim / width
    if pos.scaling:
        parameters["rope_type"] = pos.scaling["kind"]
        names = SCALINGS[pos.scaling["kind"]]
        parameters |= {key: pos.scaling[name] for key, name in names.items() if pos.scaling[name] is not None}
    return parameters


def temperature(component: str = "mha") -> Keys:
    """The growth of scores with the position of the query, stored with the rotary positions if there is one."""
    beta = "llama_4_scaling_beta"
    inner = growth(beta, _LENGTH, 0, component)

    def read(settings: HFConfig) -> PlainMapping:
        given = rope_parameters(settings)
        return inner.from_hf(given) if all([given.get(beta), given.get(_LENGTH)]) else {}

    return Keys(read, lambda view: {f"rope_parameters.{name}": value for name, value in inner.to_hf(view).items()})
