"""The manifest of a checkpoint: size and SHA-256 of every file, and a hash over this list.

Only files in the list belong to the checkpoint; other files in the directory are never read.
"""

import hashlib
import json
import stat
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from modular_gpt.checkpoint.sharded import FILES
from modular_gpt.core.atomic_files import sha256_file
from modular_gpt.core.checkpoint_paths import MANIFEST
from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.core.json_files import load_json_object
from modular_gpt.core.plain_types import PlainDict, PlainMapping

CHECKPOINT_FORMAT = 1
CONFIG, MODEL, META, TOKENIZER = (
    "config.json", "model.safetensors", "meta.json", "tokenizer.json")  # fmt: skip
REMEDY = "use another checkpoint, or restore it from a copy"

Files = dict[str, PlainDict]  # name -> {"size": bytes, "sha256": hexadecimal}


def read_manifest(directory: Path) -> Files:
    """Read the list of files in a checkpoint's manifest, without checking the files.

    Raises:
        CheckpointError: there is no checkpoint, the manifest is damaged, or it lists a file of another directory.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CheckpointError(f"there is no checkpoint at '{directory}'")
    if not path.is_file():
        raise CheckpointError(
            f"'{directory}' is not a checkpoint of this program: it has no {MANIFEST}"
            " (a checkpoint is a directory that mgpt-train or save_checkpoint wrote)"
        )
    manifest = read_json(path)
    files = manifest.pop("files", None)
    if manifest.pop("sha256", None) != seal(files) or not isinstance(files, dict):
        raise damaged(path, "its content does not match its own SHA-256")
    if manifest.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"'{path}' has format {manifest.get('format')!r}, this version reads {CHECKPOINT_FORMAT};"
            " update modular_gpt"
        )
    for name, entry in files.items():
        if not _is_plain(name):
            raise CheckpointError(
                f"'{path}' names the file {printable(name)!r} outside of the checkpoint: do not trust this checkpoint"
            )
        if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
            raise damaged(path, f"it has no size for {printable(name)}")
    if not ({CONFIG, META} <= files.keys() and (MODEL in files or any(fnmatch(name, FILES) for name in files))):
        raise damaged(path, f"it does not list {CONFIG}, {MODEL} and {META}")
    return files


def verify(directory: Path, only: Collection[str] | None = None) -> Files:
    """Check the size and SHA-256 of the files of a checkpoint; returns the list of files.

    only: names of the files to check; None: all

    Raises:
        CheckpointError: there is no checkpoint, or a file is missing or damaged; the message names the file.
    """
    files = read_manifest(directory)
    for name, entry in files.items():
        if only is None or name in only:
            verify_file(directory / name, entry)
    return files


def write_manifest(directory: Path) -> None:
    """Write the manifest of all files in a directory."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(directory.iterdir())
    }
    write_json(directory / MANIFEST, {"format": CHECKPOINT_FORMAT, "files": files, "sha256": seal(files)})


def read_json(path: Path) -> PlainDict:
    """Read the object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged, or its value is not an object.
    """
    try:
        return load_json_object(path, error=CheckpointError, remedy=REMEDY)
    except FileNotFoundError as error:
        raise damaged(path, "there is no such file") from error


def write_json(path: Path, value: PlainMapping) -> None:
    """Write an object as a JSON file."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def seal(files: object) -> str:
    """SHA-256 over the list of files of a manifest."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def damaged(path: Path, reason: str) -> CheckpointError:
    """A CheckpointError for a damaged file."""
    return CheckpointError(f"'{path}' is damaged ({reason}): {REMEDY}")


def _is_plain(name: str) -> bool:
    """Whether a name is a valid file name without a directory."""
    return Path(name).name == name and name not in ("", "..") and name.isprintable() and len(name) < 256


def verify_file(path: Path, entry: PlainMapping) -> None:
    """Check a file against its entry in a manifest; CheckpointError if it is missing or damaged."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise damaged(path, "it is not a regular file")
        if status.st_size != entry["size"]:
            raise damaged(path, f"it has {status.st_size:,} bytes instead of {entry['size']:,}")
        if sha256_file(path) != entry.get("sha256"):
            raise damaged(path, "its content has changed since it was written")
    except (OSError, ValueError) as error:
        raise damaged(path, getattr(error, "strerror", None) or str(error)) from error
