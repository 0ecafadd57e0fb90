"""The measurement of model variants: cell by cell, with one run of every variant in each round."""

from collections.abc import Callable, Mapping, Sequence

import torch

from modular_gpt.benchmark.config import BenchmarkConfig
from modular_gpt.benchmark.results import BenchmarkResults, Measurement, Peaks, Variant
from modular_gpt.benchmark.worker import Worker, measure_memory, workers
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

    models: by name, a GPTConfig or the name of a checkpoint that ``load_model`` opens; ratios are relative to the first
    config: None: the defaults of BenchmarkConfig
    say: called with each line about the progress

    Raises:
        ConfigError: there is no model, the machine has no such device, or no measurement succeeded.
    """
    config = config or BenchmarkConfig()
    if not models:
        raise ConfigError("a benchmark needs at least one model: give a name and a model")
    place = choose_device(device)
    prepare_device(config.threads)
    warning = busy()
    peaks = Peaks(product_speed(place, WEIGHTS[config.precision]), copy_bandwidth(place))
    measurements: list[Measurement] = []
    variants = [variant(*entry) for entry in models.items()]
    threads = torch.get_num_threads()
    with workers(variants, config, threads, str(place)) as running:
        for cell in cells(config):
            results = measure_cell(running, cell, config.rounds)
            for worker, result in zip(running, results, strict=True):
                if not result.failure:
                    result.memory = measure_memory(worker.variant, cell, config, threads, str(place))
            measurements += results
            say(f"{cell.measure}, {cell.context:,} tokens, batch {cell.batch}: done")
    if all(measurement.failure for measurement in measurements):
        raise ConfigError(f"no measurement succeeded: {measurements[0].failure}")
    return BenchmarkResults(measurements, peaks, machine(place), warning, config.precision)


def variant(name: str, model: GPTConfig | str) -> Variant:
    """Convert a model to a Variant, which can be sent to another process."""
    return Variant(name, checkpoint=model) if isinstance(model, str) else Variant(name, config=model.to_dict())


def cells(config: BenchmarkConfig) -> list[Cell]:
    """The cells to measure for every variant."""
    return [
        Cell(measure, context, batch)
        for measure in config.measure
        for batch in config.batch
        for context in config.context
    ]


def measure_cell(running: Sequence[Worker], cell: Cell, rounds: int) -> list[Measurement]:
    """Measure the durations of all variants in one cell, and their ratios unless the first variant failed."""
    measurements = [worker.prepare(cell) for worker in running]
    for _ in range(rounds):
        for worker, measurement in zip(running, measurements, strict=True):
            if not measurement.failure:
                worker.run(measurement)
    baseline, succeeded = measurements[0], [m for m in measurements if not m.failure]
    if not baseline.failure:
        for measurement in succeeded:
            pairs = zip(baseline.seconds, measurement.seconds, strict=True)
            measurement.ratios = [first / seconds for first, seconds in pairs]
    return measurements
