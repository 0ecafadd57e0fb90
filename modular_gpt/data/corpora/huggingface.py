"""Datasets of the Hugging Face hub, streamed with the ``datasets`` library (https://huggingface.co/docs/datasets)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from modular_gpt.core.atomic_files import sha256_file
from modular_gpt.core.errors import ConfigError, DataError, UserError, first_line
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import expand_home, positive
from modular_gpt.data.corpora.base import Corpus, TextChunk, chunk_text
from modular_gpt.data.corpora.files import check_fraction
from modular_gpt.data.documents import TextConfig


class HuggingFace(Corpus, name="hf"):
    """A Hugging Face dataset by name, streamed; needs the extra 'data'."""

    @dataclass
    class Config(TextConfig):
        """Settings of a corpus that the datasets library reads.

        path: Name of a dataset on the Hub such as roneneldan/TinyStories, or a local directory of data files.
        subset: Configuration of the dataset, for datasets with several.
        revision: Commit, tag or branch on the Hub. By default (null) the newest commit of main is used.
        column: The column that holds the text.
        train_split: The split to train on.
        validation_split: The split to validate on. By default (null) val_fraction of the training documents is held
            out.
        val_fraction: Fraction of the documents, chosen by a hash of their number, that is held out for validation.
        max_documents: Read only this many documents of each split. By default (null) all are read.
        """

        path: str = ""
        subset: str | None = None
        revision: str | None = None
        column: str = "text"
        train_split: str = "train"
        validation_split: str | None = None
        val_fraction: float = 0.1
        max_documents: int | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            expand_home(self, "path")
            check_fraction(self.val_fraction)
            positive("data", max_documents=self.max_documents)

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        assert isinstance(config, HuggingFace.Config)
        if not config.path:
            raise ConfigError("data=hf needs data.path=<dataset>, such as data.path=roneneldan/TinyStories")
        try:
            import datasets
        except ImportError as error:
            remedy = "pip install 'modular-gpt[data]'"
            raise ConfigError(f"data=hf needs the package 'datasets': {remedy}") from error
        self._load = datasets.load_dataset
        self.config = config
        local = Path(config.path).expanduser()
        self._is_local = local.is_dir()
        self._path = str(local) if self._is_local else config.path
        self.revision = self._local_revision() if self._is_local else self._commit()

    def documents(self, split: str) -> Iterator[TextChunk]:
        config, separate = self.config, self.config.validation_split
        name = separate if split == "validation" and separate else config.train_split
        for number, text in enumerate(self._texts(name)):
            if separate or (split == "validation") == _for_validation(number, config.val_fraction):
                for chunk in chunk_text([text]):
                    yield TextChunk(f"{name}/{number}", chunk)

    def _texts(self, split: str) -> Iterator[str]:
        """The text column of one split of the dataset, row by row."""
        config = self.config
        revision = None if self._is_local else self.revision
        try:
            rows = self._load(
                self._path,
                config.subset,
                split=split,
                streaming=True,
                revision=revision,
            )
            for row in islice(rows, config.max_documents):
                if not isinstance(row.get(config.column), str):
                    raise ConfigError(
                        f"dataset {config.path!r} has no text in column {config.column!r}:"
                        f" set data.column to one of {', '.join(row)}"
                    )
                yield row[config.column]
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read split {split!r} of dataset {config.path!r} ({first_line(error)}):"
                " check data.train_split, data.validation_split and data.subset"
            ) from error

    def _local_revision(self) -> str:
        """The revision of a local directory: SHA-256 of the hashes of its files."""
        paths = sorted(path for path in Path(self._path).rglob("*") if path.is_file())
        return hashlib.sha256("".join(map(sha256_file, paths)).encode()).hexdigest()

    def _commit(self) -> str:
        """The commit on the Hub to which ``revision`` refers at this moment."""
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(self.config.path, revision=self.config.revision).sha
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot find dataset {self.config.path!r} on the Hugging Face hub ({first_line(error)}):"
                " check data.path and the network, or use data=text with files of your own"
            ) from error
        assert commit is not None
        return commit

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the revision and the settings that select text; hashing the text would download all of it."""
        settings = {**asdict(self.config), "path": None, "revision": self.revision}
        for name in ("documents", "attend_across", "predict_across"):  # these settings change no text
            settings.pop(name)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        return {"dataset": self.config.path, "revision": self.revision}


def _for_validation(number: int, fraction: float) -> bool:
    """Whether a document is held out for validation, by a hash of its number."""
    digest = hashlib.sha256(str(number).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
