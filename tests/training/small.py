"""Runs that are small enough for hundreds of repetitions, and functions for other processes."""

import importlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modular_gpt.checkpoint import CheckpointReader, find_checkpoint, read_json, read_tensors
from modular_gpt.core.errors import ConfigError
from modular_gpt.data import build_corpus, build_tokenizer
from modular_gpt.distributed import build_parallel
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training import RunConfig, RunResult, TrainerConfig, recorder, run_info, train
from modular_gpt.training.build import build_trainer
from modular_gpt.training.checkpointing import Checkpoints
from modular_gpt.training.forward import Placement
from modular_gpt.training.metrics import read_metrics
from modular_gpt.training.trainer import Trainer

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "context_length": 16}
TRAINER = {
    "max_steps": 12,
    "batch_size": 4,
    "eval_interval": 4,
    "eval_batches": 1,
    "log_interval": 3,
    "sample_tokens": 4,
    "final_evaluation": False,
    "device": "cpu",
    "precision": "float32",
    "threads": 1,
}


def write_text(path: Path, words: int = 1200) -> Path:
    """Write a text with learnable structure."""
    numbers = random.Random(0)
    path.write_text(" ".join(numbers.choice(("the cat", "sat on", "a mat;\n", "it was")) for _ in range(words)))
    return path


# Muon rounds to bf16, which amplifies small differences, in proportion to the learning rate.
ADAMW: dict[str, Any] = {"optim": "adamw", "schedule": "cosine"}
MUON: dict[str, Any] = {"optim": {"name": "muon", "learning_rate": 4e-3}, "schedule": "cosine"}


