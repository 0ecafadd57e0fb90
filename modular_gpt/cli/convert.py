"""mgpt-convert: checkpoints of this program into folders that transformers loads and back, or into GGUF files."""

import sys
from collections.abc import Sequence

from modular_gpt.cli.app import CommandLine, answer, answered_by_flags, imports

ABOUT = (
    "write a checkpoint as a folder that transformers loads, such a folder as a checkpoint, or either as a GGUF file"
)
EXAMPLES = (
    ("mgpt-convert path=my-model", "the last run, for AutoModelForCausalLM"),
    ("mgpt-convert checkpoint=runs/latest path=my-model format=family", "only if it is a published architecture"),
    ("mgpt-convert checkpoint=gpt2 to=checkpoint path=gpt2-here", "a published model as a checkpoint"),
    ("mgpt-convert checkpoint=my-model to=checkpoint path=again", "and back"),
    ("mgpt-convert to=gguf path=model.gguf dtype=bf16", "the last run, for llama.cpp and programs built on it"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    return answer(_execute, arguments)


def _execute(line: CommandLine) -> int:
    with imports():
        from modular_gpt.cli.early import answered_early

    if answered_early(line, "convert", ABOUT, EXAMPLES):
        return 0
    with imports():
        from modular_gpt.cli.composition.flat_config import read_plain
        from modular_gpt.cli.convert_task import CONVERT, convert

    if answered_by_flags(line, CONVERT, ABOUT, EXAMPLES):
        return 0
    settings, listing = read_plain(CONVERT, line.settings, line.folders)
    if line.cfg:
        print(listing, end="")
        return 0
    print(convert(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
