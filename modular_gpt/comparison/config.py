"""Settings of a comparison besides its variants."""

from dataclasses import dataclass

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import expand_home, one_of, positive, validated

BUDGETS = {
    "tokens": "equal tokens",
    "params": "equal parameters and tokens",
    "flops": "equal training FLOPs",
    "time": "equal training time",
    "target_loss": "tokens to a loss",
}
AUTO, SHARED = "auto", "shared"
PROBES, LEARNED = "probes", "learned"


@validated("compare")
@dataclass
class CompareConfig:
    """Settings of mgpt-compare.

    budget: The resource that all variants get equal amounts of: tokens; params, which also sets the width of the
        feed-forward network; flops or time, which also set the number of steps. target_loss compares the number of
        tokens until a validation loss is reached.
    seeds: Number of seeds that count in the result. Fewer than 3 give no verdict.
    lr: Choice of learning rates: auto tunes the rate of each variant on a separate seed; shared uses the default rate
        of the baseline for all variants; a number is the rate of all variants. The last two are untuned.
    jobs: Number of trials that run at the same time, each in a separate process with one thread.
    margin: Variants whose losses differ by less than this are equivalent, in nats per token; with budget=target_loss,
        a relative number of tokens.
    target: The validation loss of budget=target_loss, in nats per token.
    require: Exit with code 1 unless a variant has this verdict: better, equivalent (or better), or not_worse (no
        variant is worse). By default (null) the verdict is not in the exit code.
    diagnostics: Checks of the variants in the report: probes, which train nothing and take milliseconds, or learned,
        which also trains small models on tasks whose answers follow from the architecture, about a minute a variant.
    decoding: Measure the decoding speed of each variant at the end.
    pages: Save the model of each variant that was trained with the first seed, and write an inspection page of it, as
        mgpt-inspect does.
    compares: Directory that contains the directories of comparisons.
    resume: Resume this comparison. Only seeds, jobs, require, diagnostics, decoding and pages can change.
    """

    budget: str | None = None
    seeds: int = 5
    lr: str | float = AUTO
    jobs: int = 1
    margin: float = 0.02
    target: float | None = None
    require: str | None = None
    diagnostics: str = PROBES
    decoding: bool = True
    pages: bool = True
    compares: str = "compares"
    resume: str | None = None

    def __post_init__(self) -> None:
        expand_home(self, "compares", "resume")
        positive("compare", seeds=self.seeds, jobs=self.jobs, margin=self.margin, target=self.target)
        if self.budget is not None:
            one_of(self.budget, tuple(BUDGETS), "budget")
        one_of(self.diagnostics, (PROBES, LEARNED), "diagnostics")
        if self.require is not None:
            one_of(self.require, REQUIREMENTS, "require")
        if isinstance(self.lr, str) and self.lr not in (AUTO, SHARED):
            try:
                self.lr = float(self.lr)  # as a command line gives it
            except ValueError:
                raise ConfigError(f"lr must be auto, shared or a number, got {self.lr!r}") from None
        if not isinstance(self.lr, str):
            positive("compare", lr=self.lr)

    def check_budget(self) -> None:
        """Raise a ConfigError unless a budget is given, with the settings that it requires and no others."""
        if self.budget is None:
            listed = ", ".join(BUDGETS)
            raise ConfigError(f"a comparison needs a budget, which its result depends on: give budget= one of {listed}")
        if (self.budget == "target_loss") != (self.target is not None):
            raise ConfigError(
                "budget=target_loss needs the validation loss to reach: give target=<nats per token>"
                if self.target is None
                else f"target={self.target} is for budget=target_loss, and budget={self.budget}"
            )


REQUIREMENTS = ("better", "equivalent", "not_worse")
