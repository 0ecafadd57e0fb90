"""Trials by Hydra's launchers (joblib, submitit, ray): a Sweeper that hands them over round by round."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig

from modular_gpt.cli.app import hydra_command_line
from modular_gpt.cli.composition.compose import HYDRA, prepare
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import quoted
from modular_gpt.cli.composition.schema import Command
from modular_gpt.comparison import Comparison, run_trial
from modular_gpt.comparison.journal import leave
from modular_gpt.core.plain_types import PlainDict

NAME = "rounds"
LAUNCHED = "launched"  # folder for the files of the launcher, in the directory of the comparison


class RoundSweeper(Sweeper):
    """Runs the comparison in ``directory``: its trials are jobs of Hydra's launcher, one batch for each round."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.launcher: Launcher | None = None
        self.launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher, which the command line chooses."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run all rounds."""
        Comparison.resumed(self.directory).run(self.execute)

    def execute(self, trials: Sequence[PlainDict]) -> Iterator[PlainDict]:
        """The results of trials, as soon as the launcher has run all of them."""
        assert self.launcher is not None
        jobs = [[f"+trial={quoted(json.dumps(trial))}"] for trial in trials]
        ended = self.launcher.launch(jobs, initial_job_idx=self.launched)
        self.launched += len(jobs)
        for job in ended:
            yield job.return_value


@dataclass(frozen=True)
class Job:
    """The function that a launcher runs, maybe on another machine."""

    directory: Path

    def run(self, config: DictConfig) -> PlainDict:
        """Run one trial, and leave its result as a file where the directory of the comparison can be reached."""
        result = run_trial(json.loads(config.trial))
        leave(self.directory, result)
        return result


def launch(command: Command, directory: Path, settings: Sequence[str], where: list[Path]) -> None:
    """Run a comparison by the launcher that Hydra's ``settings`` choose.

    Raises:
        UserError: a trial is refused, or the launcher is not installed.
    """
    prepare(command, where)
    node = {"_target_": f"{RoundSweeper.__module__}.{RoundSweeper.__name__}", "directory": MISSING}
    ConfigStore.instance().store(group="hydra/sweeper", name=NAME, node=node)
    Plugins.instance().register(RoundSweeper)
    folder = directory.absolute()
    words = [
        "--multirun",
        f"hydra/sweeper={NAME}",
        f"hydra.sweeper.directory={quoted(str(folder))}",
        f"hydra.sweep.dir={quoted(str(folder / LAUNCHED))}",
        *settings,
    ]
    with explained(command, where), hydra_command_line(f"mgpt-{command.name}", words):
        hydra.main(**HYDRA, config_path=str(where[0]), config_name=command.name)(Job(folder).run)()
