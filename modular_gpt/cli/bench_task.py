"""The settings of mgpt-bench, and the run of the benchmark."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from modular_gpt.benchmark import BenchmarkConfig, run_benchmark, save_report, text_report
from modular_gpt.cli.composition.flat_config import read_plain
from modular_gpt.cli.composition.schema import Command, names_of
from modular_gpt.cli.composition.variants import variants
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import expand_home
from modular_gpt.data import Tokenizer, build_corpus, build_tokenizer
from modular_gpt.model.config import GPTConfig
from modular_gpt.training.config import RunConfig

LISTS = ("context", "batch", "measure", "checkpoint")  # settings with several values, which commas separate


@dataclass
class BenchSettings(BenchmarkConfig):
    """Settings of mgpt-bench, beside those of the measurement.

    checkpoint: Existing models instead of composed variants: runs, checkpoints, folders in Hugging Face's
        format or published names.
    device: The device to measure: auto, cpu, cuda, cuda:1, mps or another name that PyTorch knows.
    benches: Directory that contains the directories of benchmarks.
    """

    checkpoint: list[str] | None = None
    device: str = "auto"
    benches: str = "benches"

    def __post_init__(self) -> None:
        super().__post_init__()
        expand_home(self, "benches")

    def measured(self) -> BenchmarkConfig:
        """The settings of the measurement itself."""
        return BenchmarkConfig(**{field.name: getattr(self, field.name) for field in fields(BenchmarkConfig)})


BENCH = Command(name="bench", plain=BenchSettings)


@dataclass
class BenchTask:
    """A command line of mgpt-bench.

    models: configs or names of checkpoints, by the name of the variant
    listing: the settings as YAML, and the names of the variants
    """

    settings: BenchSettings
    models: Mapping[str, GPTConfig | str]
    listing: str

    def run(self) -> None:
        """Measure, print the report, and write it into a directory."""
        results = run_benchmark(self.models, self.settings.measured(), self.settings.device, _say)
        print(text_report(results))
        folder = Path(self.settings.benches) / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        print(f"\nReport: {', '.join(map(str, save_report(results, folder)))}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def read_task(arguments: Sequence[str], where: list[Path]) -> BenchTask:
    """Read a command line of mgpt-bench.

    Raises:
        ConfigError: a setting does not exist, or a checkpoint and settings of a model are given together.
    """
    names = names_of(BenchSettings)
    of_benchmark = [setting for setting in arguments if setting.lstrip("+").partition("=")[0] in names]
    others = [setting for setting in arguments if setting not in of_benchmark]
    settings, listed = read_plain(BENCH, [as_list(setting) for setting in of_benchmark], where)
    if settings.checkpoint is None:
        models = composed_models(others, where)
    elif others:
        raise ConfigError(f"{others[0]} describes a model, and checkpoint= gives models that exist: leave one out")
    else:
        models = {str(name): str(name) for name in settings.checkpoint}
    return BenchTask(settings, models, listed + "".join(f"# variant {name}\n" for name in models))


def as_list(setting: str) -> str:
    """``context=1024,4096`` as ``context=[1024,4096]``, for settings that have several values."""
    name, _, value = setting.partition("=")
    return f"{name}=[{value}]" if name.lstrip("+") in LISTS and value and not value.startswith("[") else setting


def composed_models(arguments: Sequence[str], where: list[Path]) -> dict[str, GPTConfig | str]:
    """The configs of the models that settings of mgpt-train describe, by name."""
    runs = variants(arguments, [], where, {})
    tokenizers = {repr((run.data, run.tokenizer)): run for run in runs.values()}
    known = {key: tokenizer_of(run) for key, run in tokenizers.items()}
    return {name: run.model_config(known[repr((run.data, run.tokenizer))]) for name, run in runs.items()}


def tokenizer_of(run: RunConfig) -> Tokenizer:
    """The tokenizer with which a run would train, which determines the size of the vocabulary."""
    return build_tokenizer(run.tokenizer, build_corpus(run.data))
