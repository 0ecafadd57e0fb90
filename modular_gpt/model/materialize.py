"""Models whose weights come from tensors: built on the meta device, checked there, then allocated and filled."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.gpt import GPTModel

DEVICE = str | torch.device


def meta_model(config: GPTConfig) -> GPTModel:
    """The model that a config describes, on the meta device: shapes and names without storage.

    Raises:
        ConfigError: a size is larger than any tensor can have.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return GPTModel(config)


def deferred_model(config: GPTConfig) -> GPTModel:
    """A model on the meta device, to be sharded and then initialised to the values that ``GPTModel(config)`` has.

    PyTorch's generator advances as in the constructors of a model with storage, with one tensor in memory at a time. If
    a plugin's constructor computes tensors, the model has storage, as ``GPTModel(config)``.
    """
    before = torch.get_rng_state()
    with torch.device("meta"), DrawnWithStorage():
        model = GPTModel(config)
    if _can_allocate(model):
        return model
    torch.set_rng_state(before)
    return GPTModel(config)


class DrawnWithStorage(TorchDispatchMode):
    """Dispatch mode: drawing a tensor on the meta device advances the CPU's generator as for a tensor with storage."""

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            func(*_with_storage(args), **dict(zip(kwargs, _with_storage(kwargs.values()), strict=True)))
        return func(*args, **kwargs)


def _with_storage(values: Iterable[object]) -> list[object]:
    """Replace tensors on the meta device by empty ones on the CPU, and the meta device by the CPU."""
    return [
        torch.empty_like(value, device="cpu")
        if isinstance(value, Tensor) and value.is_meta
        else torch.device("cpu")
        if isinstance(value, torch.device) and value.type == "meta"
        else value
        for value in values
    ]


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds, by name: parameters and persistent buffers, each shared tensor once."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}


@torch.no_grad()
def materialize(
    model: GPTModel,
    fill: Callable[[Mapping[str, Tensor]], None],
    dtypes: Mapping[str, torch.dtype] | None = None,
    device: DEVICE = "cpu",
) -> GPTModel:
    """Allocate the tensors of a model on the meta device and let ``fill`` write them; draws no random numbers.

    fill: receives the tensors of ``saved_tensors`` and copies the weights into them
    dtypes: by name; tensors without an entry keep their dtype
    device: of the storage

    Returns the model in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        if not _can_allocate(model):
            model = GPTModel(model.config)
        for prefix, module in model.named_modules():
            _allocate(module, prefix, dtypes or {}, torch.device(device))
    fill(saved_tensors(model))
    return model.eval()


def model_from_tensors(
    config: GPTConfig | GPTModel,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: DEVICE = "cpu",
) -> GPTModel:
    """A model with the weights ``tensors``, by the names of its ``state_dict``.

    config: the model's config, or the model on the meta device
    dtype: of the parameters; None: that of each given tensor

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
        ConfigError: the config describes a model of impossible size.
    """
    model = config if isinstance(config, GPTModel) else meta_model(config)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    check_shapes({name: tensor.shape for name, tensor in model.state_dict().items()}, found, "the weights", "config")

    def fill(module_tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in module_tensors.items():
            tensor.copy_(tensors[name])

    return materialize(model, fill, dtypes_of(model, tensors, dtype), device)


def dtypes_of(
    model: GPTModel, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> dict[str, torch.dtype]:
    """The dtype of each tensor: ``dtype`` for the parameters if it is given, else that in which it is stored.

    Raises:
        CheckpointError: a parameter is not stored as floating point.
    """
    parameters = {name for name, _ in model.named_parameters()}
    for name in parameters & set(tensors):
        if not tensors[name].is_floating_point():
            raise CheckpointError(
                f"{printable(name)} is stored as {tensors[name].dtype}, but parameters must be floating point"
            )
    return {name: tensor.dtype if dtype is None or name not in parameters else dtype
            for name, tensor in tensors.items()}  # fmt: skip


def check_shapes(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], holder: str, config: str) -> None:
    """Raise a CheckpointError that names the first tensor that is missing, unknown or of another shape."""
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            needed, present = (tuple(shapes[name]) if name in shapes else "nothing" for shapes in (expected, found))
            raise CheckpointError(f"{holder} has {present} for {printable(name)} where {config} asks for {needed}")


def _can_allocate(model: GPTModel) -> bool:
    """Whether every tensor of the model is a parameter, a saved buffer, or filled by ``reset_parameters``.

    A component of a plugin may compute tensors in its constructor; then the model is built again with storage.
    """
    for module in model.modules():
        fillable = callable(getattr(module, "reset_parameters", None))
        computed = [name for name, buffer in module._buffers.items()
                    if buffer is not None and name in module._non_persistent_buffers_set]  # fmt: skip
        if (computed and not fillable) or any(_holds_tensor(value) for value in vars(module).values()):
            return False
    return True


def _holds_tensor(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def _allocate(module: nn.Module, prefix: str, dtypes: Mapping[str, torch.dtype], device: torch.device) -> None:
    def empty(name: str, tensor: Tensor, make: Callable[..., Tensor]) -> Tensor:
        full = f"{prefix}.{name}" if prefix else name
        return make(tensor, dtype=dtypes.get(full, tensor.dtype), device=device)

    for name, parameter in module.named_parameters(recurse=False):
        new = nn.Parameter(empty(name, parameter, torch.empty_like), parameter.requires_grad)
        _mark(parameter, new)
        setattr(module, name, new)
    buffers = list(module.named_buffers(recurse=False))
    if not buffers:
        return
    computed = [pair for pair in buffers if pair[0] in module._non_persistent_buffers_set]
    if any(not buffer.is_meta for _, buffer in computed):
        for name, buffer in computed:  # in a model with storage, which keeps the values that its constructor computed
            setattr(module, name, buffer.to(device))
        buffers = [pair for pair in buffers if pair not in computed]
    for name, buffer in buffers:
        setattr(module, name, empty(name, buffer, torch.zeros_like))
    reset = getattr(module, "reset_parameters", None)
    if computed and computed[0][1].is_meta and callable(reset):
        reset()


def _mark(old: Tensor, new: Tensor) -> None:
    """Copy the attributes that components set on their parameters, such as those that initialisation reads."""
    for name, value in vars(old).items():
        setattr(new, name, value)


def layers_in(names: Iterable[str], prefix: str = "blocks.") -> int:
    """The number of layers in tensor names: of distinct numbers after ``prefix``."""
    return len({name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)})
