"""The device of a run, its threads, and its precision."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch

from modular_gpt.core.aliases import our_value
from modular_gpt.core.errors import ConfigError, first_line
from modular_gpt.core.validation import one_of
from modular_gpt.runtime.processes import ProcessGroup

# Width of a model from which bf16 is faster on a CPU without torch.compile, measured by benchmarks/precision.py
BF16_WIDTH = 96
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # data types by name


def as_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """Convert a data type of weights, or its name, to a dtype; None is returned unchanged.

    Raises:
        ConfigError: the name is unknown, or the data type is not a floating-point type.
    """
    if isinstance(value, str):
        name = str(our_value("dtype", value))
        one_of(name, tuple(WEIGHTS), "dtype")
        return WEIGHTS[name]
    if value is None or (isinstance(value, torch.dtype) and value.is_floating_point):
        return value
    raise ConfigError(f"dtype must be a floating-point type, such as torch.bfloat16 or 'bf16', got {value!r}")


def as_device(value: torch.device | str | int | None) -> torch.device:
    """Convert a device, its name, or the index of a GPU to a device that works on this machine; None is the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if value is None or str(value) in ("cpu", "meta"):
        return torch.device(value or "cpu")
    return choose_device(str(our_value("device", value)) if isinstance(value, str) else value, setting="device")


def choose_device(
    name: str | int | torch.device, processes: ProcessGroup | None = None, setting: str = "trainer.device"
) -> torch.device:
    """The device of this name for this process. ``auto`` selects CUDA, else MPS, else the CPU.

    With several processes, ``cuda`` is the GPU with the index ``processes.local_rank``.

    setting: name of the setting, for messages

    Raises:
        ConfigError: this machine has no such device, or fewer GPUs than processes.
    """
    processes = processes or ProcessGroup()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available() and processes.world == 1:
            name = "mps"
    if processes.world > 1 and name != "cpu":
        if name != "cuda":
            raise ConfigError(f"{setting}={name} is one device for {processes.world} processes: use cuda or cpu")
        if processes.local_world > torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started {processes.local_world} processes on a machine with {torch.cuda.device_count()}"
                f" GPUs: give it --nproc_per_node=<GPUs>, or use {setting}=cpu"
            )
        name = f"cuda:{processes.local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add(1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = first_line(error).partition(". ")[0]
        raise ConfigError(f"{setting}={name} cannot be used here ({reason}); {setting}=auto can") from error
    return device


def choose_precision(name: str, device: torch.device, width: int, compiled: bool = False) -> tuple[str, str]:
    """The precision for a model of the given width, and the reason if ``name`` is ``auto``, otherwise "".

    ``auto`` selects bf16 on devices with bf16 arithmetic, and float32 on others. It also selects float32 on a CPU for a
    model that is narrower than ``BF16_WIDTH`` and not compiled.
    """
    if name != "auto":
        return name, ""
    if not has_bf16(device):
        return "float32", "this device has no bf16 units"
    if device.type == "cpu" and width < BF16_WIDTH and not compiled:
        return "float32", f"a CPU is slower in bf16 below a width of {BF16_WIDTH} without compiled code"
    return "bf16", "this device has bf16 units"


def check_precision(name: str, device: torch.device) -> None:
    """Raise a ConfigError if the device does not support a precision."""
    if name == "fp16" and device.type == "mps":
        raise ConfigError("trainer.precision=fp16 needs a loss scaler, which mps does not support; use bf16 or float32")


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bf16 without emulation."""
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    return device.type == "cpu" and cpu_has_bf16()


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The autocast context of a forward pass in bf16 or fp16; a null context for other precisions."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for matrix products in bf16 that oneDNN uses."""
    supported: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return supported
    return supported and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def cpu_name() -> str:
    """The name of this machine's processor, such as "Intel(R) Xeon(R) Processor"."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """Context manager: set the precision of float32 matrix products, and restore it at the end.

    It is "medium" for ``bf16_products`` (bfloat16 on a CPU), otherwise "high" on CUDA devices (TF32) and "highest"
    elsewhere.
    """
    before = torch.get_float32_matmul_precision()
    default = "high" if device.type == "cuda" else "highest"
    torch.set_float32_matmul_precision("medium" if precision == "bf16_products" else default)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def prepare_device(threads: int | None, processes: int = 1) -> None:
    """Set the number of CPU threads.

    threads: None: OMP_NUM_THREADS, or else the number of physical cores divided by ``processes``
    processes: number of processes on this machine
    """
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, min(physical_cores(), torch.get_num_threads()) // processes)
    if threads is not None:
        torch.set_num_threads(threads)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed PyTorch's default generators as ``torch.manual_seed`` does; for a CPU, its generator only.

    Without a GPU, ``torch.manual_seed`` formats the stack for each missing accelerator, which takes half a millisecond.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


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
    """A description of the device for messages: its name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return device.type
