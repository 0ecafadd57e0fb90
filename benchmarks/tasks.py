"""Exact match on the four sets of docs/tasks.md: command, two processes, resumed, notebook, LoRA.

    python benchmarks/tasks.py [--steps 300] [--lora-steps 1200] [--only dates sentiment] [--write docs/tasks.md]

Every process has one thread. A resumed run was stopped by Ctrl-C after the first evaluation; its weights are compared
bitwise with those of the run that was not stopped. LoRA starts from a model of the same size that was trained on the
source code of Python's standard library; the weights of that model stay frozen.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import table, write_section
from safetensors.torch import load_file

from modular_gpt import GPTModel, fit
from modular_gpt.data import build_tokenizer

SCRIPTS = Path(__file__).resolve().parents[1] / "docs" / "scripts"
SIZES = {"d_model": 48, "n_layers": 2, "n_heads": 4, "context_length": 80}
RECIPE = ["trainer.batch_size=16", "trainer.precision=float32", "trainer.sample_tokens=0", "trainer.eval_interval=100"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lora-steps", type=int, default=1200)
    parser.add_argument("--only", nargs="+", metavar="TASK")
    parser.add_argument("--write", type=Path, help="page whose section 'four tasks' is replaced")
    options = parser.parse_args()
    sys.path.insert(0, str(SCRIPTS))
    from task_sets import TASKS, write_task

    names = options.only or list(TASKS)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for name in names:
            write_task(name, root)
        for name in names:
            train(root, name, options.steps, "alone")
        text_model(root, 2 * options.steps)
        for name in names:
            rows.append([f"`{name}`", *variants(root, name, options)])
            print(" | ".join(rows[-1]), flush=True)
    head = ["set", "`mgpt-train`", "two processes", "stopped and resumed", "`fit`", "LoRA on a model of text"]
    text = (
        f"Records of 100 whose generated answer is exact: {options.steps} steps on one CPU thread, with LoRA (rank 16)"
        f" {options.lora_steps} steps. `benchmarks/tasks.py`.\n\n{table(head, rows)}"
    )
    print(text)
    if options.write:
        write_section(options.write, "four tasks", text)


def variants(root: Path, name: str, options: argparse.Namespace) -> list[str]:
    """Exact match on a set by way of training."""
    train(root, name, options.steps, "two", processes=2)
    resumed = resumed_run(root, name, options.steps)
    from_python(root, name, options.steps)
    source = [f"init_from={root}/text/latest", "lora.rank=16", "optim=muon", "optim.learning_rate=0.02"]
    train(root, name, options.lora_steps, "lora", sizes=False, settings=source)
    alone, two, stopped, python, lora = (
        exact_match(root, name, way) for way in ("alone", "two", "stopped", "fit", "lora")
    )
    same = "the same weights" if resumed else "OTHER WEIGHTS"
    return [alone, two, f"{stopped}, {same}", python, lora]


def text_model(root: Path, steps: int) -> None:
    """Train a model on the default text in the directory ``text``."""
    size = ["model_size=nano", *(f"model_size.{key}={value}" for key, value in SIZES.items())]
    arguments = [
        *size,
        "optim=muon",
        "optim.learning_rate=0.02",
        *RECIPE,
        f"trainer.max_steps={steps}",
        f"runs={root}/text",
    ]
    subprocess.run(
        [sys.executable, "-m", "modular_gpt.cli.train", *arguments], check=True, env=ONE_THREAD, capture_output=True
    )


def command(root: Path, name: str, steps: int, way: str, settings: list[str], sizes: bool = True) -> list[str]:
    """Command line of mgpt-train for a set."""
    size = ["model_size=nano", *(f"model_size.{key}={value}" for key, value in SIZES.items())] if sizes else []
    data = ["data=records", f"data.path={root / name}/train.jsonl", f"data.validation={root / name}/test.jsonl"]
    recipe = settings or ["optim=muon", "optim.learning_rate=0.02"]
    run = [f"trainer.max_steps={steps}", f"runs={root / name}-{way}"]
    return ["modular_gpt.cli.train", *data, *size, *recipe, *RECIPE, *run]


def train(
    root: Path,
    name: str,
    steps: int,
    way: str,
    processes: int = 1,
    sizes: bool = True,
    settings: list[str] | None = None,
) -> None:
    """Train on a set with mgpt-train."""
    arguments = command(root, name, steps, way, settings or [], sizes)
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    subprocess.run([sys.executable, *launcher, "-m", *arguments], check=True, env=ONE_THREAD, capture_output=True)


def resumed_run(root: Path, name: str, steps: int) -> bool:
    """Train, stop half way and resume; returns whether the weights equal those of the run that was not stopped."""
    arguments = command(root, name, steps, "stopped", [])
    with subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, env=ONE_THREAD
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step") and "validation loss" in line:  # the first evaluation, after 100 steps
                process.send_signal(signal.SIGINT)
    arguments = ["modular_gpt.cli.train", f"resume={root / name}-stopped/latest"]
    subprocess.run([sys.executable, "-m", *arguments], check=True, env=ONE_THREAD, capture_output=True)
    one, other = (
        load_file(root / f"{name}-{way}" / "latest" / "checkpoints" / "latest" / "model.safetensors")
        for way in ("alone", "stopped")
    )
    return one.keys() == other.keys() and all(bool((one[key] == other[key]).all()) for key in one)


def from_python(root: Path, name: str, steps: int) -> None:
    """Train on a set with ``fit``, as a notebook does."""
    records = [json.loads(line) for line in (root / name / "train.jsonl").read_text().splitlines()]
    tokenizer = build_tokenizer("byte")
    model = GPTModel(**SIZES, pos="rope", vocab_size=tokenizer.vocab_size)
    settings = {"batch_size": 16, "precision": "float32", "optim": "muon", "learning_rate": 0.02, "max_steps": steps}
    fit(model, records, tokenizer, checkpoint=root / f"{name}-fit", quiet=True, **settings)


def exact_match(root: Path, name: str, way: str) -> str:
    """Fraction of exact answers on the test records, by mgpt-eval."""
    checkpoint = root / f"{name}-{way}" if way == "fit" else root / f"{name}-{way}" / "latest"
    arguments = [f"checkpoint={checkpoint}", f"records={root / name}/test.jsonl", "json=true", "predictions=null"]
    done = subprocess.run(
        [sys.executable, "-m", "modular_gpt.cli.evaluate", *arguments], check=True, env=ONE_THREAD, capture_output=True
    )
    return f"{100 * json.loads(done.stdout)['records']['exact_match']:.0f}"


if __name__ == "__main__":
    main()
