"""The data arguments of ``fit`` (texts, ids, records, a Dataset or a DataLoader), converted to prepared data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.data import Corpus, PreparedData, Tokenizer, TokenSplit, build_tokenizer
from modular_gpt.data.corpora.files import read_text
from modular_gpt.data.dataset_rows import DatasetRows, LoaderRows, divide
from modular_gpt.data.in_memory import InMemoryData, Split, TextInMemory, TokensInMemory, divide_texts
from modular_gpt.data.records_in_memory import encode_records

FORMS = (
    "a text, a list of texts, token ids, a list of records, a torch Dataset, another sequence of rows, or a DataLoader"
)
LONGEST_PATH = 500  # characters of a str that may be the path of a file


class FitData(NamedTuple):
    """The data of a training, and its tokenizer if it has one."""

    data: PreparedData
    tokenizer: Tokenizer | None


def read_data(
    data: object, validation: object, tokenizer: object, model_tokenizer: Tokenizer | None, micro_batches: int = 1
) -> FitData:
    """Prepare data given in any of the ``FORMS``.

    validation: data in any of the ``FORMS``, a fraction of ``data``, or None
    tokenizer: a Tokenizer, or its name or settings; None: ``model_tokenizer``, that of the model
    micro_batches: number of micro-batches into which each batch of a DataLoader is divided

    Raises:
        ConfigError: an argument is of another type, or text has no tokenizer.
        DataError: there is too little data, or it is damaged.
    """
    if isinstance(data, PreparedData | Corpus):
        return _prepared(data, validation, tokenizer, model_tokenizer)
    if is_records(data):
        return _record_data(data, validation, lambda corpus: _chosen(tokenizer, corpus, model_tokenizer))
    texts = _texts(data)
    if texts is not None:
        return _text_data(texts, validation, tokenizer, model_tokenizer)
    chosen = _tokenizer(tokenizer, None) or model_tokenizer
    fraction = _fraction(validation)
    if fraction is None:
        held_out = None if validation is None else _split(validation, "validation", chosen, micro_batches)
        return FitData(InMemoryData(_split(data, "train", chosen, micro_batches), held_out, chosen), chosen)
    train, held_out = _hold_out(data, fraction, chosen, micro_batches)
    return FitData(InMemoryData(train, held_out, chosen), chosen)


def _prepared(
    data: PreparedData | Corpus, validation: object, tokenizer: object, model_tokenizer: Tokenizer | None
) -> FitData:
    if validation is not None:
        raise ConfigError(f"a {type(data).__name__} has its own validation data: leave out validation")
    if isinstance(data, PreparedData):
        return FitData(data, _tokenizer(tokenizer, None) or model_tokenizer)
    chosen = _chosen(tokenizer, data, model_tokenizer)
    return FitData(data.prepare(chosen), chosen)


def _texts(data: object) -> list[str] | None:
    """The documents of a text, a file or a list of texts; None for anything else."""
    if isinstance(data, Path):
        return [read_text(data)]
    if isinstance(data, str):
        if len(data) < LONGEST_PATH and "\n" not in data and _is_file(data):
            raise ConfigError(f"data={data!r} is the path of a file, not a text: give Path({data!r})")
        return [data]
    if isinstance(data, list | tuple) and data and isinstance(data[0], str):
        return list(data)
    return None


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _text_data(texts: list[str], validation: object, tokenizer: object, model_tokenizer: Tokenizer | None) -> FitData:
    fraction, held_out = _fraction(validation), None
    if fraction is None and validation is not None and (held_out := _texts(validation)) is None:
        chosen = _chosen(tokenizer, TextInMemory({"train": texts, "validation": []}), model_tokenizer)
        corpus = TextInMemory({"train": texts})
        evaluated = _split(validation, "validation", chosen, 1)
        return FitData(InMemoryData(corpus.tokens("train", chosen), evaluated, chosen), chosen)
    if fraction is not None:
        texts, held_out = divide_texts(texts, fraction)
    corpus = TextInMemory({"train": texts} if held_out is None else {"train": texts, "validation": held_out})
    chosen = _chosen(tokenizer, corpus, model_tokenizer)
    splits = [corpus.tokens(split, chosen) for split in corpus.texts]
    return FitData(InMemoryData(splits[0], splits[1] if held_out is not None else None, chosen), chosen)


def _fraction(validation: object) -> float | None:
    """The fraction of the data to hold out; None if ``validation`` is no number.

    Raises:
        ConfigError: ``validation`` is a bool, or a number outside (0, 1).
    """
    if isinstance(validation, bool) or not isinstance(validation, int | float):
        if isinstance(validation, bool):
            raise ConfigError(f"validation={validation} is no data: give a fraction such as 0.1, or data")
        return None
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation} must lie between 0 and 1 as a fraction, or be data")
    return float(validation)


def is_records(data: object) -> TypeGuard[list[PlainMapping]]:
    """Whether data is a list of records: mappings without ``input_ids``."""
    return isinstance(data, list) and bool(data) and isinstance(data[0], Mapping) and "input_ids" not in data[0]


def _record_data(data: list[PlainMapping], validation: object, tokenizer_for: Callable[[Corpus], Tokenizer]) -> FitData:
    fraction = _fraction(validation)
    if fraction is None and validation is not None and not is_records(validation):
        raise ConfigError(f"validation of records must be records or a fraction, got a {type(validation).__name__}")
    held_out = validation if is_records(validation) else fraction
    return FitData(*encode_records(data, held_out, tokenizer_for))


def _chosen(tokenizer: object, corpus: Corpus, model_tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer for a corpus: the one given, which may learn from the corpus, or that of the model."""
    return _required(_tokenizer(tokenizer, corpus) or model_tokenizer)


