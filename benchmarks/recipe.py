"""Bits per byte of the default run of ``mgpt-train``, and of variants of its recipe, over several seeds.

    python benchmarks/recipe.py --folder recipe [--only default] [--seeds 0 1 2 3 4] [--write docs/training_loop.md]

Each training is a process of ``mgpt-train`` on one thread in a separate directory. Results are kept in the folder, so
that further calls, also concurrent ones for other recipes, train only missing runs. The table lists all trained
recipes.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from measure import machine, table, write_section

from modular_gpt import compose
from modular_gpt.checkpoint import read_json
from modular_gpt.runtime.device import choose_device, prepare_device

RECIPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "optim=adamw schedule=cosine": ("optim=adamw", "schedule=cosine"),
    "schedule=cosine": ("schedule=cosine",),
    "optim.learning_rate=0.004": ("optim.learning_rate=0.004",),
    "optim.learning_rate=0.016": ("optim.learning_rate=0.016",),
    "schedule.decay=0.5": ("schedule.decay=0.5",),
    "attention.conv=3": ("attention.conv=3",),
    "attention.qk_norm=rmsnorm": ("attention.qk_norm=rmsnorm",),
}
FIXED = ("trainer.threads=1", "trainer.device=cpu", "trainer.sample_tokens=0")


def trained(name: str, seed: int, folder: Path) -> float:
    """Bits per byte on the whole validation text; trains if the folder has no result."""
    result = folder / f"{name.replace(' ', ',')}-{seed}.json"
    if not result.exists():
        runs = folder / result.stem
        command = [
            sys.executable,
            "-m",
            "modular_gpt.cli.train",
            *RECIPES[name],
            *FIXED,
            f"seed={seed}",
            f"runs={runs}",
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = next(line.split()[3] for line in output.splitlines() if line.startswith("bits per byte"))
        result.write_text(json.dumps({"bits_per_byte": float(found)}))
        print(f"{name}, seed {seed}: {found}", flush=True)
    return float(read_json(result)["bits_per_byte"])


def report(folder: Path) -> str:
    rows = []
    for name in RECIPES:
        results = sorted(folder.glob(f"{name.replace(' ', ',')}-*.json"))
        found = [float(read_json(result)["bits_per_byte"]) for result in results]
        if found:
            spread = f"{min(found):.3f} to {max(found):.3f}" if len(found) > 1 else ""
            rows.append(
                [f"`{name}`" if RECIPES[name] else name, str(len(found)), f"{statistics.fmean(found):.3f}", spread]
            )
    steps = compose().trainer.max_steps
    conditions = f"{steps:,} steps of the default model on the default text. {machine(choose_device('cpu'))}."
    return f"{table(['recipe', 'seeds', 'bits per byte', 'of the seeds'], rows)}\n\n{conditions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of results and runs")
    parser.add_argument("--only", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page whose section is replaced by the table")
    options = parser.parse_args()
    prepare_device(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.only:
            trained(name, seed, options.folder)
    text = report(options.folder)
    print(text)
    if options.write:
        write_section(options.write, "recipe", text)


if __name__ == "__main__":
    main()
