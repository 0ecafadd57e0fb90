"""prompts=FILE: reading of files, and output of each text as soon as it is complete."""

import codecs
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import DataError
from modular_gpt.checkpoint import load_checkpoint, save_checkpoint
from modular_gpt.checkpoint.resolve import Loaded
from modular_gpt.cli import generate_task, text_writer
from modular_gpt.cli.evaluate_task import EvalSettings, measure
from modular_gpt.cli.finite_weights import check_finite_weights
from modular_gpt.cli.generate_task import Progress, read_prompts
from modular_gpt.cli.text_writer import Writer
from modular_gpt.core import memory
from modular_gpt.core.errors import NonFiniteError
from modular_gpt.data import CharTokenizer, build_tokenizer
from modular_gpt.generation import GenerationConfig
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from tests.cli.conftest import Answer, Run

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"  # line separators of str.splitlines, but not of a file


@pytest.fixture
def model() -> GPTModel:
    torch.manual_seed(1)
    return GPTModel(GPTConfig(vocab_size=256, d_model=16, n_heads=2, n_layers=2, context_length=64, pos="rope"))


@pytest.fixture
def writer(model: GPTModel) -> Writer:
    return Writer(Loaded(model, build_tokenizer("byte")))


@pytest.fixture
def write(run: Run, model: GPTModel, folder: Path) -> Callable[..., Answer]:
    save_checkpoint(folder / "model", model, build_tokenizer("byte"))
    return lambda *arguments: run("generate", "checkpoint=model", "device=cpu", *arguments)


# ----- reading --------------------------------------------------------------------------------------------------------


def as_json(text: str) -> str:
    return json.dumps({"prompt": text}, ensure_ascii=False)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_newlines_separate_prompts(tmp_path: Path, suffix: str, mark: bytes, end: str) -> None:
    prompts = [f"one{SEPARATORS}line", "two é", " three "]
    lines = prompts if suffix == ".txt" else [as_json(prompt) for prompt in prompts]
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes(mark + end.join([lines[0], "", *lines[1:], ""]).encode())
    assert read_prompts(path) == prompts


def test_an_endless_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_task, "MAX_PROMPTS", 1000)
    with pytest.raises(DataError, match="more than 1,000 bytes of prompts"):
        read_prompts(Path("/dev/zero"))


def test_a_line_of_json_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(as_json("a\u2028b") + "\n\n{}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 3 should be like"):
        read_prompts(path)


def test_a_prompt_that_cannot_be_encoded_is_named_before_anything_is_written(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GPTConfig(vocab_size=3, d_model=16, n_heads=2, n_layers=1, context_length=16, pos="rope")
    save_checkpoint(folder / "letters", GPTModel(config), CharTokenizer("abc"))
    (folder / "prompts.txt").write_text("abc\na\nabd\n")
    answer = run("generate", "checkpoint=letters", "device=cpu", "prompts=prompts.txt")
    assert answer.code == 2 and answer.out == ""
    assert "prompt 3 of 'prompts.txt': character 'd'" in answer.err


# ----- writing --------------------------------------------------------------------------------------------------------

PROMPTS = [b"a", b"a longer one", b"mid", b"the longest of them all", b"bc"]


def found(writer: Writer, batch_size: int | None, **settings: Any) -> list[tuple[int, int, list[int], str]]:
    config = GenerationConfig(max_new_tokens=12, **settings)
    ids = [list(prompt) for prompt in PROMPTS]
    return [
        (result.prompt, result.sample, result.text.ids, result.text.reason)
        for result in writer.write_all(ids, config, batch_size)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 3, "num_return_sequences": 2},
        {"seed": 3, "stop_tokens": list(range(0, 250))},
        {"greedy": True},
        {"strategy": "beam", "num_beams": 2, "num_return_sequences": 2},
        {"strategy": "contrastive"},
    ],
)
def test_a_text_does_not_depend_on_its_batch(writer: Writer, settings: dict[str, Any]) -> None:
    one_by_one = found(writer, 1, **settings)
    assert [prompt for prompt, sample, *_ in one_by_one if not sample] == [3, 1, 2, 4, 0], "the longest first"
    for batch_size in (2, 5, None):
        assert sorted(found(writer, batch_size, **settings)) == sorted(one_by_one)


