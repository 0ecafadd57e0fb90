"""A Sweeper of Hydra's for mgpt-compare, here because Hydra makes plugins of this namespace only.

Every program that uses Hydra imports this module when it starts, so it imports nothing else.
"""

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RoundSweeper(Sweeper):
    """Runs the comparison in ``directory``: its trials are jobs of Hydra's launcher, one batch for each round."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher, which the command line chooses."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run all rounds."""
        from modular_gpt.cli.composition.rounds import run_rounds

        assert self.launcher is not None
        run_rounds(self.directory, self.launcher)