def config(folder: Path, model: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    """Config of a run in ``folder``, with its text and token cache; ``settings`` belong to the trainer or the run."""
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    trainer = {**TRAINER, **{k: v for k, v in settings.items() if k in TrainerConfig.__dataclass_fields__}}
    others = {k: v for k, v in settings.items() if k not in TrainerConfig.__dataclass_fields__}
    return RunConfig(
        **{
            "model": {**MODEL, **(model or {})},
            "data": {"name": "text", "path": str(text)},
            "trainer": TrainerConfig(**trainer),
            "runs": str(folder / "runs"),
            **others,
        }
    )


def one_layer(folder: Path, model: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    """``config`` of a model with one layer, for tests that do not need a second one."""
    return config(folder, {"n_layers": 1, **(model or {})}, **settings)


def trainer_of(settings: RunConfig, checkpoint: Path | None = None) -> Trainer:
    """The trainer of a run before its first step, or restored from a checkpoint."""
    corpus = build_corpus(settings.data)
    tokenizer = build_tokenizer(settings.tokenizer, corpus)
    data = corpus.prepare(tokenizer)
    reader = None if checkpoint is None else CheckpointReader(checkpoint)
    return build_trainer(settings, data, tokenizer, placement(), reader)


def placement(precision: str = "float32") -> Placement:
    """One process on the CPU."""
    return Placement(torch.device("cpu"), precision, build_parallel("none", ProcessGroup()))


def gpt2_folder(folder: Path, text: Path, dtype: torch.dtype = torch.float32) -> int:
    """Save a tiny GPT-2 of transformers with a tokenizer.json trained on a text; returns its vocabulary size."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=262, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(text)], trainer)
    count = tokenizer.get_vocab_size()
    size = {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 16, "bos_token_id": None, "eos_token_id": None}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=count, **size))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return count


def run(settings: RunConfig) -> RunResult:
    """Train without printing."""
    return train(settings, quiet=True)


_finished: dict[str, Path] = {}


def finished_run(settings: RunConfig) -> Path:
    """Directory of a finished run to start from: the first one with equal settings and text, or a copy of it.

    Its checkpoints name the text of the first run, so a resumed run must set its text.
    """
    plain = settings.to_dict()
    runs, text = Path(plain.pop("runs")), Path(plain["data"].pop("path")).read_text()
    key = repr((plain, text))
    if key not in _finished:
        directory = run(settings).directory
        _finished[key] = Path(shutil.copytree(directory, runs.with_name("kept") / directory.name, symlinks=True))
        return directory
    return Path(shutil.copytree(_finished[key], runs / _finished[key].name, symlinks=True))


def stop_after(monkeypatch: Any, steps: int) -> None:
    """Make every run stop after ``steps`` steps."""
    update = Trainer.update

    def counted(self: Trainer) -> None:
        update(self)
        if self.progress.step + 1 == steps:
            self.stop.signal = signal.SIGINT

    monkeypatch.setattr(Trainer, "update", counted)


Ending = tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, float]]]


def ending(directory: Path) -> Ending:
    """Tensors and progress of the last checkpoint of a run, and its metrics except times."""
    checkpoint = find_checkpoint(directory, prefer="latest")
    tensors = {
        f"{name}:{key}": tensor
        for name in ("model", "optimizer", "trainer", "trained", "adapters")
        if (checkpoint / f"{name}.safetensors").is_file()
        for key, tensor in read_tensors(checkpoint, name).items()
    }
    progress = {k: v for k, v in read_json(checkpoint / "meta.json")["progress"].items() if k != "seconds"}
    clock = {"seconds", "tokens_per_second", "mfu", "memory_bytes"}
    metrics = [{k: v for k, v in entry.items() if k not in clock} for entry in read_metrics(directory)]
    return tensors, progress, metrics


def assert_same_ending(one: Path, other: Path) -> None:
    """Assert that two runs are bitwise equal: weights, optimizer, random states, progress and all metrics."""
    assert_ending(other, ending(one))


def assert_ending(directory: Path, expected: Ending) -> None:
    """As ``assert_same_ending``, with the expected ending already read."""
    tensors, progress, metrics = expected
    tensors_, progress_, metrics_ = ending(directory)
    assert tensors.keys() == tensors_.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], tensors_[name])]
    assert not different
    assert progress == progress_
    assert metrics == metrics_


# --- run in other processes -----------------------------------------------------------------------------------------


def train_quickly() -> None:
    """Skip plots and FLOP counts in this process, which take longer than a small training.

    Files survive a kill of the process that wrote them, so fsync is skipped too.
    """
    torch.set_num_threads(1)
    recorder.plot_losses = lambda *arguments: None  # type: ignore[assignment]
    run_info.flops_per_token = lambda *arguments: 1.0
    if os.fsync.__module__ == "posix":
        os.fsync = lambda handle: None


def run_in_process(settings: dict[str, Any]) -> None:
    """Train; ``settings`` is the dict of a RunConfig."""
    train_quickly()
    result = train(RunConfig.from_dict(settings), quiet=True)
    os._exit(128 + result.signal if result.signal else 0)


def run_some_steps(settings: dict[str, Any], steps: int) -> None:
    """Train for some steps, then wait for a kill."""
    update, done = Trainer.update, 0

    def counted(self: Trainer) -> None:
        nonlocal done
        while done == steps:
            signal.pause()
        update(self)
        done += 1

    Trainer.update = counted  # type: ignore[method-assign]
    run_in_process(settings)


def run_when_told(settings: dict[str, Any], go: str) -> None:
    """Train, but begin the first step only when the file ``go`` exists."""
    update = Trainer.update

    def patient(self: Trainer) -> None:
        while not Path(go).exists():
            time.sleep(0.001)
        update(self)

    Trainer.update = patient  # type: ignore[method-assign]
    run_in_process(settings)


def run_with_fault(
    settings: dict[str, Any], module: str, name: str, call: int, number: int, during: str | None = None
) -> None:
    """Train, and send this process a signal at the given call of ``module.name``.

    With ``during``, count only calls while the checkpoint of that name is saved.
    """
    place: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for name in path:
        place = getattr(place, name)
    original: Callable[..., Any] = getattr(place, last)
    calls = 0
    saving = during is None

    def faulty(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += saving
        if saving and calls == call:
            os.kill(os.getpid(), number)
        return original(*args, **keywords)

    save = Checkpoints.save

    def noted(self: Checkpoints, required: bool = True) -> None:
        nonlocal saving
        saving = during is None or self.path(self.trainer.progress.step).name == during
        save(self, required)
        saving = during is None

    setattr(place, last, faulty)
    Checkpoints.save = noted  # type: ignore[method-assign]
    run_in_process(settings)


EXPLAINED = 42  # exit code of a process that failed as expected, with a remedy


def run_with_little_memory(settings: dict[str, Any]) -> None:
    """Train with a memory limit just above the usage at the first step."""
    import resource

    update = Trainer.update

    def limited(self: Trainer) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, used + 64 * 2**20))
        update(self)

    Trainer.update = limited  # type: ignore[method-assign]
    try:
        run(RunConfig.from_dict(settings))
    except ConfigError as error:
        assert "out of memory after step 0" in str(error)
        os._exit(EXPLAINED)


def run_without_compiler(settings: dict[str, Any]) -> None:
    """Compile the model on a machine without a compiler."""
    import torch._inductor.config as inductor

    inductor.cpp.cxx = ("no-such-compiler",)
    try:
        run(RunConfig.from_dict(settings))
    except ConfigError as error:
        assert "torch.compile does not work here (" in str(error)
        assert "use trainer.compile=false" in str(error)
        os._exit(EXPLAINED)
