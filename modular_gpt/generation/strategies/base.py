"""What all strategies share, and the plain one: choose a token, read it, choose the next."""

from abc import ABC, abstractmethod

from torch import Tensor

from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import RowGenerators


class Strategy(ABC):
    """Chooses the next tokens of every row. The loop appends them to the text before it asks again."""

    @abstractmethod
    def advance(self, max_tokens: int, stopped: Tensor) -> tuple[Tensor, Tensor]:
        """The next n tokens, 1 <= n <= max_tokens, as (B, n), and the model's own logits for each, (B, n, V).

        stopped: (B,) rows whose tokens do not matter any more
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
