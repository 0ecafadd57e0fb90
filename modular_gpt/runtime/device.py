"""The device of a run, its threads, and the precision of its arithmetic."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.runtime.processes import ProcessGroup

BF16_WIDTH = 96  # of models from which bf16 is faster on a CPU, measured by benchmarks/precision.py
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, processes: ProcessGroup | None = None) -> torch.device:
    """The device of that name; ``auto`` is the best one that works here. Each of several processes has its own GPU.

    Raises:
        ConfigError: this machine has no such device, or not one for each process.
    """
    processes = processes or ProcessGroup()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available() and processes.world == 1:
            name = "mps"
    if processes.world > 1 and name != "cpu":
        if name != "cuda":
            raise ConfigError(f"trainer.device={name} is one device for {processes.world} processes: use cuda or cpu")
        if processes.local_world > torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started {processes.local_world} processes on a machine with {torch.cuda.device_count()}"
                " GPUs: give it --nproc_per_node=<GPUs>, or use trainer.device=cpu"
            )
        name = f"cuda:{processes.local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add(1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(f"trainer.device={name} cannot be used here ({reason}); trainer.device=auto can") from error
    return device


def choose_precision(name: str, device: torch.device, width: int) -> tuple[str, str]:
    """The precision of that name for a model ``width`` wide, and why ``auto`` chose it; "" where it did not choose.

    ``auto`` is bf16 on GPUs and CPUs with units for it, except for narrow models on CPUs, else float32.
    """
    if name != "auto":
        return name, ""
    if not has_bf16(device):
        return "float32", "this device has no bf16 units"
    if device.type == "cpu" and width < BF16_WIDTH:
        return "float32", f"a CPU is no faster in bf16 below a width of {BF16_WIDTH}"
    return "bf16", "this device has bf16 units"


def check_precision(name: str, device: torch.device) -> None:
    """Raise a ConfigError if the device does not support a precision."""
    if name == "fp16" and device.type == "mps":
        raise ConfigError("trainer.precision=fp16 needs a scaler that mps has not; use bf16 or float32")


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 by units of its own."""
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    return device.type == "cpu" and cpu_has_bf16()


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The autocast context of a forward pass; without effect in float32."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def cpu_has_bf16() -> bool:
    """Whether oneDNN multiplies in bf16 on this CPU by units of its own, and not by emulation, which x86 has too."""
    supported: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return supported
    return supported and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """Context manager: sets how products of float32 matrices are computed, and restores the setting."""
    before = torch.get_float32_matmul_precision()
    fast = "high" if device.type == "cuda" else "highest"  # TF32, with its ten bits, where the GPU has it
    torch.set_float32_matmul_precision("medium" if precision == "bf16_products" else fast)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def prepare_device(threads: int | None, processes: int = 1) -> None:
    """Set the number of CPU threads; by default (None) the ``processes`` of this machine share its physical cores."""
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, min(physical_cores(), torch.get_num_threads()) // processes)
    if threads is not None:
        torch.set_num_threads(threads)


def physical_cores() -> int:
    """Number of physical cores that this process may run on."""
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
    """The device's name, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return device.type
