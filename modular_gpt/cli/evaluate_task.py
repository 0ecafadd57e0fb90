"""The settings of mgpt-eval, and the evaluations on text, records and tasks."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from modular_gpt.checkpoint.resolve import Loaded, load_with_tokenizer
from modular_gpt.cli.composition.schema import Command
from modular_gpt.cli.evaluate_records import RecordSource, on_records, record_rows, trained_on
from modular_gpt.cli.finite_weights import check_finite_weights
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.progress import progress_line
from modular_gpt.core.validation import WEIGHT_TYPES, expand_home, one_of
from modular_gpt.data import SPLITS, Corpus, PreparedText, build_corpus
from modular_gpt.data.corpora.file_search import find_files, path_patterns
from modular_gpt.data.corpora.files import read_text
from modular_gpt.data.corpora.records import Records
from modular_gpt.deploy.cpu_packing import PACKINGS
from modular_gpt.evaluation import Evaluation, RecordOptions, WindowOptions, evaluate_text, evaluate_tokens
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
    limit: Evaluate only this many records, or questions of each task. By default (null) all are evaluated.
    records: Evaluate the answers of the model to the records in these files: a path, a pattern, a folder or a list. By
        default (null) a model that was trained on records is evaluated on the validation records of its run.
    fields: Names of fields in the files of records, as in data.fields. By default ({}) those of the model's own run.
    template: Chat template of records, as in data.template. By default (null) that of the model's own run.
    separator: Text between prompts and answers, as in data.separator. By default (null) that of the model's own run.
    max_new_tokens: Limit of a generated answer, in tokens; 0 generates none. By default (null) the length of the
        longest answer of the records.
    predictions: File for the answers to records, one JSON object per line; null writes none.
    batch_size: Number of windows, questions or records in a batch.
    json: Print the results as a JSON object.
    device: The device to compute on: auto, cpu, cuda, cuda:1, mps or another name that PyTorch knows.
    dtype: Data type of the weights, float32 or bf16. By default (null) the one they were saved in.
    packing: Form of the weights of linear layers on a CPU: none keeps the form of the checkpoint, onednn reorders them
        for faster matrix products, int8 rounds them to 8 bits, with a scale for each output channel.
    """

    checkpoint: str = "runs/latest"
    tokenizer: str | None = None
    text: Any = None  # str, list or null, a union that structured configs do not support
    corpus: str | None = None
    path: Any = None  # as text
    split: str = "validation"
    stride: int | None = None
    context: int | None = None
    tasks: Any = None  # as text
    include: str | None = None
    fewshot: int | None = None
    limit: int | None = None
    records: Any = None  # as text
    fields: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    separator: str | None = None
    max_new_tokens: int | None = None
    predictions: str | None = "predictions.jsonl"
    batch_size: int = 8
    json: bool = False
    device: str = "auto"
    dtype: str | None = None
    packing: str = "none"

    def __post_init__(self) -> None:
        expand_home(self, "checkpoint", "include", "predictions", "template")
        if self.text is not None and self.corpus is not None:
            raise ConfigError("text and corpus exclude each other: give one of them")
        if self.path is not None and self.corpus is None:
            raise ConfigError("path is for a corpus: give corpus=text path=..., or text=<file or pattern>")
        if self.records is not None and (self.text is not None or self.corpus is not None):
            raise ConfigError("records exclude text and corpus: give one of them")
        for name in ("text", "path", "records"):
            if getattr(self, name) is not None:
                setattr(self, name, path_patterns(getattr(self, name), name))
        expand_home(self, "text", "path", "records")
        if not isinstance(self.tasks, (str, list, type(None))):
            raise ConfigError(f"tasks must be names with commas between them, or a list, got {self.tasks!r}")
        one_of(self.split, SPLITS, "split")
        if self.dtype is not None:
            one_of(self.dtype, WEIGHT_TYPES, "dtype")
        one_of(self.packing, tuple(PACKINGS), "packing")
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.max_new_tokens is not None and self.max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens must be 0 or more, got {self.max_new_tokens}")
        unused = [name for name in ("include", "fewshot") if getattr(self, name) is not None]
        if unused and not self.names():
            raise ConfigError(f"{unused[0]} is for tasks: give tasks=..., or leave it out")

    def names(self) -> list[str]:
        """The names of the tasks, separately."""
        listed = self.tasks.split(",") if isinstance(self.tasks, str) else self.tasks or []
        return [str(name).strip() for name in listed if str(name).strip()]


EVAL = Command(name="eval", plain=EvalSettings)
Metrics = PlainDict  # of plain JSON values
Results = dict[str, Metrics]


