"""Tokens and seconds of ``experiment=speedrun`` to reach the loss of a well-known baseline.

    python benchmarks/speedrun.py --data tinyshakespeare.txt [--seeds 0 1 2] [--write docs/benchmarks.md]

Three recipes for a model of 4 layers, width 128 and context 64 with batches of 12 windows, all trained by
``Trainer.update`` on Tiny Shakespeare with a character tokenizer. Losses are measured on the whole validation text, the
last tenth of the file.

    speedrun  experiment=speedrun
    baseline  nanoGPT's recommended settings for CPUs, https://github.com/karpathy/nanoGPT: 2000 steps
    plain     the baseline with the best of several learning rates and the smallest number of steps tried that reaches
              the loss; each number of steps is a separate training with a full schedule
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from measure import machine, table, write_section

from modular_gpt import compose
from modular_gpt.data import build_corpus, build_tokenizer, prepare
from modular_gpt.distributed import build_parallel
from modular_gpt.runtime.device import choose_device, choose_precision, float32_products, prepare_device
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training.build import build_trainer
from modular_gpt.training.forward import Placement

PLAIN = (
    *("experiment=shakespeare_char", "pos=learned", "model.bias=false", "optim=adamw", "optim.beta1=0.9"),
    *("optim.beta2=0.99", "optim.weight_decay=0.1", "schedule=cosine", "schedule.warmup=0.05", "schedule.final=0.1"),
)
BASELINE = (*PLAIN, "optim.learning_rate=1e-3", "trainer.max_steps=2000")
EAGER = ("trainer.precision=float32", "trainer.compile=false")
QUICK = ("trainer.precision=auto", "trainer.compile=true")
LEARNING_RATES = (2e-3, 4e-3, 8e-3)  # candidates of the plain recipe; its default is 1e-3
FACTORS = (3, 6, 7, 8, 10)  # candidate numbers of steps, as multiples of the speedrun's
ROUNDS = 40  # rounds in which timed trainings take turns


class Race:
    """One training of a recipe.

    seconds: time of each step
    """

    def __init__(self, name: str, overrides: Sequence[str], seed: int, data: str) -> None:
        """overrides: as on the command line"""
        self.name, self.seconds = name, list[float]()
        config = compose(*overrides, f"data.path={data}", f"seed={seed}")
        self.steps = config.trainer.max_steps
        self.device = choose_device(config.trainer.device)
        width = config.model.d_model
        self.precision, _ = choose_precision(str(config.trainer.precision), self.device, width)
        corpus = build_corpus(config.data)
        tokenizer = build_tokenizer(config.tokenizer, corpus)
        prepared = prepare(corpus, tokenizer)
        placement = Placement(self.device, self.precision, build_parallel("none", ProcessGroup()))
        self.trainer = build_trainer(config, prepared, tokenizer, placement)
        self.trainer.model.train()
        self.tokens = self.steps * config.trainer.batch_size * config.model.context_length

    def advance(self, share: float = 1.0) -> None:
        """Train until the fraction ``share`` of all steps is done."""
        with float32_products(self.precision, self.device):
            while len(self.seconds) < round(share * self.steps):
                begun = time.perf_counter()
                self.trainer.update()
                self.trainer.progress.step += 1
                self.trainer.averages.read()  # synchronises the device
                self.seconds.append(time.perf_counter() - begun)

    def loss(self) -> float:
        """Loss on the whole validation text, in nats per character."""
        with float32_products(self.precision, self.device):
            loss = self.trainer.validation.loss(0)
        assert loss is not None
        return loss

    @property
    def compiled(self) -> float:
        """Seconds of all steps without compilation; the first two steps count as the mean of the others."""
        return self.steps * statistics.fmean(self.seconds[2:])

    @property
    def compiling(self) -> float:
        """Seconds of the first two steps beyond the mean of the others."""
        return sum(self.seconds[:2]) - 2 * statistics.fmean(self.seconds[2:])


RACES = {
    "speedrun": ("experiment=speedrun", *QUICK),
    "baseline, float32": (*BASELINE, *EAGER),
    "baseline, arithmetic of the speedrun": (*BASELINE, *QUICK),
}
TIMED_ONLY = 0.1  # fraction of its steps run by the last race, which is only timed


def timed(seed: int, data: str) -> tuple[list[Race], list[float]]:
    """Run the races of one seed; returns them and the losses of the first two.

    The races take turns, so that other load on the machine affects all of them alike.
    """
    races = [Race(name, overrides, seed, data) for name, overrides in RACES.items()]
    for turn in range(1, ROUNDS + 1):
        for race, share in zip(races, (1.0, 1.0, TIMED_ONLY), strict=True):
            race.advance(share * turn / ROUNDS)
    losses = [race.loss() for race in races[:2]]
    for race in races:
        print(f"  seed {seed}, {race.name}: {race.compiled:.1f} s and {race.compiling:.1f} to compile", flush=True)
    print(f"  losses {losses[0]:.4f} and {losses[1]:.4f}", flush=True)
    return races, losses


def plain_losses(steps: int, learning_rate: float, seeds: Sequence[int], data: str) -> list[float]:
    """Losses of the plain recipe after ``steps`` steps, by seed."""
    losses = []
    for seed in seeds:
        overrides = (*PLAIN, *QUICK, f"trainer.max_steps={steps}", f"optim.learning_rate={learning_rate}")
        race = Race("plain", overrides, seed, data)
        race.advance()
        losses.append(race.loss())
        print(f"  seed {seed}, plain, {steps} steps at {learning_rate:g}: {losses[-1]:.4f}", flush=True)
    return losses


def plain_until(goal: float, steps: int, seeds: Sequence[int], data: str) -> tuple[list[list[str]], str]:
    """Rows of the plain recipe for growing multiples of ``steps`` until it reaches ``goal``, and a note on tuning.

    The learning rate is the best of several after the fewest steps with the first seed. The number of steps is also
    found with the first seed, and then trained with the others.
    """
    few = FACTORS[0] * steps
    tried = {rate: plain_losses(few, rate, seeds[:1], data) for rate in LEARNING_RATES}
    best = min(tried, key=lambda rate: tried[rate])
    rows, losses = [row(f"plain, learning rate {best:g}", few, tried[best])], tried[best]
    for factor in FACTORS[1:]:
        if losses[0] <= goal:
            break
        losses = plain_losses(factor * steps, best, seeds[:1], data)
        if losses[0] <= goal:
            losses += plain_losses(factor * steps, best, seeds[1:], data)
        rows.append(row(f"plain, learning rate {best:g}", factor * steps, losses))
    by_rate = ", ".join(f"{losses[0]:.3f} at {rate:g}" for rate, losses in tried.items())
    return rows, (
        f"The plain recipe's learning rate was chosen by its losses after {few:,} steps of seed {seeds[0]}: {by_rate};"
        " other numbers of steps were tried with that seed until its loss was at most the baseline's mean."
    )


def row(name: str, steps: int, losses: Sequence[float], *seconds: float) -> list[str]:
    """Row of the table: mean and range of the losses of all seeds (empty without losses), and seconds."""
    cells = [f"{statistics.fmean(losses):.3f}", f"{min(losses):.3f} to {max(losses):.3f}"] if losses else ["", ""]
    clock = [f"{value:.1f}" for value in seconds] or ["", ""]
    return [name, f"{steps:,}", f"{steps * 12 * 64:,}", *cells, *clock]


def measured(seeds: Sequence[int], data: str) -> str:
    """Section of the page: the table and how it was measured."""
    results = [timed(seed, data) for seed in seeds]
    every = [[races[index] for races, _ in results] for index in range(len(RACES))]
    losses = [[of_seed[index] for _, of_seed in results] for index in range(2)] + [[]]
    rows, ratios = [], []
    for name, races, of_race in zip(RACES, every, losses, strict=True):
        ratios.append(statistics.median(b.compiled / a.compiled for a, b in zip(every[0], races, strict=True)))
        seconds = statistics.median(race.compiled for race in races)
        rows.append(row(name, races[0].steps, of_race, seconds, max(race.compiling for race in races)))
    speedrun = every[0][0]
    more, tuning = plain_until(statistics.fmean(losses[1]), speedrun.steps, seeds, data)
    header = ["", "steps", "tokens", "loss", "of the seeds", "seconds", "to compile"]
    return (
        f"{machine(speedrun.device)}. Seeds {', '.join(map(str, seeds))}: losses are the mean, seconds the median.\n\n"
        f"{table(header, [*rows, *more])}\n\n"
        f"Once compiled, the baseline takes {ratios[1]:.1f} times the speedrun's seconds; computing as the speedrun"
        f" does, {ratios[2]:.1f} times (timed over a tenth of its steps). {tuning}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text file of Tiny Shakespeare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page whose section is replaced by the table")
    options = parser.parse_args()
    prepare_device(None)
    text = measured(options.seeds, options.data)
    print(text)
    if options.write:
        write_section(options.write, "speedrun", text)


if __name__ == "__main__":
    main()
