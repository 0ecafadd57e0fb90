"""The memory that a generation needs, and the refusal of one that does not fit."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modular_gpt.core import memory
from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.config import GenerationConfig
from modular_gpt.generation.protocol import LanguageModel

COPIES = 2  # least number of tensors of the size of the logits that choosing a token holds
ROW = 4096  # bytes of the random numbers of a row
POOL = 8 + 4 + 4  # bytes per beam and token: its id in the best texts, its log-probability there and in the beam
NEGLIGIBLE = 2**26  # bytes up to which the available memory is not checked


def check_memory(model: LanguageModel, ids: Tensor, settings: GenerationConfig, draft: LanguageModel | None) -> None:
    """Raise a ConfigError that names the setting to lower for a generation that needs more memory than available.

    A model whose config has no ``cache_bytes`` is not checked.
    """
    models = [model] if draft is None else [model, draft]
    if not all(hasattr(model.config, "cache_bytes") for model in models):
        return
    needed = needed_bytes(models, ids, settings)
    if needed <= NEGLIGIBLE:
        return
    available = memory.available_bytes(ids.device)
    if available is None or needed <= available:
        return
    lowest: dict[str, Any] = {_rows_setting(settings): 1, "max_new_tokens": 1}
    reduced = {name: needed_bytes(models, ids, replace(settings, **{name: value})) for name, value in lowest.items()}
    names = [name for name, count in reduced.items() if count <= available][:1]  # a sufficient one, or all that help
    names = names or [name for name, count in reduced.items() if count <= needed // 2]
    cause = " with ".join(f"{name}={getattr(settings, name)}" for name in names)
    cause = cause or f"a batch of {len(ids):,} prompts of {ids.shape[1]:,} tokens"
    raise ConfigError(
        f"{cause} needs {memory.gibibytes(needed)} of memory, and {memory.gibibytes(available)} are available;"
        " give fewer"
    )


def needed_bytes(models: list[LanguageModel], ids: Tensor, settings: GenerationConfig) -> int:
    """Bytes of the caches, ids and logits of a generation at its end; all else is smaller."""
    config = models[0].config
    texts, columns = len(ids), ids.shape[1] + settings.max_new_tokens
    per_text = getattr(settings, _rows_setting(settings))
    rows = texts * (min(per_text, config.vocab_size) if settings.strategy == "contrastive" else per_text)
    needed: int = rows * columns * ids.element_size() + rows * COPIES * 4 * config.vocab_size
    if settings.strategy == "beam":
        needed += rows * settings.max_new_tokens * POOL
    elif settings.strategy == "contrastive":
        needed += texts * columns * 4 * getattr(config, "d_model", 0)  # hidden states
    else:
        needed += rows * ROW
    for model in models:
        weight = getattr(getattr(model, "embedding", None), "weight", None)
        dtype = weight.dtype if isinstance(weight, Tensor) else torch.float32
        needed += model.config.cache_bytes(rows, min(columns, model.config.context_length), dtype)
    return needed


def _rows_setting(settings: GenerationConfig) -> str:
    """The name of the setting that is the number of rows per prompt."""
    names = {"beam": "num_beams", "contrastive": "contrastive_candidates"}
    return names.get(settings.strategy, "num_return_sequences")
