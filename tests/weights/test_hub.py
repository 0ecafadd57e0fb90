"""Without a network a published name gets one sentence within seconds, by every way to open it."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modular_gpt import CheckpointError, GPTModel
from modular_gpt.checkpoint import load_model
from modular_gpt.cli import generate
from modular_gpt.pretrained import load_pretrained
from modular_gpt.training.finetune import open_source
from modular_gpt.weights import hub


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    hub._connection_problem.cache_clear()
    yield
    hub._connection_problem.cache_clear()


def unknown_host(*_: Any, **__: Any) -> None:
    raise socket.gaierror(-3, "Temporary failure in name resolution")


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Connections neither succeed nor fail; records the requested addresses."""
    asked: list[Any] = []
    over = threading.Event()

    def wait(address: Any, *_: Any, **__: Any) -> None:
        asked.append(address)
        over.wait()
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", wait)
    yield asked
    over.set()


OPENERS: list[Callable[[str], Any]] = [load_pretrained, GPTModel.from_pretrained, load_model, open_source]


@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)
@pytest.mark.parametrize("name", ["gpt2", "someone/something"])
def test_no_network_gets_one_sentence(
    opener: Callable[[str], Any], name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "create_connection", unknown_host)
    downloads: list[Any] = []  # the client's attempts would take half a minute
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **_: downloads.append(names))
    with pytest.raises(CheckpointError, match=f"'{name}'.*cannot be reached.*give the folder") as caught:
        opener(name)
    assert not downloads
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


def test_a_network_that_drops_all_packets(silence: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one attempt in total, not one per file."""
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.3)
    for _ in range(5):
        with pytest.raises(CheckpointError, match="TimeoutError"):
            load_pretrained("gpt2")
    assert len(silence) == 1


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(socket, "create_connection", unknown_host)
    assert generate.main(["checkpoint=gpt2", "prompt=a"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_further_attempts_are_not_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("huggingface_hub.utils._http")

    def download(*_: Any, **__: Any) -> None:
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        load_pretrained("gpt2")
    assert "Retrying" not in caplog.text
    logger.warning("later")
    assert "later" in caplog.text


def test_a_proxy_is_handled_by_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(repository: str, name: str, **_: Any) -> None:
        asked.append(name)
        raise OSError("no route")

    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr(socket, "create_connection", unknown_host)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        load_pretrained("gpt2")
    assert asked == ["config.json"]
