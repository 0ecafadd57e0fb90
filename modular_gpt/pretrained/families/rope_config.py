"""Two-way conversion of rotary positions and their scalings in config.json files."""

import math
from typing import Any

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.pretrained.config_map import HFConfig

# rope_type -> key of config.json -> our setting; the defaults are the same
SCALINGS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention_factor": "attention_factor",
    },
}
_SCALING_KEYS = {key for keys in SCALINGS.values() for key in keys} | {"mscale", "mscale_all_dim"}


def rope(settings: PlainMapping) -> PlainDict:
    """Convert ``rope_parameters``, or the older ``rope_theta`` and ``rope_scaling``, to our ``pos`` settings.

    Raises:
        CheckpointError: the scaling is unknown, differs between layer types, or rotates some dimensions only.
    """
    settings = settings if isinstance(settings, HFConfig) else HFConfig(settings)
    given = rope_settings(settings)
    if given.holds_mapping():
        raise CheckpointError("the checkpoint has rotary positions per layer type, which are not supported")
    old_type, outer_theta = given.get("type", "default"), settings["rope_theta"]
    rope_type, theta = given.get("rope_type", old_type), given.get("rope_theta", outer_theta)
    for partial in (given.get("partial_rotary_factor"), settings.get("partial_rotary_factor")):
        if partial not in (None, 1):
            raise CheckpointError(
                f"the checkpoint has partial_rotary_factor={partial}, which is not supported: only 1 is"
            )
    length, trained = settings["max_position_embeddings"], settings.get("original_max_position_embeddings")
    if rope_type == "default":
        given.ignore(*_SCALING_KEYS)
        return {"name": "rope", "theta": float(theta)}
    if rope_type not in SCALINGS:
        raise CheckpointError(unknown("rope scaling", str(rope_type), ["default", *SCALINGS]))
    names = SCALINGS[rope_type]
    scaling = {our_name: given[key] for key, our_name in names.items() if given.get(key) is not None}
    if "truncate" in names and "truncate" in given and given["truncate"] is None:
        scaling["truncate"] = False  # transformers reads null as false
    if trained is not None and "original_max_position_embeddings" in names:
        scaling["original_context_length"] = trained  # transformers prefers it to the nested one
    if rope_type == "dynamic":
        scaling["original_context_length"] = length
    if rope_type == "yarn":
        _complete_yarn(scaling, given, length)
    given.ignore(*_SCALING_KEYS)  # keys of other scalings
    return {"name": "rope", "theta": float(theta), "scaling": {"kind": rope_type, **scaling}}


def rope_settings(settings: HFConfig) -> HFConfig:
    """The object with the settings of rotary positions: ``rope_scaling`` if it is given, else ``rope_parameters``."""
    scaling, parameters = settings.get("rope_scaling"), settings.get("rope_parameters")
    if scaling:
        settings.ignore("rope_parameters")
    found = scaling or parameters or {}
    return found if isinstance(found, HFConfig) else HFConfig(found)


def _complete_yarn(scaling: PlainDict, given: HFConfig, length: int) -> None:
    """Add derived settings of yarn: the factor from the lengths, the attention factor from DeepSeek's two weights."""
    if "factor" not in scaling:
        scaling["factor"] = length / scaling.setdefault("original_context_length", length)
    over, under = given.get("mscale"), given.get("mscale_all_dim")
    if "attention_factor" not in scaling and over and under:
        scaling["attention_factor"] = yarn_magnitude(scaling["factor"], over) / yarn_magnitude(scaling["factor"], under)


def yarn_magnitude(factor: float, weight: float) -> float:
    """Yarn's factor on queries and keys, with DeepSeek's ``weight`` of the logarithm."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_to_hf(position: Any) -> PlainDict:
    """Convert our rotary positions to ``rope_parameters``."""
    scaling = position.scaling
    if not scaling:
        return {"rope_type": "default", "rope_theta": position.theta}
    names = SCALINGS[scaling["kind"]]
    keys = {key: scaling[our_name] for key, our_name in names.items() if scaling[our_name] is not None}
    return {"rope_type": scaling["kind"], "rope_theta": position.theta, **keys}
