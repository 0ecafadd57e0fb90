"""Build a trainer from settings: the model, its optimizer and its schedule, new or restored from a checkpoint."""

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

RATE_TOLERANCE = 0.1  # relative change of the learning rate at a resume that is not reported

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
    """Build the model and all that trains it: new, restored from a verified checkpoint, or with weights of a source.

    source: the opened ``init_from``; say: called with each line to print

    Raises:
        ConfigError, DataError, CheckpointError: settings contradict each other, the data or the checkpoint.
    """
    parallel = placement.parallel
    parallel.check_whole(config.optim, config.lora.rank is not None)
    parallel.check_rows(config.trainer.batch_size, config.trainer.gradient_accumulation)
    model_config = config.model_config(tokenizer)
    check_data(data, model_config)
    config = with_steps(config, data, model_config.context_length)
    placement = resolve_precision(placement, config, model_config, checkpoint)
    torch.manual_seed(config.seed)
    if checkpoint is not None:
        model, new_weights = checkpoint_model(checkpoint, config, model_config, parallel), new_weights_of(checkpoint)
    elif config.init_from is not None:
        opened = source or open_source(config.init_from)
        model, new_weights = init_from_source(config.init_from, opened, model_config, data, tokenizer, say)
    else:
        model, new_weights = new_model(model_config, config.seed, parallel), []
    reference = reference_model(config, model, checkpoint, data, tokenizer, new_weights)
    adapters = select_trained(model, config.lora, config.trainer.frozen, new_weights)
    start_adapters(adapters, checkpoint, say)
    model = place_model(model, placement, checkpoint)
    trainer = Trainer(model, build_optimizer(config.optim, model), data, tokenizer, config, placement, adapters)
    trainer.objective.use_reference(reference)
    if checkpoint is not None:
        resume(trainer, config, checkpoint, say)
    return trainer


def check_data(data: PreparedData, model_config: GPTConfig) -> None:
    """Raise a ConfigError or DataError if a model with these settings cannot read the batches of ``data``."""
    data.check_vocabulary(model_config.vocab_size)
    if data.separates_documents:
        check_separates(model_config, data.unpacked_by)


