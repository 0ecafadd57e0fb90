"""Models by what a user calls them: a run, a checkpoint, a folder of Hugging Face's, or a published name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from modular_gpt.checkpoint import FOLDER, MANIFEST, load_checkpoint
from modular_gpt.checkpoint.hf_folder import is_ours, read_model, read_notes
from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.data.tokenizers import Tokenizer, build_tokenizer
from modular_gpt.model import GPTModel

CONFIG = "config.json"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Loaded(NamedTuple):
    """A model with what turns text into its ids."""

    model: GPTModel
    tokenizer: Tokenizer


class Opened(NamedTuple):
    """A model, its tokenizer if it has one, and what its writer noted."""

    model: GPTModel
    tokenizer: Tokenizer | None
    meta: dict[str, Any]


def load_model(name: str, device: torch.device, dtype: torch.dtype | None = None) -> Loaded:
    """The model and the tokenizer of a run, a checkpoint, a folder in Hugging Face's format, or a published name.

    Raises:
        CheckpointError: there is none, it is damaged, or it has no tokenizer.
    """
    model, tokenizer, _ = open_model(name, device, dtype)
    if tokenizer is not None:
        return Loaded(model, tokenizer)
    path = Path(name).expanduser()
    if is_published(name, path):
        raise CheckpointError(f"{name!r} has no tokenizer.json, so it cannot read a prompt; save one beside it")
    raise CheckpointError(f"the checkpoint at '{path}' has no tokenizer, so it cannot read a prompt")


def open_model(name: str, device: torch.device, dtype: torch.dtype | None = None) -> Opened:
    """As ``load_model``, also without a tokenizer."""
    path = Path(name).expanduser()
    if is_published(name, path):
        return _published(name, path, device, dtype)
    checkpoint = load_checkpoint(path, device)
    return Opened(checkpoint.model.to(dtype=dtype), checkpoint.tokenizer, checkpoint.meta)


def tokenizer_settings(name: str, opened: Opened) -> dict[str, Any]:
    """The settings that build the tokenizer of a model, which ``open_model`` has opened by this name.

    Raises:
        CheckpointError: they are not known.
    """
    path = Path(name).expanduser()
    recorded = recorded_tokenizer(opened.meta)
    if recorded is not None:
        return recorded
    if is_published(name, path) and not is_ours(path):
        from modular_gpt.pretrained import tokenizer_file
        from modular_gpt.pretrained.hub import SHORT_NAMES

        file = tokenizer_file(name)
        if file is not None:
            return {"name": "hf", "path": str(file)}
        if name in SHORT_NAMES and not path.exists():
            return {"name": "gpt2"}
    raise CheckpointError(f"{name!r} does not say which tokenizer it was trained with: choose it, tokenizer=<name>")


def recorded_tokenizer(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tokenizer's settings of the run that a checkpoint comes from, as its notes have them."""
    run = meta.get("run")
    return run.get("tokenizer") if isinstance(run, dict) else None


def is_published(name: str, path: Path) -> bool:
    """Whether a name is a folder in Hugging Face's format, or no path at all."""
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / MANIFEST).exists() and not (path / FOLDER).exists()
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    in_a_folder = "/" in name and path.parent.is_dir()  # a misspelt run rather than owner/name of a hub
    return not (path.exists() or path.is_symlink() or looks_like_path or in_a_folder or name.startswith("runs/"))


def _published(name: str, path: Path, device: torch.device, dtype: torch.dtype | None) -> Opened:
    from modular_gpt.pretrained import load_pretrained, tokenizer_file
    from modular_gpt.pretrained.hub import SHORT_NAMES

    if "/" not in name and name not in SHORT_NAMES and not path.exists():
        known = unknown("published model", name, SHORT_NAMES)
        raise CheckpointError(f"there is no checkpoint at {name!r}, and {known}, or owner/name of the Hugging Face hub")
    model = read_model(path, dtype).to(device) if is_ours(path) else load_pretrained(name, dtype, device)
    tokenizer, meta = read_notes(path)
    if tokenizer is None:
        file = tokenizer_file(name)
        tokenizer = None if file is None else build_tokenizer({"name": "hf", "path": str(file)})
    return Opened(model, tokenizer, meta)
