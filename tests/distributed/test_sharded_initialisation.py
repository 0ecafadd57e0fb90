"""A sharded training starts from the values of one process, and no process ever holds the whole model."""

from pathlib import Path

from tests.distributed.allocated import MODELS, starts
from tests.distributed.pair import Pair

WAYS = [{"name": "fsdp"}, {"name": "tensor"}]


def test_no_process_holds_the_whole_model_at_the_start(pair: Pair, folder: Path) -> None:
    """Peak elements: the shards, and one full tensor during its initialisation, with a copy of its shard.

    An orthogonal matrix also needs the factors of its decomposition.
    """
    for found in pair(starts, WAYS, str(folder)):
        assert len(found) == len(MODELS) * len(WAYS) * 2
        for name, (different, peak, held, largest) in found.items():
            assert not different, name
            drawn = 4 if "orthogonal" in MODELS[name.partition(",")[0]].values() else 1.6
            assert held <= peak <= held + drawn * largest, name
