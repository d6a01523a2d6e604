"""Retrieval score: how often the real picture of a caption is among the nearest of the picture made from it."""

import torch
from scipy.stats import binomtest
from torch import Tensor

POOL = 1000  # most real pictures to choose from
NEAREST = 10  # K


def retrieval_score(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Share of the captions whose real picture is among the NEAREST of its generated one, of all real ones.

    generated, real: features [n, F]; row i of both belongs to the same caption, whose picture is in no other row.
    Returns `retrieval`, the ends of its 95 % interval (Wilson; captions count as independent), and the share that
    chance would find, K / n.
    """
    count = len(real)
    distance = torch.cdist(generated.double(), real.double())
    own = distance.diagonal()
    rank = (distance < own[:, None]).sum(dim=1)  # pictures that are nearer than the right one
    nearest = min(NEAREST, count)
    hits = int((rank < nearest).sum())
    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return {
        "retrieval": hits / count,
        "retrieval_low": float(interval.low),
        "retrieval_high": float(interval.high),
        "retrieval_chance": nearest / count,
    }
