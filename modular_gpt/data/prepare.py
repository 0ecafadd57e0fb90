"""From a corpus to token files: written once, checked at every start, memory-mapped from then on."""

import hashlib
import json
import logging
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from modular_gpt.core.atomic_files import sha256_file
from modular_gpt.core.errors import DataError
from modular_gpt.core.json_files import load_json_object
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.progress import progress_line
from modular_gpt.data.cache_dir import cache_directory, new_in_cache
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk
from modular_gpt.data.prepared_text import PreparedText
from modular_gpt.data.token_files import TokenSplit
from modular_gpt.data.tokenizers.base import Tokenizer

FORMAT = 1
MANIFEST = "manifest.json"
START_BYTES = 8  # of the index of a document's first token
BATCH = 2**22  # characters encoded at a time, so that libraries can use several threads
ATTEMPTS = 10  # to open the files, which other processes may be replacing

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A token directory differs from its manifest; the message names the file."""


def prepare(corpus: Corpus, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> PreparedText:
    """The tokens of both splits, from the cache if this tokenizer has encoded this text before.

    Damaged files are built again, and the log says so. Several processes may prepare the same data at the same time.
    The tokenizer's ``eos_id``, if it has one, stands between documents; its ``bos_id`` is nowhere.

    Raises:
        DataError: a split has no text, a text changes while it is read, the tokenizer gives ids outside its
            vocabulary, or the cache cannot be written.
    """
    documents = "" if corpus.packing is None else " documents"
    key = hashlib.sha256(f"{FORMAT} {corpus.fingerprint} {tokenizer.fingerprint}{documents}".encode()).hexdigest()[:24]
    directory = Path(cache_dir or cache_directory()).expanduser() / "tokens" / key
    for _ in range(ATTEMPTS):  # another process may replace damaged files between our building and our opening
        try:
            return replace(open_prepared(directory), packing=corpus.packing)
        except FileNotFoundError:
            pass
        except Damaged as damage:
            log.warning("%s: building the token files again", damage)
        _build(directory, corpus, tokenizer)
    raise DataError(f"the token files in {directory} are damaged as soon as they are written: check that disk")


def open_prepared(directory: Path) -> PreparedText:
    """The token files in a directory, after reading every byte of them.

    Raises:
        FileNotFoundError: there is no such directory.
        Damaged: a file is missing or differs from the manifest.
    """
    if not directory.is_dir():
        raise FileNotFoundError(directory)
    path = directory / MANIFEST
    try:
        manifest = load_json_object(path)
        if manifest.pop("sha256") != _seal(manifest):
            raise ValueError("its content does not match its own SHA-256")
        splits = {split: _open_split(directory, split, manifest) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"'{path}' is damaged ({error!r})") from error
    return PreparedText(splits["train"], splits["validation"], manifest)


def _open_split(directory: Path, split: str, manifest: PlainMapping) -> TokenSplit:
    record = manifest["splits"][split]
    tokens = TokenSplit(
        split,
        directory / _file(split),
        np.dtype(manifest["dtype"]),
        count=record["tokens"],
        bytes=record["bytes"],
        fingerprint=record["sha256"],
        zlib_bits_per_byte=record["zlib_bits_per_byte"],
        documents=directory / _documents_file(split) if "documents_sha256" in record else None,
    )
    _check_file(tokens.path, tokens.count * tokens.dtype.itemsize, tokens.fingerprint)
    if tokens.documents is not None:
        _check_file(tokens.documents, record["documents"] * START_BYTES, record["documents_sha256"])
    return tokens


def _check_file(path: Path, expected: int, fingerprint: str) -> None:
    """Raise Damaged unless a file has so many bytes and this SHA-256."""
    if not path.is_file():
        raise Damaged(f"'{path}' is missing")
    if (size := path.stat().st_size) != expected:
        raise Damaged(f"'{path}' has {size} bytes instead of {expected}")
    if sha256_file(path) != fingerprint:
        raise Damaged(f"'{path}' has another SHA-256 than when it was written")


def _file(split: str) -> str:
    return f"{split}.bin"


def _documents_file(split: str) -> str:
    return f"{split}.documents.bin"


def _build(directory: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    start = perf_counter()
    dtype = smallest_dtype(tokenizer.vocab_size)
    with new_in_cache(directory, _is_whole) as new:
        splits = {split: _write(new, corpus, split, tokenizer, dtype) for split in SPLITS}
        manifest = {
            "format": FORMAT,
            "corpus": {**corpus.describe(), "fingerprint": corpus.fingerprint},
            "tokenizer": tokenizer.describe(),
            "dtype": dtype.str,
            "splits": splits,
        }
        sealed = {**manifest, "sha256": _seal(manifest)}
        (new / MANIFEST).write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    tokens = sum(record["tokens"] for record in splits.values())
    log.info("prepared %s tokens in %.1f s: %s", f"{tokens:,}", perf_counter() - start, directory)


def _seal(manifest: PlainMapping) -> str:
    """SHA-256 of a manifest's content, which reveals a flipped bit in it."""
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


