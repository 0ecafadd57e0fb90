"""interactive=true: a conversation in which each prompt continues the text so far."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from modular_gpt.cli.setting_docs import value_text
from modular_gpt.cli.text_writer import Show, Writer
from modular_gpt.core.errors import DataError, UserError
from modular_gpt.generation import GenerationConfig

HELP = """\
Write a text and the model continues it; it also sees the earlier texts.
  clear              forget the earlier texts
  temperature=0.5    change a setting; `settings` shows them all
  quit, or Ctrl-D    leave; Ctrl-C stops a text that is being written"""

Change = Callable[[str], GenerationConfig | None]


def shown_after(prompt: str) -> Show:
    """Print the prompt, then the generated text as it arrives."""
    waiting = [prompt]

    def show(new_text: str) -> None:
        print(waiting.pop() if waiting else "", new_text, sep="", end="", flush=True)

    return show


class Conversation:
    """Answers lines from the keyboard. ``change`` reads a line as a setting, or returns None if it is text."""

    def __init__(self, writer: Writer, settings: GenerationConfig, change: Change) -> None:
        self.writer, self.settings, self.change = writer, settings, change
        self.ids: list[int] = []  # of the text so far, by user and model

    def run(self) -> None:
        """Answer lines until there are no more, then print the throughput."""
        with suppress(ImportError):
            import readline  # noqa: F401  arrow keys edit the line and bring back earlier ones
        print(HELP)
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
            if line.strip() in ("quit", "exit"):
                break
            try:
                self.answer(line)
            except UserError as error:
                print(f"error: {error}")
        print(f"[{self.writer.throughput}]")

    def answer(self, line: str) -> None:
        """Run a command, change a setting, or continue the text with a line.

        Raises:
            UserError: the line cannot be used; nothing has changed.
        """
        command = line.strip()
        if command == "help":
            print(HELP)
        elif command == "clear":
            self.ids = []
            print("(forgotten)")
        elif command == "settings":
            print("  ".join(f"{name}={value_text(value)}" for name, value in vars(self.settings).items()))
        elif (changed := self.change(command)) is not None:
            self.settings = changed
        elif line or self.ids:
            self._continue(line)

    def _continue(self, line: str) -> None:
        encode = self.writer.tokenizer.encode if self.ids else self.writer.encode  # a text begins once
        ids = self._cut([*self.ids, *(encode(line) if line else [])])
        text = self.writer.write(ids, self.settings, shown_after(line))
        print()
        self.ids = [*ids, *text.ids, *self._line_end()]

    def _cut(self, ids: Sequence[int]) -> list[int]:
        """The end of a text that leaves room for the answer, if the model's positions are limited."""
        model = self.writer.model
        room = model.config.context_length - self.settings.max_new_tokens
        return list(ids[-max(room, 1) :]) if not model.slides and self.settings.overflow != "window" else list(ids)

    def _line_end(self) -> list[int]:
        try:
            return self.writer.tokenizer.encode("\n")
        except DataError:
            return []  # a vocabulary of characters without a line end
