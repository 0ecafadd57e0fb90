"""The trials of a comparison, round by round: learning rates on seed 0, rates beyond an edge, then the seeds."""

from collections.abc import Iterator, Mapping, Sequence

from modular_gpt.comparison.config import AUTO
from modular_gpt.comparison.measure import Measure
from modular_gpt.comparison.plan import Plan
from modular_gpt.comparison.trial import Trial
from modular_gpt.core.plain_types import PlainDict

FACTOR, EXTENSIONS = 3.0, 2  # ratio of two neighbouring rates; number of rounds beyond an edge
TUNING, FIRST = 0, 1  # the seed of tuning, which does not count in the result, and the first seed that counts


class Search:
    """The trials of a plan, given the results so far by the key of their trial."""

    def __init__(self, plan: Plan, results: Mapping[str, PlainDict]) -> None:
        self.plan, self.results, self.copies = plan, results, plan.copies()
        self.measure = Measure.of(plan)

    def rounds(self) -> Iterator[list[Trial]]:
        """The trials of each round; the results of a round are read before the next one is made.

        The rounds do not depend on which trials are finished, so a resumed comparison has the same ones.
        """
        if self.plan.config.lr == AUTO:
            for _ in range(1 + EXTENSIONS):
                yield [self.trial(name, rate, TUNING) for name in self.plan.variants for rate in self.rates(name)]
        yield self.counted()

    def trial(self, name: str, rate: float, pair: int) -> Trial:
        """The trial of a variant with a learning rate and a seed."""
        return Trial(name, self.plan.variants[name], rate, pair, self.copies[name])

    def grid(self, name: str) -> list[float]:
        """Three learning rates around the default one."""
        rate = self.plan.rates[name]
        return [rounded(rate / FACTOR), rounded(rate), rounded(rate * FACTOR)]

    def rates(self, name: str) -> list[float]:
        """The learning rates to try: three, and one beyond each edge that was the best, in ascending order."""
        rates = self.grid(name)
        for _ in range(EXTENSIONS):
            found = {rate: self.results.get(self.trial(name, rate, TUNING).key) for rate in rates}
            finished = {rate: result for rate, result in found.items() if result is not None}
            if len(finished) < len(rates):
                return rates
            best = self.best_of(finished)
            if best == rates[0]:
                rates = [rounded(best / FACTOR), *rates]
            elif best == rates[-1]:
                rates = [*rates, rounded(best * FACTOR)]
        return rates

    def tried(self, name: str) -> dict[float, PlainDict]:
        """The results of tuning, by learning rate in ascending order."""
        found = {rate: self.results.get(self.trial(name, rate, TUNING).key) for rate in self.rates(name)}
        return {rate: result for rate, result in found.items() if result is not None}

    def best_of(self, tried: Mapping[float, PlainDict]) -> float:
        """The learning rate of the best result."""
        return min(tried, key=lambda rate: self.measure.rank(tried[rate]))

    def best_rate(self, name: str) -> float:
        """The learning rate of a variant: the best of those tried, or the shared one."""
        if self.plan.config.lr != AUTO:
            return rounded(self.plan.rates[name])
        return self.best_of(self.tried(name))

    def at_edge(self, name: str) -> bool:
        """Whether the best of the rates that were tried is the lowest or the highest."""
        return self.plan.config.lr == AUTO and self.best_rate(name) in (min(self.tried(name)), max(self.tried(name)))

    def counted(self) -> list[Trial]:
        """The trials that count, seed by seed, so that an early end leaves complete pairs."""
        seeds = range(FIRST, FIRST + self.plan.config.seeds)
        rates = {name: self.best_rate(name) for name in self.plan.variants}
        return [self.trial(name, rates[name], pair) for pair in seeds for name in self.plan.variants]

    def later(self, trials: Sequence[Trial]) -> int:
        """Number of trials that follow this round, without those beyond an edge."""
        return len(self.plan.variants) * self.plan.config.seeds if trials[0].pair == TUNING else 0


def rounded(rate: float) -> float:
    """A learning rate of three digits, so that it can be typed again."""
    return float(f"{rate:.3g}")
