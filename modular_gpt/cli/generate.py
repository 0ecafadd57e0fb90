"""mgpt-generate: continue prompts with a model."""

import sys
from collections.abc import Sequence

from modular_gpt.cli.app import CommandLine, answer, answered_by_flags, imports

ABOUT = "continue a text with a model"
EXAMPLES = (
    ("mgpt-generate", "continue a few short prompts with the last run"),
    ("mgpt-generate prompt='def '", "continue this prompt"),
    ("mgpt-generate checkpoint=runs/20260101-120000-000000-gqa", "use this run, or one of its checkpoints"),
    ("mgpt-generate checkpoint=gpt2 prompt='Once upon a time'", "use a published model, or a folder in its format"),
    (
        "mgpt-generate prompt='def ' num_return_sequences=3 temperature=0.5",
        "generate several texts, closer to the most likely",
    ),
    ("mgpt-generate prompts=lines.txt json=true > texts.jsonl", "continue each line of a file"),
    ("mgpt-generate interactive=true", "read prompts from the keyboard"),
    ("mgpt-generate interactive=true chat=chatml system='Be brief.'", "a conversation"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    return answer(_execute, arguments)


def _execute(line: CommandLine) -> int:
    with imports():
        from modular_gpt.cli.early import answered_early

    if answered_early(line, "generate", ABOUT, EXAMPLES):
        return 0
    with imports():
        from modular_gpt.cli.generate_task import GENERATE, converse, open_writer, read_task, write_texts

    if answered_by_flags(line, GENERATE, ABOUT, EXAMPLES):
        return 0
    task, settings, listing = read_task(line.settings, line.folders)
    if line.cfg:
        print(listing, end="")
        return 0
    writer = open_writer(task, settings)
    if task.interactive:
        converse(line.settings, line.folders, settings, writer)
    else:
        write_texts(task, settings, writer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