def test_each_text_is_written_when_it_is_complete(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    original = text_writer.Generation.__iter__

    def counted(self: Any) -> Iterator[Any]:
        nonlocal steps
        for step in original(self):
            steps += 1
            yield step

    monkeypatch.setattr(text_writer.Generation, "__iter__", counted)
    config = GenerationConfig(max_new_tokens=40, seed=3, stop_tokens=list(range(0, 60)))
    seen = []
    for result in writer.write_all([list(prompt) for prompt in PROMPTS], config, 3):
        seen.append(steps)
        assert len(result.text.ids) <= steps
    assert len(set(seen)) > 3, "texts of a batch come at different steps"
    assert seen == sorted(seen)


def test_the_batch_is_as_large_as_memory_allows(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GenerationConfig(max_new_tokens=20)
    row = writer.model.config.cache_bytes(1, 30) + 4 * 6 * 256
    for available, expected in ((None, 64), (0, 1), (4 * row * 7 + 1, 7), (10**12, 64)):
        monkeypatch.setattr(memory, "available_bytes", lambda device, available=available: available)
        assert writer.batch_that_fits(30, settings) == expected
    monkeypatch.setattr(memory, "available_bytes", lambda device: 4 * row * 8)
    assert writer.batch_that_fits(30, GenerationConfig(num_return_sequences=4)) == 2
    assert writer.batch_that_fits(30, GenerationConfig(strategy="beam", num_beams=8)) == 1


@pytest.mark.parametrize("form", ["json=true", "json=false"])
def test_a_file_of_prompts(write: Callable[..., Answer], folder: Path, form: str) -> None:
    (folder / "prompts.txt").write_text("a\nlonger\nab\n")
    answer = write("prompts=prompts.txt", "max_new_tokens=3", "batch_size=2", "seed=1", form)
    assert answer.code == 0, answer.err
    if form == "json=true":
        lines = [json.loads(line) for line in answer.out.splitlines()]
        assert [(line["index"], line["prompt"]) for line in lines] == [(1, "longer"), (2, "ab"), (0, "a")]
    else:
        assert re.findall("^--- (.*)$", answer.out, re.MULTILINE) == ["'longer'", "'ab'", "'a'"]


def test_progress_is_on_stderr(write: Callable[..., Answer], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "prompts.txt").write_text("a\nlonger\n")
    monkeypatch.setattr(Progress, "seconds_between_lines", 0.0)
    answer = write("prompts=prompts.txt", "max_new_tokens=3", "json=true")
    assert re.fullmatch(r"1 of 2 texts, [\d,.]+ tokens/s\n2 of 2 texts, .*\n\[6 tokens in .*\]\n", answer.err), (
        answer.err
    )
    assert all(json.loads(line) for line in answer.out.splitlines())


def test_progress_on_a_terminal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(2, sys.stderr)
    progress.show(1, "5 tokens/s")
    progress.clear()
    assert capsys.readouterr().err == "\r1 of 2 texts, 5 tokens/s\r\033[K"


def test_ctrl_c_loses_no_text(write: Callable[..., Answer], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = text_writer.Generation.__iter__
    begun = 0

    def interrupted(self: Any) -> Iterator[Any]:
        nonlocal begun
        begun += 1
        for number, step in enumerate(original(self)):
            if begun == 2 and number == 2:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(text_writer.Generation, "__iter__", interrupted)
    (folder / "prompts.txt").write_text("a\nlonger\nab\n")
    answer = write("prompts=prompts.txt", "max_new_tokens=5", "batch_size=1", "seed=1", "json=true")
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [(line["index"], line["end"], line["tokens"] == 5) for line in lines] == [
        (1, "length", True), (2, "interrupted", False)
    ]  # fmt: skip
    assert "interrupted: 2 of 3 texts" in answer.err


# ----- models that do not fit their tokenizer, and broken ones --------------------------------------------------------


@pytest.mark.parametrize("strategy", ["sample", "beam", "contrastive", "lookup"])
def test_ids_without_text_are_never_sampled(run: Run, folder: Path, strategy: str) -> None:
    """Three characters in a vocabulary of 64: most tokens of an untrained model have no text."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=64, d_model=16, n_heads=2, n_layers=1, context_length=32, pos="rope")
    save_checkpoint(folder / "padded", GPTModel(config), CharTokenizer("abc"))
    (folder / "prompts.txt").write_text("a\nab\nabc\n")
    hot = ["temperature=5"] if strategy in ("sample", "lookup") else []
    arguments = ("checkpoint=padded", "device=cpu", f"strategy={strategy}", "max_new_tokens=25", *hot)
    for asked in ("prompt=abc", "prompts=prompts.txt"):
        answer = run("generate", *arguments, asked, "json=true")
        assert answer.code == 0, answer.err
        for line in answer.out.splitlines():
            text = json.loads(line)
            assert set(text["text"]) <= set("abc") and len(text["text"]) == text["tokens"] == 25


def test_ids_without_text_are_never_sampled_in_conversations_and_streams() -> None:
    torch.manual_seed(0)
    model = GPTModel(vocab_size=64, d_model=16, n_heads=2, n_layers=1, context_length=32)
    writer, chunks = Writer(Loaded(model, CharTokenizer("abc"))), []
    text = writer.write([0, 1], GenerationConfig(max_new_tokens=20, seed=0), chunks.append)
    assert "".join(chunks) == text.text and len(text.text or "") == 20


@pytest.mark.parametrize("arguments", ["prompt=ab", "prompt=ab strategy=beam", "prompts=prompts.txt json=true"])
def test_a_broken_model_is_named_and_exits_with_an_error(
    write: Callable[..., Answer], folder: Path, arguments: str
) -> None:
    (folder / "prompts.txt").write_text("a\nab\n")
    assert write("prompt=ab", "max_new_tokens=1").code == 0
    model = load_checkpoint(folder / "model").model
    with torch.no_grad():
        model.final_norm.weight.fill_(3e38)  # finite, but its products overflow
    save_checkpoint(folder / "model", model, build_tokenizer("byte"))
    answer = write(*arguments.split())
    assert answer.code == 2 and answer.out in ("", "ab\n") and answer.err.count("\n") == 1
    assert "error: the model's logits after" in answer.err and "not finite" in answer.err


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_named(
    write: Callable[..., Answer], model: GPTModel, folder: Path, value: float
) -> None:
    name = next(name for name, _ in model.named_parameters() if "attention" in name)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    save_checkpoint(folder / "model", model, build_tokenizer("byte"))
    (folder / "text.txt").write_text("some text")
    message = f"the weights of 'model' are damaged: {name} is not finite"
    answer = write("prompt=a", "max_new_tokens=3")
    assert answer.code == 2 and answer.out == "" and message in answer.err
    with pytest.raises(NonFiniteError, match=message):
        measure(EvalSettings(checkpoint="model", device="cpu", text="text.txt"))


def test_large_finite_weights_are_finite() -> None:
    layer = torch.nn.Linear(4, 4)
    torch.nn.init.constant_(layer.weight, 3e38)
    check_finite_weights(layer, "model")
