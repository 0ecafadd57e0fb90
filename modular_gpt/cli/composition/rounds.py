"""Trials of a comparison run by Hydra's launchers (joblib, submitit, ray), one round after another."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from omegaconf import MISSING, DictConfig

from modular_gpt.cli.app import hydra_command_line
from modular_gpt.cli.composition.compose import HYDRA, composed, prepare
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import quoted, read_overrides
from modular_gpt.cli.composition.schema import Command
from modular_gpt.comparison import Comparison, run_trial
from modular_gpt.comparison.comparison import say_line
from modular_gpt.comparison.journal import leave
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict

SWEEPER = {"_target_": "hydra_plugins.modular_gpt_rounds.RoundSweeper", "directory": MISSING}
LAUNCHED = "launched"  # folder for the files of the launcher, in the directory of the comparison


@dataclass(frozen=True)
class Job:
    """The function that a launcher runs, possibly on another machine."""

    directory: Path

    def run(self, config: DictConfig) -> PlainDict:
        """Run one trial; its result is also written to a file if the directory of the comparison is accessible."""
        result = run_trial(json.loads(config.trial))
        leave(self.directory, result)
        return result


def check_launcher(command: Command, settings: Sequence[str], where: list[Path]) -> None:
    """Raise a ConfigError for settings of Hydra's that have no effect on a comparison, such as another sweeper."""
    for setting in settings:
        if setting.startswith(("hydra/sweeper", "hydra.sweep")):
            raise ConfigError(f"{setting!r} has no effect here: mgpt-{command.name} has a sweeper for its trials")
    read_overrides(command, settings, where, sweep=True)


def check_installed(command: Command, settings: Sequence[str], where: list[Path]) -> None:
    """Raise a ConfigError if the launcher that Hydra's ``settings`` choose is not installed."""
    _, overrides = read_overrides(command, settings, where, sweep=True)
    with explained(command, where):
        composed(command, overrides, where)


def launch(command: Command, directory: Path, settings: Sequence[str], where: list[Path]) -> None:
    """Run a comparison by the launcher that Hydra's ``settings`` choose.

    Raises:
        UserError: a trial is refused, or the launcher is not installed.
    """
    prepare(command, where)
    ConfigStore.instance().store(group="hydra/sweeper", name="rounds", node=SWEEPER)
    folder = directory.absolute()
    arguments = [
        "--multirun",
        "hydra/sweeper=rounds",
        f"hydra.sweeper.directory={quoted(str(folder))}",
        f"hydra.sweep.dir={quoted(str(folder / LAUNCHED))}",
        *settings,
    ]
    with explained(command, where), hydra_command_line(f"mgpt-{command.name}", arguments):
        hydra.main(**HYDRA, config_path=str(where[0]), config_name=command.name)(Job(folder).run)()


def run_rounds(directory: str, launcher: Launcher) -> None:
    """Run the comparison in a directory. A launcher returns the results of a round when all its trials have ended."""
    launched = 0

    def execute(trials: Sequence[PlainDict]) -> Iterator[PlainDict]:
        nonlocal launched
        jobs = [[f"+trial={quoted(json.dumps(trial))}"] for trial in trials]
        ended = launcher.launch(jobs, initial_job_idx=launched)
        launched += len(jobs)
        for job in ended:
            yield job.return_value

    Comparison.resumed(directory, say=say_line).run(execute)
