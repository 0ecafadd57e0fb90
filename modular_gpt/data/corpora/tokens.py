"""Files of token ids that another program wrote, such as nanoGPT's train.bin and val.bin, read where they are."""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modular_gpt.core.atomic_files import sha256_file
from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.json_files import load_json_object
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.progress import progress_line
from modular_gpt.core.registry import ComponentConfig, decode
from modular_gpt.core.validation import expand_home, one_of
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk
from modular_gpt.data.documents import TextConfig
from modular_gpt.data.prepare import TextSize
from modular_gpt.data.prepared_text import PreparedText
from modular_gpt.data.token_cache import START_BYTES, check_file, check_ids, open_or_build, starts_file, write_starts
from modular_gpt.data.token_files import TokenSplit
from modular_gpt.data.tokenizers.base import Tokenizer

MANIFEST_FORMAT = 1  # version of the manifest
NAMES = {"train": ("train.bin",), "validation": ("val.bin", "validation.bin")}
VOCABULARY, PICKLED = "meta.json", "meta.pkl"
DTYPES = ("uint8", "uint16", "uint32")
BLOCK = 2**22  # tokens read at a time
INCOMPLETE = "\ufffd"  # the replacement character, to which an incomplete character is decoded
CONVERT = "python -c \"import json, pickle; json.dump(pickle.load(open('meta.pkl', 'rb')), open('meta.json', 'w'))\""


