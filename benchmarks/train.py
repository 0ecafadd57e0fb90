"""Compare training steps with transformers, litgpt, x-transformers (where installed) and a plain loop.

    python benchmarks/train.py [--table gpt2 moe gated] [--size small medium 124M] [--quick] [--rounds 9]
        [--partial FOLDER] [--write docs/benchmarks.md]

Each contestant runs in a separate process, so that its settings (allocator, matmul precision, compiled code) do not
affect the others. Contestants run in heats: they take turns in every round, and each heat includes the same reference,
the default of this package. Speeds are compared within a round, so that other load on the machine affects all alike.
The tables ``moe`` and ``gated`` compare with transformers' Mixtral and Llama.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from contestants import SIZES, Contestant, Size, llama_settings, mixtral_settings, model_settings, write_tokens
from measure import MIB, machine, peak_memory, reset_peak_memory, run_section, synchronise
from measure import table as written_table

from modular_gpt import GPTConfig
from modular_gpt.data import TokenSplit
from modular_gpt.training.estimate import flops_per_token

ATTENTIONS = ("gqa", "mqa", "swa", "mla", "linear")
FEED_FORWARDS = ("swiglu", "geglu", "reglu", "moe")
PEERS = ("transformers", "litgpt", "x-transformers", "plain loop")
TABLES = {"gpt2": SIZES, "moe": ("small", "medium"), "gated": ("small", "medium")}
WAYS = (("float32", False), ("float32", True), ("bf16", False), ("bf16", True))
REFERENCE = Contestant("modular_gpt", "auto", "auto")
MATRIX = 2048  # size of the matrix products that measure the peak of the machine


@dataclass
class Runner:
    """A contestant's process and its measurements.

    seconds: time of a step by round; relative: time of the reference in the same round, divided by ``seconds``
    """

    contestant: Contestant
    process: Any
    pipe: Connection
    memory: int = 0
    failure: str = ""
    seconds: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)

    def ask(self, steps: int) -> float:
        """Run ``steps`` training steps in the process and return the seconds per step."""
        self.pipe.send(steps)
        return self.pipe.recv() / steps


def work(contestant: Contestant, size: Size, tokens: TokenSplit, options: Any, threads: int, pipe: Connection) -> None:
    """Main loop of a contestant's process: warm up, then run the requested numbers of steps until it receives 0."""
    try:
        clock = time.process_time if options.cpu_time else time.perf_counter
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        step = contestant.build(size, tokens, torch.device(options.device))
        for _ in range(3):
            step()
        reset_peak_memory()
        step()
        pipe.send(peak_memory())
        while steps := pipe.recv():
            synchronise()
            begun = clock()
            for _ in range(steps):
                step()
            synchronise()
            pipe.send(clock() - begun)
    except Exception as error:  # any error: the other contestants continue
        pipe.send(f"{type(error).__name__}: {error}".strip().splitlines()[0])


@contextmanager
def started(contestants: list[Contestant], size: Size, tokens: TokenSplit, options: Any) -> Iterator[list[Runner]]:
    """Start the processes of the contestants, one after the other."""
    context = multiprocessing.get_context("spawn")
    runners = []
    try:
        for contestant in contestants:
            pipe, worker_end = context.Pipe()
            process = context.Process(
                target=work, args=(contestant, size, tokens, options, torch.get_num_threads(), worker_end), daemon=True
            )
            process.start()
            worker_end.close()
            runner = Runner(contestant, process, pipe)
            try:
                answer = pipe.recv()
            except EOFError:
                answer = "its process ended"
            runner.memory, runner.failure = (0, answer) if isinstance(answer, str) else (answer, "")
            print(f"  {contestant.name}: {runner.failure or 'ready'}", flush=True)
            runners.append(runner)
        yield runners
    finally:
        for runner in runners:
            with suppress(OSError):
                runner.pipe.send(0)
            runner.process.join(10)


def heat(contestants: list[Contestant], size: Size, tokens: TokenSplit, options: Any, peaks: "Peaks") -> list[Runner]:
    """Run contestants in rounds; the first one is the reference."""
    with started(contestants, size, tokens, options) as runners:
        going = [runner for runner in runners if not runner.failure]
        if runners[0] not in going:
            raise SystemExit(f"the reference fails: {runners[0].failure}")
        if options.wait:
            input("ready; Enter starts the clock ")
        for _ in range(options.rounds):
            peaks.measure()
            for runner in going:
                runner.seconds.append(runner.ask(size.steps))
            for runner in going:
                runner.relative.append(runners[0].seconds[-1] / runner.seconds[-1])
        return runners


class Peaks:
    """Highest measured FLOP/s of large matrix products by dtype."""

    def __init__(self, device: str) -> None:
        self.best = {"float32": 0.0, "bf16": 0.0}
        types = {"float32": torch.float32, "bf16": torch.bfloat16}
        self.matrices = {name: torch.randn(MATRIX, MATRIX, device=device).to(dtype) for name, dtype in types.items()}

    def measure(self) -> None:
        """Time one product per dtype and keep the maximum."""
        for name, matrix in self.matrices.items():
            for _ in range(2):
                synchronise()
                begun = time.perf_counter()
                matrix @ matrix
                synchronise()
                self.best[name] = max(self.best[name], 2 * MATRIX**3 / (time.perf_counter() - begun))

    def __str__(self) -> str:
        return ", ".join(f"{name} {speed / 1e9:,.0f} GFLOP/s" for name, speed in self.best.items())


