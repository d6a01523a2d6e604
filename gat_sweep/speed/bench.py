"""What `gat-sweep bench` does."""

import sys
from typing import Any

import torch
from rich.console import Console

from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.train.device import chosen_device


def bench_command(
    configs: list[TrialConfig], device: str | None, threads: int | None, iterations: int, console: Console
) -> list[dict[str, Any]]:
    """Times the engine beside the straightforward step for each config; progress goes to the console.

    Raises UserError when there is no such device, a config does not fit it, or the two steps disagree.
    """
    from benchmarks.step import compare

    if sys.platform != "linux":
        raise UserError("bench reads peak memory from /proc; run it on Linux")
    chosen = chosen_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    results = []
    for config in configs:

        def say(text: str, size: str = config.model.generator) -> None:
            console.print(f"{size}: {text}", highlight=False)

        try:
            results.append(compare(config, chosen, iterations, say))
        except ValueError as error:
            raise UserError(str(error)) from None
    return results
