"""Every lesson runs from top to bottom, and is stored with the outputs of such a run."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# A machine-independent line printed by each lesson that runs here; test_quickstart.py runs the other one.
PRINTED = {
    "attention_and_caches": r"mha +131,072 +2,048,000 +2,048,000\n",
    "positions_and_length": r"learned +\d\.\d+ +no position\n",
    "fine_tune_on_a_task": r"(100|9\d|8\d|7\d)% of 20 new words are right\n",
    "compare_and_look_inside": r"difference [+-]0\.\d{4}, standard error 0\.\d{4}\n",
}


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def code_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_five_lessons_and_the_readme_links_them() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {path.stem for path in LESSONS} == {*PRINTED, "quickstart"}
    assert all(f"(notebooks/{path.name})" in readme for path in LESSONS)


def test_it_is_stored_with_the_outputs_of_a_run(path: Path) -> None:
    lesson = nbformat.read(path, as_version=4)
    nbformat.validate(lesson)
    cells = code_of(lesson)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    types = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in types and "stream" in types
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert lesson.cells[0].source.startswith("# ") and lesson.cells[-1].cell_type == "markdown"


@pytest.mark.slow
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported PyTorch; the quickstart runs in a separate kernel."""
    lesson = nbformat.read(path, as_version=4)
    if path.stem not in PRINTED:
        pytest.skip("run by test_quickstart.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    printed, names = io.StringIO(), dict[str, Any](__name__="__main__")
    with contextlib.redirect_stdout(printed):
        for cell in code_of(lesson):
            exec(compile(cell.source, path.stem, "exec"), names)
    assert re.search(PRINTED[path.stem], printed.getvalue())
    stored = "".join(output.get("text", "") for cell in code_of(lesson) for output in cell.outputs)
    assert re.search(PRINTED[path.stem], stored)
    assert len(printed.getvalue().splitlines()) == len(stored.splitlines())
