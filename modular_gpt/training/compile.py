"""When torch.compile pays, and what to do where it cannot work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from modular_gpt.model import GPTModel
from modular_gpt.training.config import TrainerConfig
from modular_gpt.training.estimate import flops_per_token

# Operations per second that training reaches without compiling, roughly: of a thread of a CPU, and of a GPU.
CPU_SPEED, GPU_SPEED = 5e10, 5e13
SAVED = 0.4  # share of the time that compiled code saves
SECONDS, SECONDS_PER_LAYER = 10.0, 4.0  # that it takes to make it


def compiles(config: TrainerConfig, model: GPTModel, device: torch.device, processes: int) -> bool:
    """Whether a training compiles its model; by ``auto``, one process does where that saves more time than it takes.

    That is reckoned, not measured, so that the same run decides alike whenever it starts.
    """
    if config.compile != "auto":
        return bool(config.compile)
    speed = {"cpu": CPU_SPEED * torch.get_num_threads(), "cuda": GPU_SPEED}.get(device.type)
    if speed is None or processes > 1:
        return False
    tokens = config.max_steps * config.batch_size * model.config.context_length
    costs = SECONDS + SECONDS_PER_LAYER * model.config.n_layers
    work = 6.0 * model.num_parameters().active * tokens  # at least, which is quickly told
    if SAVED * work / speed < costs and SAVED * tokens * flops_per_token(model.config) / speed < costs:
        return False
    return has_compiler(device)


def has_compiler(device: torch.device) -> bool:
    """Whether this machine can turn into code what torch.compile writes."""
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
    """Whether it was torch.compile that failed."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def reason(error: BaseException) -> str:
    """What the compiler complains of, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]


@contextmanager
def ordered_sums(compiled: bool) -> Iterator[None]:
    """Let compiled code add up gradients of one row of a table in one order, and so to the same bits every time."""
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
