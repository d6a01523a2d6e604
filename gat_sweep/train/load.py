"""Load of a worker's machine and of its GPU, under the names of MLflow's system metrics.

The thread of Watch reads it and the loop only picks it up, so that no step waits for it.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

import psutil
import torch

from gat_sweep.text import Say

PREFIX = "system/"  # MLflow shows such metrics on a page of their own
EVERY = 10.0  # seconds between two readings, as MLflow's own

# Values of a GPU from NVML (the module, a handle). NVML is not CUDA: it may be asked while a graph is captured.
GPU: dict[str, Callable[[Any, Any], float]] = {
    "utilization_percentage": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
    "memory_usage_megabytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e6,
    "memory_usage_percentage": lambda nvml, gpu: 100 * _used_part(nvml.nvmlDeviceGetMemoryInfo(gpu)),
    "power_usage_watts": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
}


class Load:
    """Reads the load of one worker: its whole machine, and its own GPU, which is called gpu_0."""

    def __init__(self, device: torch.device, say: Say):
        """say: gets a line for each value of the GPU that this machine does not tell."""
        self.values: dict[str, Callable[[], float]] = {}  # of the GPU
        self.errors: tuple[type[Exception], ...] = ()  # that reading one of them may raise
        psutil.cpu_percent()  # the first call begins the time that the next one measures
        if device.type == "cuda":
            self._open_gpu(device, say)

    def read(self) -> dict[str, float]:
        """Percent, 1e6 bytes and watts by name; the processors' load is that since the last reading."""
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
        }
        for name, value in self.values.items():
            with suppress(*self.errors):  # a gap in the curve; a GPU that is lost ends the trial elsewhere
                found[f"gpu_0_{name}"] = float(value())
        return {name: round(value, 1) for name, value in found.items()}

    def _open_gpu(self, device: torch.device, say: Say) -> None:
        """Finds the worker's GPU, and which of its values can be read: a virtual GPU does not know its power."""
        if find_spec("pynvml") is None:
            say("the load of the GPU is not recorded: nvidia-ml-py is not installed")
            return
        import pynvml

        self.errors = (pynvml.NVMLError,)
        try:
            pynvml.nvmlInit()
            # By its id: NVML numbers all GPUs of the machine, and torch those that this process may use.
            gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        except pynvml.NVMLError as error:
            say(f"the load of the GPU is not recorded: {error}")
            return
        for name, value in GPU.items():
            try:
                value(pynvml, gpu)
                self.values[name] = partial(value, pynvml, gpu)
            except pynvml.NVMLError as error:
                say(f"{PREFIX}gpu_0_{name} is not recorded: {error}")


def metrics(loads: dict[int, dict[str, float]], world: int) -> dict[str, float]:
    """Loads by rank as MLflow's system metrics; with several workers each has a group of its own."""
    return {
        f"{PREFIX}{f'rank_{rank}/' if world > 1 else ''}{name}": value
        for rank, load in sorted(loads.items())
        for name, value in load.items()
    }


def _used_part(memory: Any) -> float:
    return float(memory.used / memory.total)
