"""Base of the templates that write each turn between two fixed texts."""

import json
from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, Self

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data.templates.base import (
    ASSISTANT,
    SYSTEM,
    USER,
    ChatTemplate,
    Message,
    Segment,
    SpecialTexts,
    check_messages,
)


class TurnTemplate(ChatTemplate, ABC):
    """A template whose turns are a heading, the message, and a fixed text after it.

    The conversation begins with the tokenizer's BOS token, if it has one.

    headings: text before the message of each role
    lead: text at the beginning of an answer, before its message, such as the space after a colon
    closing: text after the messages of system and user
    marker: text that ends an answer; empty: that of the EOS token, or an empty line if there is none
    behind: text between the marker and the next turn
    default_system: system message of conversations without one; empty: they have no system turn
    further_stops: texts that begin another turn, and so end an answer without a marker
    """

    headings: ClassVar[dict[str, str]]
    lead: ClassVar[str] = ""
    closing: ClassVar[str] = "\n"
    marker: ClassVar[str] = ""
    behind: ClassVar[str] = "\n"
    default_system: ClassVar[str] = ""
    further_stops: ClassVar[tuple[str, ...]] = ()

    def __init__(self, texts: SpecialTexts) -> None:
        self._bos = texts.bos
        self.end_of_turn = self.marker or texts.eos or "\n\n"
        self._behind = "" if self.end_of_turn == "\n\n" else self.behind

    @classmethod
    def from_definition(cls, definition: PlainDict, texts: SpecialTexts) -> Self:
        return cls(texts)

    def definition(self) -> PlainDict:
        return {}

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.end_of_turn, *self.further_stops)

    def segments(self, messages: Sequence[Message], open_turn: bool = False) -> list[Segment]:
        checked = check_messages(messages)
        self._check_roles(checked)
        found = [Segment(self._bos, "")] if self._bos else []
        if self.default_system and checked[0]["role"] != SYSTEM:
            found.append(Segment(f"{self.headings[SYSTEM]}{self.default_system}{self.closing}", SYSTEM))
        for message in checked:
            role, content = message["role"], message["content"]
            answers = role == ASSISTANT
            found.append(Segment(self.headings[role], role))
            if answers:
                found.append(Segment(self.lead, role, is_answer=True))
            found.append(Segment(content, role, is_answer=answers, is_literal=True))
            if answers:
                found.append(Segment(self.end_of_turn, role, is_answer=True))
            found.append(Segment(self._behind if answers else self.closing, role))
        if open_turn:
            found.append(Segment(self.headings[ASSISTANT], ASSISTANT))
        return [segment for segment in found if segment.text]

    def _check_roles(self, messages: Sequence[Message]) -> None:
        for number, message in enumerate(messages, 1):
            role = message["role"]
            if role not in self.headings:
                raise DataError(
                    f"message {number} has the role {role!r}, which the template {self.name} does not have: use"
                    " system, user or assistant"
                )
            if role == SYSTEM and number > 1:
                raise DataError(f"message {number} has the role system, which the first message alone may have")

    def jinja(self) -> str:
        quoted = json.dumps  # a JSON string in ASCII is a Jinja string, too
        default = ""
        if self.default_system:
            turn = f"{self.headings[SYSTEM]}{self.default_system}{self.closing}"
            default = f"{{%- if messages[0]['role'] != 'system' %}}{{{{- {quoted(turn)} }}}}{{%- endif %}}"
        turns = "".join(
            f"{{%- {'if' if role == SYSTEM else 'elif'} message['role'] == '{role}' %}}"
            f"{{{{- {quoted(self.headings[role])} }}}}{{{{- message['content'] }}}}{{{{- {quoted(self.closing)} }}}}"
            for role in (SYSTEM, USER)
        )
        answer = (
            f"{{%- elif message['role'] == 'assistant' %}}{{{{- {quoted(self.headings[ASSISTANT])} }}}}"
            f"{{% generation %}}{{{{- {quoted(self.lead)} + message['content'] + {quoted(self.end_of_turn)} }}}}"
            f"{{% endgeneration %}}"
            f"{{{{- {quoted(self._behind)} }}}}"
        )
        opened = f"{{%- if add_generation_prompt %}}{{{{- {quoted(self.headings[ASSISTANT])} }}}}{{%- endif %}}"
        refusal = "{%- else %}{{- raise_exception('roles are system, user and assistant') }}{%- endif %}"
        bos = f"{{{{- {quoted(self._bos)} }}}}" if self._bos else ""
        return f"{bos}{default}{{%- for message in messages %}}{turns}{answer}{refusal}{{%- endfor %}}{opened}"
