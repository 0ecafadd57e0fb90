"""Token files of nanoGPT: mapped in place, same batches as from the text, no pickle is loaded."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data import Corpus, PreparedText, build_corpus, build_tokenizer
from modular_gpt.data.corpora import tokens
from modular_gpt.training import RunConfig, load_config, train
from tests.data.conftest import PLAY


class Bomb:
    """Unpickling it would write a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (Path.write_text, (Path("exploded"), "boom"))  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files written by nanoGPT's prepare.py for a character-level corpus."""
    made = tmp_path / "shakespeare_char"
    made.mkdir()
    characters = sorted(set(PLAY))
    ids = {character: number for number, character in enumerate(characters)}
    border = int(len(PLAY) * 0.9)
    for name, text in (("train", PLAY[:border]), ("val", PLAY[border:])):
        np.array([ids[character] for character in text], dtype=np.uint16).tofile(made / f"{name}.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": ids}
    (made / "meta.json").write_text(json.dumps(meta))
    (made / "meta.pkl").write_bytes(pickle.dumps(Bomb()))
    return made


def config(folder: Path, **settings: Any) -> RunConfig:
    return RunConfig(data={"name": "tokens", "path": str(folder), **settings})


def prepared(folder: Path, **settings: Any) -> PreparedText:
    run = config(folder, **settings)
    corpus: Corpus = run.data.build()
    data = corpus.prepare(build_tokenizer(run.tokenizer, corpus))
    assert isinstance(data, PreparedText)
    return data


def test_batches_equal_those_of_the_text(folder: Path, play: Corpus) -> None:
    data, text = prepared(folder), play.prepare(build_tokenizer("char", play))
    assert isinstance(text, PreparedText)
    for order in ("random", "epoch"):
        for step in range(3):
            here, there = (source.batches(16, 4, 7, order).batch(step) for source in (data, text))
            assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert data.bits_per_byte(1.5) == text.bits_per_byte(1.5)
    assert data.zlib_bits_per_byte == text.zlib_bits_per_byte
    assert not Path("exploded").exists()


def test_the_files_are_mapped_in_place(folder: Path, cache: Path) -> None:
    data = prepared(folder)
    assert (data.train.path, data.validation.path) == (folder / "train.bin", folder / "val.bin")
    assert isinstance(data.train.array, np.memmap)
    assert [path.name for path in (cache / "tokens").rglob("*") if path.is_file()] == ["manifest.json"]
    corpus = data.manifest["corpus"]
    assert corpus["train_sha256"] == data.train.fingerprint and corpus["files"] == 2


def test_other_content_is_another_corpus(folder: Path) -> None:
    before = config(folder).data.build().fingerprint
    assert config(folder).data.build().fingerprint == before
    np.array([1, 2, 3, 4], dtype=np.uint16).tofile(folder / "val.bin")
    assert config(folder).data.build().fingerprint != before


@pytest.mark.parametrize("block", [3, 10**6])
def test_bytes_of_characters_with_several_ids_are_counted(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "BLOCK", block)
    text = "aé日本🙂\n" * 9
    for name in ("train", "val"):
        np.frombuffer(text.encode(), dtype=np.uint8).tofile(tmp_path / f"{name}.bin")
    data = prepared(tmp_path, dtype="uint8")
    assert data.validation.bytes == len(text.encode()) and data.train.count == len(text.encode())


def test_documents_end_at_the_end_of_text(tmp_path: Path) -> None:
    for name, ids in (("train", [5, 6, 256, 7, 256, 256, 8, 256]), ("val", [256, 1, 2])):
        np.array(ids, dtype="<u4").tofile(tmp_path / f"{name}.bin")
    corpus = build_corpus({"name": "tokens", "path": str(tmp_path), "dtype": "uint32", "documents": True})
    tokenizer = build_tokenizer("byte")
    with pytest.raises(ConfigError, match=r"data.documents=true needs a token that ends documents, and tokenizer=byte"):
        corpus.prepare(tokenizer)
    tokenizer.vocab_size, tokenizer.eos_id = 257, 256
    tokenizer._decode = lambda ids: "x" * len(ids)  # type: ignore[method-assign]
    data = corpus.prepare(tokenizer)
    assert isinstance(data, PreparedText) and data.separates_documents
    assert data.train.document_starts.tolist() == [0, 3, 5, 6]
    assert data.validation.document_starts.tolist() == [0, 1]


