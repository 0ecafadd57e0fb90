"""The settings and the tasks of mgpt-compare: a comparison, more seeds of one, or an overlay of runs."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from modular_gpt.cli.composition.flat_config import read_plain
from modular_gpt.cli.composition.rounds import check_installed, check_launcher, launch
from modular_gpt.cli.composition.schema import Command, names_of
from modular_gpt.cli.composition.variants import variants
from modular_gpt.comparison import CompareConfig, Comparison, diagnostics
from modular_gpt.comparison.comparison import say_line
from modular_gpt.comparison.conditions import RATE, SEED
from modular_gpt.comparison.overlay import Overlay
from modular_gpt.comparison.plan import make_plan
from modular_gpt.core.errors import ConfigError, printable
from modular_gpt.runtime.signals import deferred_signals, raise_on_sigterm
from modular_gpt.training.config import RunConfig

COMPARE = Command(name="compare", plain=CompareConfig)
SWEPT = {"seed": SEED, "optim.learning_rate": RATE, "learning_rate": RATE}
# Settings that can change in a comparison that is resumed.
CAN_CHANGE = ("resume", "seeds", "jobs", "require", "diagnostics", "decoding", "pages")


@dataclass
class CompareTask:
    """A command line of mgpt-compare.

    config: settings of the comparison; listing: these as YAML; given: names of those on the command line
    command: the command line; where: folders with yaml files
    variants: by name; empty for ``resume`` and for an overlay
    hydra: settings of Hydra's launchers; runs: directories of runs to overlay
    """

    config: CompareConfig
    listing: str
    given: set[str]
    command: list[str]
    where: list[Path]
    variants: dict[str, RunConfig] = field(default_factory=dict)
    hydra: list[str] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    def run(self) -> int:
        """Run the task of the command line. Returns the exit code."""
        if self.runs:
            overlay = Overlay.of(self.runs)
            print(overlay.table)
            print(f"Report: {overlay.save_report(Path(self.config.compares))}")
            return 0
        with raise_on_sigterm():
            return self.compare()

    def compare(self) -> int:
        """Run the comparison and print its result; returns the exit code."""
        if self.hydra:
            check_installed(COMPARE, self.hydra, self.where)  # before the comparison has a directory
        plan = make_plan(self.variants, self.config, self.command) if self.config.resume is None else None
        comparison: Comparison | None = None
        try:
            with deferred_signals() if plan else nullcontext():  # from the first file on, a signal is answered below
                comparison = Comparison.of_plan(plan, say_line) if plan else self.resumed()
            print(f"Comparison {comparison.directory}", flush=True)
            if self.hydra:
                launch(COMPARE, comparison.directory, self.hydra, self.where)
                comparison = Comparison.resumed(str(comparison.directory))
            else:
                comparison.run()
            comparison.look_closer(decoding=not self.hydra)
        except (KeyboardInterrupt, SystemExit):
            if comparison is not None:
                resume = f"mgpt-compare resume={comparison.directory}"
                print(f"\nstopped; finished trials are kept. To resume: {resume}", file=sys.stderr, flush=True)
            raise
        result = comparison.result()
        print(f"\n{result.table}\n\nReport: {result.save_report()}")
        return 0 if result.satisfies(comparison.plan.config.require) else 1

    def resumed(self) -> Comparison:
        """The comparison to resume."""
        config = self.config
        assert config.resume is not None
        changes = {name: getattr(config, name) for name in CAN_CHANGE[1:] if name in self.given}
        return Comparison.resumed(config.resume, say=say_line, **changes)


def read_task(settings: Sequence[str], where: list[Path]) -> CompareTask:
    """Read a command line of mgpt-compare.

    Raises:
        ConfigError: a setting does not exist, cannot be swept, or has no effect together with the others.
    """
    names = names_of(CompareConfig)
    bare = [setting for setting in settings if "=" not in setting or Path(setting).is_dir()]
    compare = [setting for setting in settings if key_of(setting) in names and setting not in bare]
    hydra = [setting for setting in settings if key_of(setting).startswith(("hydra.", "hydra/"))]
    others = [setting for setting in settings if setting not in (*compare, *hydra, *bare)]
    check_launcher(COMPARE, hydra, where)
    config, listed = read_plain(COMPARE, compare, where)
    task = CompareTask(config, listed, {key_of(setting) for setting in compare}, list(settings), where, hydra=hydra)
    files = [Path(path) for name in bare if name.endswith((".yaml", ".yml")) for path in name.split(",")]
    task.runs = [Path(name) for name in bare if not name.endswith((".yaml", ".yml"))]
    if task.runs:
        check_overlay(task, [*others, *map(str, files)])
    elif config.resume is not None:
        check_resume(task, [*others, *map(str, files)])
    else:
        check_swept(others)
        task.variants = variants(others, files, where)
    return task


def run_quick(settings: Sequence[str], where: list[Path], listed: bool = False) -> int:
    """Print the probes and quick diagnostics of each variant; returns 1 if one contradicts its config, else 0.

    listed: print the model settings of the variants as YAML instead (``--cfg``)

    Raises:
        ConfigError: a setting does not exist, or is one of the comparison.
    """
    names = names_of(CompareConfig)
    unused = [setting for setting in settings if key_of(setting) in names or key_of(setting).startswith("hydra")]
    if unused:
        raise ConfigError(f"{unused[0]} has no effect with --quick, which trains no language model: leave it out")
    files = [Path(path) for name in settings if "=" not in name for path in name.split(",")]
    found = variants([setting for setting in settings if "=" in setting], files, where)
    if listed:
        models = {name: variant.to_dict()["model"] for name, variant in found.items()}
        print(yaml.safe_dump(models, sort_keys=False, allow_unicode=True), end="")
        return 0
    result = diagnostics.run({name: variant.model for name, variant in found.items()}, say_line)
    print(result)
    return 0 if result.passed else 1


def key_of(setting: str) -> str:
    """The name of a setting."""
    return setting.lstrip("+").partition("=")[0]


def check_swept(settings: Sequence[str]) -> None:
    """Raise a ConfigError for a seed or a learning rate with several values."""
    for setting in settings:
        key, _, value = setting.lstrip("+").partition("=")
        if key in SWEPT and ("," in value or "(" in value):
            raise ConfigError(SWEPT[key])


def check_overlay(task: CompareTask, others: Sequence[str]) -> None:
    """Raise a ConfigError for an argument that is no run, and for settings that an overlay does not use."""
    for path in task.runs:
        if not path.is_dir():
            raise ConfigError(
                f"{printable(str(path))!r} is no setting and no directory of a run: settings are written key=value,"
                " such as attention=mha,gqa"
            )
    unused = [*others, *task.hydra, *(f"{name}=" for name in task.given - {"compares"})]
    if unused:
        raise ConfigError(f"{unused[0]} has no effect on runs that exist: leave it out, or leave the runs out")


def check_resume(task: CompareTask, others: Sequence[str]) -> None:
    """Raise a ConfigError for settings that cannot change in a comparison that is resumed."""
    fixed = [*others, *(f"{name}=" for name in sorted(task.given - set(CAN_CHANGE)))]
    if fixed:
        raise ConfigError(
            f"{fixed[0]} cannot change in a comparison that is resumed: leave it out, or start a new comparison;"
            f" {', '.join(CAN_CHANGE[1:])} can be given"
        )


def listing(task: CompareTask) -> str:
    """The settings as YAML, and the names of the variants."""
    return "".join([task.listing, *(f"# variant {name}\n" for name in task.variants)])