def reference(table: str, size: Size) -> Contestant:
    """Default training of this package with the architecture of a table."""
    settings = {"moe": mixtral_settings, "gated": llama_settings}
    own = REFERENCE if table == "gpt2" else replace(REFERENCE, model=settings[table](size), label=table)
    return replace(own, compile=False) if size.name == "tiny" else own


def contestants(table: str, size: Size, quick: bool) -> list[Contestant]:
    """All contestants besides the reference: peers first, then this package."""
    if table != "gpt2":
        own = reference(table, size)
        library = {"moe": "transformers Mixtral", "gated": "transformers Llama"}[table]
        entries = [Contestant(library, *way) for way in WAYS]
        return entries + [replace(own, precision=precision, compile=compiles) for precision, compiles in WAYS]
    peers = [name for name in PEERS if " " in name or importlib.util.find_spec(name.replace("-", "_"))]
    if quick:
        peers = [name for name in peers if name in ("transformers", "plain loop")]
    entries = [Contestant(name, *way) for name in peers for way in WAYS]
    entries += [Contestant("modular_gpt", *way) for way in (*WAYS, ("bf16_products", False), ("bf16_products", True))]
    if not quick:
        entries += [Contestant("modular_gpt", "auto", "auto", {"attention": name}) for name in ATTENTIONS]
        entries += [Contestant("modular_gpt", "auto", "auto", {"ffn": name}) for name in FEED_FORWARDS]
    return entries


def compare(table: str, size: Size, options: Any) -> str:
    """Measure all contestants of a table at one size; returns the text for the page."""
    peaks, runners, own = Peaks(options.device), [], reference(table, size)
    listed = contestants(table, size, options.quick)
    waiting = [entry for entry in listed if options.only in entry.name or entry.peer]
    if size.name == "tiny":  # smoke test of this script
        waiting = [entry for entry in waiting if not entry.compile]
    with tempfile.TemporaryDirectory() as folder:
        tokens = write_tokens(Path(folder) / "tokens.bin", size)
        print(size.title, flush=True)
        for first in range(0, len(waiting), options.heat):
            runners.append(heat([own, *waiting[first : first + options.heat]], size, tokens, options, peaks))
    first_heat = runners[0][0]
    for others in runners[1:]:  # the reference ran in every heat
        first_heat.seconds += others[0].seconds
        first_heat.relative += others[0].relative
    measured = [first_heat, *(runner for heat_runners in runners for runner in heat_runners[1:])]
    return report(size, measured, peaks, options)


def report(size: Size, runners: list[Runner], peaks: Peaks, options: Any) -> str:
    """The table, fastest contestant first."""
    going = [runner for runner in runners if not runner.failure]
    speed = {id(runner): statistics.median(runner.relative) for runner in going}
    best = max(speed[id(runner)] for runner in going if runner.contestant.peer)
    rows = []
    for runner in sorted(going, key=lambda runner: -speed[id(runner)]):
        seconds = statistics.median(runner.seconds)
        quarters = statistics.quantiles(runner.seconds, n=4) if len(runner.seconds) > 1 else [seconds] * 3
        model = runner.contestant.model or runners[0].contestant.model
        config = GPTConfig.from_dict(model_settings(size, model))
        work = flops_per_token(config) * size.tokens / seconds
        rows.append(
            [
                runner.contestant.name,
                f"{seconds * 1e3:,.1f}",
                f"{(quarters[2] - quarters[0]) / 2 / seconds:.0%}",
                f"{size.tokens / seconds:,.0f}",
                f"{speed[id(runner)] / best:.2f}",
                f"{work / max(peaks.best.values()):.0%}",
                f"{runner.memory / MIB:,.0f}",
            ]
        )
    header = ["", "ms a step", "spread", "tokens/s", "vs best peer", "of the peak", "MiB"]
    failed = [f"{runner.contestant.name} did not run: {runner.failure}" for runner in runners if runner.failure]
    clock = "seconds of the CPU" if options.cpu_time else "seconds"
    measured = (
        f"{machine(torch.device(options.device))}, {time.strftime('%Y-%m-%d')}, {clock}. Matrix products reach {peaks}."
    )
    return "\n\n".join([f"{size.title}.", measured, written_table(header, rows), *failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["small", "medium", "124M"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--heat", type=int, default=4, help="contestants per heat besides the reference; bounds memory")
    parser.add_argument("--only", default="", help="of this package, measure only contestants whose name contains this")
    parser.add_argument("--quick", action="store_true", help="fewer contestants; a smoke test with --size tiny")
    parser.add_argument(
        "--partial", type=Path, metavar="FOLDER", help="keep finished tables here and skip them in later calls"
    )
    parser.add_argument("--wait", action="store_true", help="wait for Enter before timing starts")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, timed in CPU seconds: for a loaded machine"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page whose sections are replaced by the tables")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    for table, name in product(options.table, options.size):
        if name in TABLES[table] or name == "tiny":
            section = f"train-{name}" if table == "gpt2" else f"train-{table}-{name}"
            run_section(section, lambda table=table, name=name: compare(table, SIZES[name], options), options)


if __name__ == "__main__":
    main()
