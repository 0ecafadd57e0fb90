"""The Jinja chat template of a published model, rendered by transformers in its sandbox."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Self

from modular_gpt.core.errors import DataError, first_line
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data.templates.base import (
    ASSISTANT,
    USER,
    ChatTemplate,
    Message,
    Segment,
    SpecialTexts,
    check_messages,
)
from modular_gpt.data.templates.step_limit import limited_steps

DEFAULT = "default"
MAX_CHARACTERS, MAX_TEMPLATES = 2**18, 32  # of one template, and of the templates of a model
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_OPEN, _CLOSE = "\U0010fff0", "\U0010fff1"  # private use: around a special token that a message spells
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_PROBE = "PROBE"


class _Rendered(NamedTuple):
    """A conversation with marks around the special tokens that its messages spell, and the spans of its answers."""

    text: str
    spans: list[tuple[int, int]]


class JinjaTemplate(ChatTemplate):
    """The chat_template of a model's folder, in Jinja."""

    name = "jinja"

    def __init__(self, sources: Mapping[str, str], tokens: Mapping[str, str], texts: SpecialTexts) -> None:
        """Check the size of the templates; none is compiled or rendered yet.

        sources: templates by name, the one to use under ``default``
        tokens: texts of special tokens by the names that a template uses, such as ``bos_token``

        Raises:
            DataError: there is no default, or a template is too long.
        """
        if DEFAULT not in sources:
            raise DataError(f"a model with chat templates by name needs one named {DEFAULT!r}, got {sorted(sources)}")
        if len(sources) > MAX_TEMPLATES or any(len(source) > MAX_CHARACTERS for source in sources.values()):
            raise DataError(
                f"the chat templates are not to be trusted: there are more than {MAX_TEMPLATES}, or one has more than"
                f" {MAX_CHARACTERS:,} characters"
            )
        self._sources = dict(sources)
        self._named_tokens = {name: text for name, text in tokens.items() if name.endswith("_token")}
        self._marks_answers = _GENERATION.search(sources[DEFAULT]) is not None
        spelled = sorted(texts.special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spelled)) or "(?!)")

    @classmethod
    def from_definition(cls, definition: PlainDict, texts: SpecialTexts) -> Self:
        return cls(definition["sources"], definition["tokens"], texts)

    def definition(self) -> PlainDict:
        return {"sources": self._sources, "tokens": self._named_tokens}

    @property
    def tokens(self) -> Mapping[str, str]:
        return self._named_tokens

    def jinja(self) -> str | dict[str, str]:
        return self._sources[DEFAULT] if len(self._sources) == 1 else dict(self._sources)

    @cached_property
    def end_of_turn(self) -> str:  # type: ignore[override]  # read from the template on first use
        """The text after an answer through the next special token, or else the rest of its block or of the text."""
        conversation = [{"role": USER, "content": _PROBE}, {"role": ASSISTANT, "content": _PROBE}]
        text, spans = self._rendered(conversation)
        start = text.rfind(_PROBE) + len(_PROBE)
        if start < len(_PROBE):
            raise DataError("the chat template leaves out the messages of the assistant: choose another template")
        if (marker := self._special.search(text, start)) is not None:
            return text[start : marker.end()]
        marked = text[start : spans[-1][1]] if spans else ""
        return marked or text[start:].strip() or text[start:]

    def render(self, messages: Sequence[Message], open_turn: bool = False) -> str:
        return _MARKS.sub("", self._rendered(check_messages(messages), open_turn).text)

    def text_segments(self, messages: Sequence[Message], open_turn: bool = False) -> list[Segment]:
        text = self._rendered(check_messages(messages), open_turn).text
        return [Segment(stretch, "", is_literal=literal) for stretch, literal in _unmarked(text)]

    def segments(self, messages: Sequence[Message], open_turn: bool = False) -> list[Segment]:
        checked = check_messages(messages)
        text, spans = self._rendered(checked, open_turn)
        if not self._marks_answers:
            spans = self._answers(checked, text)
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        if edges != sorted(edges):
            raise DataError("the answers that the chat template marks overlap: choose another template")
        found = []
        for index, (start, end) in enumerate(pairwise(edges)):
            is_answer = index % 2 == 1
            for stretch, literal in _unmarked(text[start:end]):
                found.append(Segment(stretch, ASSISTANT if is_answer else "", is_answer, literal))
        return found

    def _answers(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """The span of each answer, found by rendering the conversation up to and including each message.

        Raises:
            DataError: the beginning of a conversation is rendered differently from the whole.
        """
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            if index == 0:
                raise DataError(
                    "the conversation begins with an answer, whose place in the rendered text cannot be found: begin"
                    " with a message of the user or the system"
                )
            before = self._rendered(messages[:index], open_turn=True).text
            through = self._rendered(messages[: index + 1]).text
            if not (text.startswith(through) and through.startswith(before)):
                raise DataError(
                    f"the chat template writes message {index + 1} differently when others follow it, so the answers"
                    " cannot be distinguished from the rest: mark them in the template with {% generation %}, or choose"
                    " chatml, alpaca or plain"
                )
            marker = through.rfind(self.end_of_turn, len(before)) if self.end_of_turn else -1
            spans.append((len(before), len(through) if marker < 0 else marker + len(self.end_of_turn)))
        return spans

    def _rendered(self, messages: Sequence[Message], open_turn: bool = False) -> _Rendered:
        """A rendered conversation, with marks around the special tokens that its messages spell.

        Raises:
            DataError: the conversation cannot be rendered, or its text depends on the marks.
        """
        marked = [{**message, "content": self._mark(message["content"])} for message in messages]
        rendered = self._by_transformers(marked, open_turn)
        if marked != messages:
            plain = self._by_transformers(messages, open_turn).text
            if _MARKS.sub("", rendered.text) != plain:
                raise DataError(
                    "a message spells a special token, which the chat template does not leave as it is: leave it out"
                )
        return rendered

    def _mark(self, content: str) -> str:
        if _MARKS.search(content):
            raise DataError("a message has the private-use character U+10FFF0 or U+10FFF1: leave it out")
        return self._special.sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", content)

    def _by_transformers(self, messages: Sequence[Message], open_turn: bool) -> _Rendered:
        """Render a conversation in the sandbox of transformers.

        Raises:
            DataError: the template is no valid Jinja, refuses the conversation, or computes too much.
        """
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        options: PlainDict = {
            **self._named_tokens,
            "conversations": [list(messages)],
            "chat_template": self._sources[DEFAULT],
            "add_generation_prompt": open_turn,
            "return_assistant_tokens_mask": self._marks_answers,
        }
        rendered: tuple[list[str], list[list[tuple[int, int]]]]
        try:
            with limited_steps():
                rendered = render_jinja_template(**options)  # type: ignore[assignment]  # annotated as text
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the chat template cannot render the conversation: {first_line(error)}") from error
        except ImportError as error:  # jinja2 is missing or old
            raise DataError(f"chat templates need jinja2 ({first_line(error)}): pip install -U jinja2") from error
        except (RecursionError, MemoryError) as error:
            raise DataError(f"the chat template computes too much ({type(error).__name__}): do not use it") from error
        texts, spans = rendered
        return _Rendered(texts[0], spans[0] if self._marks_answers else [])


def _unmarked(text: str) -> Iterator[tuple[str, bool]]:
    """The stretches of a marked text without marks, and whether a message spells a special token there."""
    for index, stretch in enumerate(_MARKS.split(text)):
        if stretch:
            yield stretch, index % 2 == 1
