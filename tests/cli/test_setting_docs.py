"""Every setting of every command has a help text of whole sentences, and ``--help`` explains any name it is given."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest

from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.schema import Command, options
from modular_gpt.cli.composition.train_config import TRAIN
from modular_gpt.cli.convert_task import CONVERT
from modular_gpt.cli.evaluate_task import EVAL
from modular_gpt.cli.generate_task import GENERATE
from modular_gpt.cli.inspect_task import INSPECT
from modular_gpt.cli.setting_docs import plain_text, sentence, setting_docs
from modular_gpt.core.registry import ComponentConfig
from tests.cli.conftest import Run

COMMANDS = {command.name: command for command in (TRAIN, GENERATE, EVAL, CONVERT, INSPECT)}
OPEN_ENDS = ("a", "an", "and", "for", "of", "or", "that", "the", "which", "with")
BRACKETS = ("()", "[]", "{}")


def sections(command: Command) -> Iterator[tuple[str, Any]]:
    """Each group of settings, and each option with a dataclass of its own, with its defaults."""
    yield f"{command.name}", command.starts(conf_dir())
    for group in command.groups():
        for name, schema in command.schemas(group).items():
            yield f"{command.name}-{group}-{name}", schema.defaults


ALL = [section for command in COMMANDS.values() for section in sections(command)]


def texts(defaults: Any) -> Iterator[tuple[str, str]]:
    found = setting_docs(type(defaults))
    for field in fields(defaults):
        value = getattr(defaults, field.name)
        if is_dataclass(value):
            yield from texts(value)
        elif not (field.name == "name" and isinstance(defaults, ComponentConfig)):
            yield field.name, found.get(field.name, "")


def faults(text: str) -> list[str]:
    """The reasons why a text does not consist of whole sentences."""
    without_intervals = re.sub(r"\[0, 1\)|\(-c, c\)", "", text)
    last = text.rstrip(".").rpartition(" ")[2]
    checks = {
        "it has fewer than three words": len(text.split()) < 3,
        "it has no capital letter": not re.match(r"[A-Z]", text),
        "it has no full stop": not text.endswith((".", "!", "?")),
        "its brackets do not match": any(without_intervals.count(a) != without_intervals.count(b) for a, b in BRACKETS),
        "it ends in mid-sentence": last in OPEN_ENDS,
        "it has marks of a docstring": "``" in text,
        "a sentence begins without a full stop before it": bool(
            re.search(r"[a-z)] (The|A|An|By|When|Stacks) [a-z]", text)
        ),
    }
    return [about for about, wrong in checks.items() if wrong]


@pytest.mark.parametrize(("name", "defaults"), ALL, ids=[name for name, _ in ALL])
def test_every_setting_has_a_text_of_whole_sentences(name: str, defaults: Any) -> None:
    bad = {key: (text, faults(text)) for key, text in texts(defaults) if faults(text)}
    assert not bad


@pytest.mark.parametrize(
    "text", ["", "always filtered by", "Recompute (1: all.", "What is ``odd`` here.", "is updated Stacks of it."]
)
def test_a_bad_text_is_reported(text: str) -> None:
    assert faults(text)


@dataclass
class Documented:
    """Settings of a test.

    first: number of ``things``;
        continued: here
    second, third: both of these; fourth: a short one
    hidden: no field of this class

    fifth: after an empty line
    """

    first: int = 0
    second: int = 0
    third: int = 0
    fourth: int = 0
    fifth: int = 0


def test_the_parser_reads_each_form_of_a_documented_field() -> None:
    assert setting_docs(Documented) == {
        "first": "Number of things; continued: here.",
        "second": "Both of these.",
        "third": "Both of these.",
        "fourth": "A short one.",
        "fifth": "After an empty line.",
    }
    assert sentence("n_layers is kept") == "n_layers is kept."
    assert plain_text("a ``b``\n  c") == "a b c"


@pytest.mark.parametrize(
    ("topic", "excerpts"),
    [
        ("gqa", ["attention=gqa - Grouped-query attention", "attention.n_kv_heads=2"]),
        ("attention=mla", ["attention=mla - ", "attention.kv_lora_rank=null"]),
        ("lora", ["lora.rank=null", "lora.targets=[]"]),
        ("model", ["model.dropout=0.0", "model.topology=pre"]),
        ("attention.window", ["attention.window=null", "attention.window=64", "Default of swa"]),
        ("trainer.lr", ["optim.learning_rate (trainer.lr in other programs)", "optim.learning_rate=null"]),
        ("n_embd", ["model_size.d_model=128"]),
        ("gpt2-xl", ["model_size=gpt2-xl", "n_layers=48"]),
        ("shakespeare_char", ["experiment=shakespeare_char", "override /tokenizer: char"]),
        ("seed", ["seed=0"]),
        ("none", ["parallel=none", "logger=none", "pos=none"]),
    ],
)
def test_help_explains_groups_options_and_settings(run: Run, topic: str, excerpts: list[str]) -> None:
    answer = run("train", "--help", topic)
    assert answer.code == 0, answer.err
    printed = " ".join(answer.out.split())
    assert [excerpt for excerpt in excerpts if excerpt not in printed] == []
    assert "Examples" not in answer.out


@pytest.mark.parametrize(
    ("command", "topic", "excerpts"),
    [
        ("train", "attenion", ["no group, option or setting 'attenion'", "did you mean 'attention'?"]),
        ("train", "foo", ["no group, option or setting 'foo'", "groups: model_size, attention"]),
        ("train", "window", ["did you mean 'attention.window'?"]),
        ("generate", "temprature", ["did you mean 'temperature'?"]),
        ("generate", "gqa", ["no group, option or setting 'gqa'"]),
    ],
)
def test_help_on_something_unknown_is_a_mistake(run: Run, command: str, topic: str, excerpts: list[str]) -> None:
    answer = run(command, "--help", topic)
    assert (answer.code, answer.out) == (2, "")
    assert [excerpt for excerpt in excerpts if excerpt not in answer.err] == []


def test_help_of_another_command_explains_one_setting(run: Run) -> None:
    answer = run("generate", "--help", "temperature")
    assert answer.code == 0 and answer.out.startswith("temperature\n  temperature=0.8 ")


def test_sizes_are_listed_from_small_to_large() -> None:
    assert list(options(TRAIN, "model_size", [conf_dir()])) == [
        *("pico", "nano", "small", "baby", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    ]


def test_summaries_of_options_are_complete_and_without_markup() -> None:
    for group in TRAIN.choices():
        for name, line in options(TRAIN, group, [conf_dir()]).items():
            assert "``" not in line and line.count("(") == line.count(")"), f"{group}={name}"
