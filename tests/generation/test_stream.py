"""Streamed text: whole characters, no text of stop strings, independent rows."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modular_gpt import ConfigError
from modular_gpt.core.cache import ModelCache
from modular_gpt.data.tokenizers.byte import ByteTokenizer
from modular_gpt.generation import Generation, GenerationConfig, complete, left_pad, stream
from modular_gpt.generation.stopping import StopStringStreamer
from tests.generation.models import tiny

BYTES = ByteTokenizer()


class Reciting:
    """A fake model that predicts the next byte of a given text in each row."""

    slides = True
    training = False
    config = SimpleNamespace(context_length=1000, vocab_size=256)

    def __init__(self, *texts: str) -> None:
        self.texts = [list(text.encode()) + [0] * 100 for text in texts]
        self.prompt_length: int | None = None

    def train(self, mode: bool = True) -> None:
        pass

    def new_cache(self, batch: int = 1, max_length=None, dtype=None, window=None) -> ModelCache:
        return ModelCache([], batch, max_length, window)

    def __call__(self, ids: Tensor, *, cache: ModelCache, padding=None, last_only: bool = False) -> Tensor:
        assert isinstance(cache.length, int)
        self.prompt_length = self.prompt_length or ids.shape[1]
        cache.length += ids.shape[1]
        generated = cache.length - self.prompt_length
        logits = torch.zeros(len(ids), 1, 256)
        for row, text in enumerate(self.texts):
            logits[row, 0, text[generated]] = 10.0
        return logits


def streamed(text: str, stop: Sequence[str] = (), **settings: object) -> list[str]:
    asked = GenerationConfig(greedy=True, stop=list(stop), **{"max_new_tokens": len(text.encode()), **settings})
    return list(stream(Reciting(text), [65], asked, BYTES.decode_stream))  # type: ignore[arg-type]


def test_characters_are_streamed_whole() -> None:
    text = "naïve 日本語 👩‍👩‍👧 end"
    chunks = streamed(text)
    assert chunks == list(text)


def test_an_incomplete_character_at_the_end_is_shown_as_a_replacement() -> None:
    assert streamed("aé", max_new_tokens=2) == ["a", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["six", "three", "two"], "one "),
        ("one two three", ["none"], "one two three"),
        ("aab", ["ab"], "a"),
        ("abcabd", ["abd"], "abc"),
        ("ünder", ["ü"], ""),
        ("日本語", ["本"], "日"),
        ("ends with a begun sto", ["stop"], "ends with a begun sto"),
    ],
)
def test_stop_strings(text: str, stop: list[str], shown: str) -> None:
    chunks = streamed(text, stop)
    assert "".join(chunks) == shown
    [[text_found]] = complete(
        Reciting(text),  # type: ignore[arg-type]
        [[65]],
        GenerationConfig(greedy=True, stop=stop, max_new_tokens=len(text.encode())),
        decode_stream=BYTES.decode_stream,
    )
    assert text_found.text == shown
    stopped = any(s in text for s in stop)
    assert text_found.reason == ("text" if stopped else "length")
    end = min((text.find(s) + len(s) for s in stop if s in text), default=len(text))
    assert bytes(text_found.ids).decode() == text[:end], "reading ends with the token that completes the stop string"


def test_stop_tokens_are_not_shown() -> None:
    settings = GenerationConfig(greedy=True, stop_tokens=[ord("!")], max_new_tokens=20)
    [[text]] = complete(Reciting("hi! more"), [[65]], settings, decode_stream=BYTES.decode_stream)  # type: ignore[arg-type]
    assert text.text == "hi"
    assert text.ids == list(b"hi!")
    assert text.reason == "token"


def test_rows_stop_independently() -> None:
    model = Reciting("ab|cd", "efgh|", "ijklmnop")
    ids, padding = left_pad([[1], [1, 1], [1, 1, 1]])
    settings = GenerationConfig(greedy=True, stop=["|"], max_new_tokens=8)
    run = Generation(model, ids, settings, padding=padding, decode_stream=BYTES.decode_stream)  # type: ignore[arg-type]
    shown = list(itertools.zip_longest(*(step.texts for step in run), fillvalue=""))
    assert ["".join(row) for row in shown] == ["ab", "efgh", "ijklmnop"]
    assert [text.text for [text] in run.finish()] == ["ab", "efgh", "ijklmnop"]


def test_the_run_ends_with_its_last_text() -> None:
    model = Reciting("ab|" + "x" * 80)
    settings = GenerationConfig(greedy=True, stop=["|"], max_new_tokens=50)
    run = Generation(model, torch.tensor([[1]]), settings, decode_stream=BYTES.decode_stream)  # type: ignore[arg-type]
    assert sum(1 for _ in run) == 3


def test_a_character_split_between_prompt_and_text_is_completed() -> None:
    begun, rest = "é".encode()
    model = Reciting("")
    model.texts = [[rest, *b" yes"]]
    settings = GenerationConfig(greedy=True, max_new_tokens=5)
    assert "".join(stream(model, [begun], settings, BYTES.decode_stream)) == "é yes"  # type: ignore[arg-type]


def test_only_one_text_can_be_streamed() -> None:
    with pytest.raises(ConfigError, match="num_return_sequences=1"):
        stream(tiny(), [1], GenerationConfig(num_return_sequences=2), BYTES.decode_stream)


@pytest.mark.parametrize("strategy", ["sample", "lookup", "contrastive", "beam"])
def test_the_text_equals_the_decoded_ids(strategy: str) -> None:
    model, random = tiny(vocab_size=256), {} if strategy in ("beam", "contrastive") else {"seed": 5}
    settings = GenerationConfig(max_new_tokens=40, strategy=strategy, **random)
    prompts = [list(b"some"), list(b"prompts here")]
    for [text] in complete(model, prompts, settings, decode_stream=BYTES.decode_stream):
        assert text.text == BYTES.decode(text.ids)


alphabet = st.text(st.sampled_from("abé日👍"), max_size=25)


@given(text=alphabet, stops=st.lists(alphabet.filter(bool).map(lambda stop: stop[:4]), max_size=3))
def test_the_streamed_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    # the first complete stop string ends the text, even if another one began earlier
    end = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    until = text if end is None else text[:end]
    expected = text if end is None else text[: min(until.find(stop) for stop in stops if stop in until)]
    transcript, handed_out = StopStringStreamer(BYTES.decode_stream(), stops), ""
    for id in BYTES.encode(text):
        handed_out += transcript.push(id)
        assert expected.startswith(handed_out), "handed out what a stop string takes back"
    assert transcript.stopped == (end is not None)
    handed_out += transcript.finish()
    assert handed_out == transcript.text == expected
