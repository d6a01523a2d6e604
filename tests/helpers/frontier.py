"""A planted table of sizes trained to one compute, with checkpoints on the way."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS = (8, 12, 16, 20, 24, 32)
COSTS = (1e-3, 2e-3, 3.3e-3, 5e-3, 7e-3, 12e-3)  # GFLOPs per image
MOST, BATCH = 900.0, 64  # GFLOPs of every run; images of a step
ROUND = 0.03  # standard deviation of ln value of a checkpoint


def law(cost: float, images: float) -> float:
    return 20 + 100 * (cost / 5e-3) ** -0.5 + 100 * (images / 1.5e5) ** -0.4


def frontier_rows(
    value: Callable[[float, float], float] = law, seeds: int = 2, noise: float = ROUND, sizes: int = len(WIDTHS)
) -> list[dict[str, Any]]:
    """Rows of a table: each size with some seeds, evaluated at 1.5-fold steps."""
    random, rows = np.random.default_rng(0), []
    for width, cost in list(zip(WIDTHS, COSTS, strict=True))[:sizes]:
        last = round(MOST / cost / BATCH)
        steps = sorted({round(last / 1.5**k) for k in range(8)})
        for seed in range(seeds):
            for step in steps:
                images = step * BATCH
                rows.append(
                    {
                        "trial": f"w{width}-s{seed}", "generator_size": f"w{width}", "seed": seed, "step": step,
                        "steps": last, "flops": cost * images * 2e9, "images": images, "metric": "fd_x",
                        "value": value(cost, images) * np.exp(random.normal(0, noise)), "n": 1797,
                        "train.ema_decay": 0.98, "data_images": 10**9, "g_width": width, "d_width": width,
                    }
                )  # fmt: skip
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path
