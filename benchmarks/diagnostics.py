"""Run the diagnostics D1 to D5 and the probes; report expected and measured values and CPU seconds.

    python benchmarks/diagnostics.py [--only D1 D5] [--write docs/diagnostics.md]

Small models of width 64 learn synthetic tasks on one CPU thread, in float32. It takes some minutes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import machine, table, write_section

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.comparison.diagnostics import PROBES
from modular_gpt.comparison.diagnostics.tasks import Task, beyond_the_trained_length, latent, recall, staircase

LENGTHS = (64, 128, 256, 512)
SOFTMAX: dict[str, Any] = {"mha": "mha", "gqa": "gqa", "mqa": "mqa", "mla": {"name": "mla", "kv_lora_rank": 32}}
WINDOW: dict[str, Any] = {"name": "swa", "window": 32}

Row = list[str]


def learned(label: str, task: Task | None, expected: str = "") -> Row:
    """Train a model on a task and return its row."""
    assert task is not None
    found = task.learn()
    row = [label, expected or task.expected, f"{found.accuracy:.3f}", str(found.steps), f"{found.seconds:.1f}"]
    print("  ".join(row), flush=True)
    return row


HEAD = ["model", "expected accuracy", "accuracy", "steps", "seconds"]


def d1() -> str:
    """D1: copying with a fixed lag of 8."""
    rows = [
        learned(f"{layers} layer{'s' * (layers > 1)}, window {window}, reach {layers * (window - 1)}",
                staircase({"name": "swa", "window": window}, layers))
        for layers, window in ((1, 7), (1, 8), (2, 4), (2, 5))
    ]  # fmt: skip
    return table(HEAD, rows)


def d2() -> str:
    """D2: recall of 8 pairs in one layer with conv=3."""
    rows = [learned(name, recall(attention)) for name, attention in SOFTMAX.items()]
    rows += [learned("swa, window 32", recall(WINDOW)), learned("linear", recall("linear"), "at most 0.700")]
    return table(HEAD, rows)


def d3() -> str:
    """D3: recall by number of latents."""
    settings = ((32, "rmsnorm"), (32, None), (8, "rmsnorm"), (4, "rmsnorm"))
    rows = [learned(f"mla, latent {rank}, norm {norm or 'none'}", latent(rank, norm), "-") for rank, norm in settings]
    return table(HEAD, rows)


def d4() -> str:
    """D4: recall by number of pairs."""
    rows = [
        learned(f"{name}, {pairs} pairs", recall(name, pairs), "-")
        for name in ("mha", "linear")
        for pairs in (4, 8, 16)
    ]
    return table(HEAD, rows)


def d5() -> str:
    """D5: loss beyond the training length."""
    models: dict[str, dict[str, Any]] = {
        "mha, rope": {"attention": "mha", "pos": "rope"},
        "mha, alibi": {"attention": "mha", "pos": "alibi"},
        "swa, window 16, rope": {"attention": {"name": "swa", "window": 16}, "pos": "rope"},
    }
    rows = []
    for name, settings in models.items():
        found = beyond_the_trained_length(lengths=LENGTHS, **settings)
        rows.append([name, *(f"{loss:.3f}" for loss in found.losses.values()), f"{found.seconds:.1f}"])
        print("  ".join(rows[-1]), flush=True)
    return table(["model", "64 (trained)", *(str(length) for length in LENGTHS[1:]), "seconds"], rows)


def probes() -> str:
    """Milliseconds of each probe on a default model with sliding windows and ALiBi."""
    config = GPTConfig(n_layers=2, pos="alibi", attention={"name": "gqa", "window": 5, "softcap": 20.0, "conv": 3})
    torch.manual_seed(0)
    model, rows = GPTModel(config), []
    for name, probe in PROBES.items():
        probe(model)  # warm-up: the first call of a kernel takes longer
        begun = time.process_time()
        answer = probe(model)
        seconds = time.process_time() - begun
        if answer is not None:
            rows.append([name, answer.expected, answer.found, f"{1000 * seconds:.0f}"])
    return table(["probe", "expected", "found", "ms"], rows)


SECTIONS: dict[str, Callable[[], str]] = {"probes": probes, "D1": d1, "D2": d2, "D3": d3, "D4": d4, "D5": d5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--write", type=Path, help="page whose sections to rewrite")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        text = SECTIONS[name]()
        print(text, flush=True)
        if options.write is not None:
            write_section(options.write, name, f"{text}\n\n{machine(torch.device('cpu'))}.")


if __name__ == "__main__":
    main()
