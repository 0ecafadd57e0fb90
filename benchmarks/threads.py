"""Training steps with OpenMP threads that spin or sleep while they wait, on an idle and on a loaded machine.

    python benchmarks/threads.py [--rounds 9] [--steps 10] [--threads N] [--write docs/training_loop.md]

Each policy runs in a separate process, since it has no effect after torch is loaded. Both run in every round, one after
the other, first without other load and then beside a busy loop on each core.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch
from measure import Variant, interleave, machine, table, write_section

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.runtime.cpu_threads import CHOSEN_BY_USER, POLICY
from modular_gpt.runtime.device import physical_cores

BATCH = 8
POLICIES = {"spinning (the default of OpenMP)": {}, "sleeping (the policy of mgpt-train)": POLICY}


class Worker:
    """A process with a policy that trains the default model on request."""

    def __init__(self, policy: dict[str, str], threads: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", "--threads", str(threads)],
            env={**environment, **policy}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def steps(self, count: int) -> None:
        """Run ``count`` steps in the worker and wait for them."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(count, file=self.process.stdin, flush=True)
        if self.process.stdout.readline().strip() != "done":
            raise SystemExit("a worker ended early; its message is above")

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def work(threads: int) -> None:
    """Main loop of a worker: read numbers of steps from stdin, one per line, run and acknowledge each."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = GPTModel(GPTConfig())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(model.config.vocab_size, (BATCH, model.config.context_length + 1))
    for line in sys.stdin:
        for _ in range(int(line)):
            model(ids[:, :-1], ids[:, 1:]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print("done", flush=True)


def busy() -> None:
    """Use a core until the process is killed."""
    while True:
        pass


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Context manager: ``processes`` busy loops run in the background."""
    loops = [multiprocessing.Process(target=busy, daemon=True) for _ in range(processes)]
    for loop in loops:
        loop.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def measured(threads: int, rounds: int, steps: int) -> dict[str, list[Variant]]:
    """Timed variants of both policies on an idle and on a loaded machine."""
    workers = {name: Worker(policy, threads) for name, policy in POLICIES.items()}
    cores = os.cpu_count() or 1
    try:
        results = {}
        for state, loops in (("idle", 0), ("loaded", cores)):
            variants = [Variant(name, lambda w=worker: w.steps(steps), steps) for name, worker in workers.items()]
            with load(loops):
                interleave(variants, rounds)
            results[state] = variants
        return results
    finally:
        for worker in workers.values():
            worker.end()


def report(results: dict[str, list[Variant]], threads: int) -> str:
    """The table, with the machine and the date."""
    rows = []
    for state, variants in results.items():
        base = variants[0].median
        for variant in variants:
            milliseconds = 1000 * variant.median / variant.tokens
            cells = [f"{milliseconds:,.1f}", f"±{variant.spread:.1%}", f"{variant.median / base:.3f}"]
            rows.append([f"{state}, {variant.name}", *cells])
    torch.set_num_threads(threads)
    rounds = len(next(iter(results.values()))[0].seconds)
    where = f"{machine(torch.device('cpu'))}, {date.today()}; medians and half quartile distances of {rounds} rounds."
    return f"{table(['', 'ms a step', 'spread', 'of spinning'], rows)}\n\n{where}"


def main() -> None:
    """Measure, print the table and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--write", type=Path)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.threads)
        return
    text = report(measured(options.threads, options.rounds, options.steps), options.threads)
    print(text)
    if options.write:
        write_section(options.write, "threads", text)


if __name__ == "__main__":
    main()
