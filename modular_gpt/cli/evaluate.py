"""mgpt-eval: evaluate a model on a text and on tasks."""

import sys
from collections.abc import Sequence

from modular_gpt.cli.app import CommandLine, answer, answered_by_flags, imports

ABOUT = "evaluate a model on a text (loss, perplexity, bits per byte), on records with answers, or on tasks"
EXAMPLES = (
    ("mgpt-eval", "the last run, on the text that it was validated on"),
    ("mgpt-eval checkpoint=runs/latest text=book.txt", "on a file of your own"),
    ("mgpt-eval corpus=text data.path='books/*.txt'", "on the validation text of several files"),
    (
        "mgpt-eval records=test.jsonl",
        "on prompts with answers: loss, accuracy, exact match; answers in predictions.jsonl",
    ),
    ("mgpt-eval text=book.txt stride=64", "with more text before each token that counts; slower"),
    ("mgpt-eval checkpoint=gpt2 corpus=python_stdlib", "a published model, on the validation part of a corpus"),
    ("mgpt-eval checkpoint=gpt2 tasks=lambada_openai,piqa", "tasks of lm-evaluation-harness (needs the extra eval)"),
    ("mgpt-eval tasks=mine.yaml limit=100 json=true", "a task of your own, as JSON"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    return answer(_execute, arguments)


def _execute(line: CommandLine) -> int:
    with imports():
        from modular_gpt.cli.early import answered_early

    # data.path, the setting of mgpt-train, is accepted as well
    line.settings = [
        setting.removeprefix("data.") if setting.startswith("data.path=") else setting for setting in line.settings
    ]
    if answered_early(line, "eval", ABOUT, EXAMPLES):
        return 0
    with imports():
        from modular_gpt.cli.composition.flat_config import read_plain
        from modular_gpt.cli.evaluate_task import EVAL, measure, print_results

    if answered_by_flags(line, EVAL, ABOUT, EXAMPLES):
        return 0
    settings, listing = read_plain(EVAL, line.settings, line.folders)
    if line.cfg:
        print(listing, end="")
        return 0
    print_results(settings, measure(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
