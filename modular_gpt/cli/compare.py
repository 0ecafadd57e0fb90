"""mgpt-compare: compare variants with equal budgets, tuned learning rates and several seeds."""

import sys
from collections.abc import Sequence

from modular_gpt.cli.app import CommandLine, answer, answered_by_flags, imports

ABOUT = "compare variants with equal budgets, tuned learning rates and several seeds"
EXAMPLES = (
    ("mgpt-compare attention=mha,gqa,mla budget=params", "the first value is the baseline"),
    ("mgpt-compare ffn=mlp,swiglu,moe budget=flops seeds=10", "equal training FLOPs, ten seeds"),
    ("mgpt-compare attention=mha,gqa pos=rope,alibi budget=tokens", "every combination of the values"),
    ("mgpt-compare a.yaml,b.yaml budget=tokens", "whole configurations, such as config.yaml of two runs"),
    ("mgpt-compare ffn=mlp,swiglu budget=tokens model_size=nano", "larger models; all settings of mgpt-train"),
    ("mgpt-compare norm=layernorm,rmsnorm budget=time jobs=2", "two trials at a time"),
    ("mgpt-compare resume=compares/latest seeds=10", "more seeds; finished trials stay"),
    ("mgpt-compare ffn=mlp,mine budget=params require=better", "exit code 1 unless one is better"),
    ("mgpt-compare attention=mha,gqa budget=tokens hydra/launcher=joblib", "trials by one of Hydra's launchers"),
    (
        "mgpt-compare --quick attention=mha,mine",
        "probes and two small tasks, in under a minute",
    ),
    ("mgpt-compare runs/first runs/second", "curves and settings of existing runs; no verdict"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    0: done; 1: the verdict is not as ``require`` asks, or --quick found a contradiction; 2: a user's mistake; 130:
    after Ctrl-C.
    """
    return answer(_execute, arguments)


def _execute(line: CommandLine) -> int:
    with imports():
        from modular_gpt.cli.early import answered_early

    if answered_early(line, "compare", ABOUT, EXAMPLES, check=False):
        return 0
    with imports():
        from modular_gpt.cli.compare_task import COMPARE, listing, read_task, run_quick

    if answered_by_flags(line, COMPARE, ABOUT, EXAMPLES):
        return 0
    if line.quick:
        return run_quick(line.settings, line.folders, listed=line.cfg is not None)
    task = read_task(line.settings, line.folders)
    if line.cfg:
        print(listing(task), end="")
        return 0
    return task.run()


if __name__ == "__main__":
    sys.exit(main())
