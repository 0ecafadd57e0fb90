"""A conversation with a model whose cache is kept between turns, so that a turn reads only the new tokens."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from modular_gpt.chat.format import ChatFormat, open_template
from modular_gpt.chat.saved import read_conversation, write_conversation
from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data import Tokenizer
from modular_gpt.data.templates import ChatTemplate, Message
from modular_gpt.generation import Continuation, Generation, GenerationConfig, PromptCache, Step
from modular_gpt.generation.config import SEARCHES
from modular_gpt.model import GPTModel

MAX_NEW_TOKENS = 256  # default limit of an answer


@dataclass(frozen=True)
class Prompt:
    """The input of the model for one answer.

    messages: messages of the conversation, without the oldest ``left_out`` ones after the system message
    ids, text: token ids and text of ``messages``, rendered up to the beginning of the answer
    max_new_tokens: limit of the answer
    notice: sentence about messages or tokens that the model does not see; empty if it sees all
    """

    messages: list[Message]
    ids: list[int]
    text: str
    left_out: int
    max_new_tokens: int
    notice: str = ""


@dataclass(frozen=True)
class Turn:
    """A user message, the prompt that ends with it, and the generation of the answer.

    run: iterate over it for the steps of the answer, or call its ``finish``
    """

    message: Message
    run: Generation
    prompt: Prompt


class Chat:
    """A conversation: create it with ``Chat(*load_model("my-run"))``, then call ``say`` or ``stream`` for each message.

    messages: the messages so far, each with a ``role`` and a ``content``
    settings: settings of generation; they may be changed between turns
    draft: the draft model for strategy=speculative
    """

    def __init__(
        self,
        model: GPTModel,
        tokenizer: Tokenizer | None,
        template: str | ChatTemplate = "auto",
        *,
        system: str | None = None,
        special: bool = False,
        **settings: Any,
    ) -> None:
        """Begin an empty conversation.

        template: auto for the template stored with the tokenizer, a name (plain, chatml, alpaca), the path of a .jinja
            file, or a ChatTemplate
        system: text of the system message, with which the conversation begins
        special: encode the name of a special token in a message as that token instead of as text
        settings: the fields of ``GenerationConfig``

        Raises:
            ConfigError: there is no tokenizer or no such template, or a setting is invalid.
            DataError: the file of the template cannot be read, or the template cannot render a system message.
        """
        if tokenizer is None:
            raise ConfigError("a conversation needs a tokenizer, and this model was saved without one")
        self.model = model
        self.format = ChatFormat(open_template(tokenizer, template), tokenizer, special)
        self.settings = GenerationConfig.from_values({"max_new_tokens": MAX_NEW_TOKENS, **settings})
        self.draft: GPTModel | None = None
        self._beginning: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._cache = PromptCache(model)
        self.messages: list[Message] = []
        self.reset()
        if self._beginning:
            self.format.segments([*self._beginning, {"role": "user", "content": ""}])

    def reset(self) -> None:
        """Delete all messages but the system message."""
        self.messages = list(self._beginning)
        self._discard_context()

    def _discard_context(self) -> None:
        """Render and encode all messages again at the next turn."""
        self._left_out = 0  # number of oldest messages, after the system message, that the model does not read
        self._ids: list[int] = []  # ids of the prompt and answer of the last turn
        self._text = ""  # the text of these ids; empty: the next turn renders and encodes all messages

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file. Raises a DataError if the file cannot be written."""
        write_conversation(path, self.messages)

    def load(self, path: str | Path) -> None:
        """Replace the conversation, system message included, by the one in a file.

        Raises:
            DataError: the file cannot be read or holds no conversation, its last message is the user's, or the template
                cannot render it.
        """
        messages = read_conversation(path)
        if messages and messages[-1]["role"] == "user":
            raise DataError(
                f"'{path}' ends with a message of the user, and a conversation continues after an answer: remove that"
                " message"
            )
        if messages:
            self.format.segments([*messages, {"role": "user", "content": ""}])
        self.messages = messages
        self._discard_context()

    def say(self, text: str) -> str:
        """Send a message to the model. Returns the answer; both are added to the conversation.

        Raises:
            ConfigError: the settings are invalid, or the message is too long for the model's context.
            DataError: the template cannot render the message, or the tokenizer cannot encode it.
            NonFiniteError: the model's logits are NaN or infinite.
        """
        turn = self.begin(text)
        return self.end(turn, turn.run.finish()[0][0])

    def stream(self, text: str) -> Iterator[str]:
        """Send a message to the model and yield the text of the answer as it is generated.

        Both are added to the conversation at the end. If the iterator is closed early, generation stops, and the answer
        consists of the tokens generated so far.

        Raises:
            ConfigError, DataError, NonFiniteError: as ``say``.
        """
        turn = self.begin(text)
        steps = cast(Generator[Step, None, None], iter(turn.run))
        try:
            for step in steps:
                yield step.texts[0]
        except GeneratorExit:
            steps.close()
            self.end(turn, turn.run.continuations([0])[0])
            raise
        self.end(turn, turn.run.continuations([0])[0])

    def prompt_ids(self, text: str) -> list[int]:
        """The prompt for a message, as token ids. Raises a DataError if the message cannot be encoded."""
        return self._prompt({"role": "user", "content": text}, self._left_out).ids

    def begin(self, text: str) -> Turn:
        """Prepare the generation of an answer to a message. The conversation is not changed; ``end`` changes it.

        Raises:
            ConfigError, DataError: as ``say``.
        """
        message: Message = {"role": "user", "content": text}
        prompt = self._fit_prompt(message)
        unused = self.format.tokenizer.unused_ids(self.model.config.vocab_size)
        settings = replace(
            self.format.with_stops(self.settings),
            suppress_tokens=[*self.settings.suppress_tokens, *unused],
            max_new_tokens=prompt.max_new_tokens,
        )
        ids = torch.tensor([prompt.ids], dtype=torch.long, device=self.model.embedding.weight.device)
        decoder = self.format.tokenizer.decode_stream
        run = Generation(self.model, ids, settings, draft=self.draft, decode_stream=decoder)
        if settings.strategy not in SEARCHES:
            run.reuse(self._cache)
        return Turn(message, run, prompt)

    def _fit_prompt(self, message: Message) -> Prompt:
        """The prompt for an answer to ``message``; the oldest messages are left out if the context is full.

        Raises:
            ConfigError: the message alone does not fit into the context.
        """
        context, max_new_tokens = self.model.config.context_length, self.settings.max_new_tokens
        prompt = self._prompt(message, self._left_out)
        if len(prompt.ids) + max_new_tokens <= context or self.settings.overflow == "error":
            return prompt
        if self.settings.overflow == "window" or self.model.slides:
            if len(prompt.ids) < context:
                return prompt
            seen = f"the last {context}{' of them, or fewer' if self.settings.overflow == 'window' else ''}"
            notice = f"the conversation has {len(prompt.ids)} tokens, of which the model sees {seen}"
            return replace(prompt, notice=notice)
        reserved = min(max_new_tokens, context // 2)
        if len(prompt.ids) + reserved > context:
            prompt = self._shorten(message, prompt, (context - reserved) // 2)
        remaining = context - len(prompt.ids)
        if remaining < 1:
            raise ConfigError(
                f"this message has {len(prompt.ids)} tokens with its template, and the model has a context of"
                f" {context}: write a shorter one, or use overflow=window"
            )
        return replace(prompt, max_new_tokens=min(max_new_tokens, remaining))

    def _shorten(self, message: Message, prompt: Prompt, limit: int) -> Prompt:
        """Leave out the oldest turns until the prompt has at most ``limit`` tokens or only ``message`` is left."""
        count = len(self.messages) - len(self._system)
        while len(prompt.ids) > limit and prompt.left_out < count:
            prompt = self._prompt(message, min(prompt.left_out + 2, count))
        context = self.model.config.context_length
        notice = f"the model's context of {context} tokens is full: the oldest {prompt.left_out} messages are left out"
        return replace(prompt, notice=notice if prompt.left_out > self._left_out else "")

    @property
    def _system(self) -> list[Message]:
        """The system message; empty if there is none."""
        return self.messages[:1] if self.messages and self.messages[0]["role"] == "system" else []

    def _prompt(self, message: Message, left_out: int) -> Prompt:
        """The conversation and ``message``, without the oldest ``left_out`` messages after the system message."""
        messages = [*self._system, *self.messages[len(self._system) + left_out :], message]
        segments = self.format.segments(messages)
        text = "".join(segment.text for segment in segments)
        if self._text and left_out == self._left_out and text.startswith(self._text):
            ids = [*self._ids, *self.format.ids_behind(segments, len(self._text))]
        else:
            ids = self.format.ids(messages)
        return Prompt(messages, ids, text, left_out, self.settings.max_new_tokens)

    def end(self, turn: Turn, answer: Continuation) -> str:
        """Add the message of a turn and its answer, complete or not, to the conversation. Returns the answer."""
        prompt = turn.prompt
        encoded = self.format.encode_answer(prompt.ids, answer)
        content, self._ids, self._text = encoded.content.strip(), [], ""
        for candidate in (encoded.content, content):
            rendered = self.format.template.render([*prompt.messages, {"role": "assistant", "content": candidate}])
            if rendered.startswith(prompt.text + encoded.text):
                content, self._ids, self._text = candidate, [*prompt.ids, *encoded.ids], prompt.text + encoded.text
                break
        self._left_out = prompt.left_out
        self.messages += [turn.message, {"role": "assistant", "content": content}]
        return content
