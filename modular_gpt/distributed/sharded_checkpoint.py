"""Writing of sharded checkpoints in safetensors: each process writes its shards; ``checkpoint.sharded`` reads them."""

from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from modular_gpt.distributed.strategy import Tensors


def write_shards(tensors: Tensors, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Write this process's shards of named tensors into a folder that all processes share. Collective.

    group: process group for communication, which a thread needs beside the main one; None: the default group

    Raises:
        OSError: a process cannot write.
    """
    try:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:  # derives from BaseException
        raise OSError(None, str(next(iter(error.failures.values()))[0])) from error