class Tokens(Corpus, name="tokens"):
    """Token ids in train.bin and val.bin, as nanoGPT writes them: data.path=<folder>."""

    @dataclass
    class Config(TextConfig):
        """Settings of a corpus of token files.

        path: The folder with train.bin and val.bin.
        dtype: Type of an id in the files, little-endian: uint8, uint16 or uint32.
        vocabulary: JSON file with the character of each id, which is nanoGPT's meta.pkl written as JSON. By default
            (null) it is meta.json in the folder, if that exists; otherwise set tokenizer to the tokenizer that made
            the ids.
        """

        path: str = ""
        dtype: str = "uint16"
        vocabulary: str | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            expand_home(self, "path", "vocabulary")
            one_of(self.dtype, DTYPES, "data.dtype")

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        assert isinstance(config, Tokens.Config)
        if not config.path:
            raise ConfigError("data=tokens needs data.path=<folder with train.bin and val.bin>")
        folder = Path(config.path)
        if not folder.is_dir():
            raise DataError(f"there is no folder '{folder}' (seen from {Path.cwd()}): correct data.path")
        self._splits = {split: _open(folder, split, np.dtype(config.dtype).newbyteorder("<")) for split in SPLITS}

    @classmethod
    def tokenizer_config(cls, config: Any, tokenizer: ComponentConfig) -> ComponentConfig:
        """``tokenizer=char`` with the characters of the vocabulary file, if there is one, else ``tokenizer``.

        A ``tokenizer`` whose characters are set is returned unchanged.

        Raises:
            ConfigError: the vocabulary file is a pickle, or ``tokenizer`` is not one of characters or bytes.
            DataError: the vocabulary file is missing or has no vocabulary.
        """
        folder = Path(config.path)
        path = Path(config.vocabulary) if config.vocabulary else folder / VOCABULARY
        if not config.path or getattr(tokenizer, "characters", None):
            return tokenizer
        if not (path.exists() or config.vocabulary):
            if tokenizer.name in ("byte", "char") and (folder / PICKLED).exists():
                raise ConfigError(
                    f"the vocabulary of '{folder}' is in {PICKLED}, and a pickle can run any code: if you trust it,"
                    f" write it as JSON in that folder, {CONVERT}"
                )
            return tokenizer
        if tokenizer.name not in ("byte", "char"):
            raise ConfigError(f"the ids in '{folder}' are characters of '{path}': leave out tokenizer={tokenizer.name}")
        return decode("tokenizer", {"name": "char", "characters": characters_of(path)})

    def documents(self, split: str) -> Iterator[TextChunk]:
        raise DataError("data=tokens has ids and no text: name the tokenizer that made them, such as tokenizer=gpt2")

    def prepare(self, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> PreparedText:
        """Memory-map the token files where they are; only counts and document starts are written into the cache.

        Raises:
            ConfigError: data.documents is true, and the tokenizer has no end-of-text token.
            DataError: an id is beyond the vocabulary, or has no text.
        """
        if self.packing is not None and tokenizer.eos_id is None:
            raise ConfigError(
                f"data.documents=true needs a token that ends documents, and tokenizer={tokenizer.name} has none:"
                " leave it out"
            )
        documents = "" if self.packing is None else " documents"
        data = open_or_build(
            f"tokens {MANIFEST_FORMAT} {self.fingerprint} {tokenizer.fingerprint}{documents}",
            lambda directory: self._count(directory, tokenizer),
            self._read,
            cache_dir,
        )
        return replace(data, packing=self.packing)

    def _count(self, directory: Path, tokenizer: Tokenizer) -> PlainDict:
        """Check the ids and count documents and bytes; returns the manifest."""
        splits: dict[str, PlainDict] = {}
        for name, split in self._splits.items():
            starts = self._check(split, tokenizer)
            record: PlainDict = {"tokens": split.count, "documents": len(starts), "sha256": split.fingerprint}
            splits[name] = record | {"bytes": 0, "zlib_bits_per_byte": None}
            if name == "validation":  # the training text may be too large to be decoded
                size = TextSize(compress=True)
                for _ in size.measured(decoded(split.array, tokenizer)):
                    pass
                splits[name] |= {"bytes": size.bytes, "zlib_bits_per_byte": size.zlib_bits_per_byte()}
            if self.packing is not None:
                splits[name]["documents_sha256"] = write_starts(directory, name, starts)
        return {
            "format": MANIFEST_FORMAT,
            "corpus": {**self.describe(), "fingerprint": self.fingerprint},
            "tokenizer": tokenizer.describe(),
            "splits": splits,
        }

    def _check(self, split: TokenSplit, tokenizer: Tokenizer) -> array:
        """The index of the first token of each document. Raises a DataError for an id beyond the vocabulary."""
        starts = array("q", [0])
        with progress_line(f"Reading {split.path}", split.count) as update:
            for at in range(0, split.count, BLOCK):
                ids = split.array[at : at + BLOCK]
                check_ids(ids, tokenizer.vocab_size, tokenizer.name, f"'{split.path}'")
                if tokenizer.eos_id is not None:
                    ends = np.flatnonzero(ids == tokenizer.eos_id) + at + 1
                    starts.extend(ends[ends < split.count].tolist())
                update(at + len(ids))
        return starts

    def _read(self, directory: Path, manifest: PlainDict) -> PreparedText:
        splits = {}
        for name, split in self._splits.items():
            record = manifest["splits"][name]
            documents = None
            if self.packing is not None:
                documents = directory / starts_file(name)
                check_file(documents, record["documents"] * START_BYTES, record["documents_sha256"])
            counted = {"bytes": record["bytes"], "zlib_bits_per_byte": record["zlib_bits_per_byte"]}
            splits[name] = replace(split, documents=documents, **counted)
        return PreparedText(splits["train"], splits["validation"], manifest)

    @property
    def fingerprint(self) -> str:
        content = [[split.dtype.str, split.fingerprint] for split in self._splits.values()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        hashes = {f"{name}_sha256": split.fingerprint for name, split in self._splits.items()}
        return {"files": len(hashes), "bytes": sum(s.path.stat().st_size for s in self._splits.values()), **hashes}


def _open(folder: Path, split: str, dtype: np.dtype) -> TokenSplit:
    """The token file of a split, without the size of its text, which is measured later."""
    path = next((folder / name for name in NAMES[split] if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"there is no {' or '.join(NAMES[split])} in '{folder}': correct data.path")
    try:
        size, fingerprint = path.stat().st_size, sha256_file(path)
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): make it readable") from error
    if not size or size % dtype.itemsize:
        raise DataError(f"'{path}' has {size} bytes, which cannot be ids of {dtype.itemsize} bytes: correct data.dtype")
    return TokenSplit(split, path, dtype, size // dtype.itemsize, 0, fingerprint, None)


def decoded(ids: np.ndarray, tokenizer: Tokenizer) -> Iterator[TextChunk]:
    """Decode ids in chunks of ``BLOCK`` tokens, or a few more where a chunk would end within a character."""
    start = 0
    while start < len(ids):
        stop = min(start + BLOCK, len(ids))
        while stop < len(ids) and INCOMPLETE in tokenizer.decode(ids[stop - 1 : stop]):
            stop += 1
        yield TextChunk("", tokenizer.decode(ids[start:stop]))
        start = stop


def characters_of(path: Path) -> str:
    """The characters of a vocabulary in the order of their ids, read from nanoGPT's ``itos`` or ``stoi`` as JSON.

    Raises:
        DataError: the file is missing, or its ids are not those of single characters in code point order.
    """
    remedy = "write it from meta.pkl, or leave it out and use tokenizer=ids tokenizer.vocab_size=<number of ids>"
    try:
        content = load_json_object(path, remedy=remedy)
    except FileNotFoundError as error:
        raise DataError(f"there is no vocabulary '{path}': correct data.vocabulary") from error
    match content:
        case {"itos": dict(itos)}:
            found = [itos.get(str(number)) for number in range(len(itos))]
        case {"itos": list(found)}:
            pass
        case {"stoi": dict(stoi)}:
            by_id = {number: character for character, number in stoi.items() if isinstance(number, int)}
            found = [by_id.get(number) for number in range(len(stoi))]
        case _:
            raise DataError(f"'{path}' has neither itos nor stoi, the characters by id: {remedy}")
    previous = ""
    for number, character in enumerate(found):
        if not isinstance(character, str) or len(character) != 1 or character <= previous:
            raise DataError(
                f"'{path}' must give a character to each id in the order of code points, as nanoGPT writes it, but id"
                f" {number} is {character!r:.40}: {remedy}"
            )
        previous = character
    return "".join(map(str, found))
