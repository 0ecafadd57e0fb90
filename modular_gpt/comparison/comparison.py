"""A comparison in a directory: its plan, its trials, and their result."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from modular_gpt.comparison.checks import learn_tasks, write_checks
from modular_gpt.comparison.conditions import check_trials
from modular_gpt.comparison.config import LEARNED, CompareConfig
from modular_gpt.comparison.decoding import DECODING, measure_decoding
from modular_gpt.comparison.journal import Journal
from modular_gpt.comparison.pages import model_directory, write_pages
from modular_gpt.comparison.plan import PLAN, Plan, make_plan
from modular_gpt.comparison.results import CompareResult
from modular_gpt.comparison.search import FIRST, Search
from modular_gpt.comparison.trial import Trial
from modular_gpt.comparison.workers import Execute, in_processes, in_this_process
from modular_gpt.core.atomic_files import file_lock, resolve_link
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.validation import from_mapping
from modular_gpt.runtime.signals import raise_on_sigterm
from modular_gpt.training.config import RunConfig
from modular_gpt.training.recorder import duration
from modular_gpt.training.run import read_run_config
from modular_gpt.training.run_directory import LOCK, new_run_directory

Say = Callable[[str], None]


class Comparison:
    """The trials of a plan and their results, in a directory."""

    def __init__(self, directory: Path, plan: Plan, say: Say = print) -> None:
        self.directory, self.plan, self.say = directory, plan, say
        self.journal = Journal(directory)
        self.search = Search(plan, self.journal.results)

    @classmethod
    def new(
        cls, variants: Mapping[str, RunConfig], config: CompareConfig, command: Sequence[str], say: Say
    ) -> "Comparison":
        """A new comparison.

        Raises:
            ConfigError: see ``make_plan``.
        """
        return cls.of_plan(make_plan(variants, config, command), say)

    @classmethod
    def of_plan(cls, plan: Plan, say: Say) -> "Comparison":
        """A new comparison with a finished plan, which is written into its directory."""
        name = "-".join(plan.variants)[:60].rstrip("-. ")
        directory = new_run_directory(Path(plan.config.compares), name)
        plan.save(directory)
        return cls(directory, plan, say)

    @classmethod
    def resumed(
        cls, path: str, seeds: int | None = None, jobs: int | None = None, say: Say = print, **changes: object
    ) -> "Comparison":
        """The comparison in a directory, with another number of seeds and jobs if they are given.

        changes: other settings that do not affect its trials, such as require, diagnostics, decoding and pages

        Raises:
            CheckpointError: there is no comparison.
            ConfigError: the text has changed, or the number of jobs would change the conditions.
        """
        directory = resolve_link(Path(path).expanduser())
        plan = Plan.load(directory)
        plan.check_data()
        config = plan.config
        if jobs is not None and (jobs > 1) and plan.threads > 1:
            raise ConfigError(
                f"the finished trials used {plan.threads} threads, and trials of several jobs use one: leave jobs out"
            )
        given: PlainDict = {**changes, "seeds": seeds or config.seeds, "jobs": jobs or config.jobs}
        changed = replace(config, **given)
        if changed != config:
            plan = replace(plan, config=changed)
            plan.save(directory)
        return cls(directory, plan, say)

    def run(self, execute: Execute | None = None) -> CompareResult:
        """Run the trials that have no result yet, and return the result.

        execute: runs trials; by default in this process, or in as many as there are jobs

        Raises:
            ConfigError: another process runs this comparison, or conditions differ between trials.
            KeyboardInterrupt, SystemExit: a signal ended it; finished trials are kept.
        """
        jobs = self.plan.config.jobs
        execute = execute or (in_this_process if jobs == 1 else in_processes(jobs))
        with self._locked(), raise_on_sigterm():
            self._run_rounds(execute)
        return self.result()

    def _run_rounds(self, execute: Execute) -> None:
        begun, count = time.perf_counter(), 0
        for trials in self.search.rounds():
            todo = [self._plain(trial) for trial in trials if trial.key not in self.journal.results]
            left = len(todo) + self.search.later(trials)
            for result in execute(todo) if todo else ():
                self.journal.add(result)
                check_trials(self.journal.results.values())
                count, left = count + 1, left - 1
                seconds = (time.perf_counter() - begun) / count
                self.say(progress(result, len(self.journal.results), left, seconds))

    def _plain(self, trial: Trial) -> PlainDict:
        """A trial as plain values for a worker. With pages, the first counted trial of a variant saves its model."""
        first = self.plan.config.pages and trial.pair == FIRST
        return {
            **trial.plain(),
            "save": str(model_directory(self.directory.absolute(), trial.variant)) if first else "",
        }

    def look_closer(self, decoding: bool = True) -> None:
        """Probe the variants and, if the settings ask for it, learn tasks, measure decoding and write pages.

        decoding: whether decoding may be measured here; false if trials ran on other machines
        """
        config, plan, directory = self.plan.config, self.plan, self.directory
        with raise_on_sigterm():
            write_checks(plan, directory)
            if config.diagnostics == LEARNED:
                learn_tasks(plan, directory, self.say)
            if decoding and config.decoding and not (directory / DECODING).is_file():
                measure_decoding(plan, directory)
            if config.pages:
                write_pages(plan, directory)

    def result(self) -> CompareResult:
        """The result of the trials so far.

        Raises:
            ConfigError: no seed of all variants is finished yet.
        """
        return CompareResult.of(self.directory, self.plan, self.search)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with file_lock(self.directory / LOCK) as free:
            if not free:
                raise ConfigError(f"another process runs the comparison in '{self.directory}': wait for it")
            yield


def progress(result: PlainDict, done: int, left: int, seconds: float) -> str:
    """Describe a finished trial in a line; left: number of remaining trials; seconds: estimate for each."""
    outcome = f"loss {result['loss']:.4f}" if result["loss"] is not None else "diverged"
    remaining = f"about {duration(left * seconds)} left" if left > 0 else "done"
    return (
        f"trial {done}/{done + left}  {result['variant']:<12} lr {result['learning_rate']:.1e} seed {result['seed']}"
        f"  {outcome}  {result['seconds']:.1f} s  {remaining}"
    )


def compare(
    variants: Mapping[str, RunConfig | Mapping[str, object]],
    budget: str | None = None,
    seeds: int = 5,
    quiet: bool = False,
    **settings: object,
) -> CompareResult:
    """Compare variants by training them with an equal budget, each at its own learning rate, over several seeds.

    variants: RunConfigs by name; the first is the baseline
    budget: tokens, params, flops, time or target_loss
    settings: other settings of ``CompareConfig``, such as lr, jobs and margin

    Raises:
        ConfigError: there is nothing to compare, conditions differ, or budgets cannot be made equal.
    """
    config = from_mapping(CompareConfig, {"budget": budget, "seeds": seeds, **settings}, "compare")
    say: Say = (lambda text: None) if quiet else say_line
    runs = {name: read_run_config(run) for name, run in variants.items()}
    comparison = Comparison.new(runs, config, [], say)
    comparison.run()
    comparison.look_closer()
    return comparison.result()


def say_line(text: str) -> None:
    """Print a line and flush it."""
    print(text)
    sys.stdout.flush()


__all__ = ["PLAN", "Comparison", "compare", "say_line"]
