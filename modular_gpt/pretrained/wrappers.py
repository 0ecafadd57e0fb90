"""Published models that contain a language model of a family beside other parts, such as an encoder of images.

Only the language model is read, with the keys in ``text_config``. It is written as a model of its own family.
"""

import warnings
from collections.abc import Mapping

from modular_gpt.core.errors import CheckpointError, printable, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.weights import CONFIG_FILE, Source

# model type -> model type of its language model, where text_config does not name it
WRAPPERS = {
    "gemma3": "gemma3_text",
    "internvl": "qwen2",
    "llama4": "llama4_text",
    "llava": "llama",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
}
_TIED = "tie_word_embeddings"


def text_settings(source: Source, given: PlainMapping) -> PlainDict:
    """The settings of the language model in a config.json with ``text_config``; warns that only this model is read.

    Raises:
        CheckpointError: there are none, or the language model is of an unknown family.
    """
    outer, text = str(given["model_type"]), given.get("text_config") or {}
    if not isinstance(text, Mapping):
        raise CheckpointError(f"text_config in {CONFIG_FILE} of {source.name!r} must be an object; restore the file")
    model_type = text.get("model_type", WRAPPERS[outer])
    if model_type not in FAMILIES:
        reason = unknown("architecture", printable(str(model_type)), FAMILIES)
        raise CheckpointError(f"the language model of {source.name!r}: {reason}")
    warnings.warn(
        f"{source.name!r} is a model of model_type={outer}: only its language model, {model_type}, is read, and other"
        " parts, such as the encoder of images, are left out",
        stacklevel=2,
    )
    ties = [bool(settings[_TIED]) for settings in (given, text) if _TIED in settings]
    return {**text, "model_type": model_type, **({_TIED: any(ties)} if ties else {})}
