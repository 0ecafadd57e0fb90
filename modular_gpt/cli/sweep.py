"""--multirun: several runs through Hydra's sweepers and launchers, and a table that compares them."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from omegaconf import DictConfig

from modular_gpt.cli.app import ENDED_BY_SIGNAL, MISTAKE
from modular_gpt.cli.composition.compose import composed
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import NONE, Override, jobs_to_try, quoted, read_overrides
from modular_gpt.cli.composition.run_name import run_name
from modular_gpt.cli.composition.train_config import TRAIN, run_config, started_from
from modular_gpt.cli.hydra_answers import hydra_main
from modular_gpt.cli.sweep_table import JobResult, remarks, save, table
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.errors import ConfigError, UserError
from modular_gpt.core.validation import from_mapping
from modular_gpt.training.config import RunConfig

RESULT = "result-"  # prefix of the files in the sweep's folder with the results of jobs in other processes


class _Stopped(BaseException):
    """A signal ended a run and so the sweep. It is no Exception, which Hydra would treat as the failure of a job."""


@dataclass
class Sweep:
    """The jobs of one command line and their results.

    Hydra's default launcher runs the jobs in this process, one after another. Other launchers run them in other
    processes, possibly on other machines, where each job writes its result to a file in the folder of the sweep.

    folder: of the sweep; shared: keys of the settings that all jobs have in common; where: folders with yaml files
    """

    folder: Path
    shared: set[str]
    where: list[Path]
    process: int = field(default_factory=os.getpid)
    results: dict[int, JobResult] = field(default_factory=dict)

    def job(self, config: DictConfig) -> None:
        """Train the combination of settings of one job, and record its result."""
        hydra_config = HydraConfig.get()
        number, settings = int(hydra_config.job.num), list(hydra_config.overrides.task)
        config.name = _name(config.name, settings, self.shared)
        blank = "\n" if number else ""
        print(f"{blank}--- run {number + 1}: {config.name}", flush=True)
        without_seed = [setting for setting in settings if setting.partition("=")[0] != "seed"]
        result = JobResult(number, config.name, config.seed, without_seed)
        try:
            _train(config, settings, self.where, result)
        except BaseException as error:  # also Ctrl-C before the training handles it
            result.code, result.message = 1, f"failed: {type(error).__name__}: {error}".removesuffix(": ")
            raise
        finally:
            self._record(result)
        if result.code > ENDED_BY_SIGNAL and os.getpid() == self.process:
            raise _Stopped

    def _record(self, result: JobResult) -> None:
        """Store a result; in another process than the sweep's, as a file in its folder."""
        self.results[result.number] = result
        if os.getpid() != self.process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / f"{RESULT}{result.number}.json", json.dumps(asdict(result)))

    def collect(self) -> list[JobResult]:
        """All results in the order of the jobs, including those in files of other processes."""
        for path in self.folder.glob(f"{RESULT}*.json"):
            result = from_mapping(JobResult, json.loads(path.read_text(encoding="utf-8")), path.name)
            self.results[result.number] = result
        return [result for _, result in sorted(self.results.items())]


def multirun(arguments: Sequence[str], where: list[Path]) -> int:
    """Train every combination of comma-separated values, print a table of the results, and save it.

    A combination that is refused is reported in the table, and the others are trained. Returns the exit code.

    Raises:
        ConfigError: a setting does not exist, or the folder of the sweep cannot be created.
    """
    typed, expanded = read_overrides(TRAIN, arguments, where, sweep=True)
    if any(override.key == "resume" and override.value != NONE for override in typed):
        raise ConfigError(
            "resume continues one run: leave out --multirun, or start several from its weights with init_from=<run>"
        )
    with explained(TRAIN, where, arguments):
        parsed = OverridesParser.create().parse_overrides(expanded)
        # composed before a directory is created, since a setting may be wrong
        jobs = [composed(TRAIN, job_overrides, where) for job_overrides in jobs_to_try(TRAIN, expanded)]
    folder = _new_folder(Path(jobs[0].runs).expanduser(), parsed)
    sweep = Sweep(folder, {override.key_or_group for override in parsed if not override.is_sweep_override()}, where)
    try:
        hydra_main(TRAIN, ["--multirun", *expanded, f"hydra.sweep.dir={quoted(str(folder))}"], where, sweep.job)
    except _Stopped:
        pass
    finally:
        results = sweep.collect()
        if results:
            print(f"\n{table(results)}\n{remarks(results)}")
            _save(folder, results)
    return max((result.code for result in results), default=0)


def _new_folder(runs: Path, overrides: Sequence[HydraOverride]) -> Path:
    """Create the folder of a sweep: ``hydra.sweep.dir`` if it is given, else a new one in ``runs``."""
    given = [str(override.value()) for override in overrides if override.key_or_group == "hydra.sweep.dir"]
    folder = Path(given[-1]) if given else runs / f"{datetime.now():%Y%m%d-%H%M%S-%f}-multirun"
    try:
        folder.absolute().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"no runs can be started in '{folder.parent}' ({error.strerror}); set runs=<directory>"
        ) from error
    return folder.absolute()


def _save(folder: Path, results: Sequence[JobResult]) -> None:
    try:
        save(folder, results)
    except OSError as error:
        print(f"warning: the table cannot be saved in '{folder}' ({error.strerror})", file=sys.stderr)
    else:
        print(f"Saved as results.csv and results.json in {folder}")


def _name(base: str, overrides: Sequence[str], shared: set[str]) -> str:
    """The name of a job: the settings in which it differs from others, after the name of the sweep, if one is given."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    differing = [Override(item.key_or_group, str(item.value())) for item in parsed if item.key_or_group not in shared]
    return (
        "-".join(filter(None, ["" if base == RunConfig.name else base, run_name(differing, TRAIN.choices())])) or base
    )


def _train(config: DictConfig, settings: list[str], where: list[Path], result: JobResult) -> None:
    """Train a composed run, and complete its result.

    settings: the overrides of which ``config`` is composed, for a run that starts from another model
    """
    from modular_gpt.training.run import train

    try:
        if config.init_from is not None and config.resume is None:
            parsed = OverridesParser.create().parse_overrides(settings)
            typed = [Override(override.key_or_group, str(override.value())) for override in parsed]
            name, config = config.name, started_from(config.init_from, typed, settings, where)
            config.name = name
        run = train(run_config(config))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        result.code, result.message = MISTAKE, f"refused: {error}"
        return
    result.directory = str(run.directory)
    if run.outcome is None:
        result.code = ENDED_BY_SIGNAL + (run.signal or 0)
        result.message = f"stopped; resume={run.directory}"
        return
    outcome = run.outcome
    result.parameters, result.loss, result.bits_per_byte = outcome.parameters, outcome.loss, outcome.bits_per_byte
    result.tokens_per_second = outcome.tokens / outcome.seconds
