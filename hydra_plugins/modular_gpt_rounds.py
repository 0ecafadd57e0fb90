"""A Hydra sweeper for mgpt-compare. Hydra instantiates plugins of the namespace ``hydra_plugins`` only.

Every program that uses Hydra imports this module at its start, so it imports the rest of the package lazily.
"""

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RoundSweeper(Sweeper):
    """Runs the comparison in ``directory``; the trials of a round are one batch of jobs for Hydra's launcher."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Instantiate the launcher that the command line selects."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run all rounds of the comparison; the arguments of the sweep are not used."""
        from modular_gpt.cli.composition.rounds import run_rounds

        assert self.launcher is not None
        run_rounds(self.directory, self.launcher)
