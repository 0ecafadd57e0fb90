"""Encode a corpus into token files, which are written once, verified when they are opened, and memory-mapped."""

import hashlib
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.progress import progress_line
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk
from modular_gpt.data.prepared_text import PreparedText
from modular_gpt.data.token_cache import (
    check_ids,
    open_or_build,
    open_tokens,
    smallest_dtype,
    token_file,
    write_starts,
)
from modular_gpt.data.tokenizers.base import Ids, Tokenizer

TOKENS_FORMAT = 1  # version of the files
BATCH = 2**22  # characters encoded at a time, so that libraries can use several threads


def prepare(corpus: Corpus, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> PreparedText:
    """The tokens of both splits, from the cache if this tokenizer has encoded this text before.

    Rebuilding damaged files is logged. Several processes may prepare the same data at the same time. The tokenizer's
    ``eos_id``, if it has one, separates documents; its ``bos_id`` is not used.

    Raises:
        DataError: a split has no text, a text changes while it is read, the tokenizer gives ids outside its
            vocabulary, or the cache cannot be written.
    """
    documents = "" if corpus.packing is None else " documents"
    data = open_or_build(
        f"{TOKENS_FORMAT} {corpus.fingerprint} {tokenizer.fingerprint}{documents}",
        lambda directory: _build(directory, corpus, tokenizer),
        _read,
        cache_dir,
    )
    return replace(data, packing=corpus.packing, notes=corpus.notes)


def _read(directory: Path, manifest: PlainDict) -> PreparedText:
    """The token files in a directory; Damaged if one differs from the manifest."""
    splits = {split: open_tokens(directory, split, manifest) for split in SPLITS}
    return PreparedText(splits["train"], splits["validation"], manifest)


def _build(directory: Path, corpus: Corpus, tokenizer: Tokenizer) -> PlainDict:
    """Write the files of both splits; returns the manifest."""
    dtype = smallest_dtype(tokenizer.vocab_size)
    splits = {split: _write(directory, corpus, split, tokenizer, dtype) for split in SPLITS}
    return {
        "format": TOKENS_FORMAT,
        "corpus": {**corpus.describe(), "fingerprint": corpus.fingerprint},
        "tokenizer": tokenizer.describe(),
        "dtype": dtype.str,
        "splits": splits,
    }


def _write(directory: Path, corpus: Corpus, split: str, tokenizer: Tokenizer, dtype: np.dtype) -> PlainDict:
    """Write one split's tokens, and where documents start if the corpus asks for it; returns its manifest record."""
    digest, count, starts = hashlib.sha256(), 0, array("q")
    path = directory / token_file(split)
    total = corpus.characters(split)
    with progress_line(f"Encoding the {split} text", total, unit="characters") as update, path.open("wb") as file:
        # Compressing takes time, and only the size of the validation text is reported.
        size = TextSize(compress=split == "validation", update=update)
        for ids, is_first in encode_documents(size.measured(corpus.documents(split)), tokenizer):
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
        record["documents_sha256"] = write_starts(directory, split, starts)
    return record


class TextSize:
    """Measures a stream of text: documents, bytes, and the bytes after compression by zlib at level 9."""

    def __init__(self, compress: bool, update: Callable[[int], None] = lambda _: None) -> None:
        """compress: whether to measure compressed bytes; update: called with the characters so far"""
        self.documents = self.bytes = self.characters = 0
        self._update = update
        self._compressor = zlib.compressobj(9) if compress else None
        self._compressed = 0

    def measured(self, chunks: Iterable[TextChunk]) -> Iterator[TextChunk]:
        """Yield the chunks unchanged, each after it was measured."""
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
        """Bits that zlib -9 needs per byte of the text; None without ``compress``. Called once, after all text."""
        if not self._compressor:
            return None
        return 8 * (self._compressed + len(self._compressor.flush())) / self.bytes


def encode_documents(chunks: Iterable[TextChunk], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield the ids of each chunk, and ``eos_id`` between documents, each with whether they begin a document.

    A thread encodes each batch of chunks while the batch before is consumed and the next one is read, so that at most
    three batches are in memory.
    """
    last = None
    for batch, encoded in _encoded(chunks, tokenizer):
        for chunk, ids in zip(batch, encoded, strict=True):
            check_ids(ids, tokenizer.vocab_size, tokenizer.name, f"document '{chunk.document}'")
            if tokenizer.eos_id is not None and last not in (None, chunk.document):
                yield np.array([tokenizer.eos_id]), False
            is_first, last = last != chunk.document, chunk.document
            yield ids, is_first


def _encoded(chunks: Iterable[TextChunk], tokenizer: Tokenizer) -> Iterator[tuple[list[TextChunk], list[Ids]]]:
    """Batches of chunks, each with the ids of its texts."""
    with ThreadPoolExecutor(1, "encode") as thread:
        before: tuple[list[TextChunk], Future[list[Ids]]] | None = None
        for batch in _batches(chunks):
            encoding = thread.submit(tokenizer.encode_many, [chunk.text for chunk in batch])
            if before is not None:
                yield before[0], before[1].result()
            before = batch, encoding
        if before is not None:
            yield before[0], before[1].result()


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
