"""Untrusted JSON files are read within limits."""

import os
import re
from pathlib import Path

import pytest

from modular_gpt.core.errors import CheckpointError, DataError
from modular_gpt.core.json_files import load_json, load_json_object, parse_json


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "it nests deeper than 64 levels"),
        (b"[" * 65 + b"]" * 65, "it nests deeper than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "it nests deeper than 64 levels"),
        (b'{"a": "' + b"x" * 1000 + b'"}', "it is larger than 1,000 bytes"),
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b"\xff{}", "can't decode byte 0xff"),
        (b"1" * 999, None),
    ],
)
def test_limits_and_damage_get_one_sentence(content: bytes, reason: str | None, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    limit = 1000 if len(content) < 2000 else 10**6
    if reason is None:
        assert load_json(path, limit) == int(content)
        return
    with pytest.raises(CheckpointError) as caught:
        load_json(path, limit, error=CheckpointError, remedy="copy it again")
    message = str(caught.value)
    assert message.startswith(f"'{path}' cannot be read as JSON (") and reason in message
    assert message.endswith("): copy it again") and "\n" not in message


def test_values_as_deep_as_allowed_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(b"\xef\xbb\xbf" + b"[" * 64 + b"]" * 64)
    assert repr(load_json(path)) == "[" * 64 + "]" * 64
    assert parse_json('{"a": ["[[[[", {}]}', max_depth=3) == {"a": ["[[[[", {}]}


def test_only_objects_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text("[1]")
    with pytest.raises(DataError, match=re.escape(f"'{path}' holds no JSON object: restore it from a copy")):
        load_json_object(path)
    with pytest.raises(FileNotFoundError):
        load_json(tmp_path / "missing.json")


@pytest.mark.timeout(20)
def test_pipes_devices_and_directories_are_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(DataError, match="it is not a regular file"):
            load_json(tmp_path / f"{name}.json")
