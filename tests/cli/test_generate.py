"""mgpt-generate: prompts, texts and statistics, conversations, and every way to name a model."""

import builtins
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt.checkpoint import load_checkpoint, save_checkpoint
from modular_gpt.cli import generate_task
from modular_gpt.cli import text_writer as _writer
from modular_gpt.cli.composition import schema
from modular_gpt.data import build_tokenizer
from modular_gpt.generation import GenerationConfig, Step, generate
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from tests.cli.conftest import Answer, Run, type_lines

STATISTICS = re.compile(r"\[(\d+) tokens in [\d.]+ s: [\d,.]+ tokens/s, cache ([\d,]+) bytes\]")
CPU = "device=cpu"


@pytest.fixture
def model(folder: Path) -> Path:
    """A checkpoint of a small byte-level model that generates past its context."""
    torch.manual_seed(1)
    config = GPTConfig(vocab_size=256, d_model=16, n_heads=2, n_layers=2, context_length=24, pos="rope")
    return save_checkpoint(folder / "model", GPTModel(config), build_tokenizer("byte"))


@pytest.fixture
def write(run: Run, model: Path) -> Callable[..., Answer]:
    """Generate with the small model."""
    return lambda *arguments: run("generate", f"checkpoint={model}", CPU, *arguments)


def test_the_default_checkpoint_is_the_latest_run(run: Run, trained: Answer) -> None:
    answer = run("generate", "prompt=the c", "max_new_tokens=8", CPU)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("the c") and STATISTICS.search(answer.out)


def test_the_text_equals_that_of_the_library(write: Callable[..., Answer], model: Path) -> None:
    loaded = load_checkpoint(model)
    prompt = torch.tensor([list(b"def ")])
    settings = {"temperature": 0.7, "top_k": 20, "seed": 5}
    expected = generate(loaded.model, prompt, 12, **settings)[0].tolist()
    answer = write(
        "prompt=def ", "max_new_tokens=12", *(f"{key}={value}" for key, value in settings.items()), "pack=false"
    )
    assert answer.code == 0, answer.err
    text, statistics = answer.out.rsplit("\n[", 1)
    assert text == bytes(expected).decode(errors="replace")
    tokens, cache = STATISTICS.search(f"[{statistics}").groups()  # type: ignore[union-attr]
    assert int(tokens) == 12
    assert int(cache.replace(",", "")) == loaded.model.config.cache_bytes(1, 15)


def test_greedy_text_is_equal_packed_and_unpacked(write: Callable[..., Answer]) -> None:
    arguments = ("prompt=x", "greedy=true", "max_new_tokens=8")
    plain = write(*arguments, "pack=false")
    if torch.backends.mkldnn.is_available():
        assert write(*arguments, "pack=true").out.rsplit("[", 1)[0] == plain.out.rsplit("[", 1)[0]


