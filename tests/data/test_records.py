"""Records as training data: ids as in generation, targets on answers, whole records in rows, exact epochs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import Corpus, Tokenizer, build_corpus, build_tokenizer
from modular_gpt.data.records import packing, read
from modular_gpt.data.records.packing import first_fit, fit_spans
from modular_gpt.data.records.prepared import PreparedRecords
from modular_gpt.data.templates import build_template
from modular_gpt.data.templates import encode as encode_chat
from tests.data import chat_folders

Make = Callable[..., Corpus]

SUMS = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(10) for b in range(10)]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye?"},
    {"role": "assistant", "content": "Bye."},
]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Function that builds a corpus of rows; one row is for validation."""

    def maker(*rows: dict[str, Any], **settings: Any) -> Corpus:
        train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
        train.write_text("".join(json.dumps(row) + "\n" for row in rows))
        validation.write_text(json.dumps(rows[0]) + "\n")
        return build_corpus({"name": "records", "path": str(train), "validation": str(validation), **settings})

    return maker


@pytest.fixture
def llama(tmp_path: Path) -> Tokenizer:
    """A tokenizer with beginning-of-text and end-of-text tokens and a chat template."""
    (tmp_path / "llama").mkdir()
    chat_folders.llama3(tmp_path / "llama")
    return build_tokenizer({"name": "hf", "path": str(tmp_path / "llama")}, None)


def prepared(corpus: Corpus, tokenizer: str | Tokenizer = "byte") -> PreparedRecords:
    data = corpus.prepare(build_tokenizer(tokenizer, corpus) if isinstance(tokenizer, str) else tokenizer)
    assert isinstance(data, PreparedRecords)
    return data


def row_of(data: PreparedRecords, block: int = 256, number: int = 0) -> tuple[list[int], list[int]]:
    """Inputs of a row without padding, and the ids that are targets."""
    x, y = data.rows(data.train, block).batch(np.array([number]), 1, separate=False)
    last = int(torch.nonzero(y[0] != IGNORED)[-1])
    return x[0, : last + 1].tolist(), y[0][y[0] != IGNORED].tolist()


class TestTokens:
    """The ids of a record, and its targets."""

    def test_prompts_are_encoded_as_in_generation(self, make: Make, llama: Tokenizer) -> None:
        inputs, counted = row_of(prepared(make({"prompt": "abc?", "completion": " abcab"}), llama))
        answer = [*llama.encode(" abcab"), llama.eos_id]
        assert inputs == [*llama.prompt_ids("abc?"), *answer[:-1]] and counted == answer

    def test_an_empty_line_ends_answers_without_an_end_token(self, make: Make) -> None:
        inputs, counted = row_of(prepared(make({"prompt": "2 + 2 =", "completion": " 4"})))
        assert bytes(inputs) == b"2 + 2 = 4\n" and bytes(counted) == b" 4\n\n"

    @pytest.mark.parametrize(
        ("row", "text", "answer"),
        [
            ({"text": "once"}, "once\n\n", "nce\n\n"),
            ({"text": "fine", "label": "good"}, "fine\ngood\n\n", "good\n\n"),
            ({"prompt": "2 + 2", "choices": ["3", "4"], "answer": 1}, "2 + 2\n4\n\n", "4\n\n"),
            ({"prompt": "", "completion": "once"}, "once\n\n", "nce\n\n"),
            (
                {"instruction": "Reverse.", "input": "abc", "output": "cba"},
                "User: Reverse.\n\nabc\nAssistant: cba\n\n",
                " cba\n\n",
            ),
        ],
        ids=lambda value: str(value)[:12],
    )
    def test_the_text_of_each_format(self, row: dict[str, Any], text: str, answer: str, make: Make) -> None:
        inputs, counted = row_of(prepared(make(row)))
        assert bytes(inputs).decode() == text[:-1] and bytes(counted).decode() == answer

    def test_an_empty_prompt_is_the_beginning_of_text_token(self, make: Make, llama: Tokenizer) -> None:
        inputs, counted = row_of(prepared(make({"text": "abc"}), llama))
        assert inputs == [llama.bos_id, *llama.encode("abc")] and counted == [*llama.encode("abc"), llama.eos_id]

    @pytest.mark.parametrize(
        ("train_on", "counted"),
        [
            ("completion", " Bye.\n\n"),
            ("assistant", " Hello.\n\n Bye.\n\n"),
            ("all", "e brief.\nUser: Hello?\nAssistant: Hello.\n\nUser: Bye?\nAssistant: Bye.\n\n"),
        ],
    )
    def test_the_targets_of_a_conversation(self, train_on: str, counted: str, make: Make) -> None:
        data = prepared(make({"messages": TALK}, train_on=train_on))
        assert bytes(row_of(data)[1]).decode() == counted
        role_counts = len(counted.encode())
        assert sum(data.train.role_counts[data.counting :]) == role_counts + (train_on == "all")

    @pytest.mark.parametrize("template", [None, "chatml", "alpaca"])
    def test_conversations_are_encoded_by_their_template(
        self, template: str | None, make: Make, llama: Tokenizer
    ) -> None:
        inputs, counted = row_of(prepared(make({"messages": TALK[1:3]}, template=template), llama), 512)
        renders = llama.template if template is None else build_template(template, llama)
        assert renders is not None
        ids = encode_chat(renders, llama, TALK[1:3])
        assert inputs == ids[: len(inputs)] and len(ids) - len(inputs) <= 3  # tokens after the answer are not inputs
        opened = encode_chat(renders, llama, TALK[1:2], open_turn=True)
        assert ids[: len(opened)] == opened and counted[: len(ids) - len(opened)] == ids[len(opened) :][: len(counted)]

    def test_a_given_template_also_renders_prompts(self, make: Make) -> None:
        inputs, counted = row_of(prepared(make({"prompt": "2?", "completion": "2."}, template="plain")))
        assert bytes(inputs) == b"User: 2?\nAssistant: 2.\n" and bytes(counted) == b" 2.\n\n"

    def test_the_separator_can_be_set(self, make: Make) -> None:
        inputs, _ = row_of(prepared(make({"text": "fine", "label": "good"}, separator=" -> ")))
        assert bytes(inputs) == b"fine -> good\n"

    def test_a_tokenizer_is_trained_on_the_records(self, make: Make) -> None:
        corpus = make({"prompt": "xyz", "completion": "abc"})
        assert build_tokenizer("char", corpus).decode(range(7)) == "\nabcxyz"
        prepared(corpus, "char")

    def test_an_unknown_character_is_reported_with_its_location(self, make: Make) -> None:
        tokenizer = build_tokenizer("char", make({"text": "abc"}))
        with pytest.raises(DataError, match=r"train.jsonl', line 2: .*'d'"):
            make({"text": "abc"}, {"text": "abcd"}).prepare(tokenizer)