def reference_model(
    config: RunConfig,
    model: GPTModel,
    checkpoint: CheckpointReader | None,
    data: PreparedData,
    tokenizer: Tokenizer,
    new_weights: Sequence[str],
) -> Reference | None:
    """The frozen reference model of an objective such as DPO: the model of ``init_from``, read again at a resume.

    model: the model to train, before any step of this session

    Returns None for objectives without a reference, and with adapters: the reference is then the model without them.

    Raises:
        ConfigError: the run has no ``init_from``, or some of its weights do not fit this model.
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


def start_adapters(adapters: Adapters | None, checkpoint: CheckpointReader | None, say: Callable[[str], None]) -> None:
    """Restore adapters from a checkpoint. Without one, print the weights that are trained whole beside them."""
    if adapters is None:
        return
    if checkpoint is not None:
        restore_adapters(adapters, checkpoint)
    elif adapters.new_weights:
        say(f"Trained   whole beside the adapters, as new: {', '.join(adapters.new_weights)}")


def resolve_precision(
    placement: Placement, config: RunConfig, model_config: GPTConfig, checkpoint: CheckpointReader | None
) -> Placement:
    """Replace ``auto`` by the precision that it chooses; a resumed run keeps the precision that it began with."""
    before = "auto" if checkpoint is None else checkpoint.meta.get("precision", "auto")
    if placement.precision == "auto" and before in PRECISIONS[1:]:
        return replace(placement, precision=before, reason="the run began with it")
    width = model_config.d_model if checkpoint is None else BF16_WIDTH  # before 0.3 the width did not count
    compiled, _ = compiles(config.trainer, model_config, placement.device, placement.parallel.processes.world)
    precision, reason = choose_precision(placement.precision, placement.device, width, compiled)
    return replace(placement, precision=precision, reason=reason)


def new_model(model_config: GPTConfig, seed: int, parallel: Parallel) -> GPTModel:
    """A freshly initialised model; if processes hold shards of it, one without storage, which ``load_shards`` fills.

    Raises:
        ConfigError: its weights, or the shards of a process, do not fit into memory.
    """
    check_weights(model_config, parallel.state_shards)
    torch.manual_seed(seed)
    return deferred_model(model_config) if parallel.shards_weights else GPTModel(model_config)


def place_model(model: GPTModel, placement: Placement, checkpoint: CheckpointReader | None) -> GPTModel:
    """Move a model to its device, or shard it; a model without storage gets its weights by ``load_shards``."""
    deferred = is_deferred(model)
    model = placement.parallel.shard_model(model, placement.device, placement.precision)
    if deferred:
        load_shards(model, placement.parallel, checkpoint)
    return model


def load_shards(model: GPTModel, parallel: Parallel, checkpoint: CheckpointReader | None) -> None:
    """Load the shards of a model from a checkpoint, or initialise them without one, one tensor at a time."""
    if checkpoint is None:
        initialise_shards(model)
    else:
        parallel.load(model, checkpoint.weights(checkpoint.meta_model()))


def checkpoint_model(
    checkpoint: CheckpointReader, config: RunConfig, model_config: GPTConfig, parallel: Parallel
) -> GPTModel:
    """The model of a checkpoint; if processes hold shards of it, one without storage, which ``load_shards`` fills.

    Raises:
        CheckpointError: its settings of the model or of LoRA are not those of the run.
    """
    check_lora(config.lora, checkpoint)
    current = model_config.to_dict()
    changed = [name for name, value in checkpoint.config.to_dict().items() if current.get(name) != value]
    if changed:
        raise CheckpointError(
            f"the model in '{checkpoint.directory}' has other settings ({', '.join(changed)}):"
            " resume with those it has, or start a new run without resume"
        )
    deferred = parallel.shards_weights and config.lora.rank is None  # adapters are added to a whole model
    return checkpoint.meta_model() if deferred else checkpoint.model()


def resume(trainer: Trainer, config: RunConfig, checkpoint: CheckpointReader, say: Callable[[str], None]) -> None:
    """Restore the state of a training from a verified checkpoint.

    Raises:
        ConfigError: the checkpoint has reached ``max_steps`` or ``max_time`` already.
        CheckpointError, DataError: as ``restore``.
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
    if line := learning_rate_change(trainer, config, checkpoint.meta.get("run")):
        say(line)


def learning_rate_change(trainer: Trainer, config: RunConfig, before: PlainMapping | None) -> str:
    """A line that compares the learning rate of the first step after a resume with that of the earlier settings.

    before: settings of the run as the checkpoint records them

    Empty if the two rates differ by ``RATE_TOLERANCE`` or less.
    """
    step = trainer.progress.step
    if before is None:
        return ""
    try:
        optim = with_former_rate(before["optim"], trainer.model.config.d_model)
        former = RunConfig.from_dict({**before, "optim": optim})
        former_schedule = build_schedule(former.schedule, former.trainer.max_steps)
    except (ConfigError, KeyError, TypeError, AttributeError):  # recorded by another version
        return ""
    former_factor = former_schedule.factor(min(step, former.trainer.max_steps - 1))
    rate_before = peak_learning_rate(former.optim, trainer.model.config.d_model) * former_factor
    rate = trainer.optimizer.learning_rate * trainer.schedule.factor(step)
    if abs(rate - rate_before) <= RATE_TOLERANCE * rate_before:
        return ""
    if config.schedule != former.schedule:
        reason = f"the schedule is now {config.schedule.name}"
    elif config.trainer.max_steps != former.trainer.max_steps:
        reason = f"the schedule is now over {config.trainer.max_steps:,} steps"
    else:
        reason = f"optim.learning_rate is now {trainer.optimizer.learning_rate:.1e}"
    return f"learning rate {rate_before:.1e} -> {rate:.1e}, since {reason}"
