"""Worker processes, one per variant, so that variants share no allocator, compiled code or memory."""

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from modular_gpt.benchmark.config import BenchmarkConfig
from modular_gpt.benchmark.results import Measurement, Variant
from modular_gpt.benchmark.workloads import WEIGHTS, WORKLOADS, Cell, Workload
from modular_gpt.checkpoint.resolve import load_model
from modular_gpt.core.errors import ConfigError, UserError, first_line
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.runtime.cpu_allocator import keep_memory
from modular_gpt.runtime.timing import current_memory, peak_memory, reset_peak_memory, timed_run

PREPARE, RUN, END = "prepare", "run", "end"  # requests to a worker process
WARM_UP = 64  # maximum context length of the run before memory is measured
CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """Handle of the process that measures one variant."""

    def __init__(self, variant: Variant, config: BenchmarkConfig, threads: int, device: str) -> None:
        self.variant = variant
        self.arguments = variant, config, threads, device
        self.start()

    def start(self) -> None:
        """Start the process."""
        self.pipe, other = CONTEXT.Pipe()
        self.process: BaseProcess = CONTEXT.Process(target=serve, args=(*self.arguments, other), daemon=True)
        self.process.start()
        other.close()

    def prepare(self, cell: Cell) -> Measurement:
        """Build the workload of a cell in the process and run it once; returns a measurement without durations.

        If the process has ended in an earlier cell, another one is started.
        """
        if not self.process.is_alive():
            self.start()
        measurement: Measurement = Measurement(self.variant.name, cell)
        with self._failure_of(measurement):
            self.pipe.send((PREPARE, cell))
            measurement = self.pipe.recv()
        return measurement

    def run(self, measurement: Measurement) -> None:
        """Run the workload once, and add its duration in seconds to the measurement, or the failure of the process."""
        with self._failure_of(measurement):
            self.pipe.send((RUN, None))
            measurement.seconds.append(self.pipe.recv())

    @contextmanager
    def _failure_of(self, measurement: Measurement) -> Iterator[None]:
        """Context manager: the end of the process becomes the failure of the measurement."""
        try:
            yield
        except (EOFError, OSError):
            self.process.join()
            measurement.failure = "its process ended, perhaps out of memory"

    def end(self) -> None:
        """End the process."""
        with suppress(OSError):
            self.pipe.send((END, None))
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


@contextmanager
def workers(variants: Sequence[Variant], config: BenchmarkConfig, threads: int, device: str) -> Iterator[list[Worker]]:
    """Context manager: start a process for each variant, and end the processes at the end."""
    started: list[Worker] = []
    try:
        for variant in variants:
            started.append(Worker(variant, config, threads, device))
        yield started
    finally:
        for worker in started:
            worker.end()


def serve(variant: Variant, config: BenchmarkConfig, threads: int, device: str, pipe: Connection) -> None:
    """Main function of a worker process: handle requests until ``END``."""
    keep_memory()
    torch.set_num_threads(threads)
    workload: Workload | None = None
    with suppress(EOFError, KeyboardInterrupt):
        while (request := pipe.recv())[0] != END:
            if request[0] == RUN:
                assert workload is not None
                pipe.send(timed_run(workload.run))
                continue
            workload = None  # frees its memory before the next one is built
            workload, measurement = build_workload(variant, request[1], config, torch.device(device))
            pipe.send(measurement)


def build_workload(
    variant: Variant, cell: Cell, config: BenchmarkConfig, device: torch.device
) -> tuple[Workload | None, Measurement]:
    """Build the workload of a cell and run it once.

    Returns the workload, or None if it failed, and a measurement without durations.
    """
    measurement = Measurement(variant.name, cell)
    try:
        model = build_model(variant, cell, config, device)
        measurement.parameters = model.num_parameters().total  # before its weights are packed
        workload: Workload = WORKLOADS[cell.measure](model, cell, config)
        workload.run()
    except (UserError, RuntimeError, MemoryError) as error:
        measurement.failure = first_line(error)
        return None, measurement
    measurement.tokens, measurement.flops = workload.tokens, workload.flops
    measurement.bytes_read = workload.bytes_read
    measurement.cache_predicted, measurement.cache_allocated = workload.predicted, workload.allocated
    return workload, measurement


def measure_memory(variant: Variant, cell: Cell, config: BenchmarkConfig, threads: int, device: str) -> int:
    """Peak bytes of a cell's workload beyond those of its model, measured in a new process; 0 if that failed."""
    pipe, other = CONTEXT.Pipe()
    process = CONTEXT.Process(target=send_memory, args=(variant, cell, config, threads, device, other), daemon=True)
    process.start()
    other.close()
    try:
        memory: int = pipe.recv()
    except EOFError:
        memory = 0
    process.join()
    return memory


def send_memory(
    variant: Variant, cell: Cell, config: BenchmarkConfig, threads: int, device: str, pipe: Connection
) -> None:
    """Main function of the process of ``measure_memory``: send the number of bytes."""
    torch.set_num_threads(threads)
    small = replace(cell, context=min(cell.context, WARM_UP), batch=1)
    build_workload(variant, small, config, torch.device(device))  # libraries allocate their permanent memory
    model = build_model(variant, cell, config, torch.device(device))
    before = current_memory()
    reset_peak_memory()
    WORKLOADS[cell.measure](model, cell, config).run()
    pipe.send(max(0, peak_memory() - before))


def build_model(variant: Variant, cell: Cell, config: BenchmarkConfig, device: torch.device) -> GPTModel:
    """Build or load the model of a variant, with positions for all tokens of the cell.

    Raises:
        ConfigError: the model of a checkpoint has too few positions.
        CheckpointError: the checkpoint cannot be opened.
    """
    torch.manual_seed(0)
    needed = cell.context + (config.decoded if cell.measure == "decode" else 0)
    if variant.checkpoint is not None:
        model = load_model(variant.checkpoint).model
        if needed > model.config.context_length and not model.config.pos.component.extrapolates:
            raise ConfigError(f"{variant.name} has {model.config.context_length} positions, {needed} are needed")
    else:
        model_config = GPTConfig.from_dict(variant.config or {})
        model = GPTModel(replace(model_config, context_length=max(model_config.context_length, needed)))
    dtype = torch.float32 if cell.measure == "train" else WEIGHTS[config.precision]
    return model.to(device, dtype)
