"""The memory that a generation needs; one that does not fit is refused."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modular_gpt.core import memory
from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.config import GenerationConfig
from modular_gpt.generation.protocol import LanguageModel

COPIES = 2  # tensors of the size of the logits that choosing a token holds at least
ROW = 4096  # bytes of the random numbers of a row
POOL = 8 + 4 + 4  # bytes of a beam and token: its id in the best texts, its log-probability there and in the beam
NEGLIGIBLE = 2**26  # bytes that are not worth a look at the memory


def check_memory(model: LanguageModel, ids: Tensor, settings: GenerationConfig, draft: LanguageModel | None) -> None:
    """Raise a ConfigError, which names the setting to make smaller, for a generation that cannot fit.

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
    ones: dict[str, Any] = {_rows_setting(settings): 1, "max_new_tokens": 1}
    smaller = {name: needed_bytes(models, ids, replace(settings, **{name: one})) for name, one in ones.items()}
    names = [name for name, rest in smaller.items() if rest <= available][:1]  # one that is enough, or all that help
    names = names or [name for name, rest in smaller.items() if rest <= needed // 2]
    what = " with ".join(f"{name}={getattr(settings, name)}" for name in names)
    what = what or f"a batch of {len(ids):,} prompts of {ids.shape[1]:,} tokens"
    raise ConfigError(
        f"{what} needs {memory.gibibytes(needed)} of memory, and {memory.gibibytes(available)} are available;"
        " give fewer"
    )


def needed_bytes(models: list[LanguageModel], ids: Tensor, settings: GenerationConfig) -> int:
    """Bytes of the caches, ids and logits of a generation to its end; what else it holds is less."""
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
    """The setting that says how many rows each prompt has."""
    names = {"beam": "num_beams", "contrastive": "contrastive_candidates"}
    return names.get(settings.strategy, "num_return_sequences")
