"""A record: one example of a task, in the same form for all formats of files."""

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

from modular_gpt.core.errors import DataError

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)


class BadRecord(DataError):
    """A record cannot be used; the message names its file, its line, the field and the value found there."""


class Turn(NamedTuple):
    """One message of a conversation; ``role`` is one of ``ROLES``."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One example of a task.

    format: name of its format, a key of ``FORMATS``
    where: file and line, for messages
    answer: the text to learn: a completion, the right choice, a label, the last reply of a conversation, or a whole
        text
    prompt: the text before the answer; of a conversation, its last user message
    turns: all messages of a conversation or an instruction; () in the other formats
    choices: the candidates for the answer; () in the other formats
    label: the label as text; None in the other formats
    """

    format: str
    where: str
    answer: str
    prompt: str = ""
    turns: tuple[Turn, ...] = ()
    choices: tuple[str, ...] = ()
    label: str | None = None

    def as_turns(self) -> tuple[Turn, ...]:
        """The record as a conversation: its turns, or the prompt of a user and the answer of the assistant."""
        return self.turns or (Turn(USER, self.prompt), Turn(ASSISTANT, self.answer))

    @property
    def digest(self) -> int:
        """The first 64 bits of the SHA-256 of the content, which depends neither on the file nor on the line."""
        content = json.dumps([self.format, self.prompt, self.answer, self.turns, self.choices])
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")


def for_validation(record: Record, fraction: float) -> bool:
    """Whether a record is among the ``fraction`` that is held out for validation, by a hash of its content."""
    return record.digest < fraction * 2**64
