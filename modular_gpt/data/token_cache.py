"""Token directories in the cache: each is written once and verified against its manifest whenever it is opened."""

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
START_BYTES = 8  # size of a document start: the index of its first token, int64
ATTEMPTS = 10  # to open the files, which other processes may be replacing

T = TypeVar("T")
Read = Callable[[Path, PlainDict], T]  # opens the files of a directory by its manifest; raises Damaged

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A token directory differs from its manifest; the message names the file."""


def open_or_build(
    identity: str, build: Callable[[Path], PlainDict], read: Read[T], cache_dir: str | Path | None = None
) -> T:
    """Open a token directory, after building it if it is missing or damaged.

    identity: a text that differs for different content, such as the fingerprints of corpus and tokenizer
    build: writes the files into a directory and returns their manifest
    read: returns the content of a directory

    Rebuilding damaged files is logged as a warning. Several processes may open the same directory at the same time.

    Raises:
        DataError: the cache cannot be written, or files in it are damaged right after they were written.
    """
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    directory = Path(cache_dir or cache_directory()).expanduser() / "tokens" / key

    def is_intact(path: Path) -> bool:
        try:
            open_verified(path, read)
        except (FileNotFoundError, Damaged):
            return False
        return True

    for _ in range(ATTEMPTS):  # another process may replace the files after they were built here
        try:
            return open_verified(directory, read)
        except (FileNotFoundError, Damaged):
            pass
        with one_at_a_time(directory):
            try:
                return open_verified(directory, read)  # another process may have built it meanwhile
            except FileNotFoundError:
                pass
            except Damaged as damage:
                log.warning("%s: building the token files again", damage)
            _build(directory, build, is_intact)
    raise DataError(f"the token files in {directory} are damaged as soon as they are written: check that disk")


def _build(directory: Path, build: Callable[[Path], PlainDict], is_intact: Callable[[Path], bool]) -> None:
    """Write the files of a token directory and their manifest; a directory that ``is_intact`` is kept."""
    start = perf_counter()
    with new_in_cache(directory, is_intact) as new:
        manifest = build(new)
        content = {**manifest, "sha256": _manifest_sha256(manifest)}
        (new / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")
    tokens = sum(record["tokens"] for record in manifest["splits"].values())
    log.info("prepared %s tokens in %.1f s: %s", f"{tokens:,}", perf_counter() - start, directory)


def open_verified(directory: Path, read: Read[T]) -> T:
    """The content of a token directory, whose files are read whole and compared with the manifest.

    Raises:
        FileNotFoundError: there is no such directory.
        Damaged: a file is missing or differs from the manifest.
    """
    if not directory.is_dir():
        raise FileNotFoundError(directory)
    path = directory / MANIFEST
    try:
        manifest = load_json_object(path)
        if manifest.pop("sha256") != _manifest_sha256(manifest):
            raise ValueError("its content does not match its own SHA-256")
        return read(directory, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"'{path}' is damaged ({error!r})") from error


def _manifest_sha256(manifest: PlainMapping) -> str:
    """SHA-256 of a manifest's content, which is stored in the file to detect damage."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def check_file(path: Path, size: int, sha256: str) -> None:
    """Raise Damaged unless a file has ``size`` bytes and the hexadecimal SHA-256 ``sha256``."""
    if not path.is_file():
        raise Damaged(f"'{path}' is missing")
    if (found := path.stat().st_size) != size:
        raise Damaged(f"'{path}' has {found} bytes instead of {size}")
    if sha256_file(path) != sha256:
        raise Damaged(f"'{path}' differs from the SHA-256 in its manifest")


def open_tokens(directory: Path, split: str, manifest: PlainMapping) -> TokenSplit:
    """Open the token file of a split, and the file of its document starts if the manifest lists one.

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
    """The smallest of uint8, uint16 and uint32 (little-endian) that holds the ids from 0 to vocab_size - 1."""
    return next(np.dtype(name) for name in ("u1", "<u2", "<u4") if vocab_size - 1 <= np.iinfo(name).max)


def token_file(split: str) -> str:
    """Name of the file with the tokens of a split."""
    return f"{split}.bin"


def starts_file(split: str) -> str:
    """Name of the file with the index of the first token of each document or record of a split."""
    return f"{split}.documents.bin"


def write_starts(directory: Path, split: str, starts: array) -> str:
    """Write the starts of a split's documents or records to ``starts_file(split)``; returns the SHA-256 of the file."""
    data = np.asarray(starts, dtype="<i8").tobytes()
    (directory / starts_file(split)).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def check_ids(ids: np.ndarray, vocab_size: int, tokenizer: str, where: str) -> None:
    """Raise a DataError for ids outside of a tokenizer's vocabulary.

    tokenizer: its name; where: the document or file of the ids, for the message
    """
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise DataError(
            f"id {wrong} in {where} is outside of the vocabulary of the {tokenizer} tokenizer, whose ids run from 0 to"
            f" {vocab_size - 1}: its files do not belong together, or another tokenizer made the ids"
        )
