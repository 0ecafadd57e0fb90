"""A model with its cache as programs for other runtimes: torch.export, and ONNX.

Two programs, pure functions, so that any runtime can hold the cache between calls::

    prefill  (ids (B, T))                          -> logits (B, V) after the last token, cache tensors
    step     (ids (B, 1), start (), cache tensors) -> logits (B, V), cache tensors

``start`` is how many tokens stand before. The cache tensors are those of ``GPTModel.new_cache(B, max_length)``, layer
by layer, and as small: a ring for a sliding window, a latent for MLA, a state for linear attention. B may be any
number. A prompt longer than ``longest_prompt`` goes on by steps; so does one shorter than ``shortest_prompt``, from
``empty_cache``. Rows of a batch have the same length: no padding. The programs of a MoE model call an operator of this
package, which must be imported where they run, and there is no ONNX of it.
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
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import positive
from modular_gpt.model import GPTModel

PREFILL, STEP = "prefill", "step"
_BATCH = 2  # of the examples that programs are traced with; 1 would become a fixed size
_EXAMPLE = 4  # tokens of the example prompt
_LARGE = 1_800_000_000  # bytes of weights that a single ONNX file can hold, a little below its 2 GB


class Prefill(nn.Module):
    """(B, T) ids -> the logits (B, V) after the last, and the tensors of a cache that has read them."""

    def __init__(self, model: GPTModel, max_length: int) -> None:
        super().__init__()
        self.model = model
        self.max_length = max_length

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        cache = self.model.new_cache(ids.shape[0], self.max_length)
        logits = self.model(ids, cache=cache, last_only=True)
        return logits[:, 0], _tensors(cache)


class Step(nn.Module):
    """(B, 1) ids, start (), cache tensors -> the logits (B, V), and new cache tensors."""

    def __init__(self, model: GPTModel, max_length: int) -> None:
        super().__init__()
        self.model = model
        self.max_length = max_length

    def forward(self, ids: Tensor, start: Tensor, cache_tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        cache = self.model.new_cache(ids.shape[0], self.max_length)
        given = iter(cache_tensors)
        for layer in cache.layers:
            layer.tensors = [next(given).clone() for _ in layer.tensors]  # inputs stay as they are
        cache.seek(start)
        logits = self.model(ids, cache=cache)
        return logits[:, 0], _tensors(cache)


@dataclass(frozen=True)
class ExportedModel:
    """The programs of a model; see the top of this file.

    max_length: tokens that the cache holds
    shortest_prompt, longest_prompt: how many tokens ``prefill`` takes; the longest is the smallest sliding window, and
        with linear attention one chunk
    """

    prefill: ExportedProgram
    step: ExportedProgram
    max_length: int
    shortest_prompt: int
    longest_prompt: int
    _shapes: list[tuple[torch.Size, torch.dtype]]

    def empty_cache(self, batch: int) -> list[Tensor]:
        """The tensors of a cache that has read nothing."""
        return [torch.zeros(batch, *shape[1:], dtype=dtype) for shape, dtype in self._shapes]

    def save(self, directory: str | Path) -> list[Path]:
        """Write prefill.pt2 and step.pt2, which ``torch.export.load`` and ``aoti_compile_and_package`` read."""
        paths = [Path(directory) / f"{name}.pt2" for name in (PREFILL, STEP)]
        with _writing(Path(directory)):
            for program, path in zip((self.prefill, self.step), paths, strict=True):
                torch.export.save(program, path)
        return paths


def export_model(model: GPTModel, max_length: int | None = None) -> ExportedModel:
    """The two programs of a model, in evaluation mode and in the dtype that it has.

    max_length: tokens that the cache holds; None for the model's context_length

    Raises:
        ConfigError: the model has a part that the exporter cannot trace, or max_length does not fit its positions.
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
    with _explained():
        prefill = export(Prefill(model, length), (ids,), dynamic_shapes=({0: batch, 1: Dim.AUTO},))
        step = export(
            Step(model, length),
            (ids[:, :1], torch.tensor(ids.shape[1], device=device), tensors),
            dynamic_shapes=({0: batch}, None, [{0: batch} for _ in tensors]),
        )
    shortest, longest = _prompts(prefill)
    return ExportedModel(
        prefill,
        step,
        length,
        shortest,
        min(longest, _room(cache, length) - 1),
        [(each.shape, each.dtype) for each in tensors],
    )


def _example_length(cache: ModelCache, length: int) -> int:
    """Tokens of the prompt to trace with: short of the smallest ring, so that what holds for it holds for others."""
    return max(2, min(_EXAMPLE, _room(cache, length) - 1))


def _room(cache: ModelCache, length: int) -> int:
    """Rows of the smallest ring that a prompt can fill, or all; the exporter takes a full one as another case."""
    rings = [layer.capacity for layer in cache.layers if isinstance(layer, TokenCache) and layer.window is not None]
    return min((ring for ring in rings if ring > 2), default=length)


def _prompts(prefill: ExportedProgram) -> tuple[int, int]:
    """The fewest and the most tokens that the program takes."""
    name = prefill.graph_signature.user_inputs[0]
    ids = next(node for node in prefill.graph.nodes if node.name == name)
    count = ids.meta["val"].shape[1]
    if isinstance(count, int):
        return count, count
    limits = prefill.range_constraints[count.node.expr]
    return int(limits.lower), int(limits.upper)


def export_onnx(model: GPTModel, directory: str | Path, max_length: int | None = None) -> list[Path]:
    """Write prefill.onnx and step.onnx.

    Their inputs are ``ids``, ``start``, ``cache_0`` ..., their outputs ``logits``, ``new_cache_0`` ...

    Raises:
        ConfigError: the extra ``onnx`` is not installed, or the exporter has no ONNX for a part.
    """
    try:
        import onnxscript  # noqa: F401  which the exporter of torch builds on
    except ImportError as error:
        raise ConfigError("ONNX needs another package: pip install 'modular-gpt[onnx]'") from error
    exported = export_model(model, max_length)
    count = len(exported._shapes)
    kept, new = [f"cache_{i}" for i in range(count)], [f"new_cache_{i}" for i in range(count)]
    size = sum(parameter.nbytes for parameter in model.parameters())
    paths = []
    for name, program, inputs in (
        (PREFILL, exported.prefill, ["ids"]),
        (STEP, exported.step, ["ids", "start", *kept]),
    ):
        with _explained():
            made: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=inputs, output_names=["logits", *new]
            )
        paths.append(Path(directory) / f"{name}.onnx")
        with _writing(Path(directory)):
            made.save(str(paths[-1]), external_data=size > _LARGE)
    return paths


def _tensors(cache: ModelCache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in layer.tensors]


@contextmanager
def _explained() -> Iterator[None]:
    """What the exporter raises, as one sentence."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:  # as many classes as passes
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise ConfigError(f"this model cannot be exported: {reason}; try other parts, or backend=auto") from error


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write to '{directory}' ({error.strerror or error}); give another directory"
        ) from error
