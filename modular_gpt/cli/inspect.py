"""mgpt-inspect: look inside a model while it reads a text."""

import sys
from collections.abc import Sequence

from modular_gpt.cli.app import CommandLine, answer, answered_by_flags, imports

ABOUT = "write a page about what a model does with a text: losses, attention, logit lens, heads, routing"
EXAMPLES = (
    ("mgpt-inspect prompt='def read(path):'", "the last run, on this text"),
    ("mgpt-inspect checkpoint=gpt2 prompt='The cat sat on the mat.' layers=[5,6]", "two blocks of a published model"),
    ("mgpt-inspect text=book.txt max_tokens=128 out=book.html", "the beginning of a file"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    return answer(_execute, arguments)


def _execute(line: CommandLine) -> int:
    with imports():
        from modular_gpt.cli.early import answered_early

    if answered_early(line, "inspect", ABOUT, EXAMPLES):
        return 0
    with imports():
        from modular_gpt.cli.composition.flat_config import read_plain
        from modular_gpt.cli.inspect_task import INSPECT, write

    if answered_by_flags(line, INSPECT, ABOUT, EXAMPLES):
        return 0
    settings, listing = read_plain(INSPECT, line.settings, line.folders)
    if line.cfg:
        print(listing, end="")
        return 0
    print(f"wrote {write(settings)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
