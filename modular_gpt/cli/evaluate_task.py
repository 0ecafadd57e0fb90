"""What mgpt-eval can be told, and what it measures."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modular_gpt.checkpoint.resolve import DTYPES, Loaded, load_with_tokenizer
from modular_gpt.cli.composition.schema import Command
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError
from modular_gpt.core.validation import expand_home, one_of
from modular_gpt.data import SPLITS, build_corpus, prepare
from modular_gpt.evaluation import Evaluation, evaluate_text, evaluate_tokens
from modular_gpt.runtime.device import choose_device, prepare_device
from modular_gpt.training.run import load_config


@dataclass
class EvalSettings:
    """Settings of mgpt-eval.

    checkpoint: The model to evaluate: a run's directory, a checkpoint, a folder in Hugging Face's format, or a
        published name such as gpt2.
    text: Evaluate the model on this text file.
    corpus: Evaluate the model on this corpus, such as python_stdlib. Without text, corpus and tasks, the corpus of the
        model's own run is used.
    split: The split of the corpus to use, validation or train.
    stride: Distance in tokens between the starts of consecutive windows. Each token counts once and is predicted from
        at least context - stride tokens before it, where the text has them. By default (null) windows do not overlap.
    context: Length of a window in tokens. By default (null) the context length of the model.
    tasks: Tasks of lm-evaluation-harness, by name or by yaml file: one, several separated by commas, or a list.
    include: A folder with more task definitions for lm-evaluation-harness.
    fewshot: Number of solved examples before each question of a task. By default (null) the task decides.
    limit: Evaluate only this many questions of each task. By default (null) all are evaluated.
    batch_size: Number of windows or questions in a batch.
    json: Print the results as a JSON object.
    device: The device to compute on: auto, cpu, cuda, cuda:1, mps or another name that PyTorch knows.
    dtype: Data type of the weights, float32 or bf16. By default (null) the one they were saved in.
    """

    checkpoint: str = "runs/latest"
    text: str | None = None
    corpus: str | None = None
    split: str = "validation"
    stride: int | None = None
    context: int | None = None
    tasks: Any = None  # str, list or null: a structured config cannot spell that union
    include: str | None = None
    fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    json: bool = False
    device: str = "auto"
    dtype: str | None = None

    def __post_init__(self) -> None:
        expand_home(self, "checkpoint", "text", "include")
        if self.text is not None and self.corpus is not None:
            raise ConfigError("text and corpus exclude each other: give one of them")
        if not isinstance(self.tasks, (str, list, type(None))):
            raise ConfigError(f"tasks must be names with commas between them, or a list, got {self.tasks!r}")
        one_of(self.split, SPLITS, "split")
        if self.dtype is not None:
            one_of(self.dtype, tuple(DTYPES), "dtype")
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        unheeded = [name for name in ("include", "fewshot", "limit") if getattr(self, name) is not None]
        if unheeded and not self.names():
            raise ConfigError(f"{unheeded[0]} is for tasks: give tasks=..., or leave it out")

    def names(self) -> list[str]:
        """The tasks one by one."""
        listed = self.tasks.split(",") if isinstance(self.tasks, str) else self.tasks or []
        return [str(name).strip() for name in listed if str(name).strip()]


EVAL = Command(name="eval", plain=EvalSettings)
Results = dict[str, dict[str, Any]]


def measure(settings: EvalSettings) -> Results:
    """The figures, by what they are about: ``text``, and each task.

    Raises:
        UserError: the model, the text or a task is missing, damaged, or does not fit the others.
    """
    device = choose_device(settings.device)
    prepare_device(threads=None)
    if settings.names():
        _check_harness()
    loaded = load_with_tokenizer(
        settings.checkpoint, device, None if settings.dtype is None else DTYPES[settings.dtype]
    )
    results: Results = {}
    if settings.text is not None or settings.corpus is not None or not settings.names():
        found = _on_text(settings, loaded)
        results["text"] = {**asdict(found), "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
    if settings.names():
        from modular_gpt.evaluation.harness import run_tasks

        results |= run_tasks(
            loaded.model,
            loaded.tokenizer,
            settings.names(),
            include=settings.include,
            fewshot=settings.fewshot,
            limit=settings.limit,
            batch_size=settings.batch_size,
        )
    return results


def _check_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError("tasks need another package: pip install 'modular-gpt[eval]'") from error


def _on_text(settings: EvalSettings, loaded: Loaded) -> Evaluation:
    model, tokenizer = loaded
    how: dict[str, Any] = {name: getattr(settings, name) for name in ("context", "stride", "batch_size")}
    if settings.text is not None:
        return evaluate_text(model, tokenizer, _read(Path(settings.text)), **how)
    own = settings.corpus is None
    data = prepare(_own_corpus(settings.checkpoint) if own else build_corpus(str(settings.corpus)), tokenizer)
    split = data.train if settings.split == "train" else data.validation
    return evaluate_tokens(model, split.array, split.bytes, **how)


def _own_corpus(checkpoint: str) -> Any:
    """The text that a run was trained on."""
    try:
        return build_corpus(load_config(checkpoint).data)
    except CheckpointError as error:
        raise ConfigError(
            f"give text=<file> or corpus=<name>: '{checkpoint}' does not say what it was trained on"
        ) from (error)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): correct text=") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is no UTF-8 text (byte {error.start}): convert it first") from error


def print_results(settings: EvalSettings, results: Results) -> None:
    """Print the figures, for people or as JSON."""
    if settings.json:
        print(json.dumps(results, default=str))
        return
    for about, figures in results.items():
        print(f"{about}:" if about != "text" else f"{settings.text or settings.corpus or settings.checkpoint}:")
        rows = _text_rows(figures) if about == "text" else _task_rows(figures)
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")


def _text_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    chunked = figures["stride"] == figures["context"]
    windows = f"{figures['context']:,} tokens" + ("" if chunked else f", {figures['stride']:,} apart")
    return [
        ("loss", f"{figures['loss']:.4f} nats per token"),
        ("perplexity", f"{figures['perplexity']:.4f} per token"),
        ("bits per byte", f"{figures['bits_per_byte']:.4f}"),
        ("counted", f"{figures['scored']:,} of {figures['tokens']:,} tokens, which are {figures['bytes']:,} bytes"),
        ("windows", windows),
    ]


def _task_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in figures.items():
        if name not in ("alias", "name"):
            label = name.removesuffix(",none")
            rows.append((label, f"{value:.4f}" if isinstance(value, float) else str(value)))
    return rows
