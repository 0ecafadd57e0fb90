"""The table of a model's modules that ``GPTModel.summary`` returns."""

from torch import nn

from modular_gpt.model.config import GPTConfig


def summary_table(model: nn.Module, config: GPTConfig) -> str:
    """One line per module: name, type, parameters, share of all, bytes cached per token and row (float32)."""
    total = sum(p.numel() for p in model.parameters())
    rows = [("module", "type", "parameters", "share", "cache/token")]
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList) and name == "blocks":
            rows += _block_rows(child, config, total)
        else:
            count = sum(p.numel() for p in child.parameters())
            modules = child if isinstance(child, nn.ModuleList) else [child]
            if count or isinstance(child, nn.ModuleList):
                rows.append((name, ", ".join(type(module).__name__ for module in modules), *_numbers(count, total), ""))
    head_bias = sum(p.numel() for p in model.parameters(recurse=False))
    if head_bias:
        rows.append(("head bias", "", *_numbers(head_bias, total), ""))
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
    """The lines of the blocks, one per module; equal blocks share their lines."""
    equal: dict[str, list[int]] = {}
    for index, block in enumerate(blocks):
        equal.setdefault(repr(block), []).append(index)
    rows = []
    for indices in equal.values():
        spec = config.layer_configs[indices[0]].cache_spec(config.dims)
        for name, child in blocks[indices[0]].named_children():
            count = sum(p.numel() for p in child.parameters()) * len(indices)
            if count:
                per_token = sum(heads * width for heads, width in spec.rows) * 4 * len(indices)
                cached = f"{per_token:,} B" if name == "attention" else ""
                rows.append((f"{_label(indices)} {name}", type(child).__name__, *_numbers(count, total), cached))
    return rows


def _label(indices: list[int]) -> str:
    """``block 3``, ``blocks 0-4, 6-10``, or for more than three ranges ``12 blocks 0, 2, 4, ...``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    ranges = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(ranges) > 3:
        return f"{len(indices)} blocks {', '.join(ranges[:3])}, ..."
    return f"{'blocks' if len(indices) > 1 else 'block'} {', '.join(ranges)}"


def _numbers(count: int, total: int) -> tuple[str, str]:
    return f"{count:,}", f"{count / total:.1%}"
