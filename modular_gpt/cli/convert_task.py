"""What mgpt-convert can be told, and what it does."""

from dataclasses import dataclass
from pathlib import Path

import torch

from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.checkpoint.hf_folder import FORMATS, OWN, write_folder
from modular_gpt.checkpoint.resolve import DTYPES, Opened, open_model
from modular_gpt.cli.composition.schema import Command
from modular_gpt.core.atomic_files import new_directory
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.validation import one_of

TARGETS = ("hf", "checkpoint")


@dataclass
class ConvertSettings:
    """What to write where.

    checkpoint: a run's directory, a checkpoint, a folder in Hugging Face's format, or a published name such as gpt2
    to: hf, a folder that transformers loads | checkpoint, of this program
    path: the folder to write; it must not exist
    format: of to=hf: family, a published kind of model, for which transformers needs nothing else | modular_gpt, any
        model, loaded after `import modular_gpt.hf` | auto, the first where there is one
    dtype: float32 | bf16, of the weights (null: as they were saved)
    """

    checkpoint: str = "runs/latest"
    to: str = "hf"
    path: str | None = None
    format: str = "auto"
    dtype: str | None = None

    def __post_init__(self) -> None:
        one_of(self.to, TARGETS, "to")
        one_of(self.format, FORMATS, "format")
        if self.dtype is not None:
            one_of(self.dtype, tuple(DTYPES), "dtype")
        if self.to != "hf" and self.format != "auto":
            raise ConfigError(f"format={self.format} is for to=hf; leave it out")


CONVERT = Command(name="convert", plain=ConvertSettings)


def convert(settings: ConvertSettings) -> str:
    """Write the folder; returns what to say of it.

    Raises:
        UserError: there is no such model, the folder exists or cannot be written, or the model is not of the format.
    """
    if settings.path is None:
        raise ConfigError("give path=<folder>, where to write")
    path = Path(settings.path).expanduser()
    if path.exists():
        raise ConfigError(f"'{path}' exists already; give another path, or remove it first")
    dtype = None if settings.dtype is None else DTYPES[settings.dtype]
    opened = open_model(settings.checkpoint, torch.device("cpu"), dtype)
    return _to_checkpoint(path, opened, settings) if settings.to == "checkpoint" else _to_hf(path, opened, settings)


def _to_checkpoint(path: Path, opened: Opened, settings: ConvertSettings) -> str:
    meta = opened.meta or {"converted_from": settings.checkpoint}
    save_checkpoint(path, opened.model, opened.tokenizer, meta=meta)
    without = "" if opened.tokenizer else ", without a tokenizer: there was none"
    return f"{path}: a checkpoint of this program{without}. Use it with mgpt-generate checkpoint={path}"


def _to_hf(path: Path, opened: Opened, settings: ConvertSettings) -> str:
    try:
        with new_directory(path) as new:
            written = write_folder(new, opened.model, opened.tokenizer, opened.meta, settings.format)
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}' ({error.strerror or error}): give another path") from error
    first = "after `import modular_gpt.hf`, " if written.kind == OWN else ""
    lines = [
        f"{path}: a {written.kind} model. In Python: {first}AutoModelForCausalLM.from_pretrained('{path}')",
        f"Tokenizer: {written.tokenizer or f'AutoTokenizer.from_pretrained({str(path)!r})'}",
    ]
    return "\n".join(lines)
