"""Document boundaries in windows: recorded once, and separated in attention and in the loss as configured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import PreparedText, Tokenizer, build_corpus, build_tokenizer

LENGTHS = range(3, 15)  # number of words of each document


def text_of(number: int) -> str:
    return "abc " * LENGTHS[number] + f"end{number}\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    for number in range(len(LENGTHS)):
        (tmp_path / f"{number:02}.txt").write_text(text_of(number))
    return str(tmp_path / "*.txt")


def prepared(files: str, tokenizer: str = "char", **settings: Any) -> tuple[PreparedText, Tokenizer]:
    corpus = build_corpus({"name": "text", "path": files, "val_fraction": 0.3, **settings})
    built = build_tokenizer(tokenizer, corpus)
    data = corpus.prepare(built)
    assert isinstance(data, PreparedText)
    return data, built


def test_documents_start_where_their_text_does(files: str) -> None:
    data, tokenizer = prepared(files, documents=True)
    starts = data.train.document_starts.tolist()
    assert starts[0] == 0
    for number, start in enumerate(starts[:-1]):
        ids = data.train.array[start : starts[number + 1]]
        assert tokenizer.decode(ids) == text_of(number)


def test_the_end_token_belongs_to_its_document(files: str) -> None:
    data, tokenizer = prepared(files, "byte", documents=True)
    plain, _ = prepared(files, "byte")
    assert np.array_equal(data.train.array, plain.train.array)
    if tokenizer.eos_id is not None:
        assert all(data.train.array[start - 1] == tokenizer.eos_id for start in data.train.document_starts[1:])


@pytest.mark.parametrize("evaluating", [False, True, None], ids=["training", "windows", "whole"])
def test_numbers_and_targets_follow_the_documents(files: str, evaluating: bool | None) -> None:
    data, _ = prepared(files, documents=True)
    split = data.train if evaluating is False else data.validation
    numbers = np.searchsorted(split.document_starts, np.arange(split.count), side="right")
    batches = (
        [data.batches(16, 6, 0, "random").batch(step) for step in range(3)]
        if evaluating is False
        else list(data.evaluation(16, 2, 6 if evaluating else 0))
    )
    seams = 0
    for ids, targets, documents in batches:
        for row, target, document in zip(ids, targets, documents, strict=True):
            counted = target != IGNORED
            changes = torch.zeros(16, dtype=torch.bool)
            changes[:-1] = document[1:] != document[:-1]
            assert not (counted & changes).any()
            seams += int(changes.sum())
            places = np.lib.stride_tricks.sliding_window_view(split.array, 16)
            found = np.flatnonzero((places == row.numpy()).all(1))
            assert any(np.array_equal(numbers[at : at + 16], document.numpy()) for at in found) or not counted.all()
    assert seams


def test_attention_and_loss_are_separated_by_one_setting_each(files: str) -> None:
    plain, _ = prepared(files)
    apart, _ = prepared(files, documents=True)
    only_attention, _ = prepared(files, documents=True, predict_across=True)
    only_loss, _ = prepared(files, documents=True, attend_across=True)
    ids, targets = plain.batches(16, 6, 0, "random").batch(1)
    strict = apart.batches(16, 6, 0, "random").batch(1)
    assert torch.equal(strict[0], ids)
    hidden = strict[1] == IGNORED
    assert hidden.any()
    assert torch.equal(strict[1][~hidden], targets[~hidden])
    loose = only_attention.batches(16, 6, 0, "random").batch(1)
    assert torch.equal(loose[1], targets)
    assert torch.equal(loose[2], strict[2])
    batch = only_loss.batches(16, 6, 0, "random").batch(1)
    assert len(batch) == 2
    assert torch.equal(batch[1], strict[1])
    assert apart.separates_documents
    assert only_attention.separates_documents
    assert not only_loss.separates_documents
    assert not plain.separates_documents


def test_processes_share_the_batch(files: str) -> None:
    source = prepared(files, documents=True)[0].batches(16, 6, 0, "epoch")
    whole = source.batch(2)
    shares = [source.batch(2, rank, 3) for rank in range(3)]
    for index, tensor in enumerate(whole):
        assert torch.equal(torch.cat([share[index] for share in shares]), tensor)


def test_a_damaged_record_of_documents_is_built_again(files: str, caplog: pytest.LogCaptureFixture) -> None:
    data, _ = prepared(files, documents=True)
    assert data.train.documents is not None
    before = data.train.document_starts.copy()
    content = bytearray(data.train.documents.read_bytes())
    content[9] ^= 1
    data.train.documents.write_bytes(bytes(content))
    again, _ = prepared(files, documents=True)
    assert np.array_equal(again.train.document_starts, before)
    assert "building the token files again" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attend_across": False}, "data.attend_across=false keeps documents apart: add data.documents=true"),
        ({"predict_across": False}, "data.predict_across=false keeps documents apart"),
        ({"documents": True, "attend_across": True, "predict_across": True}, "has no effect"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str, files: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(files, **settings)
