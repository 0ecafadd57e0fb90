"""Progress is shown for slow work only."""

import io
import time
from types import SimpleNamespace

import pytest

from modular_gpt.core import progress
from modular_gpt.core.progress import progress_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show progress without delay between updates."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=float))


def test_quick_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 1000.0)  # even if this process is not scheduled for long
    stream = Terminal()
    with progress_line("Reading", 10, stream) as update:
        update(5)
    assert stream.getvalue() == ""


def wait_for(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 300
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "pipe"])
def test_slow_work_shows_its_progress(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DELAY", "INTERVAL", "LINE_INTERVAL"):
        monkeypatch.setattr(progress, name, 0.01)
    with progress_line("Reading", 200, stream) as update:
        wait_for(stream, "Reading ... 0% (0 s)")
        update(50)
        wait_for(stream, "Reading ... 25% (0 s)")
    shown = stream.getvalue()
    assert shown.endswith(" \r" if stream.isatty() else "% (0 s)\n")
    assert ("\n" in shown) is not stream.isatty()


def test_without_a_total_and_on_a_closed_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.01)
    stream = io.StringIO()
    with progress_line("Counting", None, stream) as update:
        update(12345)
        wait_for(stream, "Counting ... 12,345 (0 s)")
    stream.close()
    with progress_line("Counting", None, stream):
        time.sleep(0.03)


def test_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    state = progress._State("Reading", 200, "tokens")
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 4.0))
    assert str(state) == "Reading ... 0% (4 s)"
    state.update(50)
    assert str(state) == "Reading ... 25% (4 s, 12 tokens/s, 12 s left)"
    state.update(200)
    assert str(state) == "Reading ... 100% (4 s, 50 tokens/s)"
    state.total = None
    assert str(state) == "Reading ... 200 (4 s, 50 tokens/s)"
