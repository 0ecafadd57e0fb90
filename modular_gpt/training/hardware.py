"""Where a run computes: device, threads, and the precision of its arithmetic."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from modular_gpt.core.errors import ConfigError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the best one that works here.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).add(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"trainer.device={name} cannot be used here ({reason}); trainer.device=auto can") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """float32, bf16 or fp16; ``auto`` is bf16 on GPUs that compute in it and float32 elsewhere.

    Raises:
        ConfigError: the device does not compute in it.
    """
    if name == "auto":
        return (
            "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        )
    if name == "fp16" and device.type == "mps":
        raise ConfigError("trainer.precision=fp16 needs a scaler that mps has not; use bf16 or float32")
    return name


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which a forward pass runs."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def prepare_device(device: torch.device, threads: int | None) -> None:
    """Use the CPU's threads as told and the GPU's fast float32 matrix units."""
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = min(physical_cores(), torch.get_num_threads())
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def physical_cores() -> int:
    """Cores that this process may run on, each counted once however many threads it has."""
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
    cores = set()
    for number in usable:
        path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        cores.add(path.read_text() if path.is_file() else str(number))
    return len(cores)


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return device.type
