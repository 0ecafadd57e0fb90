"""Benchmark of model variants on this machine: speed, memory and cache in training, prefill and decoding.

results = run_benchmark({"mha": GPTConfig(attention="mha"), "gqa": GPTConfig(attention="gqa")}, BenchmarkConfig())
print(text_report(results))
"""

from modular_gpt.benchmark.benchmark import run_benchmark
from modular_gpt.benchmark.config import BenchmarkConfig
from modular_gpt.benchmark.report import save_report, text_report
from modular_gpt.benchmark.results import BenchmarkResults, Measurement

__all__ = ["BenchmarkConfig", "BenchmarkResults", "Measurement", "run_benchmark", "save_report", "text_report"]
