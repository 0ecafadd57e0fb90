"""Full tensors from the shards written by the processes of a training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modular_gpt.checkpoint.sharded import HEADER, OFFSETS, read_shards


def write(folder: Path, number: int, shards: dict[str, tuple[list[int], Tensor]]) -> None:
    """A file as torch.distributed.checkpoint writes it."""
    header = {HEADER: json.dumps({key: {OFFSETS: start} for key, (start, _) in shards.items()})}
    tensors = {key: tensor.contiguous() for key, (_, tensor) in shards.items()}
    save_file(tensors, folder / f"shard-{number:05}-model-00001-of-00001.safetensors", metadata=header)


def test_shards_are_joined(tmp_path: Path) -> None:
    matrix, step = torch.arange(35.0).view(5, 7), torch.tensor(3)
    write(tmp_path, 1, {"model/a": ([0, 0], matrix[:2]), "optimizer/step": ([], step)})
    write(tmp_path, 2, {"model/a": ([2, 0], matrix[2:, :4])})
    write(tmp_path, 3, {"model/a": ([2, 4], matrix[2:, 4:]), "model/b": ([0], matrix[0])})
    found = read_shards(sorted(tmp_path.iterdir()), "model")
    assert found.keys() == {"a", "b"}
    assert torch.equal(found["a"], matrix)
    assert torch.equal(found["b"], matrix[0])
    assert torch.equal(read_shards(sorted(tmp_path.iterdir()), "optimizer")["step"], step)
    assert read_shards(sorted(tmp_path.iterdir()), "trained") == {}


@pytest.mark.parametrize(
    "start", [[10**12, 0], [1, 0], [-1, 0], [0], [0, 0, 0]], ids=["huge", "a gap", "negative", "too few", "too many"]
)
def test_shards_that_do_not_fit_are_refused(start: list[int], tmp_path: Path) -> None:
    write(tmp_path, 1, {"model/a": (start, torch.ones(3, 2))})
    with pytest.raises(SafetensorError, match="shards of model/a do not make up one tensor"):
        read_shards(sorted(tmp_path.iterdir()), "model")


@pytest.mark.parametrize("header", [None, "text", "{}", '{"model/a": {"saved_offsets": "x"}}'])
def test_a_header_without_offsets_is_refused(header: str | None, tmp_path: Path) -> None:
    metadata = None if header is None else {HEADER: header}
    save_file({"model/a": torch.ones(2)}, tmp_path / "shard-00001-model.safetensors", metadata=metadata)
    with pytest.raises(SafetensorError, match="does not give the offsets of its shards"):
        read_shards(sorted(tmp_path.iterdir()), "model")
