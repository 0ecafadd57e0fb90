"""Utilisation and memory: published peaks by name, measured peak of a CPU, no value for unknown devices."""

import gc
import json
import mmap
from pathlib import Path

import pytest
import torch

from modular_gpt.training import mfu as meter
from modular_gpt.training.metrics import read_metrics
from modular_gpt.training.mfu import ThroughputMonitor, build_monitor, measured_peak, published_peak, used_memory_bytes
from modular_gpt.training.recorder import format_entry
from tests.training.small import config, run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "float32", 417.5),
        ("NVIDIA H200", "fp16", 989.5),
        ("NVIDIA GH200 480GB", "bf16", 989.5),
        ("NVIDIA A100-SXM4-80GB", "float32", 156),
        ("NVIDIA A100-PCIE-40GB", "bf16", 312),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla T4", "fp16", 65),
        ("Tesla T4", "bf16", None),
        ("Tesla V100-SXM2-16GB", "float32", 15.7),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "int8", None),
        ("NVIDIA H800", "bf16", None),
        ("Something New", "bf16", None),
    ],
)
def test_published_peaks(name: str, precision: str, tera: float | None) -> None:
    assert published_peak(name, precision) == (None if tera is None else pytest.approx(tera * 1e12))


def test_measuring_does_not_change_the_random_state() -> None:
    before = torch.get_rng_state()
    assert 1e8 < measured_peak(torch.float32) < 1e15
    assert torch.equal(torch.get_rng_state(), before)


def test_utilisation_is_flops_over_the_peak() -> None:
    assert ThroughputMonitor(CPU, flops=2e6, peak=1e11).read(10_000)["mfu"] == pytest.approx(0.2)
    assert "mfu" not in ThroughputMonitor(CPU).read(10_000)


def test_the_peak_of_a_cpu_is_measured_in_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "measured_peak", lambda dtype: 3e11)
    built = build_monitor(CPU, "float32", devices=2, work=6e14, flops=lambda: 123.0)
    assert (built.flops, built.peak, built.source) == (123.0, 6e11, "measured")


def test_a_short_run_does_not_measure_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "measured_peak", lambda dtype: pytest.fail("measured"))
    built = build_monitor(CPU, "float32", devices=1, work=6e10, flops=lambda: pytest.fail("computed"))
    assert built == ThroughputMonitor(CPU)


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA L4", 2 * 121e12), ("Something New", None)])
def test_gpus_are_looked_up(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    built = build_monitor(CUDA, "bf16", devices=2, work=6e18, flops=lambda: 1.0)
    assert built.peak == (None if peak is None else pytest.approx(peak))
    assert built.source == (None if peak is None else "published")


def test_memory_follows_the_allocations_of_the_process() -> None:
    """Allocates new pages of the system, since an allocator may reuse memory of the process for a tensor."""
    gc.collect()
    before = used_memory_bytes(CPU)
    with mmap.mmap(-1, 2**27) as pages:
        pages.write(bytes(2**27))
        after = used_memory_bytes(CPU)
    assert before and after and after - before > 2**26


def test_a_run_records_both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "WORTH", 0.0)
    monkeypatch.setattr(meter, "MEASURE", 0.0)
    settings = config(folder)
    directory = run(settings).directory
    info = json.loads((directory / "run.json").read_text())
    assert info["peak_source"] == "measured" and info["peak_flops"] > 0
    entries = [entry for entry in read_metrics(directory) if "loss" in entry]
    for entry in entries:
        used = info["flops_per_token"] * entry["tokens_per_second"]
        assert entry["mfu"] == pytest.approx(used / info["peak_flops"])
        assert entry["memory_bytes"] > 2**20
    assert "tok/s  mfu " in format_entry(entries[0]) and format_entry(entries[0]).endswith("iB")
