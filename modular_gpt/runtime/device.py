"""The device of a run, its threads, and the precision of its arithmetic."""

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

BF16_WIDTH = 96  # of models from which bf16 is faster on a CPU without compiled code, by benchmarks/precision.py
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # data types by name


def as_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """A data type of weights, which may be given by name; None stays None.

    Raises:
        ConfigError: there is no such data type, or weights cannot have it.
    """
    if isinstance(value, str):
        name = str(our_value("dtype", value))
        one_of(name, tuple(WEIGHTS), "dtype")
        return WEIGHTS[name]
    if value is None or (isinstance(value, torch.dtype) and value.is_floating_point):
        return value
    raise ConfigError(f"dtype must be a floating-point type, such as torch.bfloat16 or 'bf16', got {value!r}")


def as_device(value: torch.device | str | int | None) -> torch.device:
    """A device that works here, which may be given by name or by the number of a GPU; None is the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if value is None or str(value) in ("cpu", "meta"):
        return torch.device(value or "cpu")
    return choose_device(str(our_value("device", value)) if isinstance(value, str) else value, setting="device")


def choose_device(
    name: str | int | torch.device, processes: ProcessGroup | None = None, setting: str = "trainer.device"
) -> torch.device:
    """The device of that name; ``auto`` is the best one that works here. Each of several processes has its own GPU.

    setting: the name of the setting in messages

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
    """The precision of that name for a model ``width`` wide, and why ``auto`` chose it; "" where it did not choose.

    ``auto`` is bf16 on GPUs and CPUs with units for it, except for narrow models on CPUs that are not compiled, else
    float32.
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
        raise ConfigError("trainer.precision=fp16 needs a scaler that mps has not; use bf16 or float32")


def has_bf16(device: torch.device) -> bool:
    """Whether the device has units for products in bf16."""
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
    """Whether this CPU has units for products in bf16 that oneDNN uses, instead of emulating them."""
    supported: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return supported
    return supported and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def cpu_name() -> str:
    """The name of this machine's processor, such as "Intel(R) Xeon(R) Processor"."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed PyTorch's default generators, as ``torch.manual_seed`` does; on the CPU only its own.

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
    """The device's name, for messages."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return device.type
