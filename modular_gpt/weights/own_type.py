"""Reading of folders with ``model_type: modular_gpt``, which can hold any GPTModel.

Only config.json, the weight files of the same folder and their index are read; references to other files or to code
have no effect.
"""

from collections.abc import Mapping

import torch

from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.materialize import layers_in, model_from_tensors
from modular_gpt.weights.hub import CONFIG_FILE, Source
from modular_gpt.weights.tensor_files import Tensors

OWN_TYPE = "modular_gpt"  # model_type in config.json
PREFIX = "model."  # of tensor names, since GPTModel is a submodule of the transformers model


def read_own_model(
    source: Source, settings: PlainMapping, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> GPTModel:
    """Read the model of a folder or of a repository on the hub; returns it in evaluation mode.

    settings: content of its config.json
    dtype: dtype of the parameters; None: as saved

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not match the config.
    """
    if settings.get("quantization_config"):
        raise CheckpointError(f"{source.name!r} is quantised, which is not supported; use its unquantised copy")
    gpt = settings.get("gpt")
    if not isinstance(gpt, Mapping):
        raise CheckpointError(
            f"{CONFIG_FILE} of {source.name!r} has no mapping 'gpt' that describes the model: restore the file"
        )
    with Tensors(source) as files:
        names = {key.removeprefix(PREFIX): key for key in sorted(files.keys())}
        layers = gpt.get("n_layers")
        if isinstance(layers, (int, float)) and layers > layers_in(names):  # checked before layers are allocated
            raise CheckpointError(
                f"{CONFIG_FILE} of {source.name!r} describes {layers} layers, more than the weights beside it have:"
                " copy or download the files again"
            )
        tensors = {name: files.tensor(key) for name, key in names.items()}
        try:
            return model_from_tensors(GPTConfig.from_dict(gpt), tensors, dtype, device)
        except (ConfigError, CheckpointError) as error:
            raise CheckpointError(f"{source.name!r} does not fit its {CONFIG_FILE}: {error}") from error
