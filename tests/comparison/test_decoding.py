"""Decoding speed of variants: timed and skipped lengths, and the bytes of the bandwidth bound."""

import pytest

from modular_gpt import GPTModel
from modular_gpt.comparison import decoding

SIZES = dict(vocab_size=31, d_model=16, n_heads=2, n_layers=1, context_length=24)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, GPTModel]:
    monkeypatch.setattr(decoding, "STEPS", 3)
    return {pos: GPTModel(**SIZES, pos=pos).eval() for pos in ("rope", "learned")}


@pytest.mark.parametrize(("tokens", "timed"), [(20, ["rope", "learned"]), (21, ["rope"])])
def test_models_are_timed_up_to_the_end_of_their_positions(
    models: dict[str, GPTModel], tokens: int, timed: list[str]
) -> None:
    times = decoding.step_times(models, tokens)
    assert list(times) == timed and all(seconds > 0 for seconds in times.values())


def test_a_step_reads_the_weights_and_the_cache(models: dict[str, GPTModel]) -> None:
    model = models["rope"]
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert decoding.bytes_read(model, 20) == weights + 4 * 2 * 20 * 16  # key and value, 20 tokens, width 16, float32
