"""Every Config of a corpus or a tokenizer works as a typed schema and reads back from plain values."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from modular_gpt.core.registry import Entry, decode, encode, entries
from modular_gpt.data import SPLITS, Corpus, Tokenizer

ALL = [
    pytest.param(slot, entry, id=f"{slot}={name}")
    for slot in ("data", "tokenizer")
    for name, entry in entries(slot).items()
]


@pytest.mark.parametrize(("slot", "entry"), ALL)
def test_it_is_a_schema(slot: str, entry: Entry) -> None:
    default = entry.default()
    schema = OmegaConf.structured(default)
    assert OmegaConf.to_object(schema) == default
    assert next(iter(schema)) == "name" and schema.name == entry.name
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.merge(schema, {"no_such_setting": 1})


@pytest.mark.parametrize(("slot", "entry"), ALL)
def test_it_reads_back_from_plain_values(slot: str, entry: Entry) -> None:
    assert decode(slot, encode(entry.default())) == decode(slot, entry.name) == entry.default()


@pytest.mark.parametrize(("slot", "entry"), ALL)
def test_it_has_a_summary(slot: str, entry: Entry) -> None:
    assert 10 < len(entry.summary) < 100 and entry.summary.endswith(".")


@pytest.mark.parametrize(("slot", "entry"), ALL)
def test_every_setting_is_explained(slot: str, entry: Entry) -> None:
    documentation = "\n".join(base.__doc__ or "" for base in entry.component.Config.__mro__)
    assert all(f" {name}: " in documentation for name in encode(entry.default()) if name != "name")


def test_a_list_of_paths_survives_the_schema() -> None:
    schema = OmegaConf.structured(entries("data")["text"].default())
    merged = OmegaConf.merge(schema, {"path": ["a.txt", "b/*.txt"]})
    assert encode(OmegaConf.to_object(merged))["path"] == ["a.txt", "b/*.txt"]  # type: ignore[arg-type]


def test_bases_are_not_registered() -> None:
    assert (Corpus.slot, Tokenizer.slot) == ("data", "tokenizer") and SPLITS == ("train", "validation")
    assert "" not in entries("data") and "" not in entries("tokenizer")
