"""Records of a task (prompts and answers, conversations, labels) in the user's files."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import expand_home, one_of
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk, chunk_text
from modular_gpt.data.corpora.files import changed, check_fraction, hash_file
from modular_gpt.data.prepared import PreparedData
from modular_gpt.data.records import Record, Skipped, read_records, record_files
from modular_gpt.data.records.encode import TRAIN_ON, RecordEncoder, RecordText
from modular_gpt.data.records.formats import CONVERSATIONS
from modular_gpt.data.records.prepare import prepare_records
from modular_gpt.data.records.prepared import PreparedRecords
from modular_gpt.data.records.questions import Question, ask
from modular_gpt.data.records.read import check_fields
from modular_gpt.data.records.record import for_validation
from modular_gpt.data.templates import build_template
from modular_gpt.data.tokenizers.base import Tokenizer

FIRST = 100  # records that are read to find whether a template renders them


class Records(Corpus, name="records"):
    """Examples of a task, with the loss on the answers: data.path=<jsonl, json, csv or parquet files>."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of records, whose format is recognised by their fields.

        path: A file, a pattern, a folder or a list of these. A folder means all record files below it.
        validation: Files of the validation records, given as path is. By default (null) val_fraction of the records in
            path is held out.
        val_fraction: Fraction of the records, chosen by a hash of their content, that is held out for validation.
        fields: Names of fields in the files, by the names of the formats, such as {prompt: question, completion:
            answer}.
        train_on: Tokens that count in the loss: completion (the answer, in conversations the last one), assistant (all
            answers) or all.
        template: Chat template: plain, chatml, alpaca, auto (that of the tokenizer) or a .jinja file. It renders all
            records but whole texts. By default (null) the tokenizer's template, or else plain, renders conversations
            and instructions alone.
        separator: Text between a prompt and its answer, where no template renders them. By default (null) it is a line
            feed before labels and choices, and nothing in other records.
        packing: Put several records into a row, with separate attention and positions for each. If false, each row
            holds one record and padding.
        skip_bad: Leave out records that cannot be used, and report their number. If false, the first one is an error.
        """

        path: Any = None  # str or list[str], a union that structured configs do not support
        validation: Any = None
        val_fraction: float = 0.1
        fields: dict[str, str] = field(default_factory=dict)
        train_on: str = "assistant"
        template: str | None = None
        separator: str | None = None
        packing: bool = True
        skip_bad: bool = False

        def __post_init__(self) -> None:
            expand_home(self, "path", "validation", "template")
            check_fraction(self.val_fraction)
            check_fields(self.fields)
            one_of(self.train_on, tuple(TRAIN_ON), "data.train_on")
            if self.template not in (None, "auto"):
                build_template(str(self.template))

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        assert isinstance(config, Records.Config)
        if not config.path:
            raise ConfigError("data=records needs data.path=<file, pattern or folder>, such as data.path=train.jsonl")
        self.config = config
        self.files = {"train": record_files(config.path)}
        if config.validation:
            self.files["validation"] = record_files(config.validation, "data.validation")
        self._states = {path: _state(path) for paths in self.files.values() for path in paths}
        self._hashes = {path: hash_file(path) for path in self._states}
        self.text = RecordText(config.template, config.separator)

    def records(self, split: str, skipped: Skipped | None = None) -> Iterator[Record]:
        """The records of a split, in the order of the files.

        skipped: counts the bad records where ``data.skip_bad`` leaves them out
        """
        separate, counts = "validation" in self.files, (skipped or Skipped()) if self.config.skip_bad else None
        for record in read_records(self.files.get(split, self.files["train"]), self.config.fields, counts):
            if separate or (split == "validation") == for_validation(record, self.config.val_fraction):
                yield record
        for path, state in self._states.items():
            if _state(path) != state:
                raise changed(path)

    def documents(self, split: str) -> Iterator[TextChunk]:
        """The text of each record, for tokenizers that learn from text."""
        for record in self.records(split):
            for text in chunk_text([self.text.plain(record)]):
                yield TextChunk(record.where, text)

    def prepare(self, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> PreparedData:
        """Encode all records into files of token ids and roles, which are written once per tokenizer."""
        encoder = RecordEncoder(self.text, tokenizer)
        splits, manifest = prepare_records(self, encoder, cache_dir)
        renders = self.config.template is not None or not CONVERSATIONS.isdisjoint(splits["train"].formats)
        return PreparedRecords(
            train=splits["train"],
            validation=splits["validation"],
            manifest={**manifest, "corpus": {**self.describe(), "fingerprint": self.fingerprint}},
            counting=TRAIN_ON[self.config.train_on],
            packing=self.config.packing,
            bos_id=tokenizer.bos_id,
            template=encoder.template if renders else None,
            ask_first=partial(self._ask_first, encoder),
        )

    def with_template(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer with the template that renders these records, if the first ones are rendered by one."""
        if not any(self.text.turns(record) for record in islice(self.records("train"), FIRST)):
            return tokenizer
        return tokenizer.with_template(self.text.template_for(tokenizer))

    def _ask_first(self, encoder: RecordEncoder, count: int) -> list[Question]:
        """The questions of the first ``count`` validation records that ask for an answer: all but whole texts."""
        with_answers = (record for record in self.records("validation") if record.format != "text")
        return ask(encoder, list(islice(with_answers, count)))

    @property
    def content(self) -> str:
        """SHA-256 of the files and of the settings that assign their records to splits."""
        config = self.config
        hashes = {split: [self._hashes[path] for path in self.files.get(split, [])] for split in SPLITS}
        settings = [config.fields, config.skip_bad, None if config.validation else config.val_fraction]
        return hashlib.sha256(json.dumps([hashes, settings], sort_keys=True).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content and of the settings that batches depend on."""
        config = self.config
        settings = [self.content, config.train_on, config.template, config.separator, config.packing]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        return {"files": len(self._hashes), "bytes": sum(size for size, _ in self._states.values())}


def _state(path: Path) -> tuple[int, int]:
    """Size (bytes) and time of the last modification (nanoseconds) of a file, to detect that it was written to."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): make it readable or leave it out") from error
    return status.st_size, status.st_mtime_ns
