"""Directories of token files in the cache: written once, checked against their manifest at every start."""

import hashlib
import json
import logging
from array import array
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np

from modular_gpt.core.atomic_files import sha256_file
from modular_gpt.core.errors import DataError
from modular_gpt.core.json_files import load_json_object
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.data.cache_dir import cache_directory, new_in_cache, one_at_a_time
from modular_gpt.data.token_files import TokenSplit

MANIFEST = "manifest.json"
START_BYTES = 8  # of the index of a document's first token
ATTEMPTS = 10  # to open the files, which other processes may be replacing

T = TypeVar("T")
Read = Callable[[Path, PlainDict], T]  # opens the files of a directory by its manifest; raises Damaged

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A token directory differs from its manifest; the message names the file."""


def open_or_build(
    identity: str, build: Callable[[Path], PlainDict], read: Read[T], cache_dir: str | Path | None = None
) -> T:
    """The content of a token directory, which is built if it is missing or damaged.

    identity: all that the content depends on; build: writes the files into a directory and returns their manifest
    Damaged files are built again, and the log says so. Several processes may do this at the same time.

    Raises:
        DataError: the cache cannot be written.
    """
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    directory = Path(cache_dir or cache_directory()).expanduser() / "tokens" / key

    def is_whole(other: Path) -> bool:
        try:
            open_sealed(other, read)
        except (FileNotFoundError, Damaged):
            return False
        return True

    for _ in range(ATTEMPTS):  # another process may replace damaged files between our building and our opening
        try:
            return open_sealed(directory, read)
        except (FileNotFoundError, Damaged):
            pass
        with one_at_a_time(directory):
            try:
                return open_sealed(directory, read)  # that of a process that was faster
            except FileNotFoundError:
                pass
            except Damaged as damage:
                log.warning("%s: building the token files again", damage)
            _build(directory, build, is_whole)
    raise DataError(f"the token files in {directory} are damaged as soon as they are written: check that disk")


def _build(directory: Path, build: Callable[[Path], PlainDict], is_whole: Callable[[Path], bool]) -> None:
    """Write the files of a token directory and their manifest."""
    start = perf_counter()
    with new_in_cache(directory, is_whole) as new:
        manifest = build(new)
        sealed = {**manifest, "sha256": _seal(manifest)}
        (new / MANIFEST).write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    tokens = sum(record["tokens"] for record in manifest["splits"].values())
    log.info("prepared %s tokens in %.1f s: %s", f"{tokens:,}", perf_counter() - start, directory)


def open_sealed(directory: Path, read: Read[T]) -> T:
    """The content of a directory, after reading every byte of it.

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
        return read(directory, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"'{path}' is damaged ({error!r})") from error


def _seal(manifest: PlainMapping) -> str:
    """SHA-256 of a manifest's content, which reveals a flipped bit in it."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def check_file(path: Path, expected: int, fingerprint: str) -> None:
    """Raise Damaged unless a file has so many bytes and this SHA-256."""
    if not path.is_file():
        raise Damaged(f"'{path}' is missing")
    if (size := path.stat().st_size) != expected:
        raise Damaged(f"'{path}' has {size} bytes instead of {expected}")
    if sha256_file(path) != fingerprint:
        raise Damaged(f"'{path}' has another SHA-256 than when it was written")


def open_tokens(directory: Path, split: str, manifest: PlainMapping) -> TokenSplit:
    """The token file of a split, and where its documents start if that was written.

    Raises:
        Damaged: a file is missing or differs from the manifest.
    """
    record = manifest["splits"][split]
    tokens = TokenSplit(
        split,
        directory / token_file(split),
        np.dtype(manifest["dtype"]),
        count=record["tokens"],
        bytes=record["bytes"],
        fingerprint=record["sha256"],
        zlib_bits_per_byte=record.get("zlib_bits_per_byte"),
        documents=directory / starts_file(split) if "documents_sha256" in record else None,
    )
    check_file(tokens.path, tokens.count * tokens.dtype.itemsize, tokens.fingerprint)
    if tokens.documents is not None:
        check_file(tokens.documents, record["documents"] * START_BYTES, record["documents_sha256"])
    return tokens


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint8, uint16 and uint32 (little endian) that holds every id."""
    return next(np.dtype(name) for name in ("u1", "<u2", "<u4") if vocab_size - 1 <= np.iinfo(name).max)


def token_file(split: str) -> str:
    """Name of the file with the tokens of a split."""
    return f"{split}.bin"


def starts_file(split: str) -> str:
    """Name of the file with the index of the first token of each document or record of a split."""
    return f"{split}.documents.bin"


def write_starts(directory: Path, split: str, starts: array) -> str:
    """Write the file of ``starts_file``; returns its SHA-256."""
    data = np.asarray(starts, dtype="<i8").tobytes()
    (directory / starts_file(split)).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def check_ids(ids: np.ndarray, vocab_size: int, tokenizer: str, where: str) -> None:
    """Raise a DataError for ids outside of a tokenizer's vocabulary; ``where``: the text they were made from."""
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise DataError(
            f"the {tokenizer} tokenizer gives id {wrong} in {where}, beyond its"
            f" vocabulary of {vocab_size}: its files do not belong together"
        )
