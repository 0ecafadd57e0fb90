"""The summary of a benchmark in sentences."""

from modular_gpt.benchmark.results import BenchmarkResults, Measurement

FLAT = 1.15  # limit of the ratio of decoding times, longest to shortest context, up to which decoding counts as flat
EQUAL = 0.02  # relative difference up to which the sizes of two caches count as equal


def reading(results: BenchmarkResults) -> list[str]:
    """A line for each variant: cache and speeds relative to the first, and whether decoding slows down with length."""
    first, *others = results.variants
    lines = [line for name in results.variants if (line := _sentence(results, first, name))]
    if others and lines:
        lines.insert(0, f"Speeds are relative to {first}, at the longest context and the largest batch.")
    return lines


def _sentence(results: BenchmarkResults, first: str, name: str) -> str:
    claims = []
    if name != first:
        claims += [_cache(results, first, name), *(_speed(results, name, m) for m in ("decode", "prefill", "train"))]
    claims.append(_flat(results, name))
    claims = [claim for claim in claims if claim]
    return f"{name}: {', '.join(claims)}." if claims else ""


def _cache(results: BenchmarkResults, first: str, name: str) -> str:
    """A phrase about the size of a cache relative to the first variant's, at the longest context and largest batch."""
    pairs = zip(results.of(first, "decode")[-1:], results.of(name, "decode")[-1:], strict=False)
    for base, other in pairs:
        if base.cell == other.cell and other.cache_allocated:
            ratio = base.cache_allocated / other.cache_allocated
            if abs(ratio - 1) <= EQUAL:
                return "the same cache"
            return f"{ratio:.1f}x less cache" if ratio > 1 else f"{1 / ratio:.1f}x more cache"
    return ""


def _speed(results: BenchmarkResults, name: str, measure: str) -> str:
    """A phrase about the speed relative to the first variant; "" if one of them failed at the largest size."""
    noun = {"decode": "decoding", "prefill": "prefill", "train": "training"}[measure]
    measurements = results.of(name, measure)
    speed = measurements[-1].speed if measurements else None
    return "" if speed is None else f"{speed:.2f}x {noun}"


def _flat(results: BenchmarkResults, name: str) -> str:
    """A phrase that compares the time of a decoded token at the shortest and the longest context."""
    measurements = results.of(name, "decode")
    largest = [m for m in measurements if m.cell.batch == measurements[-1].cell.batch]
    if len(largest) < 2:
        return ""
    short, long = largest[0], largest[-1]
    growth = _token_seconds(long) / _token_seconds(short)
    cells = f"from {short.cell.context:,} to {long.cell.context:,} tokens"
    return f"decoding is flat {cells}" if growth <= FLAT else f"a decoded token takes {growth:.1f}x the time {cells}"


def _token_seconds(measurement: Measurement) -> float:
    return 1 / measurement.tokens_per_second
