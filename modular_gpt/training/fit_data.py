"""What ``fit`` trains on: texts, token ids, records, or the rows of a Dataset or DataLoader, as data of a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.data import Corpus, PreparedData, Tokenizer, TokenSplit, build_tokenizer
from modular_gpt.data.corpora.files import read_text
from modular_gpt.data.dataset_rows import DatasetRows, LoaderRows, divide
from modular_gpt.data.in_memory import InMemoryData, Split, TextInMemory, TokensInMemory, divide_texts

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
    chosen = _needed(_tokenizer(tokenizer, data) or held)
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
        chosen = _needed(_tokenizer(tokenizer, TextInMemory({"train": texts, "validation": []})) or held)
        corpus = TextInMemory({"train": texts})
        evaluated = _split(validation, "validation", chosen, 1)
        return FitData(InMemoryData(corpus.tokens("train", chosen), evaluated, chosen), chosen)
    if fraction is not None:
        texts, rest = divide_texts(texts, fraction)
    corpus = TextInMemory({"train": texts} if rest is None else {"train": texts, "validation": rest})
    chosen = _needed(_tokenizer(tokenizer, corpus) or held)
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
    if isinstance(data, list) and data and isinstance(data[0], dict) and "input_ids" not in data[0]:
        return DatasetRows(record_rows(data, _needed(tokenizer)))  # type: ignore[arg-type]
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


def record_rows(records: Sequence[PlainMapping], tokenizer: Tokenizer) -> list[PlainDict]:
    """Rows of records with a prompt and a completion, of which the completion and the end of text alone count.

    Raises:
        DataError: a record has other fields.
    """
    rows: list[PlainDict] = []
    for number, record in enumerate(records, 1):
        if set(record) != {"prompt", "completion"} or not all(isinstance(text, str) for text in record.values()):
            raise DataError(f"record {number} has {', '.join(map(str, record))}: give it a prompt and a completion")
        prompt = tokenizer.with_bos(tokenizer.encode(record["prompt"]))
        answer = [*tokenizer.encode(record["completion"]), *tokenizer.eos_ids[:1]]
        rows.append({"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + answer})
    return rows
