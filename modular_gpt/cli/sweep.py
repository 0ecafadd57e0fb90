"""Several runs from one command line, through Hydra's sweepers and launchers, and a table that compares them."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from modular_gpt.cli.app import ENDED_BY_SIGNAL, MISTAKE, CommandLine, hydra_command_line
from modular_gpt.cli.composition.compose import HYDRA, composed, prepare
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import Override, jobs_to_try, quoted, read_overrides
from modular_gpt.cli.composition.run_name import run_name
from modular_gpt.cli.composition.train_config import TRAIN, run_config, started_from
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.errors import UserError
from modular_gpt.training.config import RunConfig

RESULT = "result-"  # of a job in another process: a file of the sweep's folder
Row = tuple[str, ...]
HEADINGS = ("run", "parameters", "validation loss", "bits per byte", "tokens/s")


class _Stopped(BaseException):
    """A signal ended a run, and with it those that would follow; as KeyboardInterrupt, it is no job's failure."""


@dataclass
class Sweep:
    """What the jobs of one command line came to.

    Those of Hydra's own launcher run in this process, one after another; a cluster's run in others, maybe on other
    machines, and leave their rows of the table as files in the folder of the sweep.
    """

    folder: Path
    shared: set[str]
    where: list[Path]
    process: int = field(default_factory=os.getpid)
    rows: dict[int, Row] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)

    def job(self, config: DictConfig) -> None:
        """Train one combination."""
        hydra_config = HydraConfig.get()
        number, words = int(hydra_config.job.num), list(hydra_config.overrides.task)
        config.name = _name(config.name, words, self.shared)
        blank = "\n" if number else ""
        print(f"{blank}--- run {number + 1}: {config.name}", flush=True)
        row, code = _trained(config, words, self.where)
        if os.getpid() != self.process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / f"{RESULT}{number}.json", json.dumps({"row": row, "code": code}))
            return
        self.rows[number] = row
        self.codes.append(code)
        if code > ENDED_BY_SIGNAL:
            raise _Stopped

    def collect(self) -> None:
        """Take in what jobs in other processes left."""
        for path in self.folder.glob(f"{RESULT}*.json"):
            result = json.loads(path.read_text(encoding="utf-8"))
            self.rows[int(path.stem.removeprefix(RESULT))] = tuple(result["row"])
            self.codes.append(result["code"])


def multirun(words: Sequence[str], where: list[Path]) -> int:
    """Train every combination of the values that commas separate, and print a table of the results.

    A combination that cannot work is reported in the table, and the others go on. Returns the exit code.

    Raises:
        ConfigError: a word is no setting.
    """
    _, spelled = read_overrides(TRAIN, words, where, sweep=True)
    with explained(TRAIN, where):
        parsed = OverridesParser.create().parse_overrides(spelled)
        # all of them, to see that it can be done before a directory is made
        jobs = [composed(TRAIN, job_words, where) for job_words in jobs_to_try(TRAIN, spelled)]
    folder = Path(jobs[0].runs).absolute() / f"{datetime.now():%Y%m%d-%H%M%S-%f}-multirun"
    sweep = Sweep(folder, {each.key_or_group for each in parsed if not each.is_sweep_override()}, where)
    try:
        _hydra_main(["--multirun", f"hydra.sweep.dir={quoted(str(folder))}", *spelled], where, sweep.job)
    except _Stopped:
        pass
    finally:
        sweep.collect()
        if sweep.rows:
            print(f"\n{_table([HEADINGS, *(row for _, row in sorted(sweep.rows.items()))])}")
    return max(sweep.codes, default=0)


def hydra_itself(line: CommandLine, where: list[Path]) -> int:
    """What only Hydra can answer: its own help, its config, where settings come from, tab completion."""
    # tab completion has words of its own, and unfinished ones
    words = line.settings if line.shell_completion else read_overrides(TRAIN, line.settings, where)[1]
    try:
        _hydra_main([*line.for_hydra(), *words], where, lambda config: None)
    except SystemExit as end:  # Hydra's way to end after its help
        return int(end.code or 0)
    return 0


def _hydra_main(words: list[str], where: list[Path], job: Callable[[DictConfig], None]) -> None:
    prepare(TRAIN, where)
    with explained(TRAIN, where), hydra_command_line("mgpt-train", words):
        hydra.main(**HYDRA, config_path=str(where[0]), config_name=TRAIN.name)(job)()


def _name(base: str, overrides: Sequence[str], shared: set[str]) -> str:
    """The name of a job: its own settings, after the name that all jobs share, if one was given."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    own = [Override(each.key_or_group, str(each.value())) for each in parsed if each.key_or_group not in shared]
    return "-".join(filter(None, ["" if base == RunConfig.name else base, run_name(own, TRAIN.choices())])) or base


def _trained(config: DictConfig, words: list[str], where: list[Path]) -> tuple[Row, int]:
    """Train one combination, which these words set -> its row of the table, and an exit code."""
    from modular_gpt.training.run import train

    try:
        if config.init_from is not None and config.resume is None:
            parsed = OverridesParser.create().parse_overrides(words)
            typed = [Override(each.key_or_group, str(each.value())) for each in parsed]
            name, config = config.name, started_from(config.init_from, typed, words, where)
            config.name = name
        result = train(run_config(config))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return (config.name, f"refused: {error}"), MISTAKE
    if result.outcome is None:
        return (config.name, f"stopped; resume={result.directory}"), ENDED_BY_SIGNAL + (result.signal or 0)
    end = result.outcome
    figures = f"{end.parameters:,}", f"{end.loss:.4f}", f"{end.bits_per_byte:.3f}", f"{end.tokens / end.seconds:,.0f}"
    return (config.name, *figures), 0


def _table(rows: list[Row]) -> str:
    """Rows of equal length in columns; a shorter one says in words why it has no figures."""
    whole = [row for row in rows if len(row) == len(HEADINGS)]
    first = max(len(row[0]) for row in rows)
    widths = [max(len(row[column]) for row in whole) for column in range(1, len(HEADINGS))]
    lines = []
    for name, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths, strict=False)] if len(rest) > 1 else rest
        lines.append(f"{name:<{first}}  {'  '.join(cells)}")
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:]])
