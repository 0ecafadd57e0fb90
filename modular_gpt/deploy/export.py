"""Export of a model and its cache for other runtimes: torch.export and ONNX.

A model is exported as two programs. They are pure functions, so that the caller holds the cache between calls::

    prefill  (ids (B, T))                          -> logits (B, V) after the last token, cache tensors
    step     (ids (B, 1), start (), cache tensors) -> logits (B, V), cache tensors

``start`` is the number of tokens in the cache. The cache tensors are those of ``GPTModel.new_cache(B, max_length)``,
layer by layer, with the same sizes: a ring buffer for a sliding window, latents for MLA, a state for linear attention.
The batch size B is dynamic; the rows of a batch have the same length, without padding. Of a prompt longer than
``longest_prompt``, ``step`` reads the tokens beyond; a prompt shorter than ``shortest_prompt`` is read by ``step``
from ``empty_cache``. The programs of a MoE model call an operator of this package, so the package must be imported
before they run; such a model cannot be exported to ONNX.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from modular_gpt.core.cache import ModelCache, TokenCache
from modular_gpt.core.convolution_cache import ConvolutionCache
from modular_gpt.core.errors import ConfigError, first_line
from modular_gpt.core.validation import positive
from modular_gpt.model import GPTModel

PREFILL, STEP = "prefill", "step"
_BATCH = 2  # batch size of the example inputs; the exporter would specialise 1
_EXAMPLE = 4  # tokens of the example prompt
_LARGE = 1_800_000_000  # bytes of weights above which ONNX stores them in a separate file; a protobuf holds 2 GB


class Prefill(nn.Module):
    """ids (B, T) -> logits (B, V) after the last token, and the cache tensors."""

    def __init__(self, model: GPTModel, max_length: int) -> None:
        super().__init__()
        self.model = model
        self.max_length = max_length

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        cache = self.model.new_cache(ids.shape[0], self.max_length)
        logits = self.model(ids, cache=cache, last_only=True)
        return logits[:, 0], _tensors(cache)


class CachedStep(nn.Module):
    """ids (B, 1), start (), cache tensors -> logits (B, V), and the new cache tensors."""

    def __init__(self, model: GPTModel, max_length: int) -> None:
        super().__init__()
        self.model = model
        self.max_length = max_length

    def forward(self, ids: Tensor, start: Tensor, cache_tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        cache = self.model.new_cache(ids.shape[0], self.max_length)
        inputs = iter(cache_tensors)
        for layer in cache.layers:
            layer.tensors = [next(inputs).clone() for _ in layer.tensors]  # inputs are not modified
        cache.seek(start)
        logits = self.model(ids, cache=cache)
        return logits[:, 0], _tensors(cache)


@dataclass(frozen=True)
class ExportedModel:
    """The programs of a model, described at the top of this file.

    max_length: number of tokens that the cache holds
    shortest_prompt, longest_prompt: limits of the prompt length T of ``prefill``; ``longest_prompt`` is less than the
        smallest sliding window, and with linear attention at most one chunk
    """

    prefill: ExportedProgram
    step: ExportedProgram
    max_length: int
    shortest_prompt: int
    longest_prompt: int
    _shapes: list[tuple[torch.Size, torch.dtype]]

    def empty_cache(self, batch: int) -> list[Tensor]:
        """Cache tensors without tokens, for ``batch`` rows."""
        return [torch.zeros(batch, *shape[1:], dtype=dtype) for shape, dtype in self._shapes]

    def save(self, directory: str | Path) -> list[Path]:
        """Write prefill.pt2 and step.pt2, for ``torch.export.load`` and ``aoti_compile_and_package``.

        Raises:
            ConfigError: the directory cannot be written.
        """
        paths = [Path(directory) / f"{name}.pt2" for name in (PREFILL, STEP)]
        with _write_errors(Path(directory)):
            for program, path in zip((self.prefill, self.step), paths, strict=True):
                torch.export.save(program, path)
        return paths


def export_model(model: GPTModel, max_length: int | None = None) -> ExportedModel:
    """Export a model, in evaluation mode and in its dtype, with torch.export.

    max_length: number of tokens that the cache holds; None: the model's context_length

    Raises:
        ConfigError: torch.export cannot trace a component, or max_length is not positive or exceeds the model's
            positions.
    """
    length = model.config.context_length if max_length is None else max_length
    positive("export", max_length=length)
    was_training, device = model.training, model.embedding.weight.device
    model.eval()
    try:
        with torch.no_grad():
            return _export(model, length, device)
    finally:
        model.train(was_training)


def _export(model: GPTModel, length: int, device: torch.device) -> ExportedModel:
    cache = model.new_cache(_BATCH, length)
    tensors = _tensors(cache)
    ids = torch.zeros(_BATCH, _example_length(cache, length), dtype=torch.long, device=device)
    batch = Dim("batch", min=1)
    with _export_errors():
        prefill = export(Prefill(model, length), (ids,), dynamic_shapes=({0: batch, 1: Dim.AUTO},))
        step = export(
            CachedStep(model, length),
            (ids[:, :1], torch.tensor(ids.shape[1], device=device), tensors),
            dynamic_shapes=({0: batch}, None, [{0: batch} for _ in tensors]),
        )
    shortest, longest = _prompt_lengths(prefill)
    return ExportedModel(
        prefill,
        step,
        length,
        shortest,
        min(longest, _smallest_ring(cache, length) - 1),
        [(tensor.shape, tensor.dtype) for tensor in tensors],
    )


def _example_length(cache: ModelCache, length: int) -> int:
    """Length of the example prompt; less than the rows of the smallest ring buffer, since that size is specialised."""
    return max(2, min(_EXAMPLE, _smallest_ring(cache, length) - 1))


def _smallest_ring(cache: ModelCache, length: int) -> int:
    """Number of rows of the smallest ring buffer with more than 2 rows; ``length`` if there is none."""
    layers = [layer.inner if isinstance(layer, ConvolutionCache) else layer for layer in cache.layers]
    rings = [layer.capacity for layer in layers if isinstance(layer, TokenCache) and layer.window is not None]
    return min((ring for ring in rings if ring > 2), default=length)


def _prompt_lengths(prefill: ExportedProgram) -> tuple[int, int]:
    """The smallest and the largest prompt length that the program accepts."""
    name = prefill.graph_signature.user_inputs[0]
    ids = next(node for node in prefill.graph.nodes if node.name == name)
    length = ids.meta["val"].shape[1]
    if isinstance(length, int):
        return length, length
    limits = prefill.range_constraints[length.node.expr]
    return int(limits.lower), int(limits.upper)


def export_onnx(model: GPTModel, directory: str | Path, max_length: int | None = None) -> list[Path]:
    """Write prefill.onnx and step.onnx; returns their paths.

    The inputs are named ``ids``, ``start``, ``cache_0`` ..., the outputs ``logits``, ``new_cache_0`` ...

    Raises:
        ConfigError: as ``export_model``, or the extra ``onnx`` is not installed, ONNX lacks an operator of a component,
            or the directory cannot be written.
    """
    try:
        import onnxscript  # noqa: F401  required by torch.onnx
    except ImportError as error:
        raise ConfigError("ONNX needs another package: pip install 'modular-gpt[onnx]'") from error
    exported = export_model(model, max_length)
    count = len(exported._shapes)
    old, new = [f"cache_{i}" for i in range(count)], [f"new_cache_{i}" for i in range(count)]
    size = sum(parameter.nbytes for parameter in model.parameters())
    paths = []
    for name, program, inputs in (
        (PREFILL, exported.prefill, ["ids"]),
        (STEP, exported.step, ["ids", "start", *old]),
    ):
        with _export_errors():
            onnx: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=inputs, output_names=["logits", *new]
            )
        paths.append(Path(directory) / f"{name}.onnx")
        with _write_errors(Path(directory)):
            onnx.save(str(paths[-1]), external_data=size > _LARGE)
    return paths


def _tensors(cache: ModelCache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in layer.tensors]


@contextmanager
def _export_errors() -> Iterator[None]:
    """Context manager: raise any exception of the exporter as a ConfigError of one sentence."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:  # the passes of the exporter have no common class of exceptions
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = first_line(cause)
        raise ConfigError(
            f"this model cannot be exported: {reason}; use other components, or attention.backend=auto"
        ) from error


@contextmanager
def _write_errors(directory: Path) -> Iterator[None]:
    """Context manager: create ``directory``, and raise an OSError as a ConfigError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write to '{directory}' ({error.strerror or error}); give another directory"
        ) from error
