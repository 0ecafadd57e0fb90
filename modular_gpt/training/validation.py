"""What is asked of a model between steps: its loss on the validation text, and a text of its own."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from modular_gpt.core.errors import NonFiniteError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import BatchSource, PreparedData, Tokenizer, sequential
from modular_gpt.distributed import Parallel
from modular_gpt.runtime.device import autocast
from modular_gpt.runtime.signals import GracefulShutdown
from modular_gpt.training.config import TrainerConfig
from modular_gpt.training.forward import Forward

SEED = 0  # the same windows in every run on the same text, whatever the run's own seed
PROMPT = 16  # tokens of the validation text that samples continue where no prompt was given


class Validation:
    """Measures a model that is being trained, and leaves it in training mode."""

    def __init__(
        self,
        forward: Forward,
        data: PreparedData,
        tokenizer: Tokenizer,
        config: TrainerConfig,
        seed: int,
        stop: GracefulShutdown,
        parallel: Parallel,
    ) -> None:
        """seed: of the samples; stop: ends a measurement early; parallel: whose processes share the batches"""
        self.forward, self.tokens, self.tokenizer, self.config = forward, data.validation, tokenizer, config
        self.seed, self.stop, self.parallel = seed, stop, parallel
        self.block = forward.model.config.context_length

    @torch.no_grad()
    def loss(self, batches: int) -> float | None:
        """Mean loss (nats per token) over fixed batches of the validation text, 0 for all of it; None if stopped."""
        losses, counts = [], []
        with self._evaluating():
            for x, y in self.batches(batches):
                if self.stop.requested():
                    return None
                losses.append(self.forward(x, y).parts["cross_entropy"].float())
                counts.append(int((y != IGNORED).sum()))
        total = math.fsum(loss * n for loss, n in zip(torch.stack(losses).tolist(), counts, strict=True))
        return self.parallel.mean(total, sum(counts))

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``count`` random but fixed batches, or the whole text in order."""
        rows = self.config.batch_size // self.config.gradient_accumulation
        part, parts = self.parallel.part, self.parallel.parts
        if not count:
            yield from sequential(self.tokens, self.block, rows, part, parts)
            return
        source = BatchSource(self.tokens, self.block, rows, SEED)
        for number in range(count):
            yield source.batch(number, part, parts)

    def sample(self) -> str | None:
        """A text that the model continues now, from the same random numbers; None where another process does that."""
        forward, config = self.forward, self.config
        ids = torch.tensor([self.prompt()], device=forward.device)
        model = self.parallel.model_to_generate(forward.model)
        if model is None:
            return None
        with self._evaluating(), autocast(forward.precision, forward.device):
            try:
                out = model.generate(
                    ids,
                    config.sample_tokens,
                    temperature=config.sample_temperature,
                    seed=self.seed,
                    overflow="window",
                    suppress_tokens=self.tokenizer.unused_ids(model.config.vocab_size),
                )
            except NonFiniteError as error:  # the training decides what becomes of it
                return f"(no sample: {error})"
        skipped = int(out[0, 0] == self.tokenizer.bos_id)
        return self.tokenizer.decode(out[0, skipped:], errors="ignore")

    def prompt(self) -> list[int]:
        """Ids of the text that samples continue, no longer than the context; ``bos_id``, where there is one, first."""
        if self.config.sample_prompt:
            ids = self.tokenizer.encode(self.config.sample_prompt)
        else:
            ids = self.tokens.array[:PROMPT].tolist()
        bos = self.tokenizer.with_bos([])
        return [*bos, *ids[-max(1, self.block - len(bos)) :]]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.forward.model.eval()
        try:
            yield
        finally:
            self.forward.model.train()
