"""Overrides of a resumed run are composed over the components and settings of the run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modular_gpt import compose
from modular_gpt.training import RunConfig
from tests.cli.conftest import TINY, Answer, Run

SETTINGS = (
    *("optim=muon", "optim.learning_rate=0.0007", "optim.weight_decay=0.7", "ffn=moe", "ffn.n_experts=2"),
    *("ffn.balance_weight=0.05", "data.val_fraction=0.3", "schedule=wsd"),
    *("attention=gqa", "attention.n_kv_heads=1", "trainer.ema_decay=0.9", "seed=5"),
)


@pytest.fixture
def before(train_once: Callable[..., Answer]) -> RunConfig:
    """The settings of a run of two steps that is far from the defaults."""
    train_once(*TINY, *SETTINGS)
    return compose("resume=runs/latest")


def differences(one: RunConfig, other: RunConfig) -> dict[str, object]:
    """Dotted settings of ``other`` that differ from those of ``one``."""

    def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in values.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        return found

    left, right = flat(one.to_dict()), flat(other.to_dict())
    return {name: right.get(name) for name in {*left, *right} if left.get(name) != right.get(name)}


CHANGES = [
    (("optim.momentum=0.9",), {"optim.momentum": 0.9}),
    (("optim=muon", "optim.momentum=0.9"), {"optim.momentum": 0.9}),
    (("optim.learning_rate=0.1",), {"optim.learning_rate": 0.1}),
    (("data.path=elsewhere.txt",), {"data.path": "elsewhere.txt"}),
    (("data=text", "data.path=elsewhere.txt"), {"data.path": "elsewhere.txt"}),
    (("ffn.balance_weight=0.1",), {"model.ffn.balance_weight": 0.1}),
    (("attention=gqa", "ffn=moe", "schedule=wsd"), {}),
    (("schedule.decay=0.5",), {"schedule.decay": 0.5}),
    (("trainer.max_steps=9", "trainer.ema_decay=null"), {"trainer.max_steps": 9, "trainer.ema_decay": None}),
    (("model.dropout=0.1", "model_size.d_model=32"), {"model.dropout": 0.1, "model.d_model": 32}),
]


def test_one_setting_changes_one_setting(before: RunConfig) -> None:
    assert before.resume == "runs/latest"
    assert before.optim.learning_rate == 0.0007 and before.data.val_fraction == 0.3
    for arguments, expected in CHANGES:
        assert differences(before, compose("resume=runs/latest", *arguments)) == expected, arguments
    other = compose("resume=runs/latest", "optim=adamw")
    assert (other.optim.name, other.optim.learning_rate) == ("adamw", RunConfig().optim.learning_rate)


def test_a_text_that_moved(run: Run, before: RunConfig, folder: Path) -> None:
    (folder / "text.txt").rename(folder / "moved.txt")
    answer = run("train", "resume=runs/latest", "data.path=moved.txt", "trainer.max_steps=3")
    assert answer.code == 0, answer.err
    assert "from step 2" in answer.out


def test_cfg_shows_the_settings_of_the_resumed_run(run: Run, before: RunConfig) -> None:
    answer = run("train", "--cfg", "job", "resume=runs/latest", "trainer.max_steps=3")
    assert answer.code == 0, answer.err
    assert "learning_rate: 0.0007" in answer.out and "max_steps: 3" in answer.out
    assert "balance_weight: 0.05" in answer.out


def test_saved_settings_of_a_run_are_data(run: Run, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpolation in the saved settings of a run is a text and does not read the environment."""
    monkeypatch.setenv("SECRET", "s3cr3t")
    prompt = r"the \${oc.env:SECRET} ${oc.env:SECRET}"
    base = [*corpus.split(), *TINY, "tokenizer=byte"]
    assert run("train", *base, f"trainer.sample_prompt={prompt}").code == 0
    again = compose("resume=runs/latest", "trainer.max_steps=3")
    assert again.trainer.sample_prompt == prompt


def test_saved_settings_of_a_source_model_are_data(
    run: Run, corpus: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved tokenizer settings of a model are read as data and validated."""
    from modular_gpt.checkpoint import load_checkpoint, save_checkpoint

    monkeypatch.setenv("SECRET", "s3cr3t")
    assert run("train", *corpus.split(), *TINY).code == 0
    model, tokenizer, _ = load_checkpoint("runs/latest")
    kept = {"name": "hf", "path": "${oc.env:SECRET}"}  # the tokenizer itself is in the checkpoint
    save_checkpoint("travelled", model, tokenizer, meta={"run": {"tokenizer": kept}})
    assert compose("init_from=travelled").tokenizer.path == "${oc.env:SECRET}"
    for notes in ({"name": "${oc.env:SECRET}"}, {"x": 1}, "byte${x}", {"name": "byte", "a.b": "${oc.env:SECRET}"}):
        save_checkpoint("evil", model, tokenizer, meta={"run": {"tokenizer": notes}})
        answer = run("train", *corpus.split()[:2], *TINY[4:], "init_from=evil")
        assert answer.code == 2 and "s3cr3t" not in answer.err and answer.err.startswith("error: "), notes
        assert len(answer.err.strip().splitlines()) == 1
