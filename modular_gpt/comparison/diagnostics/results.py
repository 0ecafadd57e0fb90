"""The results of probes and diagnostics, and their table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from modular_gpt.core.plain_types import PlainDict


@dataclass(frozen=True)
class Check:
    """One probe or diagnostic of one variant.

    found: the measured result; expected: the result that follows from the config, or ""
    passed: whether they agree; None if nothing is expected, or the check does not apply
    seconds: CPU time; trained: whether small models learned a task for it
    """

    variant: str
    name: str
    found: str
    expected: str
    passed: bool | None
    seconds: float
    trained: bool = False

    @property
    def cell(self) -> str:
        """The result in a table."""
        return f"WRONG: {self.found}" if self.passed is False else self.found

    @property
    def result(self) -> str:
        """pass, fail, or a dash if nothing is expected."""
        return "-" if self.passed is None else "pass" if self.passed else "fail"


@dataclass(frozen=True)
class QuickResult:
    """All checks of all variants; ``print`` shows the table."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether no check contradicts its expected result."""
        return not self.failures

    @property
    def failures(self) -> list[Check]:
        """The checks that contradict their expected result."""
        return [check for check in self.checks if check.passed is False]

    @property
    def variants(self) -> list[str]:
        """The names of the variants, in order."""
        return list(dict.fromkeys(check.variant for check in self.checks))

    @property
    def table(self) -> str:
        """One line per probe and one column per variant; a line per task; a line about each contradiction."""
        seconds = [sum(check.seconds for check in self.checks if check.variant == name) for name in self.variants]
        rows = [["", *self.variants], *probe_rows(self.checks, self.variants)]
        rows.append(["seconds", *(f"{value:.1f}" for value in seconds)])
        tasks = task_rows(self.checks)
        return "\n".join([*aligned(rows), *(["", *aligned([TASK_HEAD, *tasks])] if tasks else []), *self._remarks()])

    def _remarks(self) -> list[str]:
        lines = [f"{one.variant}: {one.name}: {one.found}, expected {one.expected}" for one in self.failures]
        return ["", *lines] if lines else []

    def to_dict(self) -> PlainDict:
        """The checks as plain values."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        return self.table


TASK_HEAD = ["task", "variant", "expected", "found", "result", "seconds"]


def probe_rows(checks: Sequence[Check], variants: Sequence[str]) -> list[list[str]]:
    """A row for each check without training: its name, and the result of each variant."""
    found = {(check.name, check.variant): check.cell for check in checks if not check.trained}
    names = dict.fromkeys(name for name, _ in found)
    return [[name, *(found.get((name, variant), "-") for variant in variants)] for name in names]


def task_rows(checks: Sequence[Check]) -> list[list[str]]:
    """A row for each variant and task that models learned, by task, with the columns of ``TASK_HEAD``."""
    trained = [check for check in checks if check.trained]
    names = list(dict.fromkeys(check.name for check in trained))
    return [
        [check.name, check.variant, check.expected or "-", check.found, check.result, f"{check.seconds:.1f}"]
        for check in sorted(trained, key=lambda check: names.index(check.name))
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns of equal width, with a rule below the first."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(len(line) for line in lines), *lines[1:]]
