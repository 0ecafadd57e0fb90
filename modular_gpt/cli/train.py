"""mgpt-train: compose a model from components and train it."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modular_gpt.cli.app import ENDED_BY_SIGNAL, CommandLine, answer, imports
from modular_gpt.core.errors import ConfigError

if TYPE_CHECKING:
    from modular_gpt.cli.composition.schema import Command

ABOUT = "train a GPT that you compose from components"
EXAMPLES = (
    ("mgpt-train", "train on Python's standard library: minutes on a laptop, no download"),
    ("mgpt-train attention=gqa ffn=moe", "choose components"),
    ("mgpt-train attention=swa attention.window=32", "choose their settings"),
    (
        "mgpt-train model_size=baby trainer.max_steps=500 name=try",
        "choose the size, the number of steps and the run's name",
    ),
    ("mgpt-train data=text data.path='corpus/**/*.txt'", "train on your own files"),
    ("mgpt-train --multirun attention=mha,gqa,mla pos=rope", "train several and compare them"),
    ("mgpt-train resume=runs/latest trainer.max_steps=4000", "resume a run"),
    ("mgpt-train init_from=gpt2 attention=gqa", "start from trained weights, with other components"),
    ("torchrun --nproc_per_node=2 --no-python mgpt-train", "train on two GPUs; parallel=fsdp also shards the model"),
    ("mgpt-generate checkpoint=runs/latest prompt='def '", "generate with the last run"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    code = answer(_execute, arguments)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # threads of torch.distributed may outlive their group and abort the process during its shutdown
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _execute(line: CommandLine) -> int:
    with imports():
        from modular_gpt.cli.composition.stored import stored

    if line.quick:
        raise ConfigError("--quick is a flag of mgpt-compare: mgpt-compare --quick attention=mha,gqa")
    command = stored("train")
    if command is not None and not (line.help or line.for_hydra()):
        with imports():
            from modular_gpt.cli.early import check_settings

        check_settings(command, line.settings, line.folders, sweep=line.multirun)
    if command is not None and line.shell_completion:
        with imports():
            from modular_gpt.cli.completion import completed

        if (completions := completed(command, line.settings, line.folders)) is not None:
            print(completions)
            return 0
    if line.help or line.for_hydra():
        return _about(line, command or _command())
    return _train(line)


def _about(line: CommandLine, command: "Command") -> int:
    """Print the help of the command, or the output of a flag of Hydra."""
    with imports():
        from modular_gpt.cli.help import help_text
        from modular_gpt.cli.hydra_answers import hydra_itself

    if not line.help:
        return hydra_itself(command, line, line.folders)
    print(help_text(command, ABOUT, EXAMPLES, line.settings, line.folders))
    return 0


def _command() -> "Command":
    with imports():
        from modular_gpt.cli.composition.train_config import TRAIN

    return TRAIN


def _train(line: CommandLine) -> int:
    with imports():
        from modular_gpt.cli import sweep
        from modular_gpt.cli.composition.compose import as_yaml
        from modular_gpt.cli.composition.train_config import composed_run
        from modular_gpt.runtime.processes import ProcessGroup

    processes = ProcessGroup.launched()
    with processes.same_error_on_all_ranks():
        if line.multirun and processes.world > 1:
            raise ConfigError("--multirun trains one run after another: start it without torchrun, or leave it out")
        if line.multirun:
            return sweep.multirun(line.settings, line.folders)
        composed = composed_run(line.settings, line.folders)
    if line.cfg:
        print(as_yaml(composed.source), end="")
        return 0
    with imports():
        from modular_gpt.training.run import train

    signal = train(composed.config, checkpoint=composed.checkpoint).signal
    return 0 if signal is None else ENDED_BY_SIGNAL + signal


if __name__ == "__main__":
    sys.exit(main())
