"""``HFConfig``: access to the keys of a config.json, and the record of the keys that were read."""

import pytest

from modular_gpt import CheckpointError
from modular_gpt.mapping.hf_config import ANY, HFConfig, check_all_read


def test_keys_that_were_read_are_recorded() -> None:
    settings = HFConfig({"a": 1, "b": {"c": 2, "d": 3}, "e": None, "f": 5, "g": [1]}, {"h": 7})
    assert settings["a"] == 1 and settings["b"]["c"] == 2 and settings["h"] == 7 and settings.get("z") is None
    assert settings.unread({}) == [("b.d", 3), ("f", 5), ("g", [1])]
    assert settings.unread({"f": ANY, "b.d": (3,), "g": ([2],)}) == [("g", [1])]
    assert settings.unread({"f": (5.0,), "b.d": ANY, "g": ANY}) == [("f", 5)], "5 is not 5.0"
    settings.ignore("b", "g")
    assert [name for name in settings] == ["h", "a", "b", "e", "f", "g"]
    with pytest.raises(CheckpointError, match="f=5, which models of model_type=some"):
        check_all_read(settings, {}, "some")
    assert settings["f"] == 5
    check_all_read(settings, {}, "some")


def test_keys_of_nested_objects_are_read_by_path() -> None:
    settings = HFConfig({"a": {"b": 1, "c": None}, "d": None, "e": 5}, {"a.f": 2, "d.f": 3})
    assert settings["a.b"] == 1 and settings.get("a.c", 4) is None
    assert settings["a.f"] == 2 and settings["d.f"] == 3, "defaults apply if the object lacks the key or is null"
    assert settings.get("a.g", 6) == 6 and settings.unread({}) == [("e", 5)]
    with pytest.raises(KeyError):
        settings["a.g"]
    with pytest.raises(TypeError, match="e must be an object"):
        settings["e.f"]