def test_the_text_is_streamed(write: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(builtins, "print", lambda *texts, **how: shown.append("".join(map(str, texts))))
    write("prompt=ab", "max_new_tokens=6", "seed=1")
    assert shown[0] == "ab" and len(shown) == 1 + 6 + 2  # one chunk per step, the end of the line, the statistics


def test_escapes_in_stop_strings_are_those_of_yaml(
    write: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[str]] = []
    original = generate_task.write_texts

    def seen(task: Any, settings: GenerationConfig, writer: Any) -> None:
        found.append(settings.stop)
        original(task, settings, writer)

    monkeypatch.setattr(generate_task, "write_texts", seen)
    lists = (r'["\n"]', r'["a\tb", c]', r"['\n']", r"""["\\n", "\u00e9", "it's, [x]"]""", r"\n", "[a, b]", r'["\d"]')
    for typed in lists:
        assert write("prompt=ab", "max_new_tokens=1", f"stop={typed}").code == 0
    assert found == [["\n"], ["a\tb", "c"], [r"\n"], [r"\n", "é", "it's, [x]"], [r"\n"], ["a", "b"], [r"\d"]]


def test_json_lines(write: Callable[..., Answer], folder: Path) -> None:
    (folder / "prompts.txt").write_text("def f(\n\nimport é\n", encoding="utf-8")
    answer = write("prompts=prompts.txt", "json=true", "num_return_sequences=2", "max_new_tokens=5", "logprobs=true")
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [(line["index"], line["prompt"], line["sample"]) for line in lines] == [
        (0, "def f(", 0), (0, "def f(", 1), (1, "import é", 0), (1, "import é", 1)
    ]  # fmt: skip
    assert all(line["tokens"] == 5 == len(line["logprobs"]) and line["end"] == "length" for line in lines)
    assert STATISTICS.search(answer.err)


def test_prompts_as_json_lines(write: Callable[..., Answer], folder: Path) -> None:
    (folder / "prompts.jsonl").write_text('{"prompt": "two\\nlines"}\n{"prompt": "x"}\n')
    answer = write("prompts=prompts.jsonl", "json=true", "max_new_tokens=1")
    assert [json.loads(line)["prompt"] for line in answer.out.splitlines()] == ["two\nlines", "x"]


def test_several_texts_have_headings(write: Callable[..., Answer]) -> None:
    out = write("prompt=ab", "num_return_sequences=3", "max_new_tokens=2", "seed=3").out
    assert [line for line in out.splitlines() if line.startswith("---")] == [f"--- 'ab', {n} of 3" for n in (1, 2, 3)]


def test_default_prompts(write: Callable[..., Answer], run: Run, trained: Answer) -> None:
    assert write("max_new_tokens=2").out.count("---") == 5
    answer = run("generate", CPU, "max_new_tokens=2")  # its characters are those of "the cat sat on the mat. "
    assert answer.code == 2 and "none of the default prompts" in answer.err


def test_former_names_of_settings_are_accepted(write: Callable[..., Answer], folder: Path, run: Run) -> None:
    arguments = ["prompt=ab", "strategy=beam", "max_new_tokens=3", "json=true"]
    before = write(*arguments, "beams=3", "num_samples=2", "log_probabilities=true").out
    assert before == write(*arguments, "num_beams=3", "num_return_sequences=2", "logprobs=true").out
    lines = [json.loads(line) for line in before.splitlines()]
    assert [len(line["logprobs"]) for line in lines] == [3, 3] and lines[0]["log_probabilities"] == lines[0]["logprobs"]
    arguments = ["prompt=ab", "strategy=lookup", "seed=1", "max_new_tokens=3"]
    assert write(*arguments, "lookup_ngram=2").code == write(*arguments, "prompt_lookup_ngram=2").code == 0
    listed = write("--cfg", "job", "beams=3").out
    assert "num_beams: 3" in listed and "\nbeams" not in listed


def test_former_names_in_a_yaml_file(write: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    conf = schema.conf_dir()
    yaml = "defaults: [generate_schema, _self_]\nlookup_ngram: 5\nlog_probabilities: true\n"
    copy = Path("own_conf").absolute()
    shutil.copytree(conf, copy)
    (copy / "generate.yaml").write_text(yaml)
    monkeypatch.setattr(schema, "conf_dir", lambda: copy)
    listed = write("--cfg", "job", "json=true").out
    assert "prompt_lookup_ngram: 5" in listed and "logprobs: true" in listed and "\nlookup_ngram" not in listed


@pytest.mark.parametrize("strategy", ["beam", "contrastive", "lookup", "speculative"])
def test_strategies(write: Callable[..., Answer], model: Path, strategy: str) -> None:
    draft = [f"draft={model}"] if strategy == "speculative" else []
    answer = write("prompt=ab", f"strategy={strategy}", "max_new_tokens=4", *draft)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("ab") and "[4 tokens" in answer.out


def test_stop_strings_and_zero_tokens(write: Callable[..., Answer]) -> None:
    assert write("prompt=ab", "max_new_tokens=0").out.startswith("ab\n[0 tokens")
    whole = write("prompt=ab", "max_new_tokens=9", "seed=1").out.rsplit("\n[", 1)[0]
    stop = whole[5]
    cut = write("prompt=ab", "max_new_tokens=9", "seed=1", f"stop={stop}").out.rsplit("\n[", 1)[0]
    assert cut == whole[: whole.index(stop, 2)]


def test_past_the_context(write: Callable[..., Answer], run: Run, trained: Answer) -> None:
    assert "[40 tokens" in write("prompt=ab", "max_new_tokens=40").out
    learned = run("generate", "prompt=the cat", "max_new_tokens=40", CPU)
    assert learned.code == 2 and "context of 16" in learned.err and learned.out == ""
    assert run("generate", "prompt=the cat", "max_new_tokens=40", "overflow=window", CPU).code == 0


MISTAKES = [
    ("temperature=0", ["temperature must be above 0", "greedy=true"]),
    ("top_k=0", ["top_k must be 1 or more"]),
    ("top_p=2", ["top_p must lie in (0, 1]"]),
    ("max_new_tokens=-1", ["max_new_tokens must be 0 or more"]),
    ("max_new_tokens=abc", ["max_new_tokens must be a whole number, got 'abc'"]),
    ("num_samples=0", ["num_return_sequences must be 1 or more"]),
    ("greedy=true num_samples=2", ["num_return_sequences=2 would all be the same text"]),
    ("promt=x", ["no setting 'promt'", "did you mean 'prompt'?"]),
    ("attention=gqa", ["no setting 'attention'"]),
    ("prompt=", ["the prompt is empty"]),
    ("batch_size=4", ["batch_size=4 is for a file of prompts"]),
    ("prompts=none.txt batch_size=0", ["batch_size must be 1 or more"]),
    ("interactive=true num_samples=2", ["a conversation has one answer to each prompt"]),
    ("greedy=true temperature=0.3", ["greedy=true takes the most likely token and has no use for temperature"]),
    ("greedy=true top_p=0.5", ["has no use for top_p"]),
    ("strategy=beam length_penalty=1e30", ["length_penalty=1e+30 overflows"]),
    ("logit_bias={3: 1e39}", ["logit_bias of token 3 must be -inf or a number that float32 can hold"]),
    ("prompt=x prompts=y", ["prompt and prompts exclude each other"]),
    ("json=true interactive=true", ["json=true has no conversation"]),
    ("prompts=none.txt", ["cannot read the prompts in 'none.txt'"]),
    ("prompts=latin.txt", ["'latin.txt' is not UTF-8 (at byte 3)"]),
    ("prompts=empty.txt", ["'empty.txt' has no prompts"]),
    ("prompts=bad.jsonl", ["'bad.jsonl', line 2"]),
    ("device=tpu", ["device=tpu cannot be used here"]),
    ("dtype=int8", ["no choice 'int8'"]),
    ("strategy=speculative", ["needs a draft model"]),
    ("strategy=beem", ["did you mean 'beam'?"]),
    ("logit_bias={300: 1}", ["ids run from 0 to 255"]),
    ("logit_bias.x=1", ["logit_bias.x=1"]),
    ("checkpoint=nowhere", ["there is no checkpoint at 'nowhere'", "gpt2-medium"]),
    ("checkpoint=gpt3", ["did you mean 'gpt2'?"]),
    ("checkpoint=./none", ["there is no"]),
    ("checkpoint=runs/none", ["there is no checkpoint at 'runs/none'"]),
    ("checkpoint=empty.txt", ["'empty.txt' is a file"]),
    ("checkpoint=broken", ["is damaged"]),
    ("checkpoint=no_tokenizer", ["has no tokenizer"]),
    ("--multirun seed=1,2", ["mgpt-generate has the flags"]),
    ("prompt=héllo checkpoint=runs/latest", ["'é'", "char tokenizer"]),
]


@pytest.mark.parametrize(("arguments", "excerpts"), MISTAKES, ids=[given for given, _ in MISTAKES])
def test_a_mistake_gets_one_sentence(
    write: Callable[..., Answer], trained: Answer, folder: Path, model: Path, arguments: str, excerpts: list[str]
) -> None:
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "empty.txt").write_text("\n\n")
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    save_checkpoint(folder / "no_tokenizer", load_checkpoint(model).model)
    save_checkpoint(folder / "broken", load_checkpoint(model).model)
    (folder / "broken" / "model.safetensors").write_bytes(b"x" * 100)
    answer = write("prompt=ab", "max_new_tokens=2", *([arguments] if "{" in arguments else arguments.split()))
    if "prompts=" in arguments or "interactive" in arguments:
        answer = write(*arguments.split())
    assert answer.code == 2
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    for excerpt in excerpts:
        assert excerpt in answer.err
    assert answer.out == ""


def test_a_published_model_in_its_original_format(run: Run, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    reference = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    reference.save_pretrained(folder / "reference")
    tokenizer.save(str(folder / "reference" / "tokenizer.json"))
    answer = run("generate", "checkpoint=reference", "prompt=ab c", "greedy=true", "max_new_tokens=6", CPU)
    assert answer.code == 0, answer.err
    ids = torch.tensor([tokenizer.encode("ab c").ids])
    expected = reference.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert answer.out.rsplit("\n[", 1)[0] == tokenizer.decode(expected[0].tolist())
    (folder / "reference" / "tokenizer.json").unlink()
    answer = run("generate", "checkpoint=reference", "prompt=x", CPU)
    assert answer.code == 2 and "no tokenizer.json" in answer.err


def test_weights_in_bf16(write: Callable[..., Answer]) -> None:
    whole = STATISTICS.search(write("prompt=ab", "max_new_tokens=4").out).group(2)  # type: ignore[union-attr]
    half = STATISTICS.search(write("prompt=ab", "max_new_tokens=4", "dtype=bf16").out).group(2)  # type: ignore[union-attr]
    assert int(whole.replace(",", "")) == 2 * int(half.replace(",", ""))


# Conversations by typed lines; an exception stands for a key such as Ctrl-C.


@pytest.fixture
def talk(write: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    def say(*lines: str | BaseException, arguments: tuple[str, ...] = ()) -> Answer:
        type_lines(monkeypatch, lines)
        return write("interactive=true", "max_new_tokens=4", "greedy=true", *arguments)

    return say


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The prompts given to the model, in order."""
    given: list[bytes] = []
    original = _writer.Writer.write

    def write(self: _writer.Writer, ids: list[int], *rest: object) -> object:
        given.append(bytes(ids))
        return original(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(_writer.Writer, "write", write)
    return given


def test_a_conversation_continues_the_previous_text(talk: Callable[..., Answer], prompts: list[bytes]) -> None:
    answer = talk("ab", "cd", "clear", "ef", "quit", "never read")
    assert answer.code == 0
    assert prompts[0] == b"ab" and prompts[2] == b"ef" and len(prompts) == 3
    assert prompts[1].startswith(b"ab") and prompts[1].endswith(b"\ncd") and len(prompts[1]) == 2 + 4 + 1 + 2
    assert "[12 tokens" in answer.out


def test_a_conversation_ends_with_its_input(talk: Callable[..., Answer]) -> None:
    answer = talk()
    assert answer.code == 0 and "[0 tokens" in answer.out


def test_settings_change_in_a_conversation(talk: Callable[..., Answer]) -> None:
    answer = talk("max_new_tokens=2", "ab", "settings", "temperature=0", "top_q=3", "ab", "top_k=x", "help")
    assert answer.code == 0
    assert (
        "[4 tokens" not in answer.out and "[6 tokens" in answer.out
    )  # "top_q=3" is no setting, and so is continued as text
    assert "max_new_tokens=2" in answer.out and "greedy=true" in answer.out
    assert "error: temperature must be above 0" in answer.out
    assert "error: top_k must be a whole number" in answer.out


def test_ctrl_c_and_undecodable_input_keep_the_conversation(talk: Callable[..., Answer], prompts: list[bytes]) -> None:
    answer = talk("ab", KeyboardInterrupt(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), "", "quit")
    assert answer.code == 0 and "not UTF-8" in answer.out
    assert len(prompts) == 2 and prompts[1].startswith(b"ab")


def test_ctrl_c_stops_a_text_and_not_the_conversation(
    talk: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _writer.Generation.__iter__

    def interrupted(self: _writer.Generation) -> Iterator[Step]:
        steps = original(self)

        def two() -> Iterator[Step]:
            yield next(steps)
            yield next(steps)
            steps.close()  # type: ignore[attr-defined]
            raise KeyboardInterrupt

        return two()

    monkeypatch.setattr(_writer.Generation, "__iter__", interrupted)
    answer = talk("ab", "cd", "quit")
    assert answer.code == 0 and "[4 tokens" in answer.out


def test_a_long_conversation_stays_within_learned_positions(
    run: Run, trained: Answer, talk: Callable[..., Answer]
) -> None:
    answer = talk(*["the cat"] * 4, "quit", arguments=("checkpoint=runs/latest",))
    assert answer.code == 0 and "error" not in answer.out and "[16 tokens" in answer.out


def test_unknown_characters_are_reported_in_a_conversation(trained: Answer, talk: Callable[..., Answer]) -> None:
    answer = talk("the é", "the cat", arguments=("checkpoint=runs/latest",))
    assert "error: character 'é'" in answer.out and "[4 tokens" in answer.out


def test_generation_writes_no_files(write: Callable[..., Answer], folder: Path) -> None:
    write("prompt=ab", "max_new_tokens=1")
    assert {path.name for path in folder.iterdir()} == {"model"}
