"""The numbers of cases in docs/testing.md, counted from the tests that pytest collects; tables.py writes them."""

import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from modular_gpt.checkpoint import MANIFEST
from tests.checkpoint.test_damage import DAMAGE, FILES
from tests.fresh import python
from tests.fuzz.test_fuzz import COUNTS
from tests.training.test_faults import KILLS, SAVE_CALLS
from tests.training.test_resume import STEPS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "testing.md"
ROW = re.compile(r"^\| (R\d+) \| (.*) \| (.*) \| (.*) \| [^|]* \|$", re.MULTILINE)
HEAD = ["", "fault", "requirement", "tests", "cases"]
RANDOM = "fuzz/test_fuzz.py"

# Number of cases in one test: for every parameter, or by the id of the parameter.
WITHIN: Mapping[str, int | Mapping[str, int]] = {
    "test_killed_at_random_times": KILLS,
    "test_killed_at_every_call_that_writes": SAVE_CALLS,
    "test_stopped_after_any_step": STEPS - 1,
    # missing, a directory, and each damage, one of which does not change a manifest
    "test_every_damage_is_detected": {name: len(DAMAGE) + 2 - (name == MANIFEST) for name in FILES},
    **COUNTS,
}


def rows() -> Iterator[list[str]]:
    """Yield the rows of the page with the present number of cases of their tests."""
    for row, fault, requirement, tests in _rows():
        yield [row, fault, requirement, tests, f"{cases(tests):,}"]


def sums() -> str:
    """Return a sentence with some of the numbers."""
    tests = {row: tests for row, _, _, tests in _rows()}
    return (
        f"In all {cases(tests['R1'])} kills, {cases(tests['R6'])} damaged checkpoints, {cases(tests['R9'])} hostile"
        f" inputs, and {cases(f'`{RANDOM}`'):,} random inputs (`{RANDOM}`), each either accepted or refused in one"
        " sentence."
    )


def _rows() -> list[tuple[str, str, str, str]]:
    return [(match[1], match[2], match[3], match[4]) for match in ROW.finditer(PAGE.read_text())]


def cases(tests: str) -> int:
    """Count the cases of the tests that a cell names: files, each followed by patterns of names; without, all tests."""
    wanted: list[tuple[str, list[str]]] = []
    for name in re.findall(r"`([^`]+)`", tests):
        if name.endswith(".py"):
            wanted.append((name, []))
        else:
            wanted[-1][1].append(name)
    return sum(
        _within(test, case) for path, names in wanted for test, case in _collected()[path] if _named(test, names)
    )


def _named(test: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch(name, pattern) for name in test.split("::") for pattern in patterns)


def _within(test: str, case: str) -> int:
    count = WITHIN.get(test, 1)
    return count if isinstance(count, int) else count[case]


@cache
def _collected() -> dict[str, list[tuple[str, str]]]:
    """Return the (name, id of the parameters) of each collected test by file."""
    named = [name for *_, tests in _rows() for name in re.findall(r"`([^`]+\.py)`", tests)]
    files = dict.fromkeys([*named, RANDOM])
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    arguments = ["--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider", *(f"tests/{name}" for name in files)]
    result = python("-m", "pytest", *arguments, cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in files}
    for line in result.stdout.splitlines():
        path, separator, name = line.partition("::")
        if separator and path.removeprefix("tests/") in found:
            test, _, case = name.partition("[")
            found[path.removeprefix("tests/")].append((test, case.removesuffix("]")))
    return found
