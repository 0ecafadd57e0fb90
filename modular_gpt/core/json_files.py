"""JSON from files that may be damaged or hostile: regular files only, with limits of size and depth."""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from modular_gpt.core.errors import DataError, UserError
from modular_gpt.core.plain_types import PlainDict

MAX_BYTES = 512 * 2**20
MAX_DEPTH = 64


def load_json(
    path: str | Path,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    *,
    error: type[UserError] = DataError,
    remedy: str = "restore it from a copy",
) -> Any:
    """Read one JSON value from a regular UTF-8 file (a byte order mark is skipped).

    error, remedy: class of the exception, and the advice that ends its message

    Raises:
        FileNotFoundError: there is no such file.
        UserError: (as ``error``) it is not a regular file, cannot be read, is larger than ``max_bytes``, is not JSON,
            or nests deeper than ``max_depth``.
    """
    try:
        return parse_json(read_regular(Path(path), max_bytes), max_depth)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:
        reason = (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
        raise error(f"'{path}' cannot be read as JSON ({reason}): {remedy}") from problem


def load_json_object(
    path: str | Path,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    *,
    error: type[UserError] = DataError,
    remedy: str = "restore it from a copy",
) -> PlainDict:
    """Read a JSON file as ``load_json`` does, and require an object.

    Raises:
        FileNotFoundError, UserError: as ``load_json``; also where the value is not an object.
    """
    value = load_json(path, max_bytes, max_depth, error=error, remedy=remedy)
    if not isinstance(value, dict):
        raise error(f"'{path}' holds no JSON object: {remedy}")
    return value


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file to read bytes; pipes, devices and directories are refused.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # before open(), whose message for a directory differs
        os.close(handle)
        raise ValueError("it is not a regular file")
    return open(handle, "rb")


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file; pipes, devices and directories are refused before anything is read.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a regular file, or larger than ``max_bytes``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"it is larger than {max_bytes:,} bytes")
        return file.read(size)  # reading up to max_bytes would allocate that much


def parse_json(content: str | bytes, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON in UTF-8, or nests deeper than ``max_depth``.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    too_deep = ValueError(f"it nests deeper than {max_depth} levels")
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep from None
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        if depth > max_depth:
            raise too_deep
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return value