def _required(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise ConfigError(
            "a text needs a tokenizer: give tokenizer='byte', 'char', 'gpt2' or another name, or a Tokenizer, with as"
            " many ids as the model has"
        )
    return tokenizer


def _tokenizer(tokenizer: object, corpus: Corpus | None) -> Tokenizer | None:
    """A Tokenizer unchanged, or one built from its name or settings, which may learn from ``corpus``; None for None."""
    if tokenizer is None or isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, str | dict | ComponentConfig):
        return build_tokenizer(tokenizer, corpus).for_new_model()
    raise ConfigError(
        f"tokenizer must be a Tokenizer or a name such as 'byte', got a {type(tokenizer).__name__}; a tokenizer.json is"
        " read by tokenizer={'name': 'hf', 'path': ...}"
    )


def _split(data: object, name: str, tokenizer: Tokenizer | None, micro_batches: int) -> Split:
    if (texts := _texts(data)) is not None:
        return TextInMemory({name: texts}).tokens(name, _required(tokenizer))
    if isinstance(data, DataLoader):
        return LoaderRows(data, micro_batches)
    if isinstance(data, IterableDataset):
        raise ConfigError(f"a {type(data).__name__} has no length: give DataLoader(dataset, batch_size=...)")
    if _is_ids(data):
        return TokensInMemory(data, name)  # type: ignore[arg-type]
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return DatasetRows(data)  # type: ignore[arg-type]
    argument = "data" if name == "train" else name
    raise ConfigError(f"{argument} must be {FORMS}, got a {type(data).__name__}")


def _is_ids(data: object) -> bool:
    """Whether data is one row of token ids; an empty sequence counts as one."""
    if isinstance(data, Tensor | np.ndarray | TokenSplit | range):
        return getattr(data, "ndim", 1) == 1
    return isinstance(data, list | tuple) and (not data or isinstance(data[0], int | np.integer))


def _hold_out(data: object, fraction: float, tokenizer: Tokenizer | None, micro_batches: int) -> tuple[Split, Split]:
    """Split data into training data and its last ``fraction``, the validation data."""
    if isinstance(data, DataLoader):
        raise ConfigError("a DataLoader cannot be divided: give a second one as validation")
    split = _split(data, "train", tokenizer, micro_batches)
    if isinstance(split, TokensInMemory):
        border = int(len(split.array) * (1 - fraction))
        return TokensInMemory(split.array[:border]), TokensInMemory(split.array[border:], "validation")
    assert isinstance(split, DatasetRows)
    train, held_out = divide(split.dataset, fraction)
    return DatasetRows(train), DatasetRows(held_out)
