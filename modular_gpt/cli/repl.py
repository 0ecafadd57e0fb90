"""interactive=true: lines from the keyboard, each of which extends the text that the model continues."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar

from modular_gpt.cli.setting_docs import value_text
from modular_gpt.cli.text_writer import Show, Writer
from modular_gpt.core.errors import DataError, UserError
from modular_gpt.generation import GenerationConfig

HELP = """\
Write a text and the model continues it; it also sees the earlier texts.
  clear              forget the earlier texts
  temperature=0.5    change a setting; `settings` shows them all
  quit, or Ctrl-D    leave; Ctrl-C stops a text that is being written"""

QUIT = ("quit", "exit", "/quit", "/exit")

Change = Callable[[str], GenerationConfig | None]


def shown_after(prompt: str) -> Show:
    """Print the prompt, then the generated text as it arrives."""
    waiting = [prompt]

    def show(new_text: str) -> None:
        print(waiting.pop() if waiting else "", new_text, sep="", end="", flush=True)

    return show


def shown_answer() -> Show:
    """Print an answer as it arrives, without white space at its beginning."""
    started = False

    def show(new_text: str) -> None:
        nonlocal started
        new_text = new_text if started else new_text.lstrip()
        started = started or bool(new_text)
        print(new_text, end="", flush=True)

    return show


class Prompter(ABC):
    """Base of interactive sessions: reads lines from the keyboard and answers each.

    help: text that is printed at the beginning
    """

    help: ClassVar[str]

    def __init__(self, writer: Writer, settings: GenerationConfig, change: Change) -> None:
        """change: returns the settings after a line that changes one; None for any other line"""
        self.writer, self.settings, self.change = writer, settings, change

    @abstractmethod
    def answer(self, line: str) -> None:
        """Run a command or answer a line.

        Raises:
            UserError: the line cannot be used; the conversation and the settings are unchanged.
        """

    def run(self) -> None:
        """Answer lines until there are no more, then print the throughput."""
        with suppress(ImportError):
            import readline  # noqa: F401  input() then supports arrow keys, and the history of lines
        print(self.help)
        while True:
            try:
                line = input("> ")
            except EOFError:
                print()
                break
            except KeyboardInterrupt:
                print("\n(quit, or Ctrl-D, leaves)")
                continue
            except UnicodeDecodeError as error:
                print(f"error: that line is not UTF-8 text (at byte {error.start})")
                continue
            if line.strip() in QUIT:
                break
            try:
                self.answer(line)
            except UserError as error:
                print(f"error: {error}")
        print(f"[{self.writer.throughput}]")

    def show_settings(self) -> None:
        """Print all settings on one line."""
        print("  ".join(f"{name}={value_text(value)}" for name, value in vars(self.settings).items()))


class Conversation(Prompter):
    """A session in which each line is appended to one text, which the model continues."""

    help = HELP

    def __init__(self, writer: Writer, settings: GenerationConfig, change: Change) -> None:
        super().__init__(writer, settings, change)
        self.ids: list[int] = []  # of the text so far, by user and model

    def answer(self, line: str) -> None:
        command = line.strip()
        if command == "help":
            print(HELP)
        elif command == "clear":
            self.ids = []
            print("(forgotten)")
        elif command == "settings":
            self.show_settings()
        elif (changed := self.change(command)) is not None:
            self.settings = changed
        elif line or self.ids:
            self._continue(line)

    def _continue(self, line: str) -> None:
        ids = self._cut([*self.ids, *(self._encoded(line) if line else [])])
        text = self.writer.write(ids, self.settings, shown_after(line))
        print()
        self.ids = [*ids, *text.ids, *self._line_end()]

    def _encoded(self, line: str) -> list[int]:
        if not self.ids:  # the beginning of the text, with the BOS token
            return self.writer.encode(line)
        return self.writer.tokenizer.encode(line, self.writer.special)

    def _cut(self, ids: Sequence[int]) -> list[int]:
        """The last ids that leave room for max_new_tokens; all ids where generation may exceed the context length."""
        model = self.writer.model
        if model.slides or self.settings.overflow == "window":
            return list(ids)
        room = model.config.context_length - self.settings.max_new_tokens
        return list(ids[-max(room, 1) :])

    def _line_end(self) -> list[int]:
        try:
            return self.writer.tokenizer.encode("\n")
        except DataError:
            return []  # a vocabulary of characters without the line feed
