"""Tab completion offers what Hydra offers, from the stored table of settings."""

import json
from pathlib import Path

import pytest

from modular_gpt.cli.app import CommandLine
from modular_gpt.cli.completion import completed
from modular_gpt.cli.composition import stored
from modular_gpt.cli.composition.schema import folders
from modular_gpt.cli.composition.train_config import TRAIN
from modular_gpt.cli.hydra_answers import hydra_itself

COMMAND = stored.read_command("train", json.loads(stored.TABLE.read_text(encoding="utf-8")))
LINES = [
    *("", "atten", "attention=m", "attention=gqa attention.", "attention=mla attention.kv", "nothing"),
    *("trainer.max", "trainer.max_steps=", "experiment="),
]


def offers(monkeypatch: pytest.MonkeyPatch, line: str, shell: str = "bash", point: str = "") -> list[str] | None:
    monkeypatch.setenv("COMP_LINE", f"mgpt-train {line}")
    monkeypatch.setenv("COMP_POINT", point)
    found = completed(COMMAND, [f"query={shell}"], folders())
    return None if found is None else found.split("\n" if shell == "fish" else " ") if found else []


@pytest.mark.parametrize("line", LINES)
def test_offers_equal_those_of_hydra(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compared without Hydra's settings and without names of components, which are chosen by group=option."""
    found = offers(monkeypatch, line)
    hydra_itself(TRAIN, CommandLine(["query=bash"], shell_completion=True), folders())
    reference = {offer for offer in capsys.readouterr().out.split() if not offer.startswith("hydra")}
    reference = {offer for offer in reference if offer.count(".") == 0 or not offer.endswith(".name=")}
    assert found is not None
    assert {offer.rstrip("=.") for offer in found} == {offer.rstrip("=.") for offer in reference}


def test_several_values_paths_and_the_cursor_position(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert offers(monkeypatch, "attention=gqa,m") == ["attention=gqa,mha", "attention=gqa,mla", "attention=gqa,mqa"]
    for name in ("one.txt", "other.txt", "two.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for start in ("./", "~/", f"{tmp_path}/"):
        names = [f"data.path={start}{name}" for name in ("one.txt", "other.txt")]
        assert offers(monkeypatch, f"data.path={start}o") == names
        assert offers(monkeypatch, f"data.path={start}o", "fish") == names
    assert offers(monkeypatch, "attention=mqa pos=rope", point=str(len("mgpt-train attention=mq"))) == ["attention=mqa"]


def test_the_rest_is_left_to_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("hydra.", "+data.", "~atten"):
        assert offers(monkeypatch, word) is None
    assert completed(COMMAND, ["install=bash"], folders()) is None
    monkeypatch.delenv("COMP_LINE")
    assert completed(COMMAND, ["query=bash"], folders()) is None
