"""Loading of models of this package's own type for the transformers library, without the loader of transformers.

That loader follows references in a folder: adapters beside the weights, files of other folders in an index, kernels on
the hub. This module reads config.json, generation_config.json and the safetensors files of the same folder only.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.hf.configuration import ModularGPTConfig
from modular_gpt.model import GPTModel
from modular_gpt.runtime.device import as_device, as_dtype
from modular_gpt.weights import CONFIG_FILE, Source, locate, read_own_model

# Keywords of transformers' from_pretrained that are accepted and have no effect here
_WITHOUT_EFFECT = (
    *("attn_implementation", "experts_implementation", "low_cpu_mem_usage", "use_safetensors", "trust_remote_code"),
    *("ignore_mismatched_sizes", "weights_only", "code_revision", "_commit_hash", "_from_auto", "adapter_kwargs"),
    *("from_pipeline", "_from_pipeline", "max_memory", "offload_folder"),
)
_DOWNLOADS = ("revision", "subfolder", "cache_dir", "force_download", "local_files_only", "proxies", "token")
_GENERATION = "generation_config.json"


class OpenedForTransformers(NamedTuple):
    """A model with its config and its defaults of ``generate``, which are None if it has none."""

    model: GPTModel
    config: ModularGPTConfig
    generation: GenerationConfig | None


def open_for_transformers(name_or_path: Any, keywords: PlainDict) -> OpenedForTransformers:
    """Load a model from a folder or the hub, with the arguments of ``from_pretrained`` in transformers.

    keywords: ``dtype``, ``device_map`` (one device), ``config``, ``generation_config``, and settings of the config

    Raises:
        CheckpointError: there is no such model, a file is damaged, or the weights do not match the config.
        ConfigError: a keyword is not supported, or its value is no data type or device.
    """
    keywords = {name: value for name, value in keywords.items() if value is not None}
    _check_keywords(keywords)
    dtype, device = _dtype(keywords), _device(keywords.pop("device_map", None))
    source = locate(name_or_path)
    downloads = [name for name in _DOWNLOADS if keywords.pop(name, None) not in (None, "", "main", False)]
    if downloads and source.folder is None:
        raise ConfigError(
            f"{downloads[0]} is not supported by this model: download it with huggingface_hub.snapshot_download,"
            " and give the folder"
        )
    given_config, generation = keywords.pop("config", None), keywords.pop("generation_config", None)
    keywords = {name: value for name, value in keywords.items() if name not in _WITHOUT_EFFECT}
    settings = source.json(CONFIG_FILE) or {} if given_config is None else given_config.to_dict()
    config, unused = ModularGPTConfig.from_dict(settings, return_unused_kwargs=True, **keywords)
    if unused:
        names = ", ".join(sorted(unused))
        raise ConfigError(f"from_pretrained of this model does not support {names}: leave it out")
    model = read_own_model(source, {**settings, "gpt": config.gpt}, dtype, device)
    config.dtype = model.embedding.weight.dtype
    config.name_or_path = str(name_or_path)
    return OpenedForTransformers(model, config, generation or _generation(source))


def _check_keywords(keywords: Mapping[str, Any]) -> None:
    """Check that the weights are those of the folder, unchanged and on one device.

    Raises:
        CheckpointError: transformers has found an adapter in the folder.
        ConfigError: a keyword names other weights, or changes or distributes them.
    """
    adapter = keywords.get("adapter_kwargs") or {}
    if "_adapter_model_path" in adapter:
        raise CheckpointError(
            f"'{adapter['_adapter_model_path']}' has an adapter beside the model, which is not applied automatically:"
            " load the model by ModularGPTForCausalLM, and the adapter by peft.PeftModel.from_pretrained"
        )
    for name in ("quantization_config", "state_dict", "gguf_file", "variant", "key_mapping", "tp_plan", "device_mesh"):
        if keywords.get(name):
            raise ConfigError(f"{name} is not supported by this model; leave it out")


def _dtype(keywords: PlainDict) -> torch.dtype | None:
    """Remove ``dtype`` and ``torch_dtype`` from the keywords and return its value; None: as saved."""
    values = [keywords.pop(name) for name in ("dtype", "torch_dtype") if name in keywords]
    return None if not values or values[0] == "auto" else as_dtype(values[0])


def _device(device_map: Any) -> torch.device:
    """The device of ``device_map``, a device or a mapping with one device.

    Raises:
        ConfigError: the mapping does not have one entry, or this machine has no such device.
    """
    if isinstance(device_map, Mapping):
        if len(device_map) != 1:
            raise ConfigError(
                "device_map must name one device for the whole model; use, for example, device_map='auto'"
            )
        device_map = next(iter(device_map.values()))
    return as_device(device_map)


def _generation(source: Source) -> GenerationConfig | None:
    """The defaults of ``generate`` in generation_config.json; None if there is no such file."""
    settings = source.json(_GENERATION)
    return None if settings is None else GenerationConfig.from_dict(settings)
