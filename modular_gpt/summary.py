"""A model as a table for people."""

from torch import nn

from modular_gpt.config import GPTConfig


def summary_table(model: nn.Module, config: GPTConfig) -> str:
    """One line per part: name, kind, parameters, share of all, bytes cached per token and row (float32)."""
    total = sum(p.numel() for p in model.parameters())
    rows = [("part", "kind", "parameters", "share", "cache/token")]
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList) and name == "blocks":
            rows += _block_rows(child, config, total)
        else:
            count = sum(p.numel() for p in child.parameters())
            kinds = child if isinstance(child, nn.ModuleList) else [child]
            if count or isinstance(child, nn.ModuleList):
                rows.append((name, ", ".join(type(k).__name__ for k in kinds), *_numbers(count, total), ""))
    own = sum(p.numel() for p in model.parameters(recurse=False))
    if own:
        rows.append(("head bias", "", *_numbers(own, total), ""))
    per_token = config.cache_bytes(1, 2) - config.cache_bytes(1, 1)
    rows.append(("total", "", *_numbers(total, total), f"{per_token:,} B"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e:>{widths[4]}}".rstrip()
        for a, b, c, d, e in rows
    ]
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _block_rows(blocks: nn.ModuleList, config: GPTConfig, total: int) -> list[tuple[str, str, str, str, str]]:
    """Equal neighbouring blocks share their lines, one for each part."""
    rows = []
    first = 0
    while first < len(blocks):
        last = first
        while last + 1 < len(blocks) and repr(blocks[last + 1]) == repr(blocks[first]):
            last += 1
        label = f"blocks {first}-{last}" if last > first else f"block {first}"
        spec = config.layer_configs[first].cache_spec(config.dims)
        for name, child in blocks[first].named_children():
            count = sum(p.numel() for p in child.parameters()) * (last - first + 1)
            if count:
                per_token = sum(heads * width for heads, width in spec.rows) * 4 * (last - first + 1)
                cached = f"{per_token:,} B" if name == "attention" else ""
                rows.append((f"{label} {name}", type(child).__name__, *_numbers(count, total), cached))
        first = last + 1
    return rows


def _numbers(count: int, total: int) -> tuple[str, str]:
    return f"{count:,}", f"{count / total:.1%}"
