"""Measurements of time, memory and the peak rate of matrix products."""

import ctypes
import gc
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gat_sweep.config import TrialConfig
from gat_sweep.gat.condition import Captions, Condition
from gat_sweep.gat.spec import GeneratorSpec
from gat_sweep.train.batch import Batch
from gat_sweep.train.engine import draw


def make_batch(config: TrialConfig, random: torch.Generator) -> Batch:
    """Random batch with the shapes of a config: Gaussian images, classes or captions, codes, and all draws."""
    spec, size, device = config.generator_spec, config.train.batch, random.device
    real = torch.randn(size, spec.channels, spec.side, spec.side, generator=random, device=device)
    y = make_condition(spec, size, random)
    z = torch.randn(size, spec.z_dim, generator=random, device=device)
    width = config.discriminator_spec.teacher_width
    teacher = torch.randn(size, 1 + spec.tokens, width, generator=random, device=device) if width else None
    return Batch(real, y, z, teacher, draw(config, size, random, True), draw(config, size, random, False))


def make_condition(spec: GeneratorSpec, size: int, random: torch.Generator) -> Condition:
    """Random classes, or captions of Gaussian states with all their tokens."""
    if spec.text_width:
        words = torch.randn(size, spec.text_tokens, spec.text_width, generator=random, device=random.device)
        return Captions(words, torch.ones_like(words[..., 0]), words.mean(dim=1))
    if spec.classes:
        return torch.randint(0, spec.classes, (size,), generator=random, device=random.device)
    return None


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step, with the device idle before and after."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def peak_above(step: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of a step above those in use before it, in a GPU's allocator or, on CPU, in the process."""
    _wait(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_bytes("VmRSS")
    step()
    return max(0, _status_bytes("VmHWM") - before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def held_bytes(parts: Iterable[Any]) -> int:
    """Bytes of all tensors in the state dicts of `parts`: weights, moments, averages."""
    tensors = torch.utils._pytree.tree_leaves([part.state_dict() for part in parts])
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def matmul_ceiling(device: torch.device, precision: str) -> float:
    """Best rate, in FLOP/s, of large square matrix products on a device, an upper limit for any step."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    best = 0.0
    for side in [1024, 2048] if device.type == "cpu" else [4096, 8192]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        for _ in range(8):
            best = max(best, 2 * side**3 / timed(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return best
