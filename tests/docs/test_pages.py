"""The Python blocks of all pages run and print the shown output; every link inside the repository is valid."""

from pathlib import Path

import pytest

from tests.docs.pages import LINK, OUTPUT, ROOT, anchors, blocks, check, pages, promised, prose, run

APART = {"add_a_component.md"}  # registers components: test_tutorial.py runs it in other processes


@pytest.fixture(params=pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_its_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in APART:
        pytest.skip("run by test_tutorial.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    check(page)


def test_every_output_follows_a_python_block(page: Path) -> None:
    outputs = [block for block in blocks(page.read_text()) if block.kind == OUTPUT]
    assert outputs == list(promised(page.read_text()).values())


def test_every_block_has_a_language(page: Path) -> None:
    assert all(block.kind for block in blocks(page.read_text()))


def test_its_links_are_valid(page: Path) -> None:
    text = prose(page.read_text())
    for match in LINK.finditer(text):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        assert ROOT in [path, *path.parents], f"{page.name} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{page.name} links to {target}#{anchor}"


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    named = {match["target"].partition("#")[0] for match in LINK.finditer(prose(index.read_text()))}
    assert {path.name for path in index.parent.glob("*.md") if path != index} <= named


def test_a_wrong_page_is_reported(tmp_path: Path) -> None:
    """The runner: one namespace, the printed text, and the location of an error."""
    page = tmp_path / "page.md"
    page.write_text("# A b\n\n```python\nx = 2\n```\n\n```python\nprint(x)\n```\n\n```text output\n3\n```\n")
    assert [(code.line, output.code) for code, output in promised(page.read_text()).items()] == [(8, "3\n")]
    assert [printed for _, printed in run(page)] == ["", "2\n"]
    with pytest.raises(AssertionError, match="line 8"):
        check(page)
    page.write_text("```bash\nnot python\n```\n\n```python\n\nraise ValueError\n```\n")
    with pytest.raises(ValueError) as caught:
        run(page)
    assert caught.traceback[-1].lineno + 1 == 7
