"""Rendered conversations to token ids: special tokens that the template writes become ids, those in messages text."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from modular_gpt.data.templates.base import ChatTemplate, Message, Segment

if TYPE_CHECKING:
    from modular_gpt.data.tokenizers.base import Tokenizer


class EncodedConversation(NamedTuple):
    """A conversation as token ids.

    ids: of the whole conversation; is_answer: whether each one belongs to an answer, the end-of-turn token included
    """

    ids: list[int]
    is_answer: list[bool]


def encode(
    template: ChatTemplate, tokenizer: "Tokenizer", messages: Sequence[Message], open_turn: bool = False
) -> list[int]:
    """The ids of a conversation; a token that begins a text is there if the template writes it, and once.

    open_turn: end with the beginning of an answer, for a model to continue

    Raises:
        DataError: the template or the tokenizer cannot take a message.
    """
    return encode_segments(template.text_segments(messages, open_turn), tokenizer)


def encode_with_answers(
    template: ChatTemplate, tokenizer: "Tokenizer", messages: Sequence[Message]
) -> EncodedConversation:
    """The ids of a conversation, and which of them a training on the assistant's answers counts.

    The ids are those of the whole text. A token with characters of an answer belongs to the answer.

    Raises:
        DataError: as ``encode``, or the answers cannot be told from the rest.
    """
    segments = template.segments(messages)
    ids = encode_segments(segments, tokenizer)
    is_answer = [False] * len(ids)
    before: list[Segment] = []
    for answers, run in groupby(segments, key=lambda segment: segment.is_answer):
        through = [*before, *run]
        if answers:
            start = _common(encode_segments(before, tokenizer), ids)
            until = encode_segments(through, tokenizer)
            end = _common(until, ids)
            end += end < len(until)  # the last token of the answer holds text behind it, too
            is_answer[start:end] = [True] * (min(end, len(ids)) - start)
        before = through
    return EncodedConversation(ids, is_answer)


def encode_segments(segments: Sequence[Segment], tokenizer: "Tokenizer") -> list[int]:
    """The ids of the text of segments, of which those with ``is_literal`` hold no special tokens."""
    text = "".join(segment.text for segment in segments)
    special = special_pattern(tokenizer)
    written = sum(len(special.findall(segment.text)) for segment in segments if not segment.is_literal)
    if written == len(special.findall(text)):
        return tokenizer.encode(text, special=True)
    return encode_stretches(segments, tokenizer, first=True)


def encode_stretches(segments: Sequence[Segment], tokenizer: "Tokenizer", first: bool = False) -> list[int]:
    """The ids of segments behind others: special tokens of the template, and each stretch of text between them.

    first: nothing is before them, where some tokenizers add a space
    """
    special, ids, text = special_pattern(tokenizer), [], ""
    for segment in segments:
        if segment.is_literal:
            text += segment.text
            continue
        end = 0
        for found in special.finditer(segment.text):
            ids += tokenizer.encode_stretch(text + segment.text[end : found.start()], first)
            ids.append(tokenizer.special_tokens[found[0]])
            text, end, first = "", found.end(), False
        text += segment.text[end:]
    return [*ids, *tokenizer.encode_stretch(text, first)]


class Stops(NamedTuple):
    """How generation knows that an answer has ended: tokens, and texts that are no single token."""

    tokens: list[int]
    texts: list[str]


def stops_of(template: ChatTemplate, tokenizer: "Tokenizer") -> Stops:
    """The stops of a template, besides the tokens that end any text of the tokenizer.

    Raises:
        DataError: the template cannot be rendered.
    """
    special = tokenizer.special_tokens
    tokens = [special[text] for text in template.stops if text in special]
    return Stops(tokens, [text for text in template.stops if text not in special])


def special_pattern(tokenizer: "Tokenizer") -> re.Pattern[str]:
    """Matches the text of any special token, the longest first; matches nothing where there are none."""
    longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of ids with which both begin."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
