"""The environment of a run: versions, hardware, and git commit."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from modular_gpt._version import __version__
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.runtime.device import cpu_name, physical_cores

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "tiktoken", "hydra-core")


def environment() -> PlainDict:
    """The environment as plain JSON values, for run.json."""
    return {
        "modular_gpt": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: installed(name) for name in LIBRARIES},
        "processor": cpu_name(),
        "physical_cores": physical_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": total_memory_bytes(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


@cache
def git_commit() -> str | None:
    """The commit of this package's git checkout, with ``-dirty`` if there are changes; None outside a checkout.

    The result is cached, since the code of a running process does not change.
    """
    folder = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        tracked = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() if tracked.returncode == 0 else None  # untracked: .venv inside another repository


@cache
def installed(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def total_memory_bytes() -> int | None:
    """The physical memory of the machine in bytes; None if it is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
