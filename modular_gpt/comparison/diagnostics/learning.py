"""Train a small model on a synthetic task in seconds, with the Trainer of a run and without a directory."""

import time
from dataclasses import dataclass

import torch

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data import build_corpus, build_tokenizer
from modular_gpt.distributed import build_parallel
from modular_gpt.model.config import GPTConfig
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training.build import build_trainer
from modular_gpt.training.config import RunConfig, TrainerConfig
from modular_gpt.training.forward import Placement
from modular_gpt.training.trainer import Trainer

EVERY = 50  # steps between measurements of the accuracy
WARMUP = 50  # steps
ROWS = 32  # batches of 8 rows per measurement


@dataclass(frozen=True)
class Learned:
    """The accuracy on a task, and the steps and the CPU seconds of the training."""

    accuracy: float
    loss: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """Settings of the training on a task.

    enough: accuracy at which training ends before the last step
    """

    steps: int
    learning_rate: float = 3e-3
    batch_size: int = 32
    enough: float = 0.99
    seed: int = 0


def trainer_of(model: GPTConfig, task: PlainDict, recipe: Recipe) -> Trainer:
    """A trainer of a new model on the CPU; task: settings of ``data=synthetic``, or of the data that it names."""
    config = RunConfig(
        model=model,
        data={"name": "synthetic", **task},
        optim={"name": "adamw", "learning_rate": recipe.learning_rate, "beta2": 0.98},
        schedule={"name": "cosine", "warmup": min(WARMUP, recipe.steps)},
        trainer=TrainerConfig(
            max_steps=recipe.steps,
            batch_size=recipe.batch_size,
            eval_batches=ROWS,
            sample_tokens=0,
            device="cpu",
            precision="float32",
            compile=False,
        ),
        seed=recipe.seed,
    )
    corpus = build_corpus(config.data)
    tokenizer = build_tokenizer(config.tokenizer, corpus)
    placement = Placement(torch.device("cpu"), "float32", build_parallel("none", ProcessGroup()))
    return build_trainer(config, corpus.prepare(tokenizer), tokenizer, placement, say=lambda text: None)


def learn(model: GPTConfig, task: PlainDict, recipe: Recipe) -> Learned:
    """Train a new model on a task until it is learned, or to the last step.

    task: settings of ``data=synthetic``; rows are as long as the model's context
    """
    begun = time.process_time()
    with torch.random.fork_rng(devices=[]):
        trainer = trainer_of(model, task, recipe)
        accuracy = loss = 0.0
        trainer.model.train()
        for step in range(1, recipe.steps + 1):
            trainer.update()
            trainer.progress.step = step
            if step % EVERY == 0 or step == recipe.steps:
                loss = trainer.validation.loss(ROWS) or 0.0
                accuracy = trainer.validation.accuracy or 0.0
                if accuracy >= recipe.enough:
                    break
    return Learned(accuracy, loss, trainer.progress.step, time.process_time() - begun)
