"""Benchmark measurements (operations, bytes, ratios within a round) and their interpretation."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.benchmark import (
    BenchmarkConfig,
    BenchmarkResults,
    Measurement,
    run_benchmark,
    save_report,
    text_report,
)
from modular_gpt.benchmark import benchmark as benchmark_module
from modular_gpt.benchmark import worker as worker_module
from modular_gpt.benchmark.reading import reading
from modular_gpt.benchmark.report import csv_text
from modular_gpt.benchmark.results import Peaks, Variant
from modular_gpt.benchmark.workloads import Cell, Decoding, Prefill, TrainingStep
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import entries
from modular_gpt.training.estimate import flops_per_token
from tests.fresh import processes

SMALL: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 32, "context_length": 32}
QUICK = BenchmarkConfig(context=[16], batch=[2], rounds=2, decode_tokens=3, threads=1)


def small(**settings: Any) -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(**{**SMALL, **settings})


def measurement(variant: str, cell: Cell, seconds: list[float], **known: Any) -> Measurement:
    """A measurement whose ratios refer to a first variant that takes one second per run."""
    found = Measurement(variant, cell, **{"tokens": 100, **known})
    found.seconds, found.ratios = seconds, [1 / value for value in seconds]
    return found


def results(*found: Measurement) -> BenchmarkResults:
    return BenchmarkResults(list(found), Peaks(1e9, 1e6), "a machine", "", "float32")


def test_a_training_step_trains_and_counts_its_operations() -> None:
    model = small()
    before = [parameter.clone() for parameter in model.parameters()]
    step = TrainingStep(model, Cell("train", 16, 2), QUICK)
    step.run()
    assert any(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert step.flops == 32 * flops_per_token(replace(model.config, context_length=16))


@pytest.mark.parametrize("attention", sorted(entries("attention")))
def test_decoding_reads_a_cache_of_the_predicted_size(attention: str) -> None:
    model = small(attention=attention)
    decoding = Decoding(model, Cell("decode", 16, 2), QUICK)
    decoding.run()
    assert int(decoding.cache.length) == 16 + QUICK.decode_tokens
    assert decoding.predicted == decoding.allocated == model.config.cache_bytes(2, 16 + QUICK.decoded)
    for _ in range(QUICK.rounds):  # all rounds fit
        decoding.run()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert decoding.bytes_read == QUICK.decode_tokens * (weights + model.config.cache_bytes(2, 16))


def test_prefill_reads_the_prompt_once() -> None:
    prefill = Prefill(small(), Cell("prefill", 16, 2), QUICK)
    prefill.run()
    assert prefill.tokens == 32


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked from a process that has imported the libraries, and the machine's peaks are not measured."""
    monkeypatch.setattr(worker_module, "CONTEXT", processes())
    monkeypatch.setattr(benchmark_module, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(benchmark_module, "product_speed", lambda device, dtype: 1e9)


@pytest.mark.usefixtures("quick_processes")
def test_variants_are_measured_in_separate_processes() -> None:
    models = {"mha": GPTConfig(**SMALL), "short": GPTConfig(**{**SMALL, "pos": "learned"}), "missing": "no-such-run"}
    lines: list[str] = []
    found = run_benchmark(models, replace(QUICK, measure=["train", "decode"]), "cpu", lines.append)
    assert found.variants == ["mha", "short", "missing"]
    for measure in ("train", "decode"):
        (mha,), (short,) = found.of("mha", measure), found.of("short", measure)
        assert len(mha.seconds) == len(short.ratios) == QUICK.rounds
        assert set(mha.ratios) == {1.0}
        assert short.ratios == [a / b for a, b in zip(mha.seconds, short.seconds, strict=True)]
        assert mha.parameters
        assert mha.tokens_per_second > 0
    missing = [m.failure for m in found.measurements if m.variant == "missing"]
    assert len(missing) == len(lines) == 2
    assert all("no-such-run" in failure for failure in missing)
    assert "missing at 16 tokens:" in text_report(found)


@pytest.mark.usefixtures("quick_processes")
def test_a_benchmark_without_any_measurement_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no measurement succeeded: .*no-such-run"):
        run_benchmark({"missing": "no-such-run"}, replace(QUICK, measure=["train"]), "cpu")


@pytest.mark.usefixtures("quick_processes")
def test_a_failed_first_variant_gives_no_relative_speeds() -> None:
    models = {"missing": "no-such-run", "mha": GPTConfig(**SMALL)}
    found = run_benchmark(models, replace(QUICK, measure=["decode"]), "cpu")
    (mha,) = found.of("mha", "decode")
    assert len(mha.seconds) == QUICK.rounds
    assert mha.speed is None
    assert "1.00x" not in text_report(found)
    assert list(csv.DictReader(io.StringIO(csv_text(found))))[1]["relative_speed"] == ""


@pytest.mark.usefixtures("quick_processes")
def test_the_end_of_a_process_fails_one_measurement_and_not_the_next() -> None:
    variant, cell = Variant("mha", config=GPTConfig(**SMALL).to_dict()), Cell("decode", 16, 2)
    with worker_module.workers([variant], QUICK, 1, "cpu") as (worker,):
        killed = worker.prepare(cell)
        assert not killed.failure
        worker.process.kill()
        worker.run(killed)
        assert killed.failure == "its process ended, perhaps out of memory"
        again = worker.prepare(cell)
        worker.run(again)
        assert not again.failure and len(again.seconds) == 1


def test_the_interpretation_compares_with_the_first_variant() -> None:
    short, long = Cell("decode", 1024, 1), Cell("decode", 4096, 1)
    lines = reading(
        results(
            measurement("mha", short, [1.0], cache_allocated=800),
            measurement("mha", long, [1.0], cache_allocated=3200, tokens=50),
            measurement("gqa", short, [0.5], cache_allocated=200),
            measurement("gqa", long, [0.5], cache_allocated=800),
            measurement("gqa", Cell("train", 4096, 1), [0.8]),
        )
    )
    assert lines == [
        "Speeds are relative to mha, at the longest context and the largest batch.",
        "mha: a decoded token takes 2.0x the time from 1,024 to 4,096 tokens.",
        "gqa: 4.0x less cache, 2.00x decoding, 1.25x training, decoding is flat from 1,024 to 4,096 tokens.",
    ]


def test_training_is_compared_with_peak_flops_and_decoding_with_bandwidth() -> None:
    train = measurement("mha", Cell("train", 16, 1), [0.5], flops=2.5e8)
    decode = measurement("mha", Cell("decode", 16, 1), [2.0], bytes_read=5e5)
    found = results(train, decode)
    assert found.share_of_peak(train) == pytest.approx(0.5)
    assert found.share_of_peak(decode) == pytest.approx(0.25)


def test_every_measurement_is_a_row_of_the_csv(tmp_path: Path) -> None:
    cell = Cell("decode", 16, 1)
    found = results(
        measurement("mha", cell, [1.0, 2.0, 3.0], cache_allocated=8, cache_predicted=8),
        Measurement("big", cell, failure="out of memory"),
    )
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert rows[0]["tokens_per_second"] == "50.0"
    assert rows[0]["cache_allocated_bytes"] == "8"
    assert rows[1]["failure"] == "out of memory"
    assert rows[1]["tokens_per_second"] == ""
    paths = save_report(found, tmp_path)
    assert [path.suffix for path in paths] == [".md", ".csv", ".png"]
    assert all(path.stat().st_size for path in paths)
