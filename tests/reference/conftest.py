"""A published model beside ours, and a record of how far apart they were.

``PARITY_TABLE=<file> pytest -n 0 tests/reference`` writes the worst number of each comparison as a Markdown table.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

TABLE = "PARITY_TABLE"
SHARING = ("test_families.py", "test_all_keys.py")  # files of tests that share models
TOLERANCE = 2e-5  # largest difference, in standard deviations of what is compared
worst: dict[str, tuple[float, int]] = {}  # comparison -> largest difference, how many were compared

Parity = Callable[..., float]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference in standard deviations of theirs."""
    assert ours.shape == theirs.shape
    assert theirs.isfinite().all(), "the reference itself overflows: the test's weights are too strong"
    return ((ours - theirs).abs().max() / theirs.std()).item()


@pytest.fixture
def parity() -> Parity:
    """parity(name, ours, theirs): they agree; the difference is recorded under the name."""

    def compare(name: str, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> float:
        apart = difference(ours.detach(), theirs.detach())
        largest, count = worst.get(name, (0.0, 0))
        worst[name] = max(largest, apart), count + 1
        assert apart <= tolerance, f"{name}: apart by {apart:.1e} standard deviations"
        return apart

    return compare


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of one published model follow each other, so that it is built once: see published.py."""
    shared = [index for index, item in enumerate(items) if item.path.name in SHARING and _model(item)]
    in_order = sorted((items[index] for index in shared), key=_model)
    for index, item in zip(shared, in_order, strict=True):
        items[index] = item


def _model(item: pytest.Item) -> tuple[str, str] | tuple[()]:
    """(kind, case) of a test of one model; () for other tests."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return (parameters["kind"], parameters["case"]) if parameters.keys() >= {"kind", "case"} else ()


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get(TABLE)
    if not path or not worst:
        return
    if hasattr(session.config, "workerinput"):
        raise pytest.UsageError(f"{TABLE} needs one process: add -n 0")
    rows = [f"| {name} | {count} | {apart:.1e} |" for name, (apart, count) in sorted(worst.items())]
    head = ["| compared with | cases | largest difference |", "|---|---|---|"]
    Path(path).write_text("\n".join([*head, *rows]) + "\n")
