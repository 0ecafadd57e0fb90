"""Folders that transformers loads, with what our own tools need besides: the exact tokenizer, and notes on the run.

config.json, model.safetensors              of a published kind of model where one is the same, else of ours
tokenizer.json, tokenizer_config.json       as transformers reads them
README.md                                   the model card
modular_gpt/tokenizer.json, meta.json       as a checkpoint of this program has them
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from modular_gpt.checkpoint import META, read_json
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.validation import one_of
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.pretrained import save_pretrained
from modular_gpt.pretrained.save import family_of

CONFIG, OWN = "config.json", "modular_gpt"  # OWN: the model_type of our own kind, and the folder inside the folder
FORMATS = ("auto", "family", OWN)
_TOLD = ("step", "data", "run")  # of a checkpoint's notes, for the model card


class Written(NamedTuple):
    """kind: the model_type in config.json; tokenizer: why transformers finds none, or an empty text where it does."""

    kind: str
    tokenizer: str


def is_ours(path: Path) -> bool:
    """Whether a folder holds a model of this package's own kind."""
    try:
        settings = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == OWN


def read_model(path: Path, dtype: torch.dtype | None = None) -> GPTModel:
    """The model of a folder of this package's own kind, in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    from modular_gpt.hf import ModularGPTForCausalLM

    try:
        with _without_bars():
            loaded: Any = ModularGPTForCausalLM.from_pretrained(path, dtype=dtype or "auto")
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"'{path}' cannot be read ({reason}): restore it from a copy") from error
    return loaded.model


def read_notes(path: Path) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The tokenizer and the notes that ``write_folder`` put beside a model; None and nothing where there are none."""
    own = path / OWN
    tokenizer = Tokenizer.load(own) if (own / "tokenizer.json").is_file() else None
    return tokenizer, read_json(own / META) if (own / META).is_file() else {}


def write_folder(
    directory: Path, model: GPTModel, tokenizer: Tokenizer | None, meta: Mapping[str, Any], format: str = "auto"
) -> Written:
    """Write a model for transformers into a folder that exists.

    format: ``family`` for a published kind of model, which needs nothing of this package; ``modular_gpt`` for our own
        kind, which holds any model; ``auto`` for the first where there is one

    Raises:
        CheckpointError: format=family, and no published kind is the same.
        ConfigError: the format is unknown.
    """
    from modular_gpt.hf import ModularGPTForCausalLM, to_transformers
    from modular_gpt.hf.card import write_card

    one_of(format, FORMATS, "format")
    eos = None if tokenizer is None else tokenizer.eos_id
    training = {name: meta[name] for name in _TOLD if name in meta}
    if format == "family" or (format == "auto" and _is_published(model)):
        save_pretrained(model, directory, eos_token_id=eos)
        kind = family_of(model.config).model_type
        write_card(directory, model, training, importing=False)
    else:
        wrapped = ModularGPTForCausalLM.from_gpt(model, training)
        wrapped.generation_config.eos_token_id = eos
        with _without_bars():
            wrapped.save_pretrained(directory)
        kind = OWN
    own = directory / OWN
    own.mkdir(exist_ok=True)
    (own / META).write_text(json.dumps(dict(meta), indent=1), encoding="utf-8")
    if tokenizer is None:
        return Written(kind, "the checkpoint has none")
    tokenizer.save(own)
    try:
        to_transformers(tokenizer, model.config.context_length).save_pretrained(directory)
    except ConfigError as error:
        return Written(kind, str(error))
    return Written(kind, "")


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of transformers inside."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _is_published(model: GPTModel) -> bool:
    try:
        family_of(model.config)
    except CheckpointError:
        return False
    return True
