"""Models sharded by heads, experts and token ids among 2 and 4 processes equal unsharded ones."""

from pathlib import Path

import pytest

from modular_gpt.checkpoint import find_checkpoint
from modular_gpt.core.collectives import ShardGroup
from modular_gpt.core.errors import ConfigError
from modular_gpt.model.vocabulary import VocabularyShard
from tests.distributed.cases import refusal, whole_run
from tests.distributed.pair import Pair
from tests.distributed.tensor_parallel_models import MODELS, differences, held, message_outside
from tests.training.small import config

BOTH = {"name": "fsdp", "tensor": 2}
WAYS = {"pair": {"tensor": {"name": "tensor"}}, "four": {"tensor": {"name": "tensor"}, "both": BOTH}}


@pytest.mark.parametrize("world", WAYS)
def test_losses_gradients_and_logits_equal_those_of_unsharded_models(
    world: str, request: pytest.FixtureRequest
) -> None:
    """65 token ids, not divisible by 2 or 4; every term of the loss, in chunks; ignored targets."""
    processes: Pair = request.getfixturevalue(world)
    models = (
        list(MODELS) if world == "pair" else ["an untied head", "rotated and compressed latents", "a shared expert"]
    )
    for found in processes(differences, WAYS[world], models):
        wrong = {name: value for name, value in found.items() if not value < 5e-6}
        assert not wrong


EXPERTS = {"attention": "mla", "ffn": {"name": "moe", "n_experts": 4, "balance": "bias"}, "n_heads": 2, "n_layers": 1}


def test_training_in_two_dimensions_resumes_in_other_layouts(pair: Pair, four: Pair, folder: Path) -> None:
    """Four processes with sharded rows, weights and tensor parallelism; then one; then two with tensor parallelism.

    All write checkpoints in the background; each of the four writes its shards.
    """
    same = {"max_steps": 9, "log_interval": 1, "eval_interval": 3, "sample_tokens": 4, "gradient_accumulation": 2}
    made = {**same, "optim": "adafactor"}
    _, _, losses = whole_run(config(folder, EXPERTS, runs=str(folder / "whole"), **made).to_dict())
    settings = config(folder, EXPERTS, runs=str(folder / "runs"), async_save=True, **made).to_dict()
    directory = four(whole_run, {**settings, "parallel": {**BOTH, "sharded_checkpoints": True}}, 3)[0][0]
    assert list(find_checkpoint(directory, prefer="latest").glob("shard-*"))
    whole_run({**settings, "parallel": "none", "resume": directory}, 6)
    _, _, found = pair(whole_run, {**settings, "parallel": "tensor", "resume": directory})[0]
    assert found.keys() == losses.keys()
    assert max(abs(found[step] - losses[step]) for step in losses) < 5e-6
    assert (Path(directory) / "samples.txt").read_text().count("=== step ") == 3


def test_processes_that_do_not_divide_into_groups_are_refused(four: Pair, folder: Path) -> None:
    messages = four(refusal, config(folder, parallel={"name": "fsdp", "tensor": 3}).to_dict())
    assert messages[0] == "parallel.tensor=3 does not divide the number of processes, 4: change one of them"


def test_each_process_holds_its_shards(pair: Pair) -> None:
    """Half of every tensor except norms, the router and the latents."""
    for local, whole in pair(held):
        assert whole / 2 < local < 0.55 * whole


def test_ids_outside_the_vocabulary_are_refused(pair: Pair) -> None:
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
