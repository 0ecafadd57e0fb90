"""Every law on every case of every registered component."""

import zlib

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tests.components.cases import ALL, CHOSEN, Case, Stack, joined, parametrize, stacked
from tests.components.laws import LAWS, SLOW_LAWS, TOKENS, Law, build, close, compiles_whole, feed, text

SPLITS = st.lists(st.integers(1, 9), max_size=TOKENS).filter(lambda counts: sum(counts) <= TOKENS)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@parametrize(ALL)
def test_law(case: Case, law: Law) -> None:
    law(case.config())


@pytest.mark.parametrize("law", SLOW_LAWS, ids=lambda law: law.__name__)
@parametrize(stacked(joined(CHOSEN)))
def test_slow_law(case: Stack, law: Law) -> None:
    """Components with default settings also run through the ahead-of-time tracer, which functionalises every operator.

    One model holds cases of different slots, in a few layers, since a component that breaks the graph does so in
    every combination.
    """
    tracer = {"backend": "aot_eager"} if law is compiles_whole and case.default else {}
    law(case.config(), **tracer)


@parametrize([case for case in CHOSEN if case.slot in ("attention", "pos")])
def test_random_chunks_and_padding(case: Case) -> None:
    model, ids = build(case.config()), text(case.config())
    with torch.no_grad():
        whole = model(ids)

    @seed(zlib.crc32(case.id.encode()))  # different examples for each case
    @settings(max_examples=4)
    @given(counts=SPLITS, pads=st.lists(st.integers(0, TOKENS - 1), min_size=3, max_size=3))
    def check(counts: list[int], pads: list[int]) -> None:
        close(feed(model, ids, model.new_cache(3, TOKENS), counts), whole)
        ragged = feed(model, ids, model.new_cache(3, TOKENS), counts, torch.tensor(pads))
        for row, pad in enumerate(pads):
            with torch.no_grad():
                close(ragged[row : row + 1, pad:], model(ids[row : row + 1, pad:]))

    check()
