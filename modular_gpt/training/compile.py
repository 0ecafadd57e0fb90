"""When torch.compile saves time, and how its failures are recognised."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from modular_gpt.model.config import GPTConfig
from modular_gpt.training.config import TrainerConfig

# Rough FLOP/s of training without compiling, of one CPU thread and of a GPU.
CPU_FLOPS, GPU_FLOPS = 5e10, 5e13
SAVED_FRACTION = 0.4  # of the training time, by compiled code
COMPILE_SECONDS, COMPILE_SECONDS_PER_LAYER = 10.0, 4.0


def compiles(config: TrainerConfig, model: GPTConfig, device: torch.device, processes: int) -> tuple[bool, str]:
    """Whether a training compiles its model, and the reason if ``trainer.compile`` is ``auto``, else "".

    ``auto`` compiles in a run of one process if that saves more time than it takes. Both times are computed from the
    size of the run, not measured, so that every start of a run decides alike. The model is taken as dense, so that
    variants of one model decide alike.
    """
    if config.compile != "auto":
        return bool(config.compile), ""
    speed = {"cpu": CPU_FLOPS * torch.get_num_threads(), "cuda": GPU_FLOPS}.get(device.type)
    if processes > 1:
        return False, "there are several processes"
    if speed is None:
        return False, f"{device.type} is not compiled for"
    tokens = config.max_steps * config.batch_size * model.context_length
    costs = COMPILE_SECONDS + COMPILE_SECONDS_PER_LAYER * model.n_layers
    saves = SAVED_FRACTION * tokens * dense_flops(model) / speed
    estimate = f"compiling takes about {costs:.0f} s and saves about {saves:,.0f}"
    if saves < costs:
        return False, estimate
    return (True, estimate) if has_compiler(device) else (False, "there is no compiler")


def dense_flops(model: GPTConfig) -> float:
    """FLOPs per trained token of a model of these sizes with full attention and dense feed-forward networks."""
    weights = model.n_layers * 12 * model.d_model**2 + model.vocab_size * model.d_model
    return 6.0 * weights + 12.0 * model.n_layers * model.d_model * model.context_length


def has_compiler(device: torch.device) -> bool:
    """Whether this machine has the compiler that torch.compile's generated code needs."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton()
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


def from_compiler(error: BaseException) -> bool:
    """Whether an error comes from torch.compile."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def compiler_message(error: BaseException) -> str:
    """The compiler's message in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]


@contextmanager
def ordered_sums(compiled: bool) -> Iterator[None]:
    """Context manager: compiled code adds the gradients of an embedding row in a fixed order, so that runs repeat."""
    if not compiled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
