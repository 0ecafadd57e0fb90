"""Open a model by any name: a run, a checkpoint, a Hugging Face folder or a published model.

A name is a run's directory, ``runs/latest``, a checkpoint, a folder in the Hugging Face format (of a published family,
or with this package's own model type), or the name of a published model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from modular_gpt.checkpoint.hf_folder import is_own_type, read_notes, read_own_type
from modular_gpt.checkpoint.manifest import MANIFEST
from modular_gpt.checkpoint.native import FOLDER, model_with, open_checkpoint
from modular_gpt.core.checkpoint_paths import SHORT_NAMES, check_exists, is_checkpoint_path
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import decode, encode
from modular_gpt.core.validation import check_path
from modular_gpt.data.tokenizers import Tokenizer, build_tokenizer, open_tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.runtime.device import WEIGHTS, as_device, as_dtype
from modular_gpt.weights import CONFIG_FILE

DTYPES = WEIGHTS


class LoadedModel(NamedTuple):
    """A model and its tokenizer, or None if there is none."""

    model: GPTModel
    tokenizer: Tokenizer | None


class Loaded(NamedTuple):
    """A model with the tokenizer that turns text into its ids."""

    model: GPTModel
    tokenizer: Tokenizer


class Opened(NamedTuple):
    """A model, its tokenizer if it has one, and the notes of its writer."""

    model: GPTModel
    tokenizer: Tokenizer | None
    meta: PlainDict


def load_model(
    name_or_path: str | Path, dtype: torch.dtype | str | None = None, device: str | torch.device | None = None
) -> LoadedModel:
    """Load a model, in evaluation mode, and its tokenizer by any name.

    name_or_path: a run's directory (its best checkpoint is loaded), ``runs/latest``, a checkpoint, a folder in the
        Hugging Face format, or a published name such as gpt2
    dtype: dtype of the parameters, also by name ("bf16"); None: as saved
    device: device of the parameters, also by name ("auto"); None: the CPU

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        ConfigError: there is no such dtype or device.
    """
    opened = open_model(name_or_path, as_device(device), as_dtype(dtype))
    return LoadedModel(opened.model, opened.tokenizer)


def load_with_tokenizer(
    name_or_path: str | Path,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
) -> Loaded:
    """Load a model and its tokenizer like ``load_model``; a tokenizer is required.

    tokenizer: name of a tokenizer that replaces the model's, see ``tokenizer_of_name``

    Raises:
        CheckpointError: as ``load_model``, or there is no tokenizer.
        ConfigError: ``tokenizer`` is neither a path nor a name, or has more ids than the model.
    """
    chosen = None if tokenizer is None else tokenizer_of_name(tokenizer)
    model, saved, _ = open_model(name_or_path, device, dtype)
    if chosen is not None:
        _check_size(chosen, model, tokenizer)
    if (found := chosen or saved) is not None:
        return Loaded(model_with(model, found), found)
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if is_published(name, path):
        raise CheckpointError(f"{name!r} has no tokenizer.json, so it cannot read a prompt; save one beside it")
    raise CheckpointError(f"the checkpoint at '{path}' has no tokenizer, so it cannot read a prompt")


def tokenizer_of_name(name_or_path: str | Path) -> Tokenizer:
    """Open a tokenizer by any name.

    name_or_path: a run, a checkpoint, a file, folder or name as for ``open_tokenizer``, or a model of the Hugging Face
        hub (owner/name)

    Raises:
        ConfigError: there is no such tokenizer.
        DataError, CheckpointError: a file is damaged.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if (path / FOLDER).is_dir() and (tokenizer := open_checkpoint(path).tokenizer) is not None:
        return tokenizer
    if "/" in name and not path.exists() and is_published(name, path):
        from modular_gpt.weights import tokenizer_file

        if (file := tokenizer_file(name)) is not None:
            return build_tokenizer({"name": "hf", "path": str(file)})
    return open_tokenizer(name_or_path)


def _check_size(tokenizer: Tokenizer, model: GPTModel, name: str | Path | None) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"tokenizer={name} has {tokenizer.vocab_size:,} ids but the model only {model.config.vocab_size:,}:"
            " give the tokenizer that the model was trained with"
        )


def open_model(
    name_or_path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Opened:
    """Load a model, its tokenizer and the notes of its writer; arguments and errors as for ``load_model``."""
    if not isinstance(name_or_path, (str, Path)) or not str(name_or_path):
        raise ConfigError(f"a model is opened by its path or name, such as runs/latest or gpt2, got {name_or_path!r}")
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    check_path(str(path), "the name of a model")
    if is_published(name, path):
        return _published(name, path, device, dtype)
    reader = open_checkpoint(path)
    return Opened(model_with(reader.model(dtype, device), reader.tokenizer), reader.tokenizer, reader.meta)


def tokenizer_settings(name_or_path: str | Path, opened: Opened) -> PlainDict:
    """The settings that build the tokenizer of a model.

    name_or_path, opened: argument and result of ``open_model``

    Raises:
        CheckpointError: the settings are unknown or invalid.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    recorded = recorded_tokenizer(opened.meta)
    if recorded is not None:
        return recorded
    if is_published(name, path) and not is_own_type(path):
        from modular_gpt.weights import tokenizer_file

        file = tokenizer_file(name)
        if file is not None:
            return {"name": "hf", "path": str(file)}
        if name in SHORT_NAMES and not path.exists():
            return {"name": "gpt2"}
    raise CheckpointError(f"{name!r} has no tokenizer: choose the one it was trained with, tokenizer=<name>")


def recorded_tokenizer(meta: PlainMapping) -> PlainDict | None:
    """The validated tokenizer settings in the notes of a checkpoint; None if the notes have none.

    Raises:
        CheckpointError: the settings are invalid.
    """
    run = meta.get("run")
    recorded = run.get("tokenizer") if isinstance(run, Mapping) else None
    if recorded is None:
        return None
    try:
        return encode(decode("tokenizer", recorded))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(
            f"the notes of this model describe no tokenizer ({error}): choose it, tokenizer=<name>"
        ) from error


def is_published(name: str, path: Path) -> bool:
    """Whether a name is a folder in the Hugging Face format, or the name of a published model and not a path."""
    if path.is_dir():
        return (path / CONFIG_FILE).is_file() and not (path / MANIFEST).exists() and not (path / FOLDER).exists()
    return not is_checkpoint_path(name)


def _published(name: str, path: Path, device: str | torch.device, dtype: torch.dtype | None) -> Opened:
    from modular_gpt.pretrained import load_pretrained
    from modular_gpt.weights import tokenizer_file

    check_exists(name)
    model = read_own_type(path, dtype, device) if is_own_type(path) else load_pretrained(name, dtype, device)
    tokenizer, meta = read_notes(path)
    if tokenizer is None:
        file = tokenizer_file(name)
        tokenizer = None if file is None else build_tokenizer({"name": "hf", "path": str(file)})
    return Opened(model_with(model, tokenizer), tokenizer, meta)
