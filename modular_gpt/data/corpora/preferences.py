"""Preference pairs: a prompt with a better and a worse answer."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import expand_home
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk, chunk_text
from modular_gpt.data.corpora.files import check_fraction, hash_file
from modular_gpt.data.prepared_pairs import Pair, PreparedPairs
from modular_gpt.data.records import Record, record_files
from modular_gpt.data.records.encode import RecordEncoder, RecordText
from modular_gpt.data.records.formats import text_of
from modular_gpt.data.records.questions import ask
from modular_gpt.data.records.read import check_fields, renamed_row
from modular_gpt.data.records.record import for_validation
from modular_gpt.data.rows import read_rows
from modular_gpt.data.templates import build_template
from modular_gpt.data.tokenizers.base import Tokenizer

FIELDS = ("prompt", "chosen", "rejected")


class Preferences(Corpus, name="preferences"):
    """Prompts with a better and a worse answer, for trainer.objective=dpo: data.path=<rows>."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of preference pairs, rows with the fields prompt, chosen and rejected.

        path: A file, a pattern, a folder or a list of these. A folder means all files of rows below it.
        validation: Files of the validation pairs, given as path is. By default (null) val_fraction of the pairs in path
            is held out.
        val_fraction: Fraction of the pairs, chosen by a hash of their content, that is held out for validation.
        fields: Names of fields in the files, such as {prompt: question, chosen: better, rejected: worse}.
        template: Chat template that renders prompts and answers. By default (null) none does, and an answer follows its
            prompt directly.
        separator: Text between a prompt and its answer, where no template renders them. By default (null) there is
            none.
        """

        path: Any = None  # str or list[str], a union that structured configs do not support
        validation: Any = None
        val_fraction: float = 0.1
        fields: dict[str, str] = field(default_factory=dict)
        template: str | None = None
        separator: str | None = None

        def __post_init__(self) -> None:
            expand_home(self, "path", "validation", "template")
            check_fraction(self.val_fraction)
            check_fields(self.fields, FIELDS)
            if self.template not in (None, "auto"):
                build_template(str(self.template))

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        assert isinstance(config, Preferences.Config)
        if not config.path:
            raise ConfigError(
                "data=preferences needs data.path=<file, pattern or folder>, such as data.path=pairs.jsonl"
            )
        self.config, self.text = config, RecordText(config.template, config.separator)
        files = {"train": record_files(config.path)}
        if config.validation:
            files["validation"] = record_files(config.validation, "data.validation")
        self._hashes = {split: [hash_file(path) for path in paths] for split, paths in files.items()}
        pairs = {split: [pair for path in paths for pair in self._read(path)] for split, paths in files.items()}
        if not config.validation:
            held_out = [for_validation(chosen, config.val_fraction) for chosen, _ in pairs["train"]]
            assigned = list(zip(pairs["train"], held_out, strict=True))
            pairs = {
                "train": [pair for pair, is_held_out in assigned if not is_held_out],
                "validation": [pair for pair, is_held_out in assigned if is_held_out],
            }
        for split, found in pairs.items():
            if not found:
                raise DataError(f"the {split} split has no pair of answers: give more, or data.validation=<file>")
        self.pairs = pairs

    def _read(self, path: Path) -> Iterator[tuple[Record, Record]]:
        """The chosen and the rejected answer of each row, as records."""
        for found in read_rows(path):
            row = renamed_row(found, self.config.fields, FIELDS)
            prompt, chosen, rejected = (text_of(row, name, empty=name == "prompt") for name in FIELDS)
            if chosen == rejected:
                raise DataError(f"{row.place}: both answers are the same, so that none is preferred: correct the row")
            first, second = (Record("completion", row.place, answer, prompt) for answer in (chosen, rejected))
            yield first, second

    def documents(self, split: str) -> Iterator[TextChunk]:
        """The text of each prompt with each of its answers, for tokenizers that learn from text."""
        for pair in self.pairs[split]:
            for number, record in enumerate(pair):
                for text in chunk_text([self.text.plain(record)]):
                    yield TextChunk(f"{record.where} {number}", text)

    def prepare(self, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> PreparedPairs:
        """Encode all pairs in memory; no file is written."""
        encoder = RecordEncoder(self.text, tokenizer)
        prepared = {split: _encoded(encoder, self.pairs[split]) for split in SPLITS}
        manifest: PlainDict = {
            "corpus": {**self.describe(), "fingerprint": self.fingerprint},
            "tokenizer": tokenizer.describe(),
        }
        return PreparedPairs(prepared["train"], prepared["validation"], manifest, tokenizer.bos_id)

    @property
    def fingerprint(self) -> str:
        config = self.config
        held_out = None if config.validation else config.val_fraction
        content = [self._hashes, config.fields, config.template, config.separator, held_out]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        return {"files": sum(map(len, self._hashes.values())), **{split: len(self.pairs[split]) for split in SPLITS}}


def _encoded(encoder: RecordEncoder, pairs: list[tuple[Record, Record]]) -> list[Pair]:
    questions = iter(ask(encoder, [record for pair in pairs for record in pair]))
    both = [(next(questions), next(questions)) for _ in pairs]
    return [Pair(chosen.before, chosen.answer, rejected.answer) for chosen, rejected in both]
