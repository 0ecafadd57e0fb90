"""The number that variants are compared by: the last validation loss, or the tokens until a loss is reached."""

import math
from dataclasses import dataclass

from modular_gpt.comparison.plan import Plan
from modular_gpt.core.plain_types import PlainDict


@dataclass(frozen=True)
class Measure:
    """target: the loss to reach; None: the loss at the last step is compared."""

    target: float | None

    @classmethod
    def of(cls, plan: Plan) -> "Measure":
        """The measure of a plan's budget."""
        return cls(plan.config.target)

    @property
    def unit(self) -> str:
        """The unit of values and differences."""
        return "nats per token" if self.target is None else "ln(tokens)"

    def value(self, result: PlainDict) -> float:
        """The value of a trial, lower is better; infinity for one that diverged or never reached the target."""
        if result["loss"] is None:
            return math.inf
        if self.target is None:
            return float(result["loss"])
        tokens = tokens_to(
            self.target, [(step, loss) for step, loss in result["validations"]], result["tokens_per_step"]
        )
        return math.log(tokens) if math.isfinite(tokens) else math.inf

    def rank(self, result: PlainDict) -> tuple[float, float]:
        """For the choice of a learning rate: the value, and the loss among trials that never reached the target."""
        return self.value(result), math.inf if result["loss"] is None else result["loss"]


def tokens_to(target: float, validations: list[tuple[int, float]], tokens_per_step: int) -> float:
    """Tokens until the validation loss is ``target``, interpolated between evaluations; infinity if it never is."""
    before: tuple[int, float] | None = None
    for step, loss in validations:
        if loss <= target:
            if before is None:
                return step * tokens_per_step
            share = (before[1] - target) / (before[1] - loss)
            return (before[0] + share * (step - before[0])) * tokens_per_step
        before = step, loss
    return math.inf
