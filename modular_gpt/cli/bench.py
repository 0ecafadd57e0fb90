"""mgpt-bench: speed, memory and cache of model variants on this machine."""

import sys
from collections.abc import Sequence

from modular_gpt.cli.app import CommandLine, answer, answered_by_flags, imports

ABOUT = "measure speed, memory and cache of model variants on this machine"
EXAMPLES = (
    ("mgpt-bench attention=mha,gqa,mla", "training, prefill and decoding; the first value is the baseline"),
    ("mgpt-bench attention=mha,swa,linear context=1024,4096 batch=1,8", "every context and batch"),
    ("mgpt-bench ffn=mlp,swiglu,moe measure=train", "the training step alone"),
    ("mgpt-bench attention=mha,gqa pos=rope,alibi measure=decode", "every combination of the values"),
    ("mgpt-bench checkpoint=runs/a,runs/b,gpt2", "existing models"),
    ("mgpt-bench attention=mha,mla precision=bf16 model_size=gpt2", "at the size of GPT-2, in bf16"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after a user's mistake."""
    return answer(_execute, arguments)


def _execute(line: CommandLine) -> int:
    with imports():
        from modular_gpt.cli.early import answered_early

    if answered_early(line, "bench", ABOUT, EXAMPLES, check=False):
        return 0
    with imports():
        from modular_gpt.cli.bench_task import BENCH, read_task

    if answered_by_flags(line, BENCH, ABOUT, EXAMPLES):
        return 0
    task = read_task(line.settings, line.folders)
    if line.cfg:
        print(task.listing, end="")
        return 0
    task.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
