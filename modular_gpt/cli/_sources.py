"""Models by what a user calls them: a run, a checkpoint, a folder of Hugging Face's, or a published name."""

from pathlib import Path
from typing import NamedTuple

import torch

from modular_gpt.checkpoint import FOLDER, MANIFEST, load_checkpoint
from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.data.tokenizers import Tokenizer, build_tokenizer
from modular_gpt.model import GPTModel

CONFIG = "config.json"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Loaded(NamedTuple):
    """A model with what turns text into its ids."""

    model: GPTModel
    tokenizer: Tokenizer


def load_model(name: str, device: torch.device, dtype: torch.dtype | None = None) -> Loaded:
    """The model and the tokenizer of a run, a checkpoint, a folder in Hugging Face's format, or a published name.

    Raises:
        CheckpointError: there is none, it is damaged, or it has no tokenizer.
    """
    path = Path(name).expanduser()
    if is_published(name, path):
        return _published(name, device, dtype)
    checkpoint = load_checkpoint(path, device)
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"the checkpoint at '{path}' has no tokenizer, so it cannot read a prompt")
    return Loaded(checkpoint.model.to(dtype=dtype), checkpoint.tokenizer)


def is_published(name: str, path: Path) -> bool:
    """Whether a name is a folder in Hugging Face's format, or no path at all."""
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / MANIFEST).exists() and not (path / FOLDER).exists()
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    in_a_folder = "/" in name and path.parent.is_dir()  # a misspelt run rather than owner/name of a hub
    return not (path.exists() or path.is_symlink() or looks_like_path or in_a_folder or name.startswith("runs/"))


def _published(name: str, device: torch.device, dtype: torch.dtype | None) -> Loaded:
    from modular_gpt.pretrained import load_pretrained, tokenizer_file
    from modular_gpt.pretrained.source import SHORT_NAMES

    if "/" not in name and name not in SHORT_NAMES and not Path(name).expanduser().exists():
        known = unknown("published model", name, SHORT_NAMES)
        raise CheckpointError(f"there is no checkpoint at {name!r}, and {known}, or owner/name of the Hugging Face hub")
    model = load_pretrained(name, dtype, device)
    file = tokenizer_file(name)
    if file is None:
        raise CheckpointError(f"{name!r} has no tokenizer.json, so it cannot read a prompt; save one beside it")
    return Loaded(model, build_tokenizer({"name": "hf", "path": str(file)}))
