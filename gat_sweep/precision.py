"""True float32 for frozen networks: their output is part of the protocol, so a GPU may not round it in its own way."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exactly(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Context with true float32, or TF32 where the device has it, without autocast, and the same bits at every call.

    torch rounds the inputs of convolutions to TF32 on a GPU unless told otherwise.
    """
    convolutions = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.autocast(device.type, enabled=False), convolutions:
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
