"""The positions of a model's input tokens: after a cache, after left padding, or within packed documents."""

from torch import Tensor

from modular_gpt.core.cache import ModelCache
from modular_gpt.core.contracts import Attention, Positions
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.positions import document_starts
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.inputs import checked_documents, checked_padding


def token_positions(config: GPTConfig, ids: Tensor, cache: ModelCache | None, padding: Tensor | None) -> Positions:
    """Positions of ids (B, T) that follow the tokens of ``cache``, in which padding (B,) is recorded.

    Raises:
        ConfigError: tokens lie past a table of positions or a full cache, the number of rows is not that of the cache,
            or padding comes after the first tokens of a cache.
    """
    start = 0 if cache is None else cache.length
    padding = None if padding is None else checked_padding(padding, ids, cache is not None)
    if isinstance(start, int):
        end = start + ids.shape[1]
        _check_end(config, end)
        if cache is not None and cache.max_length is not None and end > cache.max_length:
            raise ConfigError(f"the cache holds {cache.max_length} tokens and cannot take {end}; make a longer one")
    if cache is None:
        return Positions(start, ids.shape[1], padding, ids.device)
    if ids.shape[0] != cache.batch:
        raise ConfigError(f"the cache was made for {cache.batch} rows, got {ids.shape[0]}")
    if padding is not None:
        if not (isinstance(start, int) and start == 0):
            raise ConfigError("padding is on the left: give it with the first tokens of a cache only")
        cache.begin(padding)
    return Positions(start, ids.shape[1], cache.padding, ids.device, cache.window)


def packed_positions(config: GPTConfig, ids: Tensor, documents: object, alone: bool) -> Positions:
    """Positions of ids (B, T) in rows of packed documents, whose ids are ``documents`` (B, T).

    alone: whether the model was called with neither a cache nor padding

    Raises:
        ConfigError: there is a cache or padding, an attention cannot separate documents, or tokens lie past a table of
            positions.
    """
    if not alone:
        raise ConfigError("documents are packed for training: give them without a cache and without padding")
    _check_end(config, ids.shape[1])
    check_separates(config)
    starts = document_starts(checked_documents(documents, ids))
    return Positions(0, ids.shape[1], None, ids.device, document_starts=starts)


def check_separates(config: GPTConfig, remedy: str = "give one document a row") -> None:
    """Raise a ConfigError, which ends with ``remedy``, if the attention of a layer cannot keep documents apart."""
    for layer in config.layer_configs:
        attention = layer.attention.component
        assert issubclass(attention, Attention)
        if not attention.separates_documents:
            raise ConfigError(f"attention={layer.attention.name} cannot keep packed documents apart; {remedy}")


def _check_end(config: GPTConfig, end: int) -> None:
    if end > config.context_length and not config.pos.component.extrapolates:
        raise ConfigError(
            f"{end} tokens do not fit pos={config.pos.name}, which has {config.context_length} "
            "positions; give a shorter text, or use pos=rope or pos=alibi"
        )
