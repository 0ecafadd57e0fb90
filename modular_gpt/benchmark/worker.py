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
from modular_gpt.core.errors import ConfigError, UserError
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.runtime.cpu_allocator import keep_memory
from modular_gpt.runtime.timing import forget_peak, held_memory, peak_memory, timed_run

READY, RUN, END = "ready", "run", "end"
WARM_UP = 64  # tokens of a first run before memory is measured
CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """Handle of the process that measures one variant."""

    def __init__(self, variant: Variant, config: BenchmarkConfig, threads: int, device: str) -> None:
        self.variant = variant
        self.pipe, other = CONTEXT.Pipe()
        self.process: BaseProcess = CONTEXT.Process(
            target=serve, args=(variant, config, threads, device, other), daemon=True
        )
        self.process.start()
        other.close()

    def prepare(self, cell: Cell) -> Measurement:
        """Build the workload of a cell in the process, run it once, and return the measurement without times."""
        self.pipe.send((READY, cell))
        try:
            answer: Measurement = self.pipe.recv()
        except EOFError:
            answer = Measurement(self.variant.name, cell, failure="its process ended, perhaps out of memory")
        return answer

    def run(self) -> float:
        """Seconds of one run."""
        self.pipe.send((RUN, None))
        seconds: float = self.pipe.recv()
        return seconds

    def end(self) -> None:
        """End the process."""
        with suppress(OSError):
            self.pipe.send((END, None))
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


@contextmanager
def workers(variants: Sequence[Variant], config: BenchmarkConfig, threads: int, device: str) -> Iterator[list[Worker]]:
    """Context manager: a process for each variant, which ends with it."""
    started: list[Worker] = []
    try:
        for variant in variants:
            started.append(Worker(variant, config, threads, device))
        yield started
    finally:
        for worker in started:
            worker.end()


def serve(variant: Variant, config: BenchmarkConfig, threads: int, device: str, pipe: Connection) -> None:
    """Main loop of a worker: prepare and run cells on request."""
    keep_memory()
    torch.set_num_threads(threads)
    workload: Workload | None = None
    with suppress(EOFError, KeyboardInterrupt):
        while (request := pipe.recv())[0] != END:
            if request[0] == RUN:
                assert workload is not None
                pipe.send(timed_run(workload.run))
                continue
            workload = None  # gives its memory back before the next one is built
            workload, answer = prepared(variant, request[1], config, torch.device(device))
            pipe.send(answer)


def prepared(
    variant: Variant, cell: Cell, config: BenchmarkConfig, device: torch.device
) -> tuple[Workload | None, Measurement]:
    """Build the workload of a cell and run it once; returns it and its measurement without seconds."""
    answer = Measurement(variant.name, cell)
    try:
        model = model_of(variant, cell, config, device)
        answer.parameters = model.num_parameters().total  # before its weights are packed
        workload: Workload = WORKLOADS[cell.measure](model, cell, config)
        workload.run()
    except (UserError, RuntimeError, MemoryError) as error:
        answer.failure = (str(error) or type(error).__name__).splitlines()[0]
        return None, answer
    answer.tokens, answer.flops, answer.bytes_read = workload.tokens, workload.flops, workload.bytes_read
    answer.cache_predicted, answer.cache_allocated = workload.predicted, workload.allocated
    return workload, answer


def memory_of(variant: Variant, cell: Cell, config: BenchmarkConfig, threads: int, device: str) -> int:
    """Peak bytes of a cell's workload beyond those of its model, in a process of its own; 0: it failed."""
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
    """Send the bytes of ``memory_of``."""
    torch.set_num_threads(threads)
    small = replace(cell, context=min(cell.context, WARM_UP), batch=1)
    prepared(variant, small, config, torch.device(device))  # libraries load and make what they keep
    model = model_of(variant, cell, config, torch.device(device))
    before = held_memory()
    forget_peak()
    WORKLOADS[cell.measure](model, cell, config).run()
    pipe.send(max(0, peak_memory() - before))


def model_of(variant: Variant, cell: Cell, config: BenchmarkConfig, device: torch.device) -> GPTModel:
    """The model of a variant, with positions for all tokens of the cell.

    Raises:
        ConfigError: the model of a checkpoint has fewer positions.
    """
    torch.manual_seed(0)
    needed = cell.context + (config.decoded if cell.measure == "decode" else 0)
    if variant.checkpoint is not None:
        model = load_model(variant.checkpoint).model
        if needed > model.config.context_length and not model.config.pos.component.extrapolates:
            raise ConfigError(f"{variant.name} has {model.config.context_length} positions, {needed} are needed")
    else:
        described = GPTConfig.from_dict(variant.config or {})
        model = GPTModel(replace(described, context_length=max(described.context_length, needed)))
    dtype = torch.float32 if cell.measure == "train" else WEIGHTS[config.precision]
    return model.to(device, dtype)