def _write(directory: Path, corpus: Corpus, split: str, tokenizer: Tokenizer, dtype: np.dtype) -> PlainDict:
    """Write one split's tokens, and where documents start if the corpus asks for it; returns its manifest record."""
    digest, count, starts = hashlib.sha256(), 0, array("q")
    path = directory / _file(split)
    with progress_line(f"Encoding the {split} text", corpus.characters(split)) as update, path.open("wb") as file:
        # Compressing takes time, and only the figure of the validation text is used.
        size = TextSize(compress=split == "validation", update=update)
        for ids, is_first in _encode(size.measured(corpus.documents(split)), tokenizer):
            if is_first:
                starts.append(count)
            data = ids.astype(dtype, casting="unsafe").tobytes()
            file.write(data)
            digest.update(data)
            count += len(ids)
    if not size.bytes:
        raise DataError(f"the {split} split of the corpus has no text: give it more")
    record = {
        "tokens": count,
        "documents": size.documents,
        "bytes": size.bytes,
        "sha256": digest.hexdigest(),
        "zlib_bits_per_byte": size.zlib_bits_per_byte(),
    }
    if corpus.packing is not None:
        data = np.asarray(starts, dtype="<i8").tobytes()
        (directory / _documents_file(split)).write_bytes(data)
        record["documents_sha256"] = hashlib.sha256(data).hexdigest()
    return record


class TextSize:
    """Measures text as it passes by: documents, bytes, and the bytes that zlib at level 9 makes of it."""

    def __init__(self, compress: bool, update: Callable[[int], None] = lambda _: None) -> None:
        """compress: whether to measure compressed bytes; update: called with the characters so far"""
        self.documents = self.bytes = self.characters = 0
        self._update = update
        self._compressor = zlib.compressobj(9) if compress else None
        self._compressed = 0

    def measured(self, chunks: Iterable[TextChunk]) -> Iterator[TextChunk]:
        """The same chunks, after measuring each."""
        last = None
        for chunk in chunks:
            data = chunk.text.encode()
            self.bytes += len(data)
            self.characters += len(chunk.text)
            self.documents += chunk.document != last
            last = chunk.document
            if self._compressor:
                self._compressed += len(self._compressor.compress(data))
            self._update(self.characters)
            yield chunk

    def zlib_bits_per_byte(self) -> float | None:
        """Bits that zlib -9 needs for a byte of the text; None without ``compress``. Ends the text."""
        if not self._compressor:
            return None
        return 8 * (self._compressed + len(self._compressor.flush())) / self.bytes


def _encode(chunks: Iterable[TextChunk], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, bool]]:
    """The ids of each chunk and whether a document begins with them, and the end of text between two documents."""
    last = None
    for batch in _batches(chunks):
        for chunk, ids in zip(batch, tokenizer.encode_many([chunk.text for chunk in batch]), strict=True):
            if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < tokenizer.vocab_size):
                wrong = ids[(ids < 0) | (ids >= tokenizer.vocab_size)][0]
                raise DataError(
                    f"the {tokenizer.name} tokenizer gives id {wrong} in document '{chunk.document}', beyond its"
                    f" vocabulary of {tokenizer.vocab_size}: its files do not belong together"
                )
            if tokenizer.eos_id is not None and last not in (None, chunk.document):
                yield np.array([tokenizer.eos_id]), False
            is_first, last = last != chunk.document, chunk.document
            yield ids, is_first


def _batches(chunks: Iterable[TextChunk]) -> Iterator[list[TextChunk]]:
    batch: list[TextChunk] = []
    characters = 0
    for chunk in chunks:
        batch.append(chunk)
        characters += len(chunk.text)
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
