"""mgpt-inspect: a page about a checkpoint and a text; mistakes in one sentence."""

from pathlib import Path

import pytest
import torch

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.cli import inspect
from modular_gpt.data import build_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and a checkpoint, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(vocab_size=256, d_model=16, n_heads=2, n_layers=2, context_length=24))
    save_checkpoint(tmp_path / "small", model, build_tokenizer("byte"))
    (tmp_path / "book.txt").write_text("A book, that is longer than the model reads.")
    return tmp_path


def test_a_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["checkpoint=small", "prompt=a = b, {c} # d"]) == 0
    assert capsys.readouterr().out == "wrote inspect.html\n"
    page = (folder / "inspect.html").read_text(encoding="utf-8")
    assert "<h1>small: mha, 2 layers, 2 heads</h1>" in page
    assert page.count('class="token"') == len("a = b, {c} # d")
    assert page.count("<canvas") == 4


def test_a_file_chosen_layers_and_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["checkpoint=small", "text=book.txt", "layers=[1]", "max_tokens=9", "out=book.html"]
    assert inspect.main(arguments) == 0
    assert capsys.readouterr().out == "wrote book.html\n"
    page = (folder / "book.html").read_text(encoding="utf-8")
    assert page.count("<canvas") == 2 and page.count('class="token"') == 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["checkpoint=small"], "give the text that the model reads: prompt='...' or text=<file>"),
        (["checkpoint=small", "prompt=a", "text=book.txt"], "prompt and text exclude each other"),
        (["checkpoint=small", "prompt=a"], "the text 'a' has 1 token; give one with at least 2"),
        (
            ["checkpoint=small", "prompt=ab", "layers=[2]"],
            "layers=2 does not exist; the blocks of this model are 0 to 1",
        ),
        (["checkpoint=small", "prompt=ab", "max_tokens=1"], "max_tokens=1 must lie between 2 and 256"),
        (["checkpoint=nothing", "prompt=ab"], "nothing"),
        (["checkpoint=small", "text=none.txt"], "none.txt"),
        (["checkpoint=small", "prompt=ab", "out=book.txt/page.html"], "book.txt/page.html"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert inspect.main(arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err
    assert not (folder / "inspect.html").exists()
