"""Measure variants of a model cell by cell; within a cell, every variant runs once per round."""

from collections.abc import Callable, Mapping, Sequence

import torch

from modular_gpt.benchmark.config import BenchmarkConfig
from modular_gpt.benchmark.results import BenchmarkResults, Measurement, Peaks, Variant
from modular_gpt.benchmark.worker import Worker, memory_of, workers
from modular_gpt.benchmark.workloads import WEIGHTS, Cell
from modular_gpt.core.errors import ConfigError
from modular_gpt.model.config import GPTConfig
from modular_gpt.runtime.device import choose_device, prepare_device
from modular_gpt.runtime.timing import busy, copy_bandwidth, machine, product_speed

Say = Callable[[str], None]


def run_benchmark(
    models: Mapping[str, GPTConfig | str],
    config: BenchmarkConfig | None = None,
    device: str = "auto",
    say: Say = lambda line: None,
) -> BenchmarkResults:
    """Measure speed, memory and cache of models on this machine.

    models: by name: a GPTConfig, or a checkpoint that ``load_model`` opens; ratios are relative to the first
    say: called with each line about the progress

    Raises:
        ConfigError: there is no model, or none of them could be measured.
    """
    config = config or BenchmarkConfig()
    if not models:
        raise ConfigError("a benchmark needs at least one model")
    chosen = choose_device(device)
    prepare_device(config.threads)
    warning = busy()
    peaks = Peaks(product_speed(chosen, WEIGHTS[config.precision]), copy_bandwidth(chosen))
    found: list[Measurement] = []
    variants = [variant(*entry) for entry in models.items()]
    threads = torch.get_num_threads()
    with workers(variants, config, threads, str(chosen)) as running:
        for cell in cells(config):
            results = measured(running, cell, config.rounds)
            for worker, result in zip(running, results, strict=True):
                if not result.failure:
                    result.memory = memory_of(worker.variant, cell, config, threads, str(chosen))
            found += results
            say(f"{cell.measure}, {cell.context:,} tokens, batch {cell.batch}: done")
    if all(measurement.failure for measurement in found):
        raise ConfigError(f"nothing could be measured: {found[0].failure}")
    return BenchmarkResults(found, peaks, machine(chosen), warning, config.precision)


def variant(name: str, model: GPTConfig | str) -> Variant:
    """Convert a model to the form in which its process receives it."""
    return Variant(name, checkpoint=model) if isinstance(model, str) else Variant(name, config=model.to_dict())


def cells(config: BenchmarkConfig) -> list[Cell]:
    """List the cells to measure, for every variant."""
    return [
        Cell(measure, context, batch)
        for measure in config.measure
        for batch in config.batch
        for context in config.context
    ]


def measured(running: Sequence[Worker], cell: Cell, rounds: int) -> list[Measurement]:
    """Measure all variants in one cell."""
    found = [worker.prepare(cell) for worker in running]
    pairs = [(worker, result) for worker, result in zip(running, found, strict=True) if not result.failure]
    for _ in range(rounds):
        for worker, result in pairs:
            result.seconds.append(worker.run())
        for _, result in pairs:
            result.ratios.append(pairs[0][1].seconds[-1] / result.seconds[-1])
    return found
