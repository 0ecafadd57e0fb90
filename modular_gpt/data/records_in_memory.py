"""Training data from records in memory, which are read, encoded and packed as those of files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.data.corpora import Corpus, build_corpus
from modular_gpt.data.prepared import PreparedData
from modular_gpt.data.tokenizers.base import Tokenizer


class EncodedRecords(NamedTuple):
    """The prepared data of records, and the tokenizer that encoded them."""

    data: PreparedData
    tokenizer: Tokenizer


def encode_records(
    records: Sequence[PlainMapping],
    validation: Sequence[PlainMapping] | float | None,
    tokenizer_for: Callable[[Corpus], Tokenizer],
) -> EncodedRecords:
    """Prepare records in any format that ``data=records`` reads.

    validation: further records, or the fraction of ``records`` that is held out; None: nothing is evaluated
    tokenizer_for: returns the tokenizer for a corpus, which may be trained on it

    Raises:
        DataError: a record has other fields than its format, or a value that JSON cannot hold.
    """
    with TemporaryDirectory() as folder:
        path = _write(Path(folder), "train", records)
        settings: dict[str, object] = {"name": "records", "path": path}
        if isinstance(validation, float):
            settings["val_fraction"] = validation
        else:
            settings["validation"] = path if validation is None else _write(Path(folder), "validation", validation)
        try:
            corpus = build_corpus(settings)
            tokenizer = tokenizer_for(corpus)
            data = corpus.prepare(tokenizer)
        except DataError as error:  # name records by their number instead of a line of the temporary file
            place = str(error).replace(f"'{path}', line ", "record ")
            raise DataError(
                place.replace(f"'{Path(folder) / 'validation.jsonl'}', line ", "validation record ")
            ) from error
    data.validates = validation is not None
    return EncodedRecords(data, tokenizer)


def _write(folder: Path, name: str, records: Sequence[PlainMapping]) -> str:
    path = folder / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, record in enumerate(records, 1):
            try:
                file.write(f"{json.dumps(record)}\n")
            except (TypeError, ValueError) as error:
                raise DataError(f"{name} record {number} has a value that JSON cannot hold: {error}") from error
    return str(path)
