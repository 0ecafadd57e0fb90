"""The stored notebook runs from top to bottom in a fresh kernel."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """The executed notebook; a cell that raises fails the test."""
    root = Path(__file__).resolve().parents[2]
    notebook = nbformat.read(root / "notebooks" / "quickstart.ipynb", as_version=4)
    client = NotebookClient(
        notebook,
        timeout=500,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path_factory.mktemp("nb"))}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MPLBACKEND": ""})
    return notebook


def printed(notebook: NotebookNode, text: str) -> str:
    """The printed text of the only code cell that contains ``text``."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source]
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_learns(executed: NotebookNode) -> None:
    first, _, last = printed(executed, "losses = train(").strip().partition(" -> ")
    assert 5.0 < float(first) < 6.0
    assert float(last) < 2.8


def test_it_plots_the_loss(executed: NotebookNode) -> None:
    images = [output for cell in executed.cells for output in cell.get("outputs", []) if "data" in output]
    assert ["image/png" in image["data"] for image in images] == [True]


def test_it_generates(executed: NotebookNode) -> None:
    text = printed(executed, "model.generate(")
    assert text.startswith("    def ")
    assert len(text.encode()) > 100


def test_every_attention_caches_the_predicted_bytes(executed: NotebookNode) -> None:
    _, *rows = printed(executed, "for name in sorted(").splitlines()
    cells = [row.split() for row in rows]
    assert {"mha", "gqa", "mqa", "mla", "swa", "linear"} <= {name for name, *_ in cells}
    assert all(predicted == allocated for _, _, predicted, allocated, _ in cells)
    assert all(float(loss) < 5.0 for *_, loss in cells)