@pytest.mark.parametrize(
    "meta", [{"itos": ["a", "b", "c"]}, {"itos": {"0": "a", "1": "b", "2": "c"}}, {"stoi": {"c": 2, "a": 0, "b": 1}}]
)
def test_each_form_of_the_vocabulary(meta: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps(meta))
    assert tokens.characters_of(tmp_path / "v.json") == "abc"


@pytest.mark.parametrize(
    ("meta", "sentence"),
    [
        ({"itos": ["a", "b", "a"]}, "but id 2 is 'a'"),
        ({"itos": ["b", "a"]}, "but id 1 is 'a'"),
        ({"itos": ["a", "bc"]}, "but id 1 is 'bc'"),
        ({"itos": {"1": "a"}}, "but id 0 is None"),
        ({"stoi": {"a": 0, "b": 2}}, "but id 1 is None"),
        ({"vocab_size": 3}, "has neither itos nor stoi, the characters by id"),
        ([], "holds no JSON object"),
    ],
)
def test_a_vocabulary_of_another_kind(meta: object, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps(meta))
    with pytest.raises(DataError) as caught:
        tokens.characters_of(tmp_path / "v.json")
    assert sentence in str(caught.value) and "tokenizer=ids" in str(caught.value)


def test_a_pickle_is_not_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "meta.json").unlink()
    with pytest.raises(ConfigError) as caught:
        config(folder)
    assert str(caught.value) == (
        f"the vocabulary of '{folder}' is in meta.pkl, and a pickle can run any code: if you trust it, write it as JSON"
        " in that folder, python -c \"import json, pickle; json.dump(pickle.load(open('meta.pkl', 'rb')),"
        " open('meta.json', 'w'))\""
    )
    assert not Path("exploded").exists()


def test_the_command_in_the_message_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = json.loads((folder / "meta.json").read_text())
    meta = {**written, "itos": {int(number): character for number, character in written["itos"].items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    (folder / "meta.json").unlink()
    monkeypatch.chdir(folder)
    exec(tokens.CONVERT.partition('"')[2].rstrip('"'), {})
    assert json.loads((folder / "meta.json").read_text()) == written


@pytest.mark.parametrize(
    ("settings", "change", "sentence"),
    [
        ({"path": ""}, None, "data=tokens needs data.path=<folder with train.bin and val.bin>"),
        ({"path": "nowhere"}, None, "there is no folder 'nowhere' (seen from "),
        ({}, ("val.bin", None), "there is no val.bin or validation.bin in '"),
        ({}, ("val.bin", b"abc"), "val.bin' has 3 bytes, which cannot be ids of 2 bytes: correct data.dtype"),
        ({}, ("val.bin", b""), "val.bin' has 0 bytes, which cannot be ids of 2 bytes: correct data.dtype"),
        ({}, ("train.bin", b"\1\0\xff\xff"), "id 65535 in '"),
        ({"vocabulary": "none.json"}, None, "there is no vocabulary 'none.json': correct data.vocabulary"),
        ({"dtype": "int64"}, None, "data.dtype: no choice 'int64'"),
    ],
)
def test_mistakes_get_one_sentence(
    settings: dict[str, str], change: tuple[str, bytes | None] | None, sentence: str, folder: Path
) -> None:
    if change is not None:
        (folder / change[0]).unlink()
        if change[1] is not None:
            (folder / change[0]).write_bytes(change[1])
    with pytest.raises((DataError, ConfigError)) as caught:
        prepared(folder, **settings)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_that_does_not_match_the_characters(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"are characters of '.*meta.json': leave out tokenizer=ids"):
        RunConfig(data={"name": "tokens", "path": str(folder)}, tokenizer="ids")
    with pytest.raises(DataError, match="data=tokens has ids and no text"):
        build_tokenizer("char", build_corpus({"name": "tokens", "path": str(folder)}))


def test_a_run_does_not_need_the_vocabulary_file_later(folder: Path, tmp_path: Path) -> None:
    run = config(folder)
    run.runs, run.trainer.max_steps, run.trainer.sample_tokens = str(tmp_path / "runs"), 2, 4
    run.trainer.device, run.trainer.compile, run.trainer.threads, run.trainer.eval_batches = "cpu", False, 1, 1
    run.model.d_model, run.model.n_heads, run.model.n_layers, run.model.context_length = 8, 2, 1, 8
    result = train(run, quiet=True)
    assert result.outcome is not None and result.outcome.bits_per_byte is not None
    (folder / "meta.json").unlink()
    again = load_config(result.directory)
    assert again.tokenizer.characters == "".join(sorted(set(PLAY)))
