"""A vocabulary sharded over processes: embeddings, head and loss of tensor parallelism.

Each process has the rows of the embedding table, and the logits, of some token ids. The loss is computed from sums over
the processes; logits are gathered only where a caller asks for them (https://arxiv.org/abs/1909.08053).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.core.collectives import ShardGroup, local_shard
from modular_gpt.core.errors import ConfigError


@dataclass(frozen=True)
class VocabularyShard:
    """The token ids of this process of ``shards``: ``start`` to ``stop``, exclusive, of ``size`` ids."""

    shards: ShardGroup
    start: int
    stop: int
    size: int

    @classmethod
    def of(cls, shards: ShardGroup, vocab_size: int) -> "VocabularyShard":
        """The shard of this process.

        Raises:
            ConfigError: some process would have no id.
        """
        if (shards.size - 1) * -(-vocab_size // shards.size) >= vocab_size:
            raise ConfigError(
                f"vocab_size={vocab_size} does not divide into {shards.size} processes, of which the last would have no"
                " token id; change one"
            )
        return cls(shards, *shards.bounds(vocab_size), vocab_size)

    def embed(self, ids: Tensor, table: Tensor) -> Tensor:
        """ids (B, T) -> their embeddings (B, T, D), from a table whose rows are divided over the processes.

        Raises:
            IndexError: an id is outside the vocabulary; not raised on a GPU.
        """
        index, local = self._local(ids)
        return self.shards.summed(F.embedding(index, local_shard(table)) * local[..., None])

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        """(..., D) -> the logits (..., stop - start) of this process's ids."""
        return F.linear(self.shards.copied(x), local_shard(weight))

    def gathered(self, logits: Tensor) -> Tensor:
        """Logits (..., stop - start) of each process -> all logits (..., V) in all processes."""
        return self.shards.summed(F.pad(logits, (self.start, self.size - self.stop)))

    def logsumexp(self, logits: Tensor) -> Tensor:
        """(M, stop - start) -> (M,): the logarithm of the sum of exp over all logits of a row."""
        local = logits.logsumexp(-1)
        largest = self.shards.largest(local)
        return largest + self.shards.summed((local - largest).exp()).log()

    def chosen(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The logits (M,) of the ``targets`` (M,). Raises IndexError as ``embed``."""
        index, local = self._local(targets)
        return self.shards.summed(logits.gather(1, index[:, None])[:, 0] * local)

    def mean(self, logits: Tensor) -> Tensor:
        """(M, stop - start) -> (M,): the mean of all logits of a row."""
        return self.shards.summed(logits.sum(-1)) / self.size

    def argmax(self, logits: Tensor) -> Tensor:
        """(M, stop - start) -> (M,): the most likely id of all."""
        value, index = logits.detach().max(-1)
        best = (index + self.start).where(value == self.shards.largest(value), self.size)
        return self.shards.smallest(best)

    def _local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The index of each id in this process's shard, 0 for other ids, and whether this process has the id."""
        checked = ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if checked and bool(((ids < 0) | (ids >= self.size)).any()):
            raise IndexError("index out of range")
        local = (ids >= self.start) & (ids < self.stop)
        return (ids - self.start).where(local, 0), local
