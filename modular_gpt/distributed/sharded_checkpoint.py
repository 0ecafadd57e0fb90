"""Sharded checkpoints in safetensors: each process writes the shards it holds (read by ``checkpoint.sharded``)."""

from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from modular_gpt.distributed.strategy import Tensors


def write_shards(tensors: Tensors, folder: Path) -> None:
    """Write this process's shards of named tensors into a folder that all processes share. Collective.

    Raises:
        OSError: some process cannot write.
    """
    try:
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # derives from BaseException
        raise OSError(None, str(next(iter(error.failures.values()))[0])) from error
