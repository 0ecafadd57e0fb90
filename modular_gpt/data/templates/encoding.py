"""Rendered conversations to token ids: special tokens of the template become ids, those spelled in messages text."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from modular_gpt.data.templates.base import ChatTemplate, Message, Segment

if TYPE_CHECKING:
    from modular_gpt.data.tokenizers.base import Tokenizer


class EncodedConversation(NamedTuple):
    """A conversation as token ids.

    ids: of the whole conversation; is_answer: whether each id belongs to an answer, its end-of-turn token included
    """

    ids: list[int]
    is_answer: list[bool]


def encode(
    template: ChatTemplate, tokenizer: "Tokenizer", messages: Sequence[Message], open_turn: bool = False
) -> list[int]:
    """The ids of a conversation; the BOS token is among them only if the template writes it.

    open_turn: end with the beginning of an answer, for a model to continue

    Raises:
        DataError: the template cannot render a message, or the tokenizer cannot encode it.
    """
    return encode_segments(template.text_segments(messages, open_turn), tokenizer)


def encode_with_answers(
    template: ChatTemplate, tokenizer: "Tokenizer", messages: Sequence[Message]
) -> EncodedConversation:
    """The ids of a conversation, and whether each counts in a training on the assistant's answers.

    The ids are those of the whole text. A token with characters of an answer belongs to the answer.

    Raises:
        DataError: as ``encode``, or the answers cannot be distinguished from the rest.
    """
    segments = template.segments(messages)
    ids = encode_segments(segments, tokenizer)
    is_answer = [False] * len(ids)
    before: list[Segment] = []
    for answers, run in groupby(segments, key=lambda segment: segment.is_answer):
        through = [*before, *run]
        if answers:
            start = _common_prefix(encode_segments(before, tokenizer), ids)
            until = encode_segments(through, tokenizer)
            end = _common_prefix(until, ids)
            end += end < len(until)  # the last token of the answer has characters after the answer, too
            is_answer[start:end] = [True] * (min(end, len(ids)) - start)
        before = through
    return EncodedConversation(ids, is_answer)


def encode_segments(segments: Sequence[Segment], tokenizer: "Tokenizer") -> list[int]:
    """The ids of the text of segments; special tokens spelled in segments with ``is_literal`` are ordinary text."""
    text = "".join(segment.text for segment in segments)
    special = special_pattern(tokenizer)
    written = sum(len(special.findall(segment.text)) for segment in segments if not segment.is_literal)
    if written == len(special.findall(text)):
        return tokenizer.encode(text, special=True)
    return encode_stretches(segments, tokenizer, first=True)


def encode_stretches(segments: Sequence[Segment], tokenizer: "Tokenizer", first: bool = False) -> list[int]:
    """The ids of segments, of which each stretch of text between special tokens is encoded separately.

    first: whether the text begins with the segments; some tokenizers add a space there
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
    """The tokens, and the texts of several tokens, that end a generated answer."""

    tokens: list[int]
    texts: list[str]


def stops_of(template: ChatTemplate, tokenizer: "Tokenizer") -> Stops:
    """The stops of a template, without the tokens that end every text of the tokenizer.

    Raises:
        DataError: the template cannot be rendered.
    """
    special = tokenizer.special_tokens
    tokens = [special[text] for text in template.stops if text in special]
    return Stops(tokens, [text for text in template.stops if text not in special])


def special_pattern(tokenizer: "Tokenizer") -> re.Pattern[str]:
    """A pattern that matches the text of any special token, the longest first; without any, it matches nothing."""
    longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of ids with which both sequences begin."""
    count = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        count += 1
    return count
