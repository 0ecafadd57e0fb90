"""How a conversation becomes the ids that one model reads, and how its answers end."""

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
    """The template for conversations with a model that has this tokenizer.

    template: a template, or a name as for ``build_template``

    Raises:
        ConfigError: there is no such template.
        DataError: its file cannot be read.
    """
    if isinstance(template, ChatTemplate):
        return template
    return build_template(template, tokenizer)


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and the tokenizer that encodes its text.

    special: encode special tokens that messages spell as such, instead of as text
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    special: bool = False

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The rendered conversation, open for an answer."""
        found = self.template.text_segments(messages, open_turn=True)
        return [replace(segment, is_literal=False) for segment in found] if self.special else found

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids that a model reads before it answers.

        Raises:
            DataError: the template or the tokenizer cannot take a message.
        """
        return encode_segments(self.segments(messages), self.tokenizer)

    def ids_behind(self, segments: Sequence[Segment], length: int) -> list[int]:
        """The ids of a rendered conversation behind its first ``length`` characters."""
        rest = []
        for segment in segments:
            if length < len(segment.text):
                rest.append(replace(segment, text=segment.text[length:]))
            length = max(length - len(segment.text), 0)
        return encode_stretches(rest, self.tokenizer)

    def with_stops(self, settings: GenerationConfig) -> GenerationConfig:
        """The settings of an answer: it ends where the template ends one, and has no ids without text.

        Raises:
            ConfigError: the strategy cannot end at a text, and the template ends answers with one.
        """
        stops = stops_of(self.template, self.tokenizer)
        ends = [*settings.stop_tokens, *self.tokenizer.eos_ids, *stops.tokens]
        if stops.texts and settings.strategy == "beam":
            raise ConfigError(
                f"strategy=beam ends a text at tokens only, and the chat template {self.template.name} ends answers"
                f" with the text {stops.texts[0]!r}; use another strategy"
            )
        return replace(settings, stop_tokens=list(dict.fromkeys(ends)), stop=[*settings.stop, *stops.texts])

    def written(self, prompt: Sequence[int], answer: Continuation) -> "Written":
        """The ids and the text of an answer that belong to the conversation, without another stop than the template's.

        prompt: the ids before the answer
        """
        tokenizer, end = self.tokenizer, self.template.end_of_turn
        ids, text = answer.ids, answer.text or ""
        if answer.reason == "token":
            ends = ids[-1] == tokenizer.special_tokens.get(end)
            return Written(ids if ends else ids[:-1], text, f"{text}{end}" if ends else text)
        streamer = StopStringStreamer(tokenizer.decode_stream(), prompt=prompt)
        lengths = [0]
        for id in ids:
            streamer.push(id)
            lengths.append(len(streamer.text))
        streamer.finish()
        found = streamer.text
        if answer.reason != "text":
            return Written(ids, found, found)
        if found == text + end:
            return Written(ids, text, found)
        count = max(count for count, length in enumerate(lengths) if length <= len(text))
        return Written(ids[:count], text, text[: lengths[count]])


class Written(NamedTuple):
    """An answer as it continues a conversation.

    ids: of the answer, as far as the conversation continues from them; spelled: their text
    content: the message, without the end-of-turn marker
    """

    ids: list[int]
    content: str
    spelled: str
