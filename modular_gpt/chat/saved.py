"""Conversations in files: a JSON object with ``messages``, which ``data=records`` also reads as a training record."""

import json
from collections.abc import Sequence
from pathlib import Path

from modular_gpt.core.errors import DataError
from modular_gpt.core.json_files import load_json
from modular_gpt.data.templates import Message, check_messages

MAX_BYTES = 64 * 2**20


def write_conversation(path: str | Path, messages: Sequence[Message]) -> None:
    """Write a conversation as one line of JSON; an existing file is replaced.

    Raises:
        DataError: the file cannot be written.
    """
    line = json.dumps({"messages": [dict(message) for message in messages]}, ensure_ascii=False)
    try:
        Path(path).expanduser().write_text(f"{line}\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write '{path}' ({_reason(error)}): give another file") from error


def read_conversation(path: str | Path) -> list[Message]:
    """Read the messages in a JSON file: an object with ``messages``, or a list of messages.

    Raises:
        DataError: the file cannot be read, is larger than ``MAX_BYTES``, or holds no conversation.
    """
    try:
        value = load_json(Path(path).expanduser(), MAX_BYTES, remedy="give a file that /save wrote")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read '{path}' ({_reason(error)}): give a file that /save wrote") from error
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise DataError(f"'{path}' has no messages: give a file that /save wrote")
    try:
        return [*check_messages(messages)] if messages else []
    except DataError as error:
        raise DataError(f"'{path}': {error}") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
