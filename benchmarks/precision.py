"""Training steps in float32 and bf16, compiled and eager, by model width: the basis of ``precision=auto``.

    python benchmarks/precision.py [--widths 64 128 256 384 768] [--rounds 9] [--write docs/training_loop.md]

All variants of a width run in every round, one after the other. A step is the forward pass, the backward pass and the
optimizer's update, as the trainer runs them.
"""

import argparse
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from measure import Variant, interleave, machine, table, write_section

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.distributed import build_parallel
from modular_gpt.optim import build_optimizer
from modular_gpt.runtime.cpu_allocator import keep_memory
from modular_gpt.runtime.device import cpu_has_bf16, physical_cores
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training.compile import has_compiler
from modular_gpt.training.forward import Forward

BATCH, CONTEXT, LAYERS, HEAD = 8, 256, 4, 32
CPU = torch.device("cpu")


def step_of(width: int, precision: str, compiled: bool) -> Callable[[], None]:
    """Build the training step of a new model."""
    torch.manual_seed(0)
    config = GPTConfig(d_model=width, n_heads=width // HEAD, n_layers=LAYERS, context_length=CONTEXT, vocab_size=256)
    model = GPTModel(config).train()
    optimizer = build_optimizer("adamw", model)
    forward = Forward(model, precision, compiled, build_parallel("auto", ProcessGroup()))
    ids = torch.randint(256, (BATCH, CONTEXT + 1))

    def step() -> None:
        forward(ids[:, :-1], ids[:, 1:]).loss.backward()
        optimizer.step(1.0)
        optimizer.zero_grad()

    return step


def measured(width: int, rounds: int, ways: list[bool]) -> list[str]:
    """Row of a width: milliseconds of each variant, and the ratio of bf16 to float32 within rounds."""
    row = [str(width)]
    for compiled in ways:
        names = ("float32", "bf16")
        variants = [Variant(name, step_of(width, name, compiled), BATCH * CONTEXT) for name in names]
        interleave(variants, rounds, warmup=2)
        exact, short = variants
        ratios = [b / a for a, b in zip(exact.seconds, short.seconds, strict=True)]
        quarters = statistics.quantiles(ratios, n=4)
        row += [f"{1000 * exact.median:,.1f}", f"{1000 * short.median:,.1f}"]
        row.append(f"{statistics.median(ratios):.2f} ±{(quarters[2] - quarters[0]) / 2:.2f}")
    return row


def main() -> None:
    """Measure, print the table and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 384, 768])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    ways = [False, *([True] if has_compiler(CPU) else [])]
    header = ["width"]
    for compiled in ways:
        prefix = "compiled, " if compiled else ""
        header += [f"{prefix}float32 ms", f"{prefix}bf16 ms", f"{prefix}bf16 / float32"]
    text = table(header, [measured(width, options.rounds, ways) for width in options.widths])
    units = "with" if cpu_has_bf16() else "without"
    text += f"\n\n{machine(CPU)}, {units} bf16 units, {date.today()}; medians of {options.rounds} rounds, and ratios "
    text += "within a round with half their quartile distance."
    print(text)
    if options.write:
        write_section(options.write, "precision", text)


if __name__ == "__main__":
    main()
