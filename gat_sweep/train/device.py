"""The device that a command works on: its choice, its memory setting, its description."""

import ctypes
import platform
from pathlib import Path
from typing import Any

import torch

from gat_sweep.errors import UserError
from gat_sweep.version import source_commit


def chosen_device(name: str | None) -> torch.device:
    """The device of this name, made the current one; default: CUDA if available, else the CPU.

    Raises UserError for an unknown device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda":
        # With its number, which torch asks for, and chosen: streams, events and graphs go to the current device.
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Lets glibc reuse a step's buffers instead of returning them to the kernel, which zeroes them again each time.

    Without it, page faults take half of a small step on the CPU. Does nothing on other C libraries.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation gets a mapping of its own, even a large one
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def hardware(device: torch.device) -> dict[str, Any]:
    """Device, threads, versions and commit of a measurement."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        name = models[0].split(":")[1].strip() if models else platform.processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": source_commit(),
    }
