"""Comparisons of small trainings (0.2 s each)."""

import math
import random
from pathlib import Path
from typing import Any

from modular_gpt.comparison import CompareConfig, CompareResult, Comparison, Plan
from modular_gpt.comparison.plan import make_plan
from modular_gpt.comparison.search import Search
from modular_gpt.training.config import RunConfig

MODEL = {"d_model": 16, "n_heads": 4, "n_layers": 1, "context_length": 16}
TRAINER = {"max_steps": 8, "batch_size": 4, "eval_batches": 1, "device": "cpu", "precision": "float32", "threads": 1}
RATE = 0.03  # close to the best learning rate


def run(folder: Path, trainer: dict[str, Any] | None = None, **model: Any) -> RunConfig:
    """The run config of a variant on a small text in ``folder``."""
    text = folder / "text.txt"
    if not text.exists():
        numbers = random.Random(0)
        text.write_text(" ".join(numbers.choice(("the cat", "sat on", "a mat;\n", "it was")) for _ in range(1500)))
    data = {"name": "text", "path": str(text)}
    optim = {"name": "adamw", "learning_rate": RATE}
    trainer = {**TRAINER, **(trainer or {})}
    return RunConfig(model={**MODEL, **model}, data=data, trainer=trainer, tokenizer="char", optim=optim)


def comparison(folder: Path, variants: dict[str, RunConfig], **settings: Any) -> Comparison:
    """A new comparison in ``folder`` without output."""
    config = CompareConfig(**{"budget": "tokens", "seeds": 3, "lr": "shared", "compares": str(folder), **settings})
    return Comparison.new(variants, config, ["attention=mha,gqa"], lambda text: None)


def invented(folder: Path, losses: dict[str, list[float]], **settings: Any) -> CompareResult:
    """The result of a comparison with the given losses, without training."""
    variants = {name: run(folder, attention="mha") for name in losses}
    seeds = len(next(iter(losses.values())))
    config = CompareConfig(**{"budget": "tokens", "seeds": seeds, "lr": "auto", "compares": str(folder), **settings})
    plan = make_plan(variants, config, ["attention=mha,gqa", "budget=tokens"])
    results: dict[str, Any] = {}
    search = Search(plan, results)
    for trials in search.rounds():
        for trial in trials:
            if trial.pair:
                loss = losses[trial.variant][trial.pair - 1]
            else:
                loss = 2.5 + 0.1 * math.log(trial.learning_rate / plan.rates[trial.variant]) ** 2
            results[trial.key] = invented_trial(plan, trial.variant, trial.pair, trial.seed, loss) | {
                "key": trial.key,
                "learning_rate": trial.learning_rate,
            }
    return CompareResult.of(folder, plan, search)


def invented_trial(plan: Plan, name: str, pair: int, seed: int, loss: float) -> dict[str, Any]:
    """The result of a trial whose curves fall to ``loss``."""
    steps = plan.costs[name].steps
    finite = math.isfinite(loss)
    curve = [(step, round(loss + 2 * math.exp(-6 * step / 400), 4)) for step in range(10, 401, 10)] if finite else []
    return {
        "variant": name,
        "seed": seed,
        "pair": pair,
        "loss": loss if finite else None,
        "diverged": None if finite else "no finite gradient",
        "steps": steps,
        "tokens_per_step": 64,
        "losses": curve,
        "validations": [(round(steps * share), loss + 2 * (1 - share)) for share in (0.25, 0.5, 1.0)] if finite else [],
        "tokens_per_second": 1000.0,
        "training_seconds": 1.0,
        "cpu_seconds": 1.0,
        "versions": {},
    }
