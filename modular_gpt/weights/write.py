"""Writing of folders in the Hugging Face format."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modular_gpt.core.atomic_files import temporary_name, write_problem, write_text
from modular_gpt.core.errors import CheckpointError
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.weights.hub import CONFIG_FILE
from modular_gpt.weights.tensor_files import WEIGHTS, as_os_error

GENERATION = "generation_config.json"


def write_files(
    folder: Path,
    settings: PlainMapping,
    tensors: Mapping[str, Tensor],
    eos_token_id: int | list[int] | None = None,
) -> None:
    """Write config.json, generation_config.json and model.safetensors, each atomically.

    settings: content of config.json; eos_token_id: entry of generation_config.json

    Raises:
        CheckpointError: the folder cannot be written; the message has the number of bytes needed.
    """
    generation = {"eos_token_id": eos_token_id, "pad_token_id": None, "bos_token_id": None}
    temporary = temporary_name(folder / WEIGHTS)  # a directory, because save_file follows symbolic links
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        save_file(dict(tensors), temporary / WEIGHTS, metadata={"format": "pt"})
        os.replace(temporary / WEIGHTS, folder / WEIGHTS)
        write_text(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
        write_text(folder / CONFIG_FILE, json.dumps(dict(settings), indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        reason, remedy = write_problem(as_os_error(error), folder)
        raise CheckpointError(
            f"cannot write the model to '{folder}' ({reason}; it needs {size:,} bytes): {remedy}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
