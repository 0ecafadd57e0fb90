"""Encoding of a conversation for one model, and the stop conditions of its answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from modular_gpt.core.errors import ConfigError
from modular_gpt.data import Tokenizer
from modular_gpt.data.templates import (
    ChatTemplate,
    Message,
    Segment,
    build_template,
    encode_segments,
    encode_stretches,
    stops_of,
)
from modular_gpt.generation import Continuation, GenerationConfig
from modular_gpt.generation.stopping import StopStringStreamer


def open_template(tokenizer: Tokenizer, template: str | ChatTemplate) -> ChatTemplate:
    """The chat template for a model with this tokenizer.

    template: a ChatTemplate, or a name as for ``build_template``

    Raises:
        ConfigError: there is no such template, or ``template`` is auto and the tokenizer has none.
        DataError: the file of the template cannot be read.
    """
    if isinstance(template, ChatTemplate):
        return template
    return build_template(template, tokenizer)


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and the tokenizer that encodes its text.

    special: encode the name of a special token in a message as that token instead of as text
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    special: bool = False

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Render a conversation up to the beginning of the next answer.

        Raises:
            DataError: the template cannot render a message.
        """
        segments = self.template.text_segments(messages, open_turn=True)
        return [replace(segment, is_literal=False) for segment in segments] if self.special else segments

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Encode a conversation up to the beginning of the next answer.

        Raises:
            DataError: the template cannot render a message, or the tokenizer cannot encode it.
        """
        return encode_segments(self.segments(messages), self.tokenizer)

    def ids_behind(self, segments: Sequence[Segment], length: int) -> list[int]:
        """Encode a rendered conversation without its first ``length`` characters."""
        remaining = []
        for segment in segments:
            if length < len(segment.text):
                remaining.append(replace(segment, text=segment.text[length:]))
            length = max(length - len(segment.text), 0)
        return encode_stretches(remaining, self.tokenizer)

    def with_stops(self, settings: GenerationConfig) -> GenerationConfig:
        """Add the stop tokens and stop strings of the template, and the tokenizer's end of text, to ``settings``.

        Raises:
            ConfigError: the template ends answers with a stop string, and the strategy supports stop tokens only.
        """
        stops = stops_of(self.template, self.tokenizer)
        stop_tokens = [*settings.stop_tokens, *self.tokenizer.eos_ids, *stops.tokens]
        if stops.texts and settings.strategy == "beam":
            raise ConfigError(
                f"strategy=beam supports stop tokens only, and the chat template {self.template.name} ends answers"
                f" with the text {stops.texts[0]!r}; use another strategy"
            )
        return replace(settings, stop_tokens=list(dict.fromkeys(stop_tokens)), stop=[*settings.stop, *stops.texts])

    def encode_answer(self, prompt: Sequence[int], answer: Continuation) -> "EncodedAnswer":
        """Determine the ids and text with which an answer continues the conversation.

        They include the end-of-turn marker of the template where the answer has it, but no other stop token or string.

        prompt: ids before the answer
        """
        tokenizer, end = self.tokenizer, self.template.end_of_turn
        ids, text = answer.ids, answer.text or ""
        if answer.reason == "token":
            has_marker = ids[-1] == tokenizer.special_tokens.get(end)
            return EncodedAnswer(ids if has_marker else ids[:-1], text, f"{text}{end}" if has_marker else text)
        streamer = StopStringStreamer(tokenizer.decode_stream(), prompt=prompt)
        lengths = [0]  # of the text of the first 0, 1, ... ids
        for id in ids:
            streamer.push(id)
            lengths.append(len(streamer.text))
        streamer.finish()
        decoded = streamer.text
        if answer.reason != "text":
            return EncodedAnswer(ids, decoded, decoded)
        if decoded == text + end:
            return EncodedAnswer(ids, text, decoded)
        count = max(count for count, length in enumerate(lengths) if length <= len(text))
        return EncodedAnswer(ids[:count], text, text[: lengths[count]])


class EncodedAnswer(NamedTuple):
    """An answer as the next turn reads it.

    content: the message, without the end-of-turn marker
    ids, text: token ids after the prompt, and the text of these ids; the text may be shorter than ``content``, or end
        with the end-of-turn marker
    """

    ids: list[int]
    content: str
    text: str
