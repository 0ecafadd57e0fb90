"""From a corpus to token files: written once, checked at every start, memory-mapped from then on."""

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from modular_gpt.core.atomic_files import sha256_file
from modular_gpt.core.errors import DataError
from modular_gpt.data.cache_dir import cache_directory, new_in_cache
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk
from modular_gpt.data.token_files import PreparedData, TokenSplit
from modular_gpt.data.tokenizers.base import Tokenizer

FORMAT = 1
MANIFEST = "manifest.json"
BATCH = 2**22  # characters encoded at a time, so that libraries can use several threads

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A token directory is not what its manifest says; the message names the file."""


def prepare(corpus: Corpus, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> PreparedData:
    """The tokens of both splits, from the cache where this text has been encoded by this tokenizer before.

    Files that are damaged are built again, and the log says so. Several processes may prepare the same data
    at the same time. Between documents stands the tokenizer's ``eos_id``, where it has one.

    Raises:
        DataError: a split has no text, a text changes while it is read, the tokenizer gives ids outside its
            vocabulary, or the cache cannot be written.
    """
    key = hashlib.sha256(f"{FORMAT} {corpus.fingerprint} {tokenizer.fingerprint}".encode()).hexdigest()[:24]
    directory = Path(cache_dir or cache_directory()) / "tokens" / key
    for _ in range(3):  # another process may replace damaged files between our building and our opening
        try:
            return open_prepared(directory)
        except FileNotFoundError:
            pass
        except Damaged as damage:
            log.warning("%s: building the token files again", damage)
        _build(directory, corpus, tokenizer)
    raise DataError(f"the token files in {directory} are damaged as soon as they are written: check that disk")


def open_prepared(directory: Path) -> PreparedData:
    """The token files in a directory, after a look at every byte of them.

    Raises:
        FileNotFoundError: there is no such directory.
        Damaged: a file is missing or differs from the manifest.
    """
    if not directory.is_dir():
        raise FileNotFoundError(directory)
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.pop("sha256") != _seal(manifest):
            raise ValueError("its content does not match its own SHA-256")
        splits = {split: _open_split(directory, split, manifest) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"'{path}' is damaged ({error!r})") from error
    return PreparedData(splits["train"], splits["validation"], manifest)


def _open_split(directory: Path, split: str, manifest: dict[str, Any]) -> TokenSplit:
    facts = manifest["splits"][split]
    tokens = TokenSplit(
        split,
        directory / _file(split),
        np.dtype(manifest["dtype"]),
        count=facts["tokens"],
        bytes=facts["bytes"],
        fingerprint=facts["sha256"],
        zlib_bits_per_byte=facts["zlib_bits_per_byte"],
    )
    if not tokens.path.is_file():
        raise Damaged(f"'{tokens.path}' is missing")
    size, expected = tokens.path.stat().st_size, tokens.count * tokens.dtype.itemsize
    if size != expected:
        raise Damaged(f"'{tokens.path}' has {size} bytes instead of {expected}")
    if sha256_file(tokens.path) != tokens.fingerprint:
        raise Damaged(f"'{tokens.path}' has another SHA-256 than when it was written")
    return tokens


def _file(split: str) -> str:
    return f"{split}.bin"


def _build(directory: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    start = perf_counter()
    dtype = smallest_dtype(tokenizer.vocab_size)
    with new_in_cache(directory, _is_whole) as new:
        splits = {split: _write(new / _file(split), corpus, split, tokenizer, dtype) for split in SPLITS}
        manifest = {
            "format": FORMAT,
            "corpus": {**corpus.describe(), "fingerprint": corpus.fingerprint},
            "tokenizer": {
                "name": tokenizer.name,
                "vocab_size": tokenizer.vocab_size,
                "fingerprint": tokenizer.fingerprint,
            },
            "dtype": dtype.str,
            "splits": splits,
        }
        sealed = {**manifest, "sha256": _seal(manifest)}
        (new / MANIFEST).write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    tokens = sum(facts["tokens"] for facts in splits.values())
    log.info("prepared %s tokens in %.1f s: %s", f"{tokens:,}", perf_counter() - start, directory)


def _seal(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content, by which a flipped bit in it is seen."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _is_whole(directory: Path) -> bool:
    try:
        open_prepared(directory)
    except (FileNotFoundError, Damaged):
        return False
    return True


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint8, uint16 and uint32 (little endian) that holds every id."""
    return next(np.dtype(name) for name in ("u1", "<u2", "<u4") if vocab_size - 1 <= np.iinfo(name).max)


def _write(path: Path, corpus: Corpus, split: str, tokenizer: Tokenizer, dtype: np.dtype) -> dict[str, Any]:
    """Write one split's tokens and return the facts about them for the manifest."""
    size = TextSize(compress=split == "validation")  # compressing costs time and only that figure is wanted
    digest, count = hashlib.sha256(), 0
    with path.open("wb") as file:
        for ids in _encode(size.seen(corpus.documents(split)), tokenizer):
            data = ids.astype(dtype, casting="unsafe").tobytes()
            file.write(data)
            digest.update(data)
            count += len(ids)
    if not size.bytes:
        raise DataError(f"the {split} split of the corpus has no text: give it more")
    return {
        "tokens": count,
        "documents": size.documents,
        "bytes": size.bytes,
        "sha256": digest.hexdigest(),
        "zlib_bits_per_byte": size.zlib_bits_per_byte(),
    }


class TextSize:
    """Measures text as it passes by: documents, bytes, and the bytes that zlib at level 9 makes of it."""

    def __init__(self, compress: bool) -> None:
        self.documents = self.bytes = 0
        self._compressor = zlib.compressobj(9) if compress else None
        self._compressed = 0

    def seen(self, pieces: Iterable[TextChunk]) -> Iterator[TextChunk]:
        """The same pieces, after measuring each."""
        last = None
        for piece in pieces:
            data = piece.text.encode()
            self.bytes += len(data)
            self.documents += piece.document != last
            last = piece.document
            if self._compressor:
                self._compressed += len(self._compressor.compress(data))
            yield piece

    def zlib_bits_per_byte(self) -> float | None:
        """Bits that zlib -9 needs for a byte of the text; None where it was not asked for. Ends the text."""
        if not self._compressor:
            return None
        return 8 * (self._compressed + len(self._compressor.flush())) / self.bytes


def _encode(pieces: Iterable[TextChunk], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of each piece, and the end of text between two documents."""
    last = None
    for batch in _batches(pieces):
        for piece, ids in zip(batch, tokenizer.encode_many([piece.text for piece in batch]), strict=True):
            if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < tokenizer.vocab_size):
                wrong = ids[(ids < 0) | (ids >= tokenizer.vocab_size)][0]
                raise DataError(
                    f"the {tokenizer.name} tokenizer gives id {wrong} in document '{piece.document}', beyond its"
                    f" vocabulary of {tokenizer.vocab_size}: its files do not belong together"
                )
            if tokenizer.eos_id is not None and last not in (None, piece.document):
                yield np.array([tokenizer.eos_id])
            last = piece.document
            yield ids


def _batches(pieces: Iterable[TextChunk]) -> Iterator[list[TextChunk]]:
    batch: list[TextChunk] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
