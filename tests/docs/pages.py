"""The Markdown pages as data: their code blocks, their links, and the execution of their Python blocks.

Blocks marked ``python`` are run in order, in one namespace per page. A following block marked ``text output`` is the
expected output. To write the printed text into pages: python -m tests.docs.pages FILE...
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

import modular_gpt.training  # noqa: F401  registers the slots of a run, before a page can
from modular_gpt.core import registry

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<kind>[^\n`]*)\n(?P<code>.*?)^(?P=ticks)[ \t]*$\n?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)
OUTPUT = "text output"
TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string, its code, and the first line of the code."""

    kind: str
    code: str
    line: int


def pages() -> list[Path]:
    """The pages at the top of the checkout and everything in docs/."""
    return [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(match["kind"].strip(), match["code"], text.count("\n", 0, match.start("code")) + 1)
        for match in FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors of a page, by GitHub's rule."""
    titles = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", match["title"]) for match in HEADING.finditer(FENCE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def run(page: Path) -> list[tuple[Block, str]]:
    """Run the Python blocks of a page in the working directory; returns each with its output."""
    namespace: dict[str, object] = {"__name__": "__page__"}
    printed = []
    with torch.enable_grad(), restored_registry():  # restores the gradient mode afterwards
        for block in blocks(page.read_text()):
            if block.kind == "python":
                stdout = io.StringIO()
                # leading blank lines, so that a traceback shows the line of the page
                code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
                with contextlib.redirect_stdout(stdout):
                    exec(code, namespace)
                printed.append((block, stdout.getvalue()))
    return printed


@contextlib.contextmanager
def restored_registry() -> Iterator[None]:
    """Context manager: restores the registry afterwards."""
    before = {slot: dict(known) for slot, known in registry._entries.items()}
    try:
        yield
    finally:
        registry._entries.clear()
        registry._entries.update(before)


def promised(text: str) -> dict[Block, Block]:
    """Python block -> the block below it with its expected output."""
    return {code: output for code, output in pairwise(blocks(text)) if (code.kind, output.kind) == ("python", OUTPUT)}


def check(page: Path) -> None:
    """Run a page and compare each output block with the printed text."""
    expected = promised(page.read_text())
    for block, printed in run(page):
        if block in expected:
            assert printed == expected[block].code, f"{page.name}, line {block.line}, prints something else"


def files(text: str) -> dict[str, str]:
    """The blocks with a file name after their language: path -> content."""
    named = (block for block in blocks(text) if len(block.kind.split()) == 2)
    return {block.kind.split()[1]: block.code for block in named if "." in block.kind}


def rewrite(page: Path) -> None:
    """Write the printed text of the Python blocks into the output blocks below them."""
    text = page.read_text()
    expected = promised(text)
    printed = {expected[block].line: output for block, output in run(page) if block in expected}

    def replace(match: re.Match[str]) -> str:
        line = text.count("\n", 0, match.start("code")) + 1
        return f"```{OUTPUT}\n{printed[line]}```\n" if line in printed else match[0]

    page.write_text(FENCE.sub(replace, text))


def lay_out(text: str, folder: Path) -> None:
    """Write the files of a page into a folder, as its reader would."""
    for name, content in files(text).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


if __name__ == "__main__":
    if len(sys.argv) > 2:  # a separate process per page, so that no page sees components of another
        for name in sys.argv[1:]:
            subprocess.run([sys.executable, "-m", "tests.docs.pages", name], check=True)
    else:
        path = Path(sys.argv[1]).resolve()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            os.environ["MODULAR_GPT_CACHE"] = folder
            lay_out(path.read_text(), Path(folder))
            sys.path.insert(0, folder)
            rewrite(path)