class TestRows:
    """Truncated records, and records packed into one row."""

    def test_a_long_prompt_is_truncated_on_the_left(self, make: Make, llama: Tokenizer) -> None:
        data = prepared(make({"prompt": "0123456789", "completion": "abca"}), llama)
        inputs, counted = row_of(data, 8)
        answer = [*llama.encode("abca"), llama.eos_id]
        assert len(inputs) == 8 and counted == answer
        assert inputs == [llama.bos_id, *llama.prompt_ids("0123456789")[-(8 - len(answer)) :], *answer[:-1]]
        assert any("1 record is longer than the context: the" in line for line in data.describe_rows(8))

    def test_an_answer_longer_than_the_context_is_truncated_at_its_end(self, make: Make) -> None:
        data = prepared(make({"prompt": "0123456789", "completion": "abcdefghijk"}))
        inputs, counted = row_of(data, 8)
        assert bytes(inputs) == b"6789abcd" and bytes(counted) == b"abcde"
        assert any("1 record is longer than the context even without" in line for line in data.describe_rows(8))

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6), st.integers(1, 12))
    def test_truncation(self, sizes: list[tuple[int, int]], block: int) -> None:
        """Equal to the rule for a single record."""
        lengths = [max(2, prompt + answer) for prompt, answer in sizes]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        spans = fit_spans(starts, starts + np.array([prompt for prompt, _ in sizes]), ends, block)
        for number, (prompt, _) in enumerate(sizes):
            tokens = list(range(starts[number], ends[number]))
            answer = tokens[prompt:]
            kept = tokens
            if len(tokens) - 1 > block:
                needed = len(answer) if prompt else len(answer) - 1
                room = block + 1 - len(answer) if needed <= block else min(prompt, max(1, block // 2))
                kept = (tokens[prompt - room : prompt] + answer)[: block + 1]
            assert list(range(spans.starts[number], spans.ends[number])) == kept
            assert bool(spans.cut_left[number]) == (kept[0] != tokens[0])
            assert bool(spans.cut_right[number]) == (kept[-1] != tokens[-1])

    @given(st.lists(st.integers(1, 10), max_size=60), st.sampled_from([1, 2, 3, 1000]))
    def test_first_fit(self, places: list[int], still_open: int) -> None:
        """Equal to the definition, with few open rows and with all."""
        room: list[int] = []
        expected = []
        for needed in places:
            fitting = [row for row in range(max(0, len(room) - still_open), len(room)) if room[row] >= needed]
            row = fitting[0] if fitting else len(room)
            room += [] if fitting else [10]
            room[row] -= needed
            expected.append(row)
        before, packing.OPEN = packing.OPEN, still_open
        try:
            assert first_fit(np.array(places, dtype=np.int64), 10).tolist() == expected
        finally:
            packing.OPEN = before

    @pytest.mark.parametrize("packs", [True, False])
    def test_each_record_is_in_one_row_whole(self, packs: bool, make: Make) -> None:
        data = prepared(make(*SUMS, packing=packs))
        rows = data.rows(data.train, 64)
        x, y, documents = rows.batch(np.arange(len(rows.rows)), len(rows.rows), separate=True)
        found = []
        for inputs, targets, numbers in zip(x, y, documents, strict=True):
            for number in numbers.unique().tolist():
                inside = (numbers == number) & (targets != IGNORED).any()
                answer = targets[inside & (targets != IGNORED)]
                if len(answer):
                    found.append(bytes(inputs[inside].tolist())[: -len(answer) + 1] + bytes(answer.tolist()))
        assert sorted(found) == sorted(f"{row['prompt']}{row['completion']}\n\n".encode() for row in SUMS)
        assert len(rows.rows) == (18 if packs else 100)
        assert rows.rows.filled == pytest.approx((100 * 10 + 45) / (len(rows.rows) * 64))

    def test_padding_has_no_targets_and_no_record(self, make: Make) -> None:
        data = prepared(make(*SUMS[:1]))
        x, y, documents = data.batches(32, 1, 0, "random").batch(0)
        used = len("0 + 0 = 0\n")
        assert x[0, used:].eq(0).all() and y[0, used:].eq(IGNORED).all()
        assert documents[0].tolist() == [1] * used + [2] * (32 - used)


class TestOrder:
    """Order of the rows: a function of the step."""

    def test_each_row_comes_once_per_epoch(self, make: Make) -> None:
        data = prepared(make(*SUMS))
        source, count = data.batches(64, 6, 3, "random"), data.rows_per_epoch(64)
        assert count == 18
        drawn = np.concatenate([source.numbers(step) for step in range(18)])  # 6 epochs
        epochs = drawn.reshape(6, count)
        assert all(sorted(epoch.tolist()) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 6
        other = data.batches(64, 6, 4, "random")
        assert any(other.numbers(step).tolist() != source.numbers(step).tolist() for step in range(3))

    @pytest.mark.parametrize("packs", [True, False])
    def test_processes_share_the_rows(self, packs: bool, make: Make) -> None:
        data = prepared(make(*SUMS, packing=packs))
        source = data.batches(64, 6, 0, "random")
        whole, halves = source.batch(4), [source.batch(4, rank, 2) for rank in range(2)]
        assert len(whole) == (3 if packs else 2)
        assert all(torch.equal(all, torch.cat(both)) for all, *both in zip(whole, *halves, strict=True))

    @pytest.mark.parametrize("windows", [0, 5, 500])
    def test_evaluation_does_not_depend_on_the_batch_size(self, windows: int, make: Make, tmp_path: Path) -> None:
        path = tmp_path / "all.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
        data = prepared(make(*SUMS, validation=str(path)))

        def targets(rows: int, world: int = 1) -> list[list[int]]:
            found: list[Tensor] = []
            for batches in zip(
                *(data.evaluation(64, rows, windows, rank, world) for rank in range(world)), strict=True
            ):
                found += [row for batch in batches for row in batch[1]]
            return [row.tolist() for row in found if (row != IGNORED).any()]

        assert targets(3) == targets(7) == targets(4, 2)
        assert len(targets(3)) == (5 if windows == 5 else data.evaluation_windows(64))

    def test_samples_continue_a_prompt(self, make: Make, llama: Tokenizer) -> None:
        data = prepared(make(*SUMS), llama)
        assert llama.decode(data.prompt(100)) == "0 + 0 =" and llama.decode(data.prompt(2)) == " ="


class TestSplits:
    """Records held out for validation."""

    def corpus(self, tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> Corpus:
        path = tmp_path / "all.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return build_corpus({"name": "records", "path": str(path), **settings})

    def test_a_fraction_is_held_out_by_content(self, tmp_path: Path) -> None:
        first = self.corpus(tmp_path, SUMS)
        held_out = {chunk.text for chunk in first.documents("validation")}
        both = held_out | {chunk.text for chunk in first.documents("train")}
        assert 3 < len(held_out) < 20 and len(both) == len(SUMS)
        again = self.corpus(tmp_path, SUMS[::-1])
        assert {chunk.text for chunk in again.documents("validation")} == held_out

    @pytest.mark.parametrize(
        ("fraction", "message"),
        [
            (1e-9, "no record is left to validate on: raise data.val_fraction"),
            (1 - 1e-9, "no record is left to train on"),
        ],
    )
    def test_an_empty_split(self, fraction: float, message: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=message):
            prepared(self.corpus(tmp_path, SUMS, val_fraction=fraction))

    def test_a_file_that_changes_while_it_is_read(self, make: Make, tmp_path: Path) -> None:
        corpus = make(*SUMS)
        documents = corpus.documents("train")
        next(documents)
        os.utime(tmp_path / "train.jsonl", ns=(0, 0))
        with pytest.raises(DataError, match="changed while it was read"):
            list(documents)

    def test_the_data_of_a_run_is_recognised(self, make: Make) -> None:
        data = prepared(make(*SUMS))
        same = prepared(make(*SUMS))
        same.check_identity(data.identity)
        for settings in ({"train_on": "all"}, {"packing": False}, {"separator": "x"}, {"template": "plain"}):
            with pytest.raises(DataError, match="the corpus is not the one of the checkpoint"):
                prepared(make(*SUMS, **settings)).check_identity(data.identity)
        with pytest.raises(DataError, match="the corpus is not the one"):
            prepared(make(*SUMS[1:])).check_identity(data.identity)


class TestFiles:
    """Token files in the cache."""

    def test_records_are_read_once(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        before = prepared(make(*SUMS))
        monkeypatch.delattr(read, "read_rows")
        after = prepared(make(*SUMS, train_on="all", packing=False))
        assert after.train.tokens.path == before.train.tokens.path

    @pytest.mark.parametrize("name", ["train.bin", "train.roles.bin", "validation.documents.bin", "manifest.json"])
    @pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
    def test_damage_is_seen_and_repaired(
        self, name: str, damage: str, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = prepared(make(*SUMS))
        expected, path = row_of(data), data.train.tokens.path.with_name(name)
        content = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            at = len(content) // 2
            path.write_bytes(content[:at] + (bytes([content[at] ^ 1]) + content[at + 1 :] if damage == "flip" else b""))
        assert row_of(prepared(make(*SUMS))) == expected
        assert "building the token files again" in caplog.text and path.read_bytes() == content

    def test_the_line_about_the_data(self, make: Make) -> None:
        rows = [*SUMS[:10], {"prompt": "x", "completion": ""}, {"question": 1}]
        with pytest.raises(DataError, match=r"line 11, field 'completion': it is empty"):
            prepared(make(*rows))
        data = prepared(make(*rows, skip_bad=True))
        assert data.sizes() == "10 prompts and answers, 110 tokens, 36% of them count; 1 to validate"
        lines = data.describe_rows(64)
        assert lines[0] == "2 rows, 78% of their places filled"
        assert lines[1].startswith("2 bad records are left out; the first: '") and len(lines) == 2

    def test_formats_may_differ_from_file_to_file(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "other.csv").write_text("text\nonce\n")
        corpus = make(*SUMS[:2], path=[str(tmp_path / "train.jsonl"), str(tmp_path / "other.csv")])
        assert prepared(corpus).sizes().startswith("2 prompts and answers and 1 text, ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": None}, "data=records needs data.path=<file, pattern or folder>"),
        ({"train_on": "prompt"}, "data.train_on: no choice 'prompt'"),
        ({"template": "chatlm"}, "no chat template 'chatlm'; did you mean 'chatml'?"),
        ({"val_fraction": 1.0}, "data.val_fraction must lie between 0 and 1"),
        ({"fields": {"promt": "x"}}, "data.fields: no field 'promt'; did you mean 'prompt'?"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_corpus({"name": "records", "path": "x.jsonl", **settings})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("record", "settings", "name"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, {}, "plain"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"template": "chatml"},
            "chatml",
        ),
        ({"prompt": "a", "completion": "b"}, {"template": "alpaca"}, "alpaca"),
        ({"prompt": "a", "completion": "b"}, {}, None),
    ],
)
def test_a_model_of_conversations_is_saved_with_their_template(
    record: dict[str, object], settings: dict[str, str], name: str | None, tmp_path: Path
) -> None:
    lines = [json.dumps(record).replace('"a"', f'"a{number}"') for number in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    corpus = build_corpus({"name": "records", "path": str(tmp_path / "train.jsonl"), **settings})
    tokenizer = corpus.with_template(build_tokenizer("byte"))
    assert (tokenizer.template and tokenizer.template.name) == name
    assert tokenizer.fingerprint == build_tokenizer("byte").fingerprint
