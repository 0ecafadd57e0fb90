"""Write modular_gpt/pretrained/families/defaults.json: the values that transformers assumes for missing keys.

Each model type has one line: the class of its language model, other names of its settings, and their defaults.

    python docs/scripts/pretrained_defaults.py            update all model types of the file
    python docs/scripts/pretrained_defaults.py NEW_TYPE   also add these types
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modular_gpt.mapping.hf_config import HARMLESS

# harmless keys that some families read
READ = {"router_aux_loss_coef", "aux_loss_alpha"}
FILE = Path(__file__).parents[2] / "modular_gpt" / "pretrained" / "families" / "defaults.json"


def defaults(model_type: str) -> dict[str, Any]:
    """Return the class, the synonyms and the default settings of one model type."""
    config_class = CONFIG_MAPPING[model_type]
    given = {field.name: _default(field) for field in dataclasses.fields(config_class)}
    settings = {name: value for name, value in given.items() if name not in HARMLESS.keys() - READ and _is_json(value)}
    if hasattr(config_class, "rope_parameters"):
        settings |= _rope(config_class)
    return {
        "architecture": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(
            model_type, config_class.__name__.replace("Config", "ForCausalLM")
        ),
        "synonyms": dict(sorted(config_class.attribute_map.items())),
        "settings": dict(sorted(settings.items())),
    }


def _rope(config_class: Any) -> dict[str, Any]:
    """Return the default rotary settings of a config; plain ones are written under their older keys."""
    found = dict(config_class().rope_parameters or {})
    theta = {"rope_theta": config_class.default_theta}
    if set(found) <= {"rope_theta", "rope_type", "partial_rotary_factor"} and found.get("rope_type") == "default":
        partial = {name: value for name, value in found.items() if name == "partial_rotary_factor"}
        return {**theta, "rope_theta": found["rope_theta"], **partial, "rope_parameters": None}
    return {**theta, "rope_parameters": found}


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def text(model_types: list[str]) -> str:
    """Return the content of the file for these model types."""
    transformers.logging.set_verbosity_error()
    lines = [f" {json.dumps(name)}: {json.dumps(defaults(name))}" for name in sorted(model_types)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    known = list(json.loads(FILE.read_text())) if FILE.exists() else []
    FILE.write_text(text(list({*known, *sys.argv[1:]})))
