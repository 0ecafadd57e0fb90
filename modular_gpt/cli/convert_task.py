"""The command mgpt-convert: its settings, and the conversion."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.checkpoint.gguf_file import save_gguf
from modular_gpt.checkpoint.hf_folder import FORMATS, OWN_TYPE, write_folder
from modular_gpt.checkpoint.resolve import Opened, open_model
from modular_gpt.cli.composition.schema import Command
from modular_gpt.core.atomic_files import new_directory, write_problem
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.validation import WEIGHT_TYPES, expand_home, one_of
from modular_gpt.runtime.device import as_dtype

TARGETS = ("hf", "checkpoint", "gguf")
# notes of checkpoints with the state of the training
TRAINING_ONLY = ("training", "progress", "optimizer", "order", "compiled", "averaged_steps", "scaler")


@dataclass
class ConvertSettings:
    """Settings of mgpt-convert.

    checkpoint: The model to convert: a run's directory, a checkpoint, a folder in Hugging Face's format, or a published
        name such as gpt2.
    to: The format to write: hf, a folder that transformers loads; checkpoint, a checkpoint of this program; or gguf, a
        file that llama.cpp runs.
    path: The folder or file to write. It must not exist yet.
    format: With to=hf, the format of the folder: family writes a published architecture, which transformers loads by
        itself; modular_gpt writes any model, which transformers loads after `import modular_gpt.hf`; auto chooses
        family where the model corresponds to a published architecture.
    dtype: Data type of the written weights, float32 or bf16. By default (null) they keep the one they were saved in.
    """

    checkpoint: str = "runs/latest"
    to: str = "hf"
    path: str | None = None
    format: str = "auto"
    dtype: str | None = None

    def __post_init__(self) -> None:
        expand_home(self, "checkpoint", "path")
        one_of(self.to, TARGETS, "to")
        one_of(self.format, FORMATS, "format")
        if self.dtype is not None:
            one_of(self.dtype, WEIGHT_TYPES, "dtype")
        if self.to != "hf" and self.format != "auto":
            raise ConfigError(f"format={self.format} is for to=hf; leave it out")


CONVERT = Command(name="convert", plain=ConvertSettings)


def convert(settings: ConvertSettings) -> str:
    """Write the folder or file; returns a message with the way to load it.

    Raises:
        UserError: there is no such model, the path exists or cannot be written, or the format does not support the
            model.
    """
    if settings.path is None:
        raise ConfigError(f"give path=<{'file' if settings.to == 'gguf' else 'folder'}>, where to write")
    path = Path(settings.path)
    if path.exists():
        raise ConfigError(f"'{path}' exists already; give another path, or remove it first")
    dtype = as_dtype(settings.dtype)
    opened = open_model(settings.checkpoint, torch.device("cpu"), dtype)
    return WRITERS[settings.to](path, opened, settings)


def _to_gguf(path: Path, opened: Opened, settings: ConvertSettings) -> str:
    architecture = save_gguf(opened.model, path, opened.tokenizer)
    without = "" if opened.tokenizer else " without a tokenizer: there was none"
    return f"{path}: a GGUF file of the architecture {architecture}{without}. Use it with llama-cli -m {path}"


def _to_checkpoint(path: Path, opened: Opened, settings: ConvertSettings) -> str:
    # no training can resume without the state of the optimizer, so the notes on the training are left out
    meta = {name: value for name, value in opened.meta.items() if name not in TRAINING_ONLY}
    meta = meta or {"converted_from": settings.checkpoint}
    save_checkpoint(path, opened.model, opened.tokenizer, meta=meta)
    without = "" if opened.tokenizer else ", without a tokenizer: there was none"
    return f"{path}: a checkpoint of this program{without}. Use it with mgpt-generate checkpoint={path}"


def _to_hf(path: Path, opened: Opened, settings: ConvertSettings) -> str:
    try:
        with new_directory(path) as new:
            written = write_folder(new, opened.model, opened.tokenizer, opened.meta, settings.format)
    except OSError as error:
        reason, remedy = write_problem(error, path.parent)
        raise CheckpointError(f"cannot write '{path}' ({reason}): {remedy}") from error
    first = "import modular_gpt.hf first, then " if written.model_type == OWN_TYPE else ""
    lines = [
        f"{path}: a {written.model_type} model. In Python: {first}AutoModelForCausalLM.from_pretrained('{path}')",
        f"Tokenizer: {written.tokenizer or f'AutoTokenizer.from_pretrained({str(path)!r})'}",
    ]
    return "\n".join(lines)


WRITERS: dict[str, Callable[[Path, Opened, ConvertSettings], str]] = {
    "hf": _to_hf,
    "checkpoint": _to_checkpoint,
    "gguf": _to_gguf,
}
