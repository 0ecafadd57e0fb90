"""From settings to a trainer: the model, its optimizer and its schedule, new or as a checkpoint left them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from modular_gpt.checkpoint import CheckpointReader
from modular_gpt.checkpoint.resolve import Opened
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.data import PreparedData, Tokenizer
from modular_gpt.distributed import Parallel
from modular_gpt.distributed.deferred import initialise_shards, is_deferred
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.materialize import deferred_model
from modular_gpt.model.token_positions import check_separates
from modular_gpt.optim import build_optimizer, build_schedule, peak_learning_rate, with_former_rate
from modular_gpt.runtime.device import BF16_WIDTH, choose_precision
from modular_gpt.training.checkpointing import restore
from modular_gpt.training.compile import compiles
from modular_gpt.training.config import PRECISIONS, RunConfig
from modular_gpt.training.estimate import check_weights
from modular_gpt.training.finetune import init_from_source, open_source
from modular_gpt.training.forward import Placement
from modular_gpt.training.length import with_steps
from modular_gpt.training.lora import Adapters, check_lora, new_weights_of, restore_adapters, select_trained
from modular_gpt.training.objectives import Reference
from modular_gpt.training.trainer import Trainer

SEAM = 0.1  # share by which the learning rate may change at a resume before a line says so

log = logging.getLogger(__name__)


def build_trainer(
    config: RunConfig,
    data: PreparedData,
    tokenizer: Tokenizer,
    placement: Placement,
    checkpoint: CheckpointReader | None = None,
    source: Opened | None = None,
    say: Callable[[str], None] = print,
) -> Trainer:
    """The model and everything that trains it: new, as a verified checkpoint left it, or with the weights of a source.

    source: the opened ``init_from``; say: called with lines to print

    Raises:
        ConfigError, DataError, CheckpointError: settings do not go together, with the text or with the checkpoint.
    """
    parallel = placement.parallel
    parallel.check_whole(config.optim, config.lora.rank is not None)
    parallel.check_rows(config.trainer.batch_size, config.trainer.gradient_accumulation)
    described = config.model_config(tokenizer)
    check_data(data, described)
    config = with_steps(config, data, described.context_length)
    placement = decided(placement, config, described, checkpoint)
    torch.manual_seed(config.seed)
    if checkpoint is not None:
        model, new_weights = model_of(checkpoint, config, described, parallel), new_weights_of(checkpoint)
    elif config.init_from is not None:
        opened = source or open_source(config.init_from)
        model, new_weights = init_from_source(config.init_from, opened, described, data, tokenizer, say)
    else:
        model, new_weights = new_model(described, config.seed, parallel), []
    reference = reference_of(config, model, checkpoint, data, tokenizer, new_weights)
    adapters = select_trained(model, config.lora, config.trainer.frozen, new_weights)
    begin_adapters(adapters, checkpoint, say)
    model = placed(model, placement, checkpoint)
    trainer = Trainer(model, build_optimizer(config.optim, model), data, tokenizer, config, placement, adapters)
    trainer.objective.use_reference(reference)
    if checkpoint is not None:
        resume(trainer, config, checkpoint, say)
    return trainer


def check_data(data: PreparedData, described: GPTConfig) -> None:
    """Raise a ConfigError or DataError if a model cannot read the batches of some data."""
    data.check_vocabulary(described.vocab_size)
    if data.separates_documents:
        check_separates(described, data.unpacked_by)


def reference_of(
    config: RunConfig,
    model: GPTModel,
    checkpoint: CheckpointReader | None,
    data: PreparedData,
    tokenizer: Tokenizer,
    new_weights: Sequence[str],
) -> Reference | None:
    """The frozen model that an objective compares with: the one that the run starts from, read again at a resume.

    model: at the beginning of this session
    None for objectives that compare with none, and with adapters, which are switched off for it.

    Raises:
        ConfigError: the run starts from no model, or from one that lacks weights.
    """
    if config.trainer.objective == "cross_entropy" or (config.lora.rank is not None and not new_weights):
        return None
    if config.init_from is None or new_weights:
        raise ConfigError(
            f"trainer.objective={config.trainer.objective} compares with the model that the run starts from:"
            " give init_from=<run or model>, whose weights all fit this model"
        )
    if checkpoint is None:
        return Reference.frozen(model)
    torch.manual_seed(config.seed)
    source = open_source(config.init_from)
    before, _ = init_from_source(config.init_from, source, model.config, data, tokenizer, lambda _: None)
    return Reference.frozen(before)


def begin_adapters(adapters: Adapters | None, checkpoint: CheckpointReader | None, say: Callable[[str], None]) -> None:
    """Give adapters the values of a checkpoint; new ones stay, and a line names the weights trained beside them."""
    if adapters is None:
        return
    if checkpoint is not None:
        restore_adapters(adapters, checkpoint)
    elif adapters.new_weights:
        say(f"Trained   whole beside the adapters, as new: {', '.join(adapters.new_weights)}")


def decided(
    placement: Placement, config: RunConfig, described: GPTConfig, checkpoint: CheckpointReader | None
) -> Placement:
    """The placement with the precision that ``auto`` decides, or decided when the run began."""
    before = "auto" if checkpoint is None else checkpoint.meta.get("precision", "auto")
    if placement.precision == "auto" and before in PRECISIONS[1:]:
        return replace(placement, precision=before, reason="the run began with it")
    width = described.d_model if checkpoint is None else BF16_WIDTH  # before 0.3 the width did not count
    compiled, _ = compiles(config.trainer, described, placement.device, placement.parallel.processes.world)
    precision, reason = choose_precision(placement.precision, placement.device, width, compiled)
    return replace(placement, precision=precision, reason=reason)


def new_model(described: GPTConfig, seed: int, parallel: Parallel) -> GPTModel:
    """A freshly initialised model, or where a process holds shards of it one without storage, for ``fill``.

    Raises:
        ConfigError: its weights, or the shards of a process, do not fit into memory.
    """
    check_weights(described, parallel.state_shards)
    torch.manual_seed(seed)
    return deferred_model(described) if parallel.shards_weights else GPTModel(described)


def placed(model: GPTModel, placement: Placement, checkpoint: CheckpointReader | None) -> GPTModel:
    """A model on its device, or this process's shards of it, with weights; checkpoint: see ``fill``."""
    deferred = is_deferred(model)
    model = placement.parallel.shard_model(model, placement.device, placement.precision)
    if deferred:
        fill(model, placement.parallel, checkpoint)
    return model


