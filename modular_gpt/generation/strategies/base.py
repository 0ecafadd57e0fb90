"""The interface of strategies, and sampling, which chooses one token after the other."""

from abc import ABC, abstractmethod

from torch import Tensor

from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import RowGenerators


class Strategy(ABC):
    """Chooses the next tokens of each row. The loop appends them to the text before the next call."""

    @abstractmethod
    def advance(self, max_tokens: int, stopped: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next n tokens (B, n), 1 <= n <= max_tokens, and the model's unfiltered logits, (B, n, V).

        stopped: (B,) rows that are complete, whose tokens are ignored
        """


class Sampling(Strategy):
    """Draws one token at a time, or takes the most likely one."""

    def __init__(self, runner: ModelRunner, sampler: Sampler, generators: RowGenerators) -> None:
        self._runner = runner
        self._sampler = sampler
        self._generators = generators

    def advance(self, max_tokens: int, stopped: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._runner.logits()
        return self._sampler.choose(logits[:, 0], self._runner.text, self._generators)[:, None], logits
