"""The interface of a chat template: messages to one text, and the characters of it that the assistant wrote."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.validation import shown

if TYPE_CHECKING:
    from modular_gpt.data.tokenizers.base import Tokenizer

Message = Mapping[str, str]
ASSISTANT, USER, SYSTEM = "assistant", "user", "system"
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered conversation.

    text: the texts of all segments, joined, are the rendered conversation
    role: of its message; empty outside of messages, and outside of answers of a Jinja template
    is_answer: whether it belongs to an answer: the assistant's message and the end-of-turn marker after it
    is_literal: whether special tokens spelled in it are ordinary text, as they are in messages
    """

    text: str
    role: str
    is_answer: bool = False
    is_literal: bool = False


class SpecialTexts(NamedTuple):
    """The texts of a tokenizer's special tokens.

    bos, eos: of the tokens that begin and end a text; empty if there is none
    special: of all special tokens
    """

    bos: str = ""
    eos: str = ""
    special: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tokenizer: "Tokenizer | None") -> "SpecialTexts":
        """The texts of a tokenizer's special tokens; none for None."""
        if tokenizer is None:
            return cls()
        texts = {id: text for text, id in tokenizer.special_tokens.items()}
        bos = "" if tokenizer.bos_id is None else texts.get(tokenizer.bos_id, "")
        eos = "" if tokenizer.eos_id is None else texts.get(tokenizer.eos_id, "")
        return cls(bos, eos, frozenset(tokenizer.special_tokens))


class ChatTemplate(ABC):
    """Turns a conversation into the text that a model reads.

    name: of the class in the table of templates
    end_of_turn: text that ends an answer and belongs to it; empty if there is none
    stops: all texts that end an answer, ``end_of_turn`` among them
    """

    name: ClassVar[str]
    end_of_turn: str = ""

    @classmethod
    @abstractmethod
    def from_definition(cls, definition: PlainDict, texts: SpecialTexts) -> Self:
        """The template that ``definition()`` describes, for a tokenizer with these special tokens."""

    @abstractmethod
    def definition(self) -> PlainDict:
        """Everything that the template depends on besides the tokenizer, as plain JSON values."""

    @abstractmethod
    def segments(self, messages: Sequence[Message], open_turn: bool = False) -> list[Segment]:
        """The rendered conversation, divided where the assistant's answers begin and end.

        messages: mappings with a ``role`` (system, user or assistant) and a ``content``
        open_turn: end with the beginning of an answer, for a model to continue

        Raises:
            DataError: a message cannot be rendered, or the answers cannot be distinguished from the rest.
        """

    def text_segments(self, messages: Sequence[Message], open_turn: bool = False) -> list[Segment]:
        """The rendered conversation, divided where special tokens are ordinary text; answers need not be known.

        Raises:
            DataError: a message cannot be rendered.
        """
        return self.segments(messages, open_turn)

    @abstractmethod
    def jinja(self) -> str | dict[str, str]:
        """The template, or several by name, in the language of transformers' ``chat_template``."""

    @property
    def tokens(self) -> Mapping[str, str]:
        """The special tokens that ``jinja`` needs, by their names in transformers, such as ``bos_token``."""
        return {}

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.end_of_turn,) if self.end_of_turn else ()

    def render(self, messages: Sequence[Message], open_turn: bool = False) -> str:
        """The text of a conversation; arguments and errors as for ``segments``."""
        return "".join(segment.text for segment in self.segments(messages, open_turn))


def check_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The role and content of each message.

    Raises:
        DataError: there is no message, or one has no role or no text.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise DataError(
            f'a conversation is a list of messages such as {{"role": "user", "content": "..."}}, got {shown(messages)}'
        )
    if not messages:
        raise DataError("the conversation has no message: give at least one")
    return [_checked(number, message) for number, message in enumerate(messages, 1)]


def _checked(number: int, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise DataError(f"message {number} must be a mapping with a role and a content, got {shown(message)}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise DataError(f"message {number} needs a role: system, user or assistant, got {shown(role)}")
    if not isinstance(content, str):
        raise DataError(f"message {number} ({role}) needs a text as its content, got {shown(content)}")
    return {"role": role, "content": content}
