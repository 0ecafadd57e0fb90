"""Streamed text of byte-fallback ids equals the text of all ids."""

import itertools
import random

import pytest
from tokenizers import Tokenizer, decoders, models

from modular_gpt.data.tokenizers.huggingface import HuggingFaceTokenizer

PIECES = ["▁", "a", "▁a", "日", "</s>", "b▁"]
AWKWARD = [0x20, 0x0A, 0x41, 0xE6, 0x97, 0xA5, 0xFF, *range(256, 256 + len(PIECES))]


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFaceTokenizer:
    """Like Llama's and Gemma's: an invalid UTF-8 byte turns the whole run of bytes into replacement characters."""
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    library = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    return HuggingFaceTokenizer(library, "</s>")


def streamed(tokenizer: HuggingFaceTokenizer, ids: tuple[int, ...]) -> list[str]:
    stream = tokenizer.decode_stream()
    return [*(stream.push(id) for id in ids), stream.flush()]


def test_streamed_bytes_are_the_text_of_all_ids(tokenizer: HuggingFaceTokenizer) -> None:
    generator = random.Random(0)
    short = (ids for length in (1, 2, 3) for ids in itertools.product(AWKWARD, repeat=length))
    long = (tuple(generator.choices(AWKWARD, k=generator.randint(4, 12))) for _ in range(1000))
    for ids in itertools.chain(short, long):
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_a_run_of_bytes_is_shown_when_it_ends(tokenizer: HuggingFaceTokenizer) -> None:
    a, line_end, ko = 257, 0x0A, tuple("日本".encode())
    assert streamed(tokenizer, (a, line_end, a)) == ["a", "", "\na", ""]
    assert streamed(tokenizer, (a, *ko)) == ["a", *[""] * 6, "日本"]
    assert streamed(tokenizer, (a, 0x20, 0xE6)) == ["a", "", "", "\N{REPLACEMENT CHARACTER}" * 2]
