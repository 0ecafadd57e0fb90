"""From settings to a trainer: the model, its optimizer and its schedule, new or as a checkpoint left them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modular_gpt.checkpoint import build_model
from modular_gpt.checkpoint.resolve import Opened
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.data import PreparedData, Tokenizer
from modular_gpt.distributed import Parallel, build_parallel
from modular_gpt.model import GPTModel
from modular_gpt.model.aliases import read_config
from modular_gpt.model.config import GPTConfig
from modular_gpt.optim import build_optimizer, build_schedule
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training.checkpointing import restore
from modular_gpt.training.config import RunConfig
from modular_gpt.training.estimate import check_weights
from modular_gpt.training.finetune import init_from_source, open_source
from modular_gpt.training.lora import check_lora, new_weights_of, restore_adapters, select_trained
from modular_gpt.training.trainer import Trainer


def described_model(config: RunConfig, tokenizer: Tokenizer) -> GPTConfig:
    """The model's config; its vocabulary is the tokenizer's unless told otherwise."""
    return read_config({"vocab_size": tokenizer.vocab_size, **config.model})


def build_trainer(
    config: RunConfig,
    data: PreparedData,
    tokenizer: Tokenizer,
    device: torch.device,
    precision: str,
    checkpoint: Path | None,
    source: Opened | None = None,
    say: Callable[[str], None] = print,
    parallel: Parallel | None = None,
) -> Trainer:
    """The model and all that trains it, fresh or as a checkpoint left it, or with the weights of a source.

    source: the opened ``init_from``; say: takes what became of its weights; parallel: with which other processes
    """
    parallel = parallel or build_parallel("none", ProcessGroup())
    parallel.check_whole(config.optim, config.lora.rank is not None)
    parallel.check_rows(config.trainer.batch_size, config.trainer.gradient_accumulation)
    described = described_model(config, tokenizer)
    data.check_vocabulary(described.vocab_size)
    schedule = build_schedule(config.schedule, config.trainer.max_steps)
    torch.manual_seed(config.seed)
    new_weights: list[str] = []
    if checkpoint is not None:
        check_lora(config.lora, checkpoint)
        model, new_weights = build_model(checkpoint), new_weights_of(checkpoint)
    elif config.init_from is not None:
        model, new_weights = init_from_source(
            config.init_from, source or open_source(config.init_from), described, data, tokenizer, say
        )
    else:
        check_weights(described)
        torch.manual_seed(config.seed)
        model = GPTModel(described)
    check_same(described.to_dict(), model.config.to_dict(), checkpoint)
    adapters = select_trained(model, config.lora, config.trainer.frozen, new_weights)
    if adapters is not None and adapters.new_weights and checkpoint is None:
        say(f"Trained   whole beside the adapters, as new: {', '.join(adapters.new_weights)}")
    if adapters is not None and checkpoint is not None:
        restore_adapters(adapters, checkpoint)
    model = parallel.shard_model(model, device, precision)
    optimizer = build_optimizer(config.optim, model)
    trainer = Trainer(
        model, optimizer, schedule, data, tokenizer, config.trainer, config.seed, precision, parallel, adapters
    )
    if config.trainer.sample_tokens:
        trainer.validation.prompt()  # characters that the tokenizer does not know are better refused now
    if checkpoint is not None:
        restore(trainer, checkpoint)
        done, wanted = trainer.progress, config.trainer.max_steps
        if done.step > wanted or done.step == done.evaluated == wanted:
            raise ConfigError(
                f"'{checkpoint}' has done {done.step} steps already:"
                f" to go on, give more than that as trainer.max_steps (it is {wanted})"
            )
    return trainer


def check_same(now: dict[str, Any], before: dict[str, Any], checkpoint: Path | None) -> None:
    """Raise a CheckpointError where the model of a checkpoint is not the one that was asked for."""
    changed = [name for name, value in before.items() if now.get(name) != value]
    if changed:
        raise CheckpointError(
            f"the model in '{checkpoint}' has other settings ({', '.join(changed)}):"
            " resume with those it has, or start a new run without resume"
        )
