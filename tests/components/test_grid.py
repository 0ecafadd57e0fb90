"""Every attention with every position and feed-forward component works, or is refused when the config is read.

All triples of names are read as configs. Models are built for triples that cover all pairs of names: components depend
on each other by shapes and positions only, and no component depends on two others at once.
"""

import itertools

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.registry import entries
from tests.components.cases import MODEL
from tests.components.laws import LAWS, build, close, feed, text

GRID = list(itertools.product(entries("attention"), entries("pos"), entries("ffn")))
PAIRS = list(itertools.product(entries("attention"), entries("pos")))
CACHE_LAWS = [law for law in LAWS if law.__name__ not in ("config_round_trips", "half_precision")]
WINDOW = 5  # the default window is longer than the texts here


def config(attention: str, pos: str, ffn: str) -> GPTConfig:
    settings: dict[str, object] = {"name": attention}
    if "window" in entries("attention")[attention].settings:
        settings["window"] = WINDOW
    return GPTConfig(**{**MODEL, "n_layers": 1, "attention": settings, "pos": pos, "ffn": ffn})


def refusal(attention: str, pos: str, ffn: str = "mlp") -> str | None:
    try:
        config(attention, pos, ffn)
    except ConfigError as error:
        return str(error)
    return None


WORKING = [triple for triple in GRID if refusal(*triple) is None]
REFUSED = [triple for triple in GRID if refusal(*triple) is not None]


def covering(triples: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Few triples that cover every pair of names of the given triples; each attention starts one name later."""
    places = [{name: i for i, name in enumerate(entries(slot))} for slot in ("attention", "pos", "ffn")]

    def later(triple: tuple[str, str, str]) -> bool:
        attention, pos, ffn = (place[name] for place, name in zip(places, triple, strict=True))
        return (attention + pos - ffn) % len(places[2]) != 0

    found, seen = [], set[tuple[str, str]]()
    for triple in sorted(triples, key=later):
        if not seen.issuperset(itertools.combinations(triple, 2)):
            found.append(triple)
            seen.update(itertools.combinations(triple, 2))
    return found


COVERING = covering(WORKING)
WORKING_PAIRS = [pair for pair in PAIRS if refusal(*pair) is None]


@pytest.mark.parametrize(("attention", "pos", "ffn"), REFUSED)
def test_refused_in_one_sentence_with_a_way_out(attention: str, pos: str, ffn: str) -> None:
    sentence = refusal(attention, pos, ffn)
    assert sentence and "\n" not in sentence and f"attention={attention}" in sentence and "use pos=" in sentence


def test_only_a_score_bias_without_scores_is_refused() -> None:
    without_scores = {name for name, entry in entries("attention").items() if not entry.component.accepts_bias}
    biases = {name for name, entry in entries("pos").items() if entry.component.biases}
    assert {triple[:2] for triple in REFUSED} == set(itertools.product(without_scores, biases))


def test_every_pair_of_names_is_tried() -> None:
    pairs = [
        set(itertools.chain(*(itertools.combinations(triple, 2) for triple in some))) for some in (WORKING, COVERING)
    ]
    assert pairs[0] == pairs[1] and len(COVERING) < len(WORKING)


@pytest.mark.parametrize(("attention", "pos", "ffn"), COVERING)
def test_trains_and_generates(attention: str, pos: str, ffn: str) -> None:
    made = config(attention, pos, ffn)
    model = GPTModel(made)
    ids = text(made, rows=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and torch.tensor(losses).isfinite().all()

    model.eval()
    with torch.no_grad():
        slow = ids[:, :5]
        for _ in range(12):  # without a cache, the whole text for every token
            slow = torch.cat([slow, model(slow)[:, -1:].argmax(-1)], dim=1)
        cache = model.new_cache(len(ids), 17)
        fast, step = ids[:, :5], ids[:, :5]
        for _ in range(12):
            step = model(step, cache=cache, last_only=True).argmax(-1)
            fast = torch.cat([fast, step], dim=1)
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("law", CACHE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("attention", "pos"), WORKING_PAIRS)
def test_law(attention: str, pos: str, law) -> None:  # type: ignore[no-untyped-def]
    law(config(attention, pos, "swiglu"))


@pytest.mark.parametrize(("attention", "pos"), WORKING_PAIRS)
def test_decoding_far_past_the_window_wraps_the_ring(attention: str, pos: str) -> None:
    """A ring buffer of 5 wraps 16 times; constant states and full caches do not drift further either."""
    made = config(attention, pos, "mlp")
    made = GPTConfig.from_dict({**made.to_dict(), "context_length": 80})
    model, ids = build(made, std=0.2), text(made, tokens=80)
    with torch.no_grad():
        expected = model(ids)
    for counts in ([1] * 80, [17, 1, 1, 30, 2], [79]):
        close(feed(model, ids, model.new_cache(len(ids), 80), counts), expected)
