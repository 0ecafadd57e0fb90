"""Comparison with published models, and a record of the largest differences.

``PARITY_TABLE=<file> pytest -n 0 tests/reference`` writes the largest differences as a Markdown table.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

TABLE = "PARITY_TABLE"
SHARED = ("test_families.py", "test_all_keys.py")  # files whose tests share models
TOLERANCE = 2e-5  # largest difference, in standard deviations of the reference
largest_differences: dict[str, tuple[float, int]] = {}  # comparison -> (largest difference, number of comparisons)

Parity = Callable[..., float]


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference, in standard deviations of ``expected``."""
    assert actual.shape == expected.shape
    assert expected.isfinite().all(), "the reference itself overflows: the test's weights are too large"
    return ((actual - expected).abs().max() / expected.std()).item()


@pytest.fixture
def parity() -> Parity:
    """``parity(name, actual, expected)`` checks that both agree, and records the difference under ``name``."""

    def compare(name: str, actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> float:
        found = difference(actual.detach(), expected.detach())
        largest, count = largest_differences.get(name, (0.0, 0))
        largest_differences[name] = max(largest, found), count + 1
        assert found <= tolerance, f"{name}: differs by {found:.1e} standard deviations"
        return found

    return compare


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of one published model consecutively, so that it is built once: see model_pairs.py."""
    shared = [index for index, item in enumerate(items) if item.path.name in SHARED and _model(item)]
    in_order = sorted((items[index] for index in shared), key=_model)
    for index, item in zip(shared, in_order, strict=True):
        items[index] = item


def _model(item: pytest.Item) -> tuple[str, str] | tuple[()]:
    """Return (model type, case) of a test of one model; () for other tests."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    names = ("model_type", "case")
    return (parameters["model_type"], parameters["case"]) if parameters.keys() >= {*names} else ()


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get(TABLE)
    if not path or not largest_differences:
        return
    if hasattr(session.config, "workerinput"):
        raise pytest.UsageError(f"{TABLE} needs one process: add -n 0")
    rows = [f"| {name} | {count} | {largest:.1e} |" for name, (largest, count) in sorted(largest_differences.items())]
    head = ["| compared with | cases | largest difference |", "|---|---|---|"]
    Path(path).write_text("\n".join([*head, *rows]) + "\n")
