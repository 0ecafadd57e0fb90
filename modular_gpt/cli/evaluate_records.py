"""mgpt-eval on records: their source, the metrics, and the file of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from modular_gpt.checkpoint.resolve import Loaded
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.progress import progress_line
from modular_gpt.data import build_corpus
from modular_gpt.data.corpora.records import Records
from modular_gpt.data.records import Record, read_records, record_files
from modular_gpt.data.records.encode import RecordEncoder, RecordText
from modular_gpt.data.records.questions import ask
from modular_gpt.evaluation import Prediction, RecordEvaluation, RecordOptions, evaluate_records, missing_packages
from modular_gpt.training.run import load_config

METRICS = {  # of an evaluation, in the order in which they are printed, with the format of each
    "records": ("records", "{:,.0f}"),
    "too_long": ("left out", "{:,.0f} whose answer is longer than the context"),
    "loss": ("loss", "{:.4f} nats per token of the answers"),
    "perplexity": ("perplexity", "{:.4f} per token"),
    "accuracy": ("accuracy", "{:.2%} by likelihood"),
    "accuracy_normalized": ("accuracy per token", "{:.2%} by likelihood per token"),
    "exact_match": ("exact match", "{:.2%} of the generated answers"),
    "rouge_l": ("ROUGE-L", "{:.4f}"),
    "chrf": ("chrF", "{:.2f}"),
    "bleu": ("BLEU", "{:.2f}"),
}


@dataclass(frozen=True)
class RecordSource:
    """The records to evaluate, and the settings that convert them to text.

    paths: record files; None: the validation records of the model's run
    fields, template, separator: as in ``data=records``; {} or None: as in the records of the model's run
    limit: largest number of records; None: all
    """

    paths: Any
    fields: dict[str, str]
    template: str | None
    separator: str | None
    limit: int | None


def trained_on(checkpoint: str) -> Records.Config | None:
    """The settings of the records that a model was trained on; None for other data, or without a run."""
    try:
        config = load_config(checkpoint).data
    except (CheckpointError, ConfigError):
        return None
    return config if isinstance(config, Records.Config) else None


def records_of(source: RecordSource, trained: Records.Config | None) -> tuple[list[Record], RecordText]:
    """The records of a source, and the conversion of them to text.

    trained: settings of the records that the model was trained on, which replace those that ``source`` lacks

    Raises:
        ConfigError: there are no paths, and the model was not trained on records.
        DataError: a file cannot be read, or a record is bad.
    """
    template = source.template if source.template is not None or trained is None else trained.template
    separator = source.separator if source.separator is not None or trained is None else trained.separator
    if source.paths is not None:
        fields = source.fields or ({} if trained is None else trained.fields)
        records = read_records(record_files(source.paths, "records"), fields)
    elif trained is not None:
        corpus = build_corpus(trained)
        assert isinstance(corpus, Records)
        records = corpus.records("validation")
    else:
        raise ConfigError("give records=<file>: the model's own run was not trained on records")
    return list(islice(records, source.limit)), RecordText(template, separator)


def on_records(
    loaded: Loaded,
    source: RecordSource,
    trained: Records.Config | None,
    options: RecordOptions,
    predictions: str | None,
) -> dict[str, float]:
    """The metrics of a model on records; its answers are written to the file ``predictions``, one per line.

    trained: as for ``records_of``

    Raises:
        ConfigError: there are no records, or the file cannot be written.
        DataError: as ``records_of``.
    """
    records, text = records_of(source, trained)
    questions = ask(RecordEncoder(text, loaded.tokenizer), records)
    with progress_line("Evaluating") as update:
        evaluation = evaluate_records(loaded.model, loaded.tokenizer, questions, options, update)
    if predictions is not None:
        write_predictions(Path(predictions), evaluation)
    return evaluation.metrics


def write_predictions(path: Path, evaluation: RecordEvaluation) -> None:
    """Write one JSON object for each record; ConfigError if the file cannot be written."""
    try:
        write_text(path, _lines(evaluation.predictions))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot write '{path}' ({reason}): give another path as predictions, or null") from error


def _lines(predictions: Sequence[Prediction]) -> str:
    return "".join(f"{prediction.as_json()}\n" for prediction in predictions)


def record_rows(metrics: dict[str, float], predictions: str | None) -> list[tuple[str, str]]:
    """The rows of the printed table: the name and the value of each metric, and the file of the answers."""
    shown = [name for name in METRICS if name in metrics and (name != "too_long" or metrics[name])]
    rows = [(METRICS[name][0], METRICS[name][1].format(metrics[name])) for name in shown]
    missing = [METRICS[name][0] for name in missing_packages()] if "exact_match" in metrics else []
    if missing:
        rows.append(("left out", f"{', '.join(missing)}: pip install 'modular-gpt[metrics]'"))
    return [*rows, ("answers", predictions)] if predictions is not None else rows
