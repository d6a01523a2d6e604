"""Choice of the images of a step, which depends only on (seed, step), so there is no state to save or lose."""

from functools import lru_cache

import numpy as np


def share(batch: int, rank: int, world: int) -> slice:
    """The images of a batch that `rank` trains on. Where `world` does not divide the batch, shares differ by one."""
    return slice(rank * batch // world, (rank + 1) * batch // world)


def batch_indices(count: int, batch: int, seed: int, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Indices of the images that `rank` trains on at `step`: its share of the batch.

    Epoch e is a permutation of range(count) drawn from (seed, e); the steps go through one epoch after another.
    The order over all ranks together does not depend on the number of ranks.
    """
    position = np.arange(step * batch, (step + 1) * batch)[share(batch, rank, world)]
    epochs = position // count
    indices = np.empty(len(position), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _order(count, seed, int(epoch))[position[here] % count]
    return indices


def caption_draws(batch: int, seed: int, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Numbers in [0, 1), one for each image of `rank` at `step`, that choose among the image's captions."""
    return np.random.default_rng([seed, step, 1]).random(batch)[share(batch, rank, world)]


@lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
