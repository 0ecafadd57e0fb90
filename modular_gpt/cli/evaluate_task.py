"""The settings of mgpt-eval, and the measurements that it makes."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from modular_gpt.checkpoint.resolve import Loaded, load_with_tokenizer
from modular_gpt.cli.composition.schema import Command
from modular_gpt.cli.finite_weights import check_finite_weights
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.progress import progress_line
from modular_gpt.core.validation import WEIGHT_TYPES, expand_home, one_of
from modular_gpt.data import SPLITS, Corpus, PreparedText, build_corpus
from modular_gpt.data.corpora.file_search import find_files, path_patterns
from modular_gpt.data.corpora.files import read_text
from modular_gpt.evaluation import Evaluation, WindowOptions, evaluate_text, evaluate_tokens
from modular_gpt.runtime.device import as_device, as_dtype, prepare_device
from modular_gpt.training.run import load_config


@dataclass
class EvalSettings:
    """Settings of mgpt-eval.

    checkpoint: The model to evaluate: a run's directory, a checkpoint, a folder in Hugging Face's format, or a
        published name such as gpt2.
    tokenizer: The tokenizer to use instead of the model's own: a tokenizer.json, a folder with one, a run, or a name
        such as gpt2. By default (null) the model's own.
    text: Evaluate the model on this text file; a pattern or a list of files is read as one text.
    corpus: Evaluate the model on this corpus, such as python_stdlib. Without text, corpus and tasks, the corpus of the
        model's own run is used.
    path: The files of corpus=text, or the data.path of another corpus: a path, a pattern or a list of these.
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
    tokenizer: str | None = None
    text: Any = None  # str, list or null: a structured config cannot spell that union
    corpus: str | None = None
    path: Any = None  # as text
    split: str = "validation"
    stride: int | None = None
    context: int | None = None
    tasks: Any = None  # as text
    include: str | None = None
    fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    json: bool = False
    device: str = "auto"
    dtype: str | None = None

    def __post_init__(self) -> None:
        expand_home(self, "checkpoint", "include")
        if self.text is not None and self.corpus is not None:
            raise ConfigError("text and corpus exclude each other: give one of them")
        if self.path is not None and self.corpus is None:
            raise ConfigError("path is for a corpus: give corpus=text path=..., or text=<file or pattern>")
        for name in ("text", "path"):
            if getattr(self, name) is not None:
                setattr(self, name, path_patterns(getattr(self, name), name))
        expand_home(self, "text", "path")
        if not isinstance(self.tasks, (str, list, type(None))):
            raise ConfigError(f"tasks must be names with commas between them, or a list, got {self.tasks!r}")
        one_of(self.split, SPLITS, "split")
        if self.dtype is not None:
            one_of(self.dtype, WEIGHT_TYPES, "dtype")
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        unused = [name for name in ("include", "fewshot", "limit") if getattr(self, name) is not None]
        if unused and not self.names():
            raise ConfigError(f"{unused[0]} is for tasks: give tasks=..., or leave it out")

    def names(self) -> list[str]:
        """The tasks one by one."""
        listed = self.tasks.split(",") if isinstance(self.tasks, str) else self.tasks or []
        return [str(name).strip() for name in listed if str(name).strip()]


EVAL = Command(name="eval", plain=EvalSettings)
Metrics = PlainDict  # of plain JSON values
Results = dict[str, Metrics]


def measure(settings: EvalSettings) -> Results:
    """The metrics by subject: ``text``, and each task.

    Raises:
        UserError: the model, the text or a task is missing, damaged, or does not fit the others.
    """
    device = as_device(settings.device)
    prepare_device(threads=None)
    if settings.names():
        _check_harness()
    dtype = as_dtype(settings.dtype)
    loaded = load_with_tokenizer(settings.checkpoint, device, dtype, settings.tokenizer)
    check_finite_weights(loaded.model, settings.checkpoint)
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
    options = WindowOptions(context=settings.context, stride=settings.stride, batch_size=settings.batch_size)
    if settings.text is not None:
        text = "".join(read_text(path) for path in find_files(settings.text, "text"))
        with progress_line("Evaluating") as update:
            return evaluate_text(model, tokenizer, text, progress=update, **options)
    data = _corpus(settings).prepare(tokenizer)
    if not isinstance(data, PreparedText):
        raise ConfigError(
            f"the data of '{settings.checkpoint}' is no text: its run reports its loss;"
            " give text=<file> or corpus=<name>"
        )
    split = data.train if settings.split == "train" else data.validation
    if not split.bytes:
        raise ConfigError("the bytes of the training tokens of data=tokens are not counted: leave out split=train")
    with progress_line("Evaluating") as update:
        return evaluate_tokens(model, split.array, split.bytes, bos_id=tokenizer.bos_id, progress=update, **options)


def _corpus(settings: EvalSettings) -> Corpus:
    """The corpus that the settings name, or the one that the run was trained on."""
    if settings.corpus == "text":
        if settings.path is None:
            raise ConfigError("corpus=text needs path=<file or pattern>, such as path='corpus/**/*.txt'")
        find_files(settings.path, "path")  # names path where a file is missing
    if settings.corpus is not None:
        path = {} if settings.path is None else {"path": settings.path}
        if settings.path is not None and settings.corpus != "text":
            path = {"path": settings.path[0]}
        return build_corpus({"name": settings.corpus, **path})
    try:
        return build_corpus(load_config(settings.checkpoint).data)
    except CheckpointError as error:
        raise ConfigError(
            f"give text=<file> or corpus=<name>: '{settings.checkpoint}' does not say what it was trained on"
        ) from error


def print_results(settings: EvalSettings, results: Results) -> None:
    """Print the metrics, as text or as JSON."""
    if settings.json:
        print(json.dumps(results, default=str))
        return
    texts = ", ".join(settings.text or [settings.corpus or settings.checkpoint])
    for subject, metrics in results.items():
        print(f"{texts if subject == 'text' else subject}:")
        rows = _text_rows(metrics) if subject == "text" else _task_rows(metrics)
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")


def _text_rows(metrics: Metrics) -> list[tuple[str, str]]:
    chunked = metrics["stride"] == metrics["context"]
    windows = f"{metrics['context']:,} tokens" + ("" if chunked else f", {metrics['stride']:,} apart")
    return [
        ("loss", f"{metrics['loss']:.4f} nats per token"),
        ("perplexity", f"{metrics['perplexity']:.4f} per token"),
        ("bits per byte", f"{metrics['bits_per_byte']:.4f}"),
        ("counted", f"{metrics['scored']:,} of {metrics['tokens']:,} tokens, which are {metrics['bytes']:,} bytes"),
        ("windows", windows),
    ]


def _task_rows(metrics: Metrics) -> list[tuple[str, str]]:
    rows = []
    for name, value in metrics.items():
        if name not in ("alias", "name"):
            label = name.removesuffix(",none")
            rows.append((label, f"{value:.4f}" if isinstance(value, float) else str(value)))
    return rows