def fill(model: GPTModel, parallel: Parallel, checkpoint: CheckpointReader | None) -> None:
    """Give the shards of a model the weights of a checkpoint, or those of a new model, one tensor at a time."""
    if checkpoint is None:
        initialise_shards(model)
    else:
        parallel.load(model, checkpoint.weights(checkpoint.meta_model()))


def model_of(checkpoint: CheckpointReader, config: RunConfig, described: GPTConfig, parallel: Parallel) -> GPTModel:
    """The model of a checkpoint, or where a process holds shards of it one without storage, for ``fill``.

    Raises:
        CheckpointError: it is not the model that the settings describe.
    """
    check_lora(config.lora, checkpoint)
    now = described.to_dict()
    changed = [name for name, value in checkpoint.config.to_dict().items() if now.get(name) != value]
    if changed:
        raise CheckpointError(
            f"the model in '{checkpoint.directory}' has other settings ({', '.join(changed)}):"
            " resume with those it has, or start a new run without resume"
        )
    deferred = parallel.shards_weights and config.lora.rank is None  # adapters are added to a whole model
    return checkpoint.meta_model() if deferred else checkpoint.model()


def resume(trainer: Trainer, config: RunConfig, checkpoint: CheckpointReader, say: Callable[[str], None]) -> None:
    """Continue a training from a verified checkpoint.

    Raises:
        ConfigError: it has done all the steps already.
    """
    restore(trainer, checkpoint)
    done, steps = trainer.progress, config.trainer.max_steps
    if done.step > steps or done.step == done.evaluated == steps:
        raise ConfigError(
            f"'{checkpoint.directory}' has done {done.step} steps already:"
            f" to resume it, give more than that as trainer.max_steps (it is {steps})"
        )
    if done.step and done.seconds >= config.trainer.time_limit:
        raise ConfigError(
            f"'{checkpoint.directory}' has trained for {done.seconds:.0f} s already: to resume it, give more than"
            f" that as trainer.max_time (it is {config.trainer.max_time})"
        )
    if line := seam(trainer, config, checkpoint.meta.get("run")):
        say(line)


def seam(trainer: Trainer, config: RunConfig, before: PlainMapping | None) -> str:
    """A line about the learning rate of the first step after a resume, if it is another than before the resume.

    before: settings of the run as the checkpoint notes them
    Empty where the rate is the one that the earlier settings would have given, or within a tenth of it.
    """
    step = trainer.progress.step
    if before is None:
        return ""
    try:
        optim = with_former_rate(before["optim"], trainer.model.config.d_model)
        then = RunConfig.from_dict({**before, "optim": optim})
        old = build_schedule(then.schedule, then.trainer.max_steps)
    except (ConfigError, KeyError, TypeError, AttributeError):  # notes of another version
        return ""
    rate_before = peak_learning_rate(then.optim, trainer.model.config.d_model) * old.factor(
        min(step, then.trainer.max_steps - 1)
    )
    rate = trainer.optimizer.learning_rate * trainer.schedule.factor(step)
    if abs(rate - rate_before) <= SEAM * rate_before:
        return ""
    if config.schedule != then.schedule:
        reason = f"the schedule is now {config.schedule.name}"
    elif config.trainer.max_steps != then.trainer.max_steps:
        reason = f"the schedule is now over {config.trainer.max_steps:,} steps"
    else:
        reason = f"optim.learning_rate is now {trainer.optimizer.learning_rate:.1e}"
    return f"learning rate {rate_before:.1e} -> {rate:.1e}, since {reason}"
