"""A conversation with a model, in which each turn reads only what is new since the last one."""

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

MAX_NEW_TOKENS = 256  # of an answer, where the settings name no number


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it answers.

    messages: of the conversation, without the oldest ``first`` ones after the system's; ids, text: of them
    max_new_tokens: of the answer
    notice: a sentence about what the model does not see any more; empty if it sees all
    """

    messages: list[Message]
    ids: list[int]
    text: str
    first: int
    max_new_tokens: int
    notice: str = ""


@dataclass(frozen=True)
class Turn:
    """A message to the model, what the model reads, and the generation of its answer.

    run: iterate over it for the steps, or call ``finish``
    """

    message: Message
    run: Generation
    prompt: Prompt


class Chat:
    """A conversation: ``Chat(*load_model("my-run"))``, then ``say``.

    messages: the conversation so far, each with a ``role`` and a ``content``
    settings: of the generation; may be changed between turns
    draft: the model that drafts tokens for strategy=speculative
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
        """An empty conversation.

        template: auto for the model's own, or a name (plain, chatml, alpaca), the path of a .jinja file, or a template
        system: text of the system turn, with which the conversation begins
        special: encode special tokens that messages spell as such, instead of as text
        settings: the fields of ``GenerationConfig``

        Raises:
            ConfigError: there is no tokenizer or no such template, or a setting cannot work.
            DataError: the template has no system turn.
        """
        if tokenizer is None:
            raise ConfigError("a conversation needs the model's tokenizer, and this model was saved without one")
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
        """Forget all turns but the system's."""
        self.messages = list(self._beginning)
        self._start_over()

    def _start_over(self, first: int = 0) -> None:
        """Read the conversation again at the next turn, without the oldest ``first`` messages after the system's."""
        self._first = first
        self._ids: list[int] = []  # of what the model has read and written
        self._text = ""  # the same as rendered text; empty: it is rendered and encoded again

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file. Raises a DataError if it cannot be written."""
        write_conversation(path, self.messages)

    def load(self, path: str | Path) -> None:
        """Replace the conversation, system turn included, by that of a file.

        Raises:
            DataError: the file holds no conversation that ends with an answer, or the template cannot render it.
        """
        messages = read_conversation(path)
        if messages and messages[-1]["role"] == "user":
            raise DataError(f"'{path}' ends with a message of the user: a conversation continues after an answer")
        if messages:
            self.format.segments([*messages, {"role": "user", "content": ""}])
        self.messages = messages
        self._start_over()

    def say(self, text: str) -> str:
        """The model's answer to a message.

        Raises:
            ConfigError: the settings cannot work, or the message is too long for the model's context.
            DataError: the tokenizer or the template cannot take the message.
            NonFiniteError: the model's logits are NaN or infinite.
        """
        turn = self.begin(text)
        return self.end(turn, turn.run.finish()[0][0])

    def stream(self, text: str) -> Iterator[str]:
        """Yield the answer to a message as it is generated; what a loop that is left early has not seen is not said.

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
        """The ids that the model would read to answer a message. Raises a DataError where it cannot be encoded."""
        return self._prompt({"role": "user", "content": text}, self._first).ids

    def begin(self, text: str) -> Turn:
        """Prepare the answer to a message. The conversation does not change before ``end``.

        Raises:
            ConfigError, DataError: as ``say``.
        """
        message: Message = {"role": "user", "content": text}
        prompt = self._fitted(message)
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

    def _fitted(self, message: Message) -> Prompt:
        """What the model reads before it answers: as much of the conversation as its context holds.

        Raises:
            ConfigError: the message alone does not fit.
        """
        context, wanted = self.model.config.context_length, self.settings.max_new_tokens
        prompt = self._prompt(message, self._first)
        if len(prompt.ids) + wanted <= context or self.settings.overflow == "error":
            return prompt
        if self.settings.overflow == "window" or self.model.slides:
            if len(prompt.ids) < context:
                return prompt
            sees = (
                f"the last {context} of them, or fewer" if self.settings.overflow == "window" else f"the last {context}"
            )
            notice = f"the conversation has {len(prompt.ids)} tokens, of which the model sees {sees}"
            return replace(prompt, notice=notice)
        answer = min(wanted, context // 2)
        if len(prompt.ids) + answer > context:
            prompt = self._shortened(message, prompt, (context - answer) // 2)
        rest = context - len(prompt.ids)
        if rest < 1:
            raise ConfigError(
                f"this message makes {len(prompt.ids)} tokens, and the model has a context of {context}: write a"
                " shorter one, or use overflow=window"
            )
        return replace(prompt, max_new_tokens=min(wanted, rest))

    def _shortened(self, message: Message, prompt: Prompt, limit: int) -> Prompt:
        """The prompt without the oldest turns, until it has at most ``limit`` tokens or no turn is left."""
        turns = len(self.messages) - len(self._system)
        while len(prompt.ids) > limit and prompt.first < turns:
            prompt = self._prompt(message, min(prompt.first + 2, turns))
        context = self.model.config.context_length
        left_out = f"the model's context of {context} tokens is full: the oldest {prompt.first} messages are left out"
        return replace(prompt, notice=left_out if prompt.first > self._first else "")

    @property
    def _system(self) -> list[Message]:
        return self.messages[:1] if self.messages and self.messages[0]["role"] == "system" else []

    def _prompt(self, message: Message, first: int) -> Prompt:
        """The conversation and a message, without the oldest ``first`` messages after the system's."""
        messages = [*self._system, *self.messages[len(self._system) + first :], message]
        segments = self.format.segments(messages)
        text = "".join(segment.text for segment in segments)
        if self._text and first == self._first and text.startswith(self._text):
            ids = [*self._ids, *self.format.ids_behind(segments, len(self._text))]
        else:
            ids = self.format.ids(messages)
        return Prompt(messages, ids, text, first, self.settings.max_new_tokens)

    def end(self, turn: Turn, answer: Continuation) -> str:
        """Add a message and its answer, which may have been cut short, to the conversation; returns the answer."""
        prompt = turn.prompt
        written = self.format.written(prompt.ids, answer)
        content, self._ids, self._text = written.content.strip(), [], ""
        for candidate in (written.content, content):
            whole = self.format.template.render([*prompt.messages, {"role": "assistant", "content": candidate}])
            if whole.startswith(prompt.text + written.spelled):
                content, self._ids, self._text = candidate, [*prompt.ids, *written.ids], prompt.text + written.spelled
                break
        self._first = prompt.first
        self.messages += [turn.message, {"role": "assistant", "content": content}]
        return content
