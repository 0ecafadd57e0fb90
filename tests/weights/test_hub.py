"""Without a network, every function that opens a published model raises a one-sentence error within seconds."""

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
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    hub._connection_problem.cache_clear()
    yield
    hub._connection_problem.cache_clear()


def unknown_host(*_: Any, **__: Any) -> None:
    raise socket.gaierror(-3, "Temporary failure in name resolution")


@pytest.fixture
def silent_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Make connections neither succeed nor fail; yield the list of requested addresses."""
    requests: list[Any] = []
    test_ended = threading.Event()

    def wait(address: Any, *_: Any, **__: Any) -> None:
        requests.append(address)
        test_ended.wait()
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", wait)
    yield requests
    test_ended.set()


LOADERS: list[Callable[[str], Any]] = [load_pretrained, GPTModel.from_pretrained, load_model, open_source]


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)
@pytest.mark.parametrize("name", ["gpt2", "someone/something"])
def test_without_a_network_the_error_is_one_sentence(
    load: Callable[[str], Any], name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "create_connection", unknown_host)
    downloads: list[Any] = []  # the client's attempts would take half a minute
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **_: downloads.append(names))
    with pytest.raises(CheckpointError, match=f"'{name}'.*cannot be reached.*give the folder") as caught:
        load(name)
    assert not downloads
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


def test_a_network_that_drops_all_packets_is_tried_once(
    silent_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five loads make one connection attempt in total."""
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.3)
    for _ in range(5):
        with pytest.raises(CheckpointError, match="TimeoutError"):
            load_pretrained("gpt2")
    assert len(silent_network) == 1


def test_mgpt_generate_without_a_network_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "create_connection", unknown_host)
    assert generate.main(["checkpoint=gpt2", "prompt=a"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_retries_of_the_client_are_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
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
    requests: list[str] = []

    def download(repository: str, name: str, **_: Any) -> None:
        requests.append(name)
        raise OSError("no route")

    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr(socket, "create_connection", unknown_host)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        load_pretrained("gpt2")
    assert requests == ["config.json"]
