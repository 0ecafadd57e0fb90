"""mgpt-train init_from=...: the config is that of the source model, with the given settings changed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from modular_gpt.core.atomic_files import resolve_link
from tests.cli.conftest import TINY, Answer, Run
from tests.training.small import gpt2_folder

QUICK = TINY[4:]


def latest(folder: Path) -> dict:
    return yaml.safe_load((folder / "runs" / "latest" / "config.yaml").read_text())


def test_only_given_settings_change(run: Run, trained: Answer, folder: Path) -> None:
    arguments = ("init_from=runs/latest", "attention=gqa", "attention.n_kv_heads=1", "data=text", "data.path=text.txt")
    before, first = latest(folder), str(resolve_link(folder / "runs" / "latest").relative_to(folder))
    answer = run("train", *arguments, *QUICK, "model.dropout=0.1")
    assert answer.code == 0, answer.err
    assert "means of 2 heads" in answer.out and "with the original components" in answer.out
    after = latest(folder)
    assert after["tokenizer"] == before["tokenizer"] and after["tokenizer"]["name"] == "char"
    model, old = after["model"], before["model"]
    assert model["attention"]["name"] == "gqa" and model["attention"]["n_kv_heads"] == 1 and model["dropout"] == 0.1
    changed = {name for name, value in model.items() if old.get(name) != value}
    assert changed == {"attention", "dropout", "vocab_size"} and model["pos"]["name"] == "learned"
    resumed = run("train", "resume=runs/latest", "trainer.max_steps=4")
    assert resumed.code == 0 and "from step 2" in resumed.out and "original components" not in resumed.out
    assert latest(folder)["init_from"] == first  # runs/latest is this run by now


def test_settings_of_a_component_of_the_source_model(run: Run, corpus: str, folder: Path) -> None:
    assert run("train", *corpus.split(), *TINY, "attention=swa", "attention.window=8", "ffn=swiglu").code == 0
    shown = run("train", "init_from=runs/latest", "attention.window=4", "model_size.n_layers=2", "--cfg", "job")
    assert shown.code == 0, shown.err
    config = yaml.safe_load(shown.out)
    assert config["attention"]["window"] == 4 and config["attention"]["name"] == "swa"
    assert config["ffn"]["name"] == "swiglu" and config["model_size"]["d_model"] == 16
    assert config["model_size"]["n_layers"] == 2 and config["tokenizer"]["name"] == "char"


def test_the_components_of_a_family(run: Run, trained: Answer, folder: Path) -> None:
    """Sizes and tokenizer stay; every component and setting is that of the family, scaled to those sizes."""
    before = latest(folder)
    arguments = (
        "init_from=runs/latest",
        "family=llama",
        "model.dropout=0.1",
        "data=text",
        "data.path=text.txt",
        *QUICK,
    )
    answer = run("train", *arguments)
    assert answer.code == 0, answer.err
    assert "with the original components" in answer.out and "skipped" in answer.out
    after = latest(folder)
    assert after["tokenizer"] == before["tokenizer"]
    model, old = after["model"], before["model"]
    assert all(model[size] == old[size] for size in ("d_model", "n_heads", "n_layers", "context_length"))
    assert [model[slot]["name"] for slot in ("attention", "ffn", "norm", "pos")] == ["gqa", "swiglu", "rmsnorm", "rope"]
    assert model["attention"]["n_kv_heads"] == 1 and not model["bias"] and model["dropout"] == 0.1
    refused = run("train", "resume=runs/latest", "family=gpt2")
    assert refused.code == 2 and "instead of family=" in refused.err


def test_from_a_folder_of_transformers(run: Run, corpus: str, folder: Path) -> None:
    vocabulary = gpt2_folder(folder / "gpt2", folder / "text.txt")
    arguments = (
        "init_from=gpt2",
        "attention=gqa",
        "data=text",
        "data.path=text.txt",
    )  # a folder of that name takes precedence
    answer = run("train", *arguments, *QUICK)
    assert answer.code == 0, answer.err
    assert "means of 2 heads" in answer.out and "with the original components" in answer.out
    config = latest(folder)
    assert config["tokenizer"] == {"name": "hf", "path": "gpt2/tokenizer.json", "eos": None}
    assert config["model"]["vocab_size"] == vocabulary and config["model"]["pos"]["name"] == "learned"
    other = run("train", *arguments, *QUICK, "tokenizer=byte")
    assert other.code == 0, other.err
    assert "vocab_size" not in latest(folder)["model"]  # derived from the tokenizer
    assert "the first 256 rows" in other.out and "is not compared before training" in other.out
    small = run("train", *arguments, *QUICK, "model.vocab_size=100")
    assert small.code == 2 and f"the tokenizer has {vocabulary} ids but the model only 100" in small.err
    (folder / "gpt2" / "tokenizer.json").unlink()
    unknown = run("train", *arguments, *QUICK)
    assert unknown.code == 2 and "has no tokenizer: choose the one it was trained with" in unknown.err


def test_without_a_network(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **keywords: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **keywords: None)
    answer = run("train", "init_from=gpt2", "attention=gqa")
    assert answer.code == 2 and "the Hugging Face hub cannot be reached" in answer.err and answer.err.count("\n") == 1


def test_several_runs_from_one(run: Run, trained: Answer, folder: Path) -> None:
    source = str((folder / "runs" / "latest").resolve())
    arguments = (f"init_from={source}", "data=text", "data.path=text.txt", "attention=mqa,mla", "name=try")
    answer = run("train", "--multirun", *arguments, *QUICK)
    assert answer.code == 0, answer.err
    assert answer.out.count("with the original components") == 2 and "try-mqa" in answer.out and "try-mla" in answer.out
    assert latest(folder)["model"]["d_model"] == 16 and latest(folder)["init_from"] == source


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("init_from=runs/latest", "resume=runs/latest"), "leave one of them out"),
        (("init_from=runs/latest", "experiment=shakespeare_char"), "override single settings"),
        (("init_from=runs/nothing",), "there is no checkpoint at"),
        (("init_from=gtp2",), "did you mean 'gpt2'"),
        (("init_from=runs/latest", "attention=gqa", "attention.n_kv_heads=3"), "n_kv_heads"),
    ],
)
def test_refused(arguments: tuple[str, ...], sentence: str, run: Run, trained: Answer, folder: Path) -> None:
    answer = run("train", *arguments)
    assert answer.code == 2 and sentence in answer.err and answer.err.count("\n") == 1
    assert len(list((folder / "runs").iterdir())) == 2  # the first run, and the pointer to it
