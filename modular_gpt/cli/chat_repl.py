"""interactive=true with a chat template: a conversation with the model, and commands that begin with a slash."""

from collections.abc import Callable

from modular_gpt.chat import Chat
from modular_gpt.cli.repl import Change, Prompter, shown_answer
from modular_gpt.cli.text_writer import Writer
from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.generation import GenerationConfig

HELP = """\
Write a message and the model answers. A message that begins with / is written with //.
  /reset                     begin a new conversation; the system line stays
  /save FILE, /load FILE     write the conversation to a file, or continue the one in a file
  /set temperature=0.5       change a setting; /settings shows them all
  /help                      show this help
  /quit, or Ctrl-D           leave; Ctrl-C stops an answer, whose beginning stays in the conversation"""


class ChatPrompter(Prompter):
    """A conversation from the keyboard."""

    help = HELP

    def __init__(self, writer: Writer, chat: Chat, settings: GenerationConfig, change: Change) -> None:
        super().__init__(writer, settings, change)
        self.chat = chat
        self.chat.draft = writer.draft
        self._had_notice = False  # whether the last turn had a notice
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/set": self._set,
            "/settings": lambda _: self.show_settings(),
            "/help": lambda _: print(HELP),
        }

    def answer(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            name, _, argument = line.strip().partition(" ")
            if name not in self._commands:
                raise ConfigError(
                    f"{unknown('command', name, [*self._commands, '/quit'])}; a message with a / at its beginning is"
                    " written with //"
                )
            self._commands[name](argument.strip())
        elif line.strip():
            self._say(line[1:] if line.startswith("//") else line)

    def _say(self, message: str) -> None:
        self.chat.settings = self.settings
        turn = self.chat.begin(message)
        if turn.prompt.notice and not self._had_notice:
            print(f"({turn.prompt.notice})")
        self._had_notice = bool(turn.prompt.notice)
        answer = self.writer.follow(turn.run, shown_answer())
        print()
        self.chat.end(turn, answer)

    def _reset(self, argument: str) -> None:
        self.chat.reset()
        print("(a new conversation)")

    def _save(self, argument: str) -> None:
        self.chat.save(_file(argument, "/save"))
        print(f"({len(self.chat.messages)} messages in {argument})")

    def _load(self, argument: str) -> None:
        self.chat.load(_file(argument, "/load"))
        print(f"({len(self.chat.messages)} messages from {argument})")

    def _set(self, argument: str) -> None:
        changed = self.change(argument)
        if changed is None:
            raise ConfigError(f"/set changes one setting of the generation, such as temperature=0.5, got {argument!r}")
        self.settings = changed


def _file(argument: str, command: str) -> str:
    if not argument:
        raise ConfigError(f"{command} needs a file: {command} talk.json")
    return argument
