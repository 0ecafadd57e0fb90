"""mgpt-eval: metrics of a text, of the text of a run, and of tasks; mistakes in one sentence."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.cli import evaluate, generate
from modular_gpt.data import CharTokenizer, build_corpus, build_tokenizer, prepare
from modular_gpt.evaluation import evaluate_text, evaluate_tokens
from modular_gpt.training.config import RunConfig

TEXT = "Ein Text, der gezählt wird.\r\nZweite Zeile.\n"


def small() -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(GPTConfig(vocab_size=256, d_model=16, n_heads=2, n_layers=1, context_length=16, init_std=0.3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and a checkpoint, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    run = RunConfig(data={"name": "text", "path": str(tmp_path / "text.txt"), "val_fraction": 0.5}).to_dict()
    save_checkpoint(tmp_path / "small", small(), build_tokenizer("byte"), meta={"run": run})
    save_checkpoint(tmp_path / "alone", small(), build_tokenizer("byte"))
    save_checkpoint(tmp_path / "without", small(), None)
    (tmp_path / "large").mkdir()
    CharTokenizer("".join(map(chr, range(32, 332)))).save(tmp_path / "large")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert evaluate.main(["json=true", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("stride", [None, 5])
def test_a_text(folder: Path, capsys: pytest.CaptureFixture[str], stride: int | None) -> None:
    found = run(capsys, "checkpoint=small", "text=text.txt", *([] if stride is None else [f"stride={stride}"]))["text"]
    expected = evaluate_text(small(), build_tokenizer("byte"), TEXT.replace("\r\n", "\n"), stride=stride)
    for name in ("loss", "perplexity", "bits_per_byte", "tokens", "bytes", "context", "stride"):
        assert found[name] == pytest.approx(getattr(expected, name))
    assert evaluate.main(["checkpoint=small", "text=text.txt"]) == 0
    assert "bits per byte" in capsys.readouterr().out


def test_the_text_of_the_run_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "checkpoint=small")["text"]
    corpus = build_corpus({"name": "text", "path": "text.txt", "val_fraction": 0.5})
    split = prepare(corpus, build_tokenizer("byte")).validation
    assert found["loss"] == pytest.approx(evaluate_tokens(small(), split.array, split.bytes).loss)
    size = len(TEXT.replace("\r\n", "\n").encode())
    assert 0 < found["tokens"] < size
    train = run(capsys, "checkpoint=small", "split=train")["text"]
    assert train["tokens"] + found["tokens"] == size


def test_several_files_are_one_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read as by a corpus: without byte order marks, each file once."""
    (folder / "more.md").write_bytes(b"\xef\xbb\xbfmore\r\n")
    expected = evaluate_text(small(), build_tokenizer("byte"), TEXT.replace("\r\n", "\n") + "more\n")
    for argument in ("text=[text.txt,*.md,./text.txt]", f"text=[{folder}/text.txt,more.md]"):
        assert run(capsys, "checkpoint=small", argument)["text"]["loss"] == pytest.approx(expected.loss)


@pytest.mark.parametrize("arguments", [("path=*.txt",), ("data.path=[text.txt]",)])
def test_the_files_of_a_corpus(folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    found = run(capsys, "checkpoint=alone", "corpus=text", *arguments)["text"]
    split = prepare(build_corpus({"name": "text", "path": "text.txt"}), build_tokenizer("byte")).validation
    assert found["loss"] == pytest.approx(evaluate_tokens(small(), split.array, split.bytes).loss)


def test_a_given_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = run(capsys, "checkpoint=small", "text=text.txt")
    for name in ("byte", "alone", "small/tokenizer.json"):
        assert run(capsys, "checkpoint=without", "text=text.txt", f"tokenizer={name}") == expected
        assert generate.main(["checkpoint=without", f"tokenizer={name}", "prompt=a", "max_new_tokens=2"]) == 0
        assert capsys.readouterr().out.startswith("a")
    assert evaluate.main(["checkpoint=without", "text=text.txt"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["checkpoint=alone"], "give text=<file> or corpus=<name>"),
        (["checkpoint=none", "text=text.txt"], "there is no checkpoint"),
        (["text=none.txt"], "there is no file 'none.txt' (seen from"),
        (["text=small/model.safetensors"], "so it is no text"),
        (["text=text.txt", "corpus=python_stdlib"], "exclude each other"),
        (["corpus=shakspeare"], "did you mean 'shakespeare'"),
        (["text=text.txt", "stride=17"], "stride must be from 1 to the context of 16"),
        (["text=text.txt", "strid=17"], "did you mean 'stride'"),
        (["text=text.txt", "limit=3"], "limit is for tasks"),
        (["text=text.txt", "max_new_tokens=3"], "max_new_tokens is for records"),
        (["records=none.jsonl", "stride=4"], "stride is for a text"),
        (["split=test"], "no choice 'test'"),
        (["corpus=text"], "needs path=<file or pattern>"),
        (["path=text.txt"], "path is for a corpus: give corpus=text path=..."),
        (["corpus=python_stdlib", "path=text.txt"], "no setting 'path'"),
        (["text=text.txt", "tokenizer=bpe"], "or give the path of a tokenizer.json"),
        (["text=text.txt", "tokenizer=large"], "tokenizer=large has 300 ids but the model only 256"),
        (["--multirun"], "has the flags"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["checkpoint=small", *arguments]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


def test_tasks_without_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert evaluate.main(["checkpoint=small", "tasks=piqa"]) == 2
    assert "pip install 'modular-gpt[eval]'" in capsys.readouterr().err


def test_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    (folder / "data.jsonl").write_text(json.dumps({"text": "Some text to read."}) + "\n")
    (folder / "reading.yaml").write_text(
        f"task: reading\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'data.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    found = run(capsys, "checkpoint=small", "tasks=reading.yaml")
    assert found["reading"]["bits_per_byte,none"] > 1
    assert evaluate.main(["checkpoint=small", "tasks=readin", "include=."]) == 2
    assert "did you mean reading" in capsys.readouterr().err
