"""Rotary positions and their scalings, in the words of config.json files, both ways."""

import math
from typing import Any

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.pretrained.family import Settings

# kind of scaling -> their word -> ours; what is left out has the same default here
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


def rope(settings: Settings) -> dict[str, Any]:
    """Rotary positions, written as ``rope_parameters`` or, before that, as ``rope_theta`` and ``rope_scaling``."""
    given = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in given.values()):
        raise CheckpointError("the checkpoint has rotary positions per layer type, which are not supported")
    kind = given.get("rope_type", given.get("type", "default"))
    theta = given["rope_theta"] if "rope_theta" in given else settings["rope_theta"]
    partial = given.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise CheckpointError(f"the checkpoint has partial_rotary_factor={partial}, which is not supported: only 1 is")
    position = {"name": "rope", "theta": float(theta)}
    if kind == "default":
        return position
    if kind not in SCALINGS:
        raise CheckpointError(unknown("rope scaling", str(kind), ["default", *SCALINGS]))
    scaling = {ours: given[theirs] for theirs, ours in SCALINGS[kind].items() if given.get(theirs) is not None}
    length = settings["max_position_embeddings"]
    if kind == "dynamic":  # which takes this for the length it was trained at
        scaling["original_context_length"] = length
    if kind == "yarn" and "factor" not in scaling:
        scaling["factor"] = length / scaling["original_context_length"]
    if kind == "yarn" and "attention_factor" not in scaling and given.get("mscale") and given.get("mscale_all_dim"):
        over, under = (yarn_magnitude(scaling["factor"], given[each]) for each in ("mscale", "mscale_all_dim"))
        scaling["attention_factor"] = over / under
    return {**position, "scaling": {"kind": kind, **scaling}}


def yarn_magnitude(factor: float, weight: float) -> float:
    """What yarn multiplies queries and keys by, with DeepSeek's ``weight`` on the logarithm."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_written(position: Any) -> dict[str, Any]:
    """The ``rope_parameters`` for the settings of our rotary positions."""
    scaling = position.scaling
    if not scaling:
        return {"rope_type": "default", "rope_theta": position.theta}
    words = {theirs: scaling[ours] for theirs, ours in SCALINGS[scaling["kind"]].items() if scaling[ours] is not None}
    return {"rope_type": scaling["kind"], "rope_theta": position.theta, **words}
