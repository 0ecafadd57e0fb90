"""The settings and the environment of a run, in config.yaml and run.json, and the first lines that it prints."""

import json
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from modular_gpt.model import GPTModel
from modular_gpt.runtime.device import describe
from modular_gpt.runtime.environment import environment
from modular_gpt.training.config import RunConfig
from modular_gpt.training.estimate import flops_per_token
from modular_gpt.training.lora import LoraConfig
from modular_gpt.training.mfu import ThroughputMonitor, build_monitor
from modular_gpt.training.run_directory import RunFiles
from modular_gpt.training.trainer import Trainer

RUN_CONFIG, INFO = "config.yaml", "run.json"


def monitor_of(trainer: Trainer, lora: LoraConfig) -> ThroughputMonitor:
    """The monitor of the throughput of this training, in relation to the peak of its devices."""
    active = trainer.model.num_parameters().active
    tokens = (trainer.config.max_steps - trainer.progress.step) * trainer.config.batch_size * trainer.block
    return build_monitor(
        trainer.device,
        trainer.precision,
        trainer.parallel.processes.world,
        work=6.0 * active * tokens,
        flops=lambda: flops_per_token(trainer.model.config, trainer.config.frozen, lora),
    )


def save_run_info(files: RunFiles, config: RunConfig, trainer: Trainer, monitor: ThroughputMonitor) -> None:
    """Write config.yaml, and run.json with the seed, device, data, environment and settings of the run."""
    info = {
        "seed": config.seed,
        "device": describe(trainer.device),
        "precision": trainer.precision,
        "compiled": trainer.forward.compiled,
        "parallel": trainer.parallel.config.name,
        "processes": trainer.parallel.processes.world,
        "parameters": trainer.model.num_parameters()._asdict(),
        "flops_per_token": monitor.flops,
        "peak_flops": monitor.peak,
        "peak_source": monitor.source,
        "data": trainer.data.manifest,
        "environment": environment(),
        "config": config.record(),
    }
    files.replace(RUN_CONFIG, yaml.safe_dump(config.record(), sort_keys=False, allow_unicode=True))
    files.replace(INFO, json.dumps(info, indent=1))


def opening(trainer: Trainer, directory: Path) -> str:
    """The lines that a run prints before its first step: directory, model, decisions, data and length."""
    epoch = trainer.data.tokens_per_epoch(trainer.block)
    config, step, processes = trainer.config, trainer.progress.step, trainer.parallel.processes
    per_step = config.batch_size * trainer.block
    return "\n".join(
        [
            f"Run       {directory}" + (f", from step {step}" if step else ""),
            f"Model     {describe_parameters(trainer.model)} on {describe(trainer.device)}, {trainer.precision}"
            + (", compiled in the first step" if trainer.forward.compiled else ""),
            *decisions(trainer),
            f"Text      {trainer.data.sizes()}" if trainer.data.epoch_tokens else f"Data      {trainer.data.sizes()}",
            *(f"          {line}" for line in trainer.data.describe_rows(trainer.block)),
            f"Training  {config.max_steps:,} steps of {config.batch_size} x {trainer.block} tokens:"
            f" {config.max_steps * per_step:,}"
            + ("" if epoch is None else f"; {epoch / per_step:,.1f} steps are an epoch")
            + (f"; in {processes.world} processes ({trainer.parallel.config.name})" if processes.started else ""),
        ]
    )


def decisions(trainer: Trainer) -> list[str]:
    """Return a line with the choices of ``auto`` and their reasons; an empty list if there are none."""
    chosen = {"precision": trainer.precision, "compile": str(trainer.forward.compiled).lower()}
    lines = [f"{name}={chosen[name]}, since {reason}" for name, reason in trainer.reasons.items() if reason]
    return [f"Auto      {'; '.join(lines)}"] if lines else []


def describe_parameters(model: GPTModel) -> str:
    """The number of parameters, and if some are frozen, the number of those that are trained."""
    total = model.num_parameters().total
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{total:,} parameters" + (f" ({trained:,} trained)" if trained < total else "")
