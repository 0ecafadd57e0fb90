"""Folders in the Hugging Face format, with additional files for this program: exact tokenizer and notes on the run.

config.json, model.safetensors              of a published family that computes the same, else with our own model_type
generation_config.json                      ids that end a text
tokenizer.json, tokenizer_config.json       as transformers reads them
chat_template.jinja                         where the tokenizer has a chat template
README.md                                   model card
modular_gpt/tokenizer.json, meta.json       as in a checkpoint of this program

A folder with our own model type (``model_type: modular_gpt``) can hold any GPTModel. Only its config.json and
safetensors files are read, so it can name neither files outside the folder nor code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from modular_gpt.checkpoint.manifest import MANIFEST, META, TOKENIZER, read_json, write_json
from modular_gpt.checkpoint.native import FOLDER
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.validation import one_of
from modular_gpt.data.templates import stops_of
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.model.materialize import saved_tensors
from modular_gpt.pretrained import family_of, save_pretrained
from modular_gpt.weights import CONFIG_FILE, OWN_TYPE, PREFIX, Source, read_own_model, write_files

FORMATS = ("auto", "family", OWN_TYPE, "hf")  # hf: the former name of auto
_FOR_CARD = ("step", "data", "run")  # notes of a checkpoint that the model card uses


class Written(NamedTuple):
    """Result of ``write_folder``.

    model_type: the model_type in config.json
    tokenizer: why no tokenizer for transformers was written; empty if one was
    """

    model_type: str
    tokenizer: str


def is_own_type(path: Path) -> bool:
    """Whether a folder has a config.json with this package's model type."""
    try:
        return read_json(path / CONFIG_FILE).get("model_type") == OWN_TYPE
    except CheckpointError:
        return False


def read_own_type(path: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> GPTModel:
    """Read the model of a folder with this package's model type; returns it in evaluation mode.

    dtype: dtype of the parameters; None: as saved

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not match the config.
    """
    return read_own_model(Source(str(path), folder=path), read_json(path / CONFIG_FILE), dtype, device)


def read_notes(path: Path) -> tuple[Tokenizer | None, PlainDict]:
    """Read the tokenizer and the notes that ``write_folder`` wrote beside a model; None and {} if there are none."""
    notes = path / OWN_TYPE
    tokenizer = Tokenizer.load(notes) if (notes / TOKENIZER).is_file() else None
    return tokenizer, read_json(notes / META) if (notes / META).is_file() else {}


def save_model(
    model: GPTModel,
    path: str | Path,
    format: str = "auto",
    eos_token_id: int | list[int] | None = None,
    training: PlainMapping | None = None,
    model_type: str | None = None,
) -> str:
    """Write a model into a folder in the Hugging Face format; returns the model_type in its config.json.

    path: a folder, created if missing; other files in it are kept
    format: family (a published family, readable without this package), modular_gpt (our own model type, for any model)
        or auto (a family that computes the same if there is one, else modular_gpt)
    eos_token_id: id or ids that end a text, for generation with transformers
    training: notes on the training of the weights, stored in the config.json of our own model type
    model_type: the published family to write, such as granite; None: the first one that computes the same

    Raises:
        CheckpointError: no published family computes the same (format=family), or not the one of ``model_type``, the
            folder cannot be written, or it is a checkpoint of this program.
        ConfigError: the format or the model_type is unknown.
    """
    one_of(format, FORMATS, "format")
    if model_type is not None and format == OWN_TYPE:
        raise ConfigError(f"format={format} has its own model type; leave out model_type={model_type}")
    if not str(path):
        raise ConfigError("give the folder that the model is written to; the path is empty")
    path = Path(path)
    _refuse_checkpoint(path)
    if format == "family" or model_type is not None or (format != OWN_TYPE and _is_published(model)):
        save_pretrained(model, path, eos_token_id=eos_token_id, model_type=model_type)
        return family_of(model.config, model_type).model_type
    _save_own_type(model, path, training or {}, eos_token_id)
    return OWN_TYPE


def _save_own_type(model: GPTModel, path: Path, training: PlainMapping, eos_token_id: int | list[int] | None) -> None:
    """Write a model of any composition, with the model type of this package."""
    from modular_gpt.hf import ModularGPTConfig, ModularGPTForCausalLM

    config = ModularGPTConfig(model.config, dict(training), eos_token_id=eos_token_id)
    settings = {
        **config.to_dict(),
        "architectures": [ModularGPTForCausalLM.__name__],
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
    }
    tensors = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in saved_tensors(model).items()}
    write_files(path, settings, tensors, eos_token_id)


def _refuse_checkpoint(path: Path) -> None:
    """Raise a CheckpointError for a folder that is a checkpoint, which a model in another format would damage."""
    if (path / MANIFEST).exists() or (path / FOLDER).is_dir():
        found = "a checkpoint" if (path / MANIFEST).exists() else "a run"
        raise CheckpointError(f"'{path}' is {found} of this program and would be damaged: give another folder")


def write_folder(
    directory: Path, model: GPTModel, tokenizer: Tokenizer | None, meta: PlainMapping, format: str = "auto"
) -> Written:
    """Write a model, its model card, its tokenizer and the notes of its checkpoint into a folder.

    format: as for ``save_model``; meta: the notes

    Raises:
        CheckpointError, ConfigError: as ``save_model``.
    """
    from modular_gpt.hf import to_transformers
    from modular_gpt.hf.card import write_card

    training = {name: meta[name] for name in _FOR_CARD if name in meta}
    ends = [] if tokenizer is None else _end_ids(tokenizer)
    model_type = save_model(model, directory, format, ends if len(ends) > 1 else next(iter(ends), None), training)
    write_card(directory, model, training, importing=model_type == OWN_TYPE)
    notes = directory / OWN_TYPE
    notes.mkdir(exist_ok=True)
    write_json(notes / META, meta)
    if tokenizer is None:
        return Written(model_type, "the checkpoint has none")
    tokenizer.save(notes)
    try:
        with _without_bars():
            to_transformers(tokenizer, model.config.context_length).save_pretrained(directory)
    except ConfigError as error:
        return Written(model_type, str(error))
    return Written(model_type, "")


def _end_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end a text, and an answer if the tokenizer has a chat template."""
    answers = [] if tokenizer.template is None else stops_of(tokenizer.template, tokenizer).tokens
    return list(dict.fromkeys([*tokenizer.eos_ids, *answers]))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Context manager: disable the progress bars of transformers."""
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
