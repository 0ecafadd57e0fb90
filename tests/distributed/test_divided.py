"""Models divided by heads, experts and token ids among 2 and 4 processes compute what whole ones do."""

import pytest

from modular_gpt.core.collectives import ShardGroup
from modular_gpt.core.errors import ConfigError
from modular_gpt.model.vocabulary import VocabularyShard
from tests.distributed.divided import differences, held, message_outside
from tests.distributed.pair import Pair


@pytest.mark.parametrize("world", ["pair", "four"])
def test_losses_gradients_and_logits_are_those_of_whole_models(world: str, request: pytest.FixtureRequest) -> None:
    """65 token ids, which neither 2 nor 4 divide; every term of the loss, in chunks; ignored targets."""
    processes: Pair = request.getfixturevalue(world)
    for found in processes(differences):
        wrong = {name: value for name, value in found.items() if not value < 5e-6}
        assert not wrong


def test_each_process_holds_its_share(pair: Pair) -> None:
    """But for norms, the router and the latents, a half."""
    for local, whole in pair(held):
        assert whole / 2 < local < 0.55 * whole


def test_ids_outside_the_vocabulary_are_named(pair: Pair) -> None:
    assert pair(message_outside) == ["ids contain 65, but the model's ids run from 0 to 64; encode the text with the"
                                     " tokenizer that the model was trained with"] * 2  # fmt: skip


def test_a_process_without_token_ids_is_refused() -> None:
    shards = ShardGroup()
    shards.rank, shards.size = 0, 4
    with pytest.raises(
        ConfigError, match="vocab_size=5 does not divide into 4 processes, of which the last would have"
    ):
        VocabularyShard.of(shards, 5)
    shards.size = 3
    assert VocabularyShard.of(shards, 5).stop == 2
