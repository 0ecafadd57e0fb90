"""What ``fit`` trains on: texts, token ids, records, or the rows of a Dataset or DataLoader, as data of a training."""

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
    data: object, validation: object, tokenizer: object, held: Tokenizer | None, micro_batches: int = 1
) -> FitData:
    """Data in any of the ``FORMS``, and validation data likewise, or a fraction of the data, or None.

    tokenizer: a Tokenizer, or its name or settings; None: ``held``, that of the model
    micro_batches: into which each batch of a DataLoader is to divide

    Raises:
        ConfigError: an argument is of another type, or text has no tokenizer.
        DataError: there is too little data, or it is damaged.
    """
    if isinstance(data, PreparedData | Corpus):
        return _prepared(data, validation, tokenizer, held)
    if is_records(data):
        return _record_data(data, validation, lambda corpus: _chosen(tokenizer, corpus, held))
    texts = _texts(data)
    if texts is not None:
        return _text_data(texts, validation, tokenizer, held)
    chosen = _tokenizer(tokenizer, None) or held
    fraction = _fraction(validation)
    if fraction is None:
        rest = None if validation is None else _split(validation, "validation", chosen, micro_batches)
        return FitData(InMemoryData(_split(data, "train", chosen, micro_batches), rest, chosen), chosen)
    train, rest = _divided(data, fraction, chosen, micro_batches)
    return FitData(InMemoryData(train, rest, chosen), chosen)


def _prepared(data: PreparedData | Corpus, validation: object, tokenizer: object, held: Tokenizer | None) -> FitData:
    if validation is not None:
        raise ConfigError(f"a {type(data).__name__} has validation data of its own: leave out validation")
    if isinstance(data, PreparedData):
        return FitData(data, _tokenizer(tokenizer, None) or held)
    chosen = _chosen(tokenizer, data, held)
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


def _text_data(texts: list[str], validation: object, tokenizer: object, held: Tokenizer | None) -> FitData:
    fraction, rest = _fraction(validation), None
    if fraction is None and validation is not None and (rest := _texts(validation)) is None:
        chosen = _chosen(tokenizer, TextInMemory({"train": texts, "validation": []}), held)
        corpus = TextInMemory({"train": texts})
        evaluated = _split(validation, "validation", chosen, 1)
        return FitData(InMemoryData(corpus.tokens("train", chosen), evaluated, chosen), chosen)
    if fraction is not None:
        texts, rest = divide_texts(texts, fraction)
    corpus = TextInMemory({"train": texts} if rest is None else {"train": texts, "validation": rest})
    chosen = _chosen(tokenizer, corpus, held)
    splits = [corpus.tokens(split, chosen) for split in corpus.texts]
    return FitData(InMemoryData(splits[0], splits[1] if rest is not None else None, chosen), chosen)


def _fraction(validation: object) -> float | None:
    """A fraction to hold out; None if ``validation`` is no number.

    Raises:
        ConfigError: it is a number that is no fraction.
    """
    if isinstance(validation, bool) or not isinstance(validation, int | float):
        if isinstance(validation, bool):
            raise ConfigError(f"validation={validation} is no data: give a fraction such as 0.1, or data")
        return None
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation} must lie between 0 and 1 as a fraction, or be data")
    return float(validation)


def is_records(data: object) -> TypeGuard[list[PlainMapping]]:
    """Whether data is a list of records, which are mappings without ids."""
    return isinstance(data, list) and bool(data) and isinstance(data[0], Mapping) and "input_ids" not in data[0]


def _record_data(data: list[PlainMapping], validation: object, tokenizer_for: Callable[[Corpus], Tokenizer]) -> FitData:
    held_out = _fraction(validation)
    if held_out is None and validation is not None and not is_records(validation):
        raise ConfigError(f"validation of records must be records or a fraction, got a {type(validation).__name__}")
    rest = validation if is_records(validation) else held_out
    return FitData(*encode_records(data, rest, tokenizer_for))


def _chosen(tokenizer: object, corpus: Corpus, held: Tokenizer | None) -> Tokenizer:
    """The tokenizer of a text: the one given, which may learn from it, or that of the model."""
    return _needed(_tokenizer(tokenizer, corpus) or held)


def _needed(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise ConfigError(
            "a text needs a tokenizer: give tokenizer='byte', 'char', 'gpt2' or another name, or a Tokenizer, with as"
            " many ids as the model has"
        )
    return tokenizer


def _tokenizer(tokenizer: object, corpus: Corpus | None) -> Tokenizer | None:
    """A tokenizer from itself, or from its name or settings, which may learn from a text; None for None."""
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
        return TextInMemory({name: texts}).tokens(name, _needed(tokenizer))
    if isinstance(data, DataLoader):
        return LoaderRows(data, micro_batches)
    if isinstance(data, IterableDataset):
        raise ConfigError(f"a {type(data).__name__} has no length: give DataLoader(dataset, batch_size=...)")
    if _is_ids(data):
        return TokensInMemory(data, name)  # type: ignore[arg-type]
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return DatasetRows(data)  # type: ignore[arg-type]
    what = "data" if name == "train" else name
    raise ConfigError(f"{what} must be {FORMS}, got a {type(data).__name__}")


def _is_ids(data: object) -> bool:
    """Whether data is one row of token ids, or wants to be."""
    if isinstance(data, Tensor | np.ndarray | TokenSplit | range):
        return getattr(data, "ndim", 1) == 1
    return isinstance(data, list | tuple) and (not data or isinstance(data[0], int | np.integer))


def _divided(data: object, fraction: float, tokenizer: Tokenizer | None, micro_batches: int) -> tuple[Split, Split]:
    """The data to train on, and the last ``fraction`` of it to validate on."""
    if isinstance(data, DataLoader):
        raise ConfigError("a DataLoader cannot be divided: give a second one as validation")
    whole = _split(data, "train", tokenizer, micro_batches)
    if isinstance(whole, TokensInMemory):
        border = int(len(whole.array) * (1 - fraction))
        return TokensInMemory(whole.array[:border]), TokensInMemory(whole.array[border:], "validation")
    assert isinstance(whole, DatasetRows)
    train, rest = divide(whole.dataset, fraction)
    return DatasetRows(train), DatasetRows(rest)
