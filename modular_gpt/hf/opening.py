"""Opens models of this package's own type for the transformers library, without the loader of transformers.

That loader follows what a folder names: adapters beside the weights, files of other folders in an index, kernels to
fetch. Here config.json, generation_config.json and the safetensors files of the same folder are read, and no more.
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

# Keywords of transformers' from_pretrained that change nothing here: files are read one by one, and no code.
_WITHOUT_EFFECT = (
    *("attn_implementation", "experts_implementation", "low_cpu_mem_usage", "use_safetensors", "trust_remote_code"),
    *("ignore_mismatched_sizes", "weights_only", "code_revision", "_commit_hash", "_from_auto", "adapter_kwargs"),
    *("from_pipeline", "_from_pipeline", "max_memory", "offload_folder"),
)
_DOWNLOADS = ("revision", "subfolder", "cache_dir", "force_download", "local_files_only", "proxies", "token")
_GENERATION = "generation_config.json"


class OpenedForTransformers(NamedTuple):
    """A model, and its two configs."""

    model: GPTModel
    config: ModularGPTConfig
    generation: GenerationConfig | None


def open_for_transformers(name_or_path: Any, keywords: PlainDict) -> OpenedForTransformers:
    """Open a folder, or a model on the hub, as ``from_pretrained`` of transformers is called.

    keywords: ``dtype``, ``device_map`` (one device), ``config``, and settings of the config

    Raises:
        CheckpointError: there is no such model, a file is damaged, or the weights do not match the config.
        ConfigError: a keyword is not supported, or names no data type or device.
    """
    keywords = {name: value for name, value in keywords.items() if value is not None}
    _refuse_elsewhere(keywords)
    dtype, device = _dtype(keywords), _device(keywords.pop("device_map", None))
    source = locate(name_or_path)
    downloads = [name for name in _DOWNLOADS if keywords.pop(name, None) not in (None, "", "main", False)]
    if downloads and source.folder is None:
        raise ConfigError(
            f"{downloads[0]} is not supported by this model: download it with huggingface_hub.snapshot_download,"
            " and give the folder"
        )
    given, generation = keywords.pop("config", None), keywords.pop("generation_config", None)
    keywords = {name: value for name, value in keywords.items() if name not in _WITHOUT_EFFECT}
    settings = source.json(CONFIG_FILE) or {} if given is None else given.to_dict()
    config, rest = ModularGPTConfig.from_dict(settings, return_unused_kwargs=True, **keywords)
    if rest:
        raise ConfigError(f"from_pretrained has no use for {', '.join(sorted(rest))} with this model; leave it out")
    model = read_own_model(source, {**settings, "gpt": config.gpt}, dtype, device)
    config.dtype = model.embedding.weight.dtype
    config.name_or_path = str(name_or_path)
    return OpenedForTransformers(model, config, generation or _generation(source))


def _refuse_elsewhere(keywords: Mapping[str, Any]) -> None:
    """Raise for weights that do not come from the folder alone."""
    adapter = keywords.get("adapter_kwargs") or {}
    if "_adapter_model_path" in adapter:
        raise CheckpointError(
            f"'{adapter['_adapter_model_path']}' has an adapter beside the model, which is not applied by itself:"
            " load the model by ModularGPTForCausalLM, and the adapter by peft.PeftModel.from_pretrained"
        )
    for name in ("quantization_config", "state_dict", "gguf_file", "variant", "key_mapping", "tp_plan", "device_mesh"):
        if keywords.get(name):
            raise ConfigError(f"{name} is not supported by this model; leave it out")


def _dtype(keywords: PlainDict) -> torch.dtype | None:
    named = [keywords.pop(name) for name in ("dtype", "torch_dtype") if name in keywords]
    return None if not named or named[0] == "auto" else as_dtype(named[0])


def _device(given: Any) -> torch.device:
    """The device of ``device_map``, which may name one, for the whole model.

    Raises:
        ConfigError: it divides the model over several devices, or this machine has no such device.
    """
    if isinstance(given, Mapping):
        if len(given) != 1:
            raise ConfigError("device_map must name one device for the whole model; give device_map='auto', say")
        given = next(iter(given.values()))
    return as_device(given)


def _generation(source: Source) -> GenerationConfig | None:
    """The defaults of ``generate`` in the folder; None if it has none."""
    settings = source.json(_GENERATION)
    return None if settings is None else GenerationConfig.from_dict(settings)
