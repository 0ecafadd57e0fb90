"""When torch.compile saves time, and how its failures are recognised."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from modular_gpt.model import GPTModel
from modular_gpt.training.config import TrainerConfig
from modular_gpt.training.estimate import flops_per_token

# FLOP/s that training reaches without compiling, roughly: of one CPU thread, and of a GPU.
CPU_SPEED, GPU_SPEED = 5e10, 5e13
SAVED = 0.4  # fraction of the time that compiled code saves
SECONDS, SECONDS_PER_LAYER = 10.0, 4.0  # of compiling


def compiles(config: TrainerConfig, model: GPTModel, device: torch.device, processes: int) -> bool:
    """Whether a training compiles its model; ``auto``: in one process, if that saves more time than it takes.

    The time is computed from the size of the run, not measured, so that a run decides in the same way at each start.
    """
    if config.compile != "auto":
        return bool(config.compile)
    speed = {"cpu": CPU_SPEED * torch.get_num_threads(), "cuda": GPU_SPEED}.get(device.type)
    if speed is None or processes > 1:
        return False
    tokens = config.max_steps * config.batch_size * model.config.context_length
    costs = SECONDS + SECONDS_PER_LAYER * model.config.n_layers
    work = 6.0 * model.num_parameters().active * tokens  # a lower bound, which is quickly computed
    if SAVED * work / speed < costs and SAVED * tokens * flops_per_token(model.config) / speed < costs:
        return False
    return has_compiler(device)


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


def reason(error: BaseException) -> str:
    """The compiler's message in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]


@contextmanager
def ordered_sums(compiled: bool) -> Iterator[None]:
    """Context manager: compiled code sums gradients of an embedding's row in one order, so that runs repeat bitwise."""
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
