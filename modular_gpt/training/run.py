"""A training run, from the text to the report."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch

from modular_gpt.checkpoint import LATEST, META, CheckpointReader, build_model, find_checkpoint, open_checkpoint
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.data import Tokenizer, build_corpus
from modular_gpt.data.tokenizers import with_former_defaults
from modular_gpt.distributed import Parallel, build_parallel, supports
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.optim import with_former_rate
from modular_gpt.runtime.cpu_allocator import keep_memory
from modular_gpt.runtime.device import check_precision, choose_device, float32_products, prepare_device
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.runtime.signals import raise_on_sigterm
from modular_gpt.training.build import build_trainer
from modular_gpt.training.checkpointing import IN_MEMORY, Checkpoints, check_rewind, run_directory_of
from modular_gpt.training.compile import compiler_message, from_compiler, ordered_sums
from modular_gpt.training.config import RunConfig, TrainerConfig
from modular_gpt.training.estimate import Estimate, check_memory, estimate, suggest_smaller
from modular_gpt.training.finetune import open_source, tokenizer_of
from modular_gpt.training.forward import Placement
from modular_gpt.training.length import with_steps
from modular_gpt.training.loggers import Loggers, build_loggers
from modular_gpt.training.lora import peft_package
from modular_gpt.training.recorder import NullRecorder, Recorder
from modular_gpt.training.report import Outcome, check_outcome, report_table
from modular_gpt.training.result import RunResult
from modular_gpt.training.run_directory import RunFiles, lock_run, new_run_directory
from modular_gpt.training.run_info import monitor_of, opening, save_run_info
from modular_gpt.training.trainer import Trainer


def train(config: RunConfig, quiet: bool = False, checkpoint: CheckpointReader | None = None) -> RunResult:
    """Train a model from settings, or resume the run that they name. Ctrl-C and SIGTERM end it early with a checkpoint.

    Returns the numbers of the report, and the ``model``, ``tokenizer`` and ``history`` of the run.

    quiet: print nothing
    checkpoint: the checkpoint that ``open_run`` opened, so that its files are not read and verified again

    Raises:
        ConfigError: a setting contradicts another one or cannot work on this machine.
        DataError: the data is missing, too short or unreadable.
        CheckpointError: the checkpoint to resume is missing, damaged or has other settings, or the disk is full.
        NonFiniteError: the training broke down; its metrics and checkpoints are kept.
    """
    config = read_run_config(config)
    keep_memory()
    processes = ProcessGroup.launched()
    with raise_on_sigterm():
        with processes.same_error_on_all_ranks():
            parallel = build_parallel(config.parallel, processes)
            device = choose_device(config.trainer.device, processes)
            precision = str(config.trainer.precision)
            check_precision(precision, device)
            loggers = build_loggers(config.logger if processes.is_main else "none")
        prepare_device(config.trainer.threads, processes.local_world)
        with processes.connected(device, parallel.timeout), float32_products(precision, device):
            placement = Placement(device, precision, parallel)
            return train_together(config, placement, loggers, quiet or not processes.is_main, checkpoint)


def read_run_config(config: object) -> RunConfig:
    """A RunConfig unchanged, or one from a mapping. Raises a ConfigError for anything else."""
    if isinstance(config, Mapping):
        return RunConfig.from_dict(config)
    if isinstance(config, RunConfig):
        return config
    given = {GPTModel: "model.config", GPTConfig: "config"}.get(type(config))
    hint = f": a run builds its own model, train(RunConfig(model={given}, ...))" if given else ""
    raise ConfigError(f"train takes a RunConfig, got a {type(config).__name__}{hint}")


def train_together(
    config: RunConfig, placement: Placement, loggers: Loggers, quiet: bool, opened: CheckpointReader | None = None
) -> RunResult:
    """``train`` in processes that are connected."""
    processes = placement.parallel.processes
    if config.lora.rank is not None:
        if config.init_from is None and config.resume is None:
            raise ConfigError(f"lora.rank={config.lora.rank} adapts a model that was trained: give one by init_from=")
        peft_package()  # a missing package is reported before a large model is loaded
    with ExitStack() as held:
        directory = checkpoint = source = None
        if (resume := config.resume) is not None:
            directory = run_directory_of(Path(resume).expanduser())
            held.enter_context(lock_run(directory if processes.is_main else None))
            checkpoint = checkpoint_to_resume(config, resume, processes, opened)
        elif (init_from := config.init_from) is not None:
            source = processes.local_main_first(lambda: open_source(init_from))
        corpus = processes.local_main_first(lambda: build_corpus(config.data))
        tokenizer = processes.local_main_first(
            lambda: corpus.with_template(tokenizer_of(config, corpus, source, checkpoint))
        )
        if config.dry_run:
            return dry_run(config, tokenizer, placement, quiet)
        data = processes.local_main_first(lambda: corpus.prepare(tokenizer))
        tokenizer = data.tokenizer_of_model(tokenizer)
        config = with_steps(config, data, config.model_config(tokenizer).context_length)
        say: Callable[[str], None] = (lambda text: None) if quiet else print
        trainer = build_trainer(config, data, tokenizer, placement, checkpoint, source, say)
        source = None  # frees its memory
        if directory is None:
            runs = Path(config.runs).expanduser()
            directory = Path(processes.run_on_main(lambda: str(new_run_directory(runs, config.name))))
            held.enter_context(lock_run(directory if processes.is_main else None))
        processes.directory = directory
        return run(trainer, RunFiles(directory), config, loggers, quiet)


def checkpoint_to_resume(
    config: RunConfig, resume: str, processes: ProcessGroup, opened: CheckpointReader | None
) -> CheckpointReader:
    """The checkpoint that ``resume`` names, which the first process verifies. Collective.

    opened: a reader that is used again if it reads that checkpoint

    Raises:
        ConfigError: resuming would delete later checkpoints of the run.
        CheckpointError: the checkpoint is missing or damaged.
    """

    def verified() -> str:
        nonlocal opened
        path = Path(resume).expanduser()
        opened = open_checkpoint(path, prefer=LATEST, opened=opened)
        check_rewind(opened.directory, path, config.rewind)
        return str(opened.directory)

    directory = Path(processes.run_on_main(verified))
    return opened if opened is not None and opened.directory == directory else CheckpointReader(directory)


def dry_run(config: RunConfig, tokenizer: Tokenizer, placement: Placement, quiet: bool) -> RunResult:
    """Print the memory that each process needs. Raises a ConfigError if more is needed than available."""
    model_config, parallel = config.model_config(tokenizer), placement.parallel
    parallel.check_rows(config.trainer.batch_size, config.trainer.gradient_accumulation)
    settings, needed = process_estimate(config, model_config, parallel)
    with torch.device("meta"):
        count = GPTModel(model_config).num_parameters()
    table = f"parameters: {count.total:,} ({count.active:,} active)\n{needed.table()}"
    if not quiet:
        print(table)
    check_memory(needed, model_config, settings, placement.device, config.lora)
    return RunResult(Path(config.runs), None, None, table)


def process_estimate(config: RunConfig, model_config: GPTConfig, parallel: Parallel) -> tuple[TrainerConfig, Estimate]:
    """Return the trainer's settings in one process, with its share of the batch, and the estimate of its memory."""
    settings = replace(config.trainer, batch_size=config.trainer.batch_size // parallel.data_world)
    return settings, estimate(model_config, config.optim, settings, config.lora).sharded(parallel.state_shards)


@contextmanager
def actionable_errors(config: RunConfig, trainer: Trainer) -> Iterator[None]:
    """Context manager: running out of memory, or a failure of torch.compile, becomes a ConfigError with a remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if trainer.forward.compiled and from_compiler(error):
            raise ConfigError(
                f"torch.compile does not work here ({compiler_message(error)}); use trainer.compile=false"
            ) from error
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        traceback.clear_frames(error.__traceback__)  # frees the activations, so that memory is left for the message
        trainer.optimizer.zero_grad()
        model_config, settings = trainer.model.config, config.trainer
        needed = ""
        with suppress(Exception):  # the estimate needs memory, too
            needed = f": a step takes about {process_estimate(config, model_config, trainer.parallel)[1].summary()}"
        raise ConfigError(
            f"out of memory after step {trainer.progress.step}{needed}; try {suggest_smaller(model_config, settings)}"
        ) from error


def run(trainer: Trainer, files: RunFiles, config: RunConfig, loggers: Loggers, quiet: bool) -> RunResult:
    """Train in a run directory and report. Raises a NonFiniteError if the reported loss is not finite."""
    progress, directory = trainer.progress, files.directory
    checkpoints = Checkpoints(files, trainer, config.record())
    recorder: Recorder | NullRecorder = NullRecorder()
    if trainer.parallel.processes.is_main:
        monitor = monitor_of(trainer, config.lora)
        save_run_info(files, config, trainer, monitor)
        loggers.start(config.record(), directory.resolve(), progress.step or None)
        steps = config.trainer.max_steps
        recorder = Recorder(files, steps, monitor, loggers, progress.step, progress.evaluated, quiet)
    recorder.say(opening(trainer, directory))
    try:
        # the final evaluation is in the block too: without ``ordered_sums`` torch.compile would compile it again
        with actionable_errors(config, trainer), ordered_sums(trainer.forward.compiled):
            if not trainer.fit(recorder, checkpoints.save, poll=checkpoints.poll):
                saved = f"Stopped after step {progress.step}, which is saved"
                recorder.say(f"{saved}. To resume: mgpt-train resume={directory}")
                return RunResult(directory, trainer.stop.signal, None, None)
            if trainer.out_of_time:
                recorder.say(
                    f"The time is over (trainer.max_time={config.trainer.max_time}), after step {progress.step}"
                )
            outcome = measure(trainer, directory, recorder)
        recorder.outcome = asdict(outcome)
    finally:
        checkpoints.close()
        recorder.close()
    table = report_table(outcome, trainer.data, directory)
    recorder.say(table)
    check_outcome(outcome)
    return RunResult(directory, None, outcome, table)


def load_config(path: str | Path) -> RunConfig:
    """The settings of a run, read from its directory or one of its checkpoints, with ``resume`` set to it.

    Raises:
        CheckpointError: there is no checkpoint, or it holds no run, or one whose settings this version cannot use.
    """
    return open_run(path)[0]


def open_run(path: str | Path) -> tuple[RunConfig, CheckpointReader]:
    """The settings of a run as ``load_config`` returns them, and the checkpoint that they were read from.

    ``train(config, checkpoint=checkpoint)`` resumes from it and verifies the rest of its files.

    Raises:
        CheckpointError: as ``load_config``.
    """
    reader = open_checkpoint(path, prefer=LATEST, verified=(META,))  # training checks the other files
    checkpoint, settings = reader.directory, reader.meta.get("run")
    if not isinstance(settings, dict):
        raise CheckpointError(f"'{checkpoint}' holds a model but no run to resume")
    if settings.get("data") == {"name": IN_MEMORY}:
        raise CheckpointError(
            f"'{checkpoint}' was trained by modular_gpt.fit on data that it was given: call it again to resume, or"
            f" start a run from these weights with init_from={path}"
        )
    if isinstance(tokenizer := settings.get("tokenizer"), dict):
        settings = {**settings, "tokenizer": with_former_defaults(tokenizer)}
    if isinstance(optim := settings.get("optim"), dict):
        settings = {**settings, "optim": with_former_rate(optim, reader.config.d_model)}
    try:
        config = RunConfig.from_dict({**settings, "resume": str(path)})
        if not supports(config.parallel, ProcessGroup.launched()):
            config.parallel = RunConfig().parallel  # the number of processes may change within a run
        return config, reader
    except ConfigError as error:
        raise CheckpointError(f"the settings in '{checkpoint}' cannot be used here: {error}") from error


def measure(trainer: Trainer, directory: Path, recorder: Recorder | NullRecorder) -> Outcome:
    """The numbers of the report, for the best weights; with ``final_evaluation``, their loss on all validation data."""
    progress, config = trainer.progress, trainer.config
    loss, accuracy, whole = progress.best_loss, progress.best_accuracy, config.eval_batches == 0
    if config.final_evaluation and not whole:
        recorder.say(f"Measuring the best weights on {trainer.data.everything} ...")
        with suppress(KeyboardInterrupt), trainer.stop.catch("the report is written"), trainer.eval_weights():
            if progress.best_step != progress.step:
                best = trainer.parallel.processes.run_on_main(lambda: str(find_checkpoint(directory)))
                trainer.load_weights(build_model(Path(best)).state_dict())
            final = trainer.validation.loss(0, recorder.measuring)
        if final is not None:
            loss, accuracy, whole = final, trainer.validation.accuracy, True
    count = trainer.model.num_parameters()
    tokens, epoch = progress.step * config.batch_size * trainer.block, trainer.data.tokens_per_epoch(trainer.block)
    return Outcome(
        parameters=count.total,
        active_parameters=count.active,
        steps=progress.step,
        tokens=tokens,
        epochs=None if epoch is None else tokens / epoch,
        loss=loss,
        best_step=progress.best_step,
        whole=whole,
        bits_per_byte=trainer.data.bits_per_byte(loss),
        seconds=progress.seconds,
        accuracy=accuracy,
    )