def measure(settings: EvalSettings) -> Results:
    """The metrics by subject: ``text`` or ``records``, and each task.

    Raises:
        UserError: the model, the text or a task is missing or damaged, or a setting has no effect.
    """
    device = as_device(settings.device)
    prepare_device(threads=None)
    if settings.names():
        _check_harness()
    dtype = as_dtype(settings.dtype)
    loaded = load_with_tokenizer(settings.checkpoint, device, dtype, settings.tokenizer)
    check_finite_weights(loaded.model, settings.checkpoint)
    PACKINGS[settings.packing](loaded.model)
    results: Results = {}
    has_text = settings.text is not None or settings.corpus is not None
    trained = None if has_text else trained_on(settings.checkpoint)
    with_records = settings.records is not None or (trained is not None and not settings.names())
    with_text = has_text or not (with_records or settings.names())
    _check_unused(settings, with_text, with_records)
    if with_records:
        results["records"] = _on_records(settings, loaded, trained)
    if with_text:
        evaluation = _on_text(settings, loaded)
        derived = {"perplexity": evaluation.perplexity, "bits_per_byte": evaluation.bits_per_byte}
        results["text"] = {**asdict(evaluation), **derived}
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


def _check_unused(settings: EvalSettings, with_text: bool, with_records: bool) -> None:
    """Raise a ConfigError for a setting that has no effect on the evaluations that are made."""
    unused: dict[str, str] = {}
    if not with_records:
        unused |= dict.fromkeys(("fields", "template", "separator", "max_new_tokens"), "records: give records=...")
    if not with_records and not settings.names():
        unused["limit"] = "tasks and records: give tasks=... or records=..."
    if not with_text:
        unused |= dict.fromkeys(("stride", "context"), "a text: give text=... or corpus=...")
    for name, remedy in unused.items():
        if getattr(settings, name) not in (None, {}):
            raise ConfigError(f"{name} is for {remedy}, or leave it out")


def _check_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError("tasks need another package: pip install 'modular-gpt[eval]'") from error


def _on_records(settings: EvalSettings, loaded: Loaded, trained: Records.Config | None) -> Metrics:
    source = RecordSource(settings.records, settings.fields, settings.template, settings.separator, settings.limit)
    options = RecordOptions(settings.batch_size, settings.max_new_tokens)
    return dict(on_records(loaded, source, trained, options, settings.predictions))


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
            f"'{settings.checkpoint}' was not trained on text, and its run has reported the loss: give text=<file> or"
            " corpus=<name>"
        )
    split = data.train if settings.split == "train" else data.validation
    if not split.bytes:
        raise ConfigError("the bytes of the training tokens of data=tokens are not counted: leave out split=train")
    with progress_line("Evaluating") as update:
        return evaluate_tokens(model, split.array, split.bytes, bos_id=tokenizer.bos_id, progress=update, **options)


def _corpus(settings: EvalSettings) -> Corpus:
    """The corpus of the settings, or else that of the model's own run.

    Raises:
        ConfigError: no corpus is given, and the model has no record of its training.
        DataError: a file is missing or is not text.
    """
    if settings.corpus == "text":
        if settings.path is None:
            raise ConfigError("corpus=text needs path=<file or pattern>, such as path='corpus/**/*.txt'")
        find_files(settings.path, "path")  # for a message about path if a file is missing
    if settings.corpus is not None:
        path = {} if settings.path is None else {"path": settings.path}
        if settings.path is not None and settings.corpus != "text":
            path = {"path": settings.path[0]}
        return build_corpus({"name": settings.corpus, **path})
    try:
        return build_corpus(load_config(settings.checkpoint).data)
    except CheckpointError as error:
        raise ConfigError(
            f"give text=<file> or corpus=<name>: '{settings.checkpoint}' has no record of the data of its training"
        ) from error


def print_results(settings: EvalSettings, results: Results) -> None:
    """Print the metrics, as text or as JSON."""
    if settings.json:
        print(json.dumps(results, default=str))
        return
    texts = ", ".join(settings.text or settings.records or [settings.corpus or settings.checkpoint])
    for subject, metrics in results.items():
        print(f"{texts if subject in ('text', 'records') else subject}:")
        rows = _rows(settings, subject, metrics)
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")


def _rows(settings: EvalSettings, subject: str, metrics: Metrics) -> list[tuple[str, str]]:
    match subject:
        case "text":
            return _text_rows(metrics)
        case "records":
            return record_rows(metrics, settings.predictions)
        case _:
            return _task_rows(metrics)


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
