"""Time and memory of one attention layer by sequence length, for every registered attention.

    python benchmarks/context.py [--lengths 512 1024 2048 4096 8192 16384 32768] [--window 256] [--rounds 5]
        [--write docs/attention.md] [--figure docs/images/context.png]

The layer has width 128, 4 heads and rotary positions; batch 1, float32. A step is a forward and a backward pass with
gradients of all weights and of the input. Timings are interleaved: at each length every attention runs once per round.
Memory is the peak of a separate process during a step, minus its memory before the step.
"""

import argparse
import datetime
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measure import (
    MIB,
    Variant,
    current_memory,
    interleave,
    machine,
    peak_memory,
    reset_peak_memory,
    table,
    write_section,
)
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.contracts import Positions
from modular_gpt.core.registry import entries
from modular_gpt.runtime.cpu_allocator import keep_memory

WIDTH, HEADS = 128, 4
COLORS = 10  # of matplotlib's cycle
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass
class Curve:
    """Seconds of the forward pass and of a step, and peak bytes of a step, of one attention by length."""

    name: str
    forward: dict[int, float] = field(default_factory=dict)
    step: dict[int, float] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)


def layer(name: str, window: int, device: torch.device) -> torch.nn.Module:
    """Build one attention layer; ``window`` replaces the default window of windowed attentions."""
    settings: dict[str, Any] = {"name": name}
    if getattr(entries("attention")[name].default(), "window", None) is not None:
        settings["window"] = window
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=2, d_model=WIDTH, n_heads=HEADS, n_layers=1, context_length=window, pos="rope", attention=settings
    )
    return GPTModel(config).blocks[0].attention.to(device)


def work(attention: torch.nn.Module, length: int, device: torch.device) -> tuple[Callable[[], Tensor], Callable]:
    """Functions that run (forward, forward and backward) of a layer on a random input of batch 1."""
    x = torch.randn(1, length, WIDTH, device=device, requires_grad=True)
    gradient = torch.randn_like(x)

    @torch.no_grad()
    def forward() -> Tensor:
        return attention(x, Positions(0, length, None, device))

    def step() -> None:
        attention(x, Positions(0, length, None, device)).backward(gradient)
        x.grad = None
        attention.zero_grad()

    return forward, step


def time_lengths(curves: list[Curve], options: argparse.Namespace) -> None:
    """Time every attention at every length in this process."""
    device = torch.device(options.device)
    layers = {curve.name: layer(curve.name, options.window, device) for curve in curves}
    for length in options.lengths:
        variants: list[Variant] = []
        for curve in curves:
            forward, step = work(layers[curve.name], length, device)
            variants += [Variant(curve.name, forward, length), Variant(curve.name, step, length)]
        interleave(variants, options.rounds)
        for curve, forward, step in zip(curves, variants[::2], variants[1::2], strict=True):
            curve.forward[length], curve.step[length] = forward.median, step.median
        print(f"{length}: timed", flush=True)


def send_memory(name: str, length: int, options: argparse.Namespace, pipe: Connection) -> None:
    """Send the peak memory of a step in bytes; runs in a separate process."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    attention = layer(name, options.window, device)
    work(attention, 64, device)[1]()  # warm up: libraries load and allocate their buffers
    _, step = work(attention, length, device)
    before = current_memory()
    reset_peak_memory()
    step()
    pipe.send(peak_memory() - before)


def measure_memory(curves: list[Curve], options: argparse.Namespace) -> None:
    """Measure the peak memory of a step of every attention at every length, each in a separate process."""
    context = multiprocessing.get_context("spawn")
    for curve in curves:
        for length in options.lengths:
            receiver, sender = context.Pipe()
            process = context.Process(target=send_memory, args=(curve.name, length, options, sender))
            process.start()
            sender.close()
            curve.memory[length] = receiver.recv()
            process.join()
        print(f"{curve.name}: memory measured", flush=True)


def draw(curves: list[Curve], path: Path) -> None:
    """Draw three panels on logarithmic scales: forward, step, memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = zip(
        figure.subplots(1, 3),
        [
            ("forward, ms", "forward", 1e-3),
            ("training step, ms", "step", 1e-3),
            ("memory of a step, MiB", "memory", MIB),
        ],
        strict=True,
    )
    for axes, (title, values, unit) in panels:
        for index, curve in enumerate(curves):
            points = getattr(curve, values)
            style = "o-" if index < COLORS else "s--"
            axes.plot(list(points), [value / unit for value in points.values()], style, markersize=3, label=curve.name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(points), [f"{length:,}" for length in points], rotation=45)
        axes.set_xlabel("tokens")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def report(curves: list[Curve], options: argparse.Namespace) -> str:
    """The conditions, and a table with a row per attention and metric."""
    lengths = options.lengths
    rows = []
    for curve in curves:
        rows.append([f"{curve.name}, forward, ms", *(f"{curve.forward[n] * 1e3:,.1f}" for n in lengths)])
        rows.append([f"{curve.name}, step, ms", *(f"{curve.step[n] * 1e3:,.1f}" for n in lengths)])
        rows.append([f"{curve.name}, step, MiB", *(f"{curve.memory[n] / MIB:,.0f}" for n in lengths)])
    where = f"{machine(torch.device(options.device))}, {datetime.date.today()}"
    conditions = (
        f"One layer, {WIDTH} wide, {HEADS} heads, windows of {options.window}, float32. {where}; medians of "
        f"{options.rounds} rounds."
    )
    return f"{conditions}\n\n{table(['tokens', *(f'{n:,}' for n in lengths)], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attention", nargs="+", default=list(entries("attention")))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", type=Path, help="page whose section 'measured context' is replaced")
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    curves = [Curve(name) for name in options.attention]
    measure_memory(curves, options)
    time_lengths(curves, options)
    text = report(curves, options)
    print(text)
    if options.figure:
        draw(curves, options.figure)
    if options.write:
        write_section(options.write, "context", text)


if __name__ == "__main__":
    main()
