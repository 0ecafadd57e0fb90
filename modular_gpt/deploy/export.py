"""Export of a model and its cache to programs for other runtimes: torch.export and ONNX.

A model becomes two programs, pure functions, so that any runtime can hold the cache between calls::

    prefill  (ids (B, T))                          -> logits (B, V) after the last token, cache tensors
    step     (ids (B, 1), start (), cache tensors) -> logits (B, V), cache tensors

``start`` is the number of tokens read before. The cache tensors are those of ``GPTModel.new_cache(B, max_length)``,
layer by layer, with the same sizes: a ring buffer for a sliding window, latents for MLA, a state for linear attention.
B may be any number. Read the tokens of a prompt beyond ``longest_prompt`` by steps, and a prompt shorter than
``shortest_prompt`` by steps from ``empty_cache``. Rows of a batch have the same length, without padding. The programs
of a MoE model call an operator of this package, which must be imported where they run; such a model cannot be exported
to ONNX.
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
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import positive
from modular_gpt.model import GPTModel

PREFILL, STEP = "prefill", "step"
_BATCH = 2  # batch size of the example inputs; 1 would become a fixed size
_EXAMPLE = 4  # tokens of the example prompt
_LARGE = 1_800_000_000  # bytes of weights above which ONNX weights get files of their own; one file holds 2 GB


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
        given = iter(cache_tensors)
        for layer in cache.layers:
            layer.tensors = [next(given).clone() for _ in layer.tensors]  # inputs are not modified
        cache.seek(start)
        logits = self.model(ids, cache=cache)
        return logits[:, 0], _tensors(cache)


@dataclass(frozen=True)
class ExportedModel:
    """The programs of a model, see the top of this file.

    max_length: number of tokens that the cache holds
    shortest_prompt, longest_prompt: limits of the number of tokens that ``prefill`` takes; the longest is less than the
        smallest sliding window, and with linear attention at most one chunk
    """

    prefill: ExportedProgram
    step: ExportedProgram
    max_length: int
    shortest_prompt: int
    longest_prompt: int
    _shapes: list[tuple[torch.Size, torch.dtype]]

    def empty_cache(self, batch: int) -> list[Tensor]:
        """The cache tensors for ``batch`` rows before the first token."""
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
    """Export a model in evaluation mode and in its dtype.

    max_length: number of tokens that the cache holds; None: the model's context_length

    Raises:
        ConfigError: the exporter cannot trace a component, or max_length exceeds the model's positions.
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
    shortest, longest = _prompts(prefill)
    return ExportedModel(
        prefill,
        step,
        length,
        shortest,
        min(longest, _smallest_ring(cache, length) - 1),
        [(tensor.shape, tensor.dtype) for tensor in tensors],
    )


def _example_length(cache: ModelCache, length: int) -> int:
    """Tokens of the example prompt: fewer than the smallest ring buffer has, a case that the exporter specialises."""
    return max(2, min(_EXAMPLE, _smallest_ring(cache, length) - 1))


def _smallest_ring(cache: ModelCache, length: int) -> int:
    """Rows of the smallest ring buffer with more than 2 rows; ``length`` where there is none."""
    layers = [layer.inner if isinstance(layer, ConvolutionCache) else layer for layer in cache.layers]
    rings = [layer.capacity for layer in layers if isinstance(layer, TokenCache) and layer.window is not None]
    return min((ring for ring in rings if ring > 2), default=length)


def _prompts(prefill: ExportedProgram) -> tuple[int, int]:
    """The smallest and the largest number of tokens that the program takes."""
    name = prefill.graph_signature.user_inputs[0]
    ids = next(node for node in prefill.graph.nodes if node.name == name)
    count = ids.meta["val"].shape[1]
    if isinstance(count, int):
        return count, count
    limits = prefill.range_constraints[count.node.expr]
    return int(limits.lower), int(limits.upper)


def export_onnx(model: GPTModel, directory: str | Path, max_length: int | None = None) -> list[Path]:
    """Write prefill.onnx and step.onnx; returns their paths.

    Inputs are ``ids``, ``start``, ``cache_0`` ..., outputs ``logits``, ``new_cache_0`` ...

    Raises:
        ConfigError: the extra ``onnx`` is not installed, a component has no ONNX form, or the directory cannot be
            written.
    """
    try:
        import onnxscript  # noqa: F401  which the exporter of torch builds on
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
    """Context manager: turn any exception of the exporter into a ConfigError of one sentence."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:  # each pass of the exporter has its own classes
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise ConfigError(f"this model cannot be exported: {reason}; try other components, or backend=auto") from error


@contextmanager
def _write_errors(directory: Path) -> Iterator[None]:
    """Context manager: create ``directory``, and turn an OSError inside into a ConfigError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write to '{directory}' ({error.strerror or error}); give another directory"
        ) from error
