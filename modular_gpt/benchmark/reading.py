"""Summarises a benchmark in sentences."""

from modular_gpt.benchmark.results import BenchmarkResults, Measurement

FLAT = 1.15  # decoding at the longest context takes at most this many times the shortest one's time
EQUAL = 0.02  # relative difference of speeds below which two count as equal


def reading(results: BenchmarkResults) -> list[str]:
    """Describe each variant after the first in one line: cache, speeds, and whether decoding slows down with length."""
    first, *others = results.variants
    lines = [line for name in results.variants if (line := _sentence(results, first, name))]
    if others and lines:
        lines.insert(0, f"Read as: times the speed of {first}, at the longest context and the largest batch.")
    return lines


def _sentence(results: BenchmarkResults, first: str, name: str) -> str:
    claims = []
    if name != first:
        claims += [_cache(results, first, name), *(_speed(results, name, m) for m in ("decode", "prefill", "train"))]
    claims.append(_flat(results, name))
    claims = [claim for claim in claims if claim]
    return f"{name}: {', '.join(claims)}." if claims else ""


def _cache(results: BenchmarkResults, first: str, name: str) -> str:
    pairs = zip(results.of(first, "decode")[-1:], results.of(name, "decode")[-1:], strict=False)
    for base, found in pairs:
        if base.cell == found.cell and found.cache_allocated:
            ratio = base.cache_allocated / found.cache_allocated
            if abs(ratio - 1) <= EQUAL:
                return "the same cache"
            return f"{ratio:.1f}x less cache" if ratio > 1 else f"{1 / ratio:.1f}x more cache"
    return ""


def _speed(results: BenchmarkResults, name: str, measure: str) -> str:
    noun = {"decode": "decoding", "prefill": "prefill", "train": "training"}[measure]
    found = results.of(name, measure)
    return f"{found[-1].speed:.2f}x {noun}" if found else ""


def _flat(results: BenchmarkResults, name: str) -> str:
    """Whether the time of a decoded token stays the same from the shortest to the longest context."""
    found = results.of(name, "decode")
    largest = [m for m in found if m.cell.batch == found[-1].cell.batch] if found else []
    if len(largest) < 2:
        return ""
    short, long = largest[0], largest[-1]
    growth = _token_seconds(long) / _token_seconds(short)
    cells = f"from {short.cell.context:,} to {long.cell.context:,} tokens"
    return f"decoding is flat {cells}" if growth <= FLAT else f"a decoded token takes {growth:.1f}x the time {cells}"


def _token_seconds(found: Measurement) -> float:
    return 1 / found.tokens_per_second
