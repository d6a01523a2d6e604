"""What runs tell of a law's parameters, with effects of sizes and of runs, for many draws of the law at once.

The checkpoints of a run share its effect, and the runs of a size share the size's. For a size with sums A, b, s over
its runs, the information is A - b b' v / (1 + v s), with v the variance of the size's effect (Woodbury's identity).
"""

from dataclasses import dataclass

import numpy as np

from analysis.fits.descent import Array

NEARLY_NONE = 1e-9  # precision that stands for none


@dataclass(frozen=True)
class Noise:
    """Standard deviations of ln value for each draw [m]: of sizes, of runs of a size, of checkpoints of a run."""

    size: Array
    run: Array
    rest: Array


@dataclass(frozen=True)
class Sums:
    """Sums over runs of a size: slopes' slopes [m, k, k], slopes' 1 [m, k], and 1' 1 [m], with the runs' precision."""

    squares: Array
    slopes: Array
    ones: Array

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.squares + other.squares, self.slopes + other.slopes, self.ones + other.ones)

    def times(self, runs: int) -> "Sums":
        return Sums(runs * self.squares, runs * self.slopes, runs * self.ones)

    def information(self, noise: Noise) -> Array:
        """Return the information of the size [m, k, k]."""
        variance = noise.size**2
        lost = variance / (1 + variance * self.ones)
        return self.squares - lost[:, None, None] * self.slopes[:, :, None] * self.slopes[:, None]


def of_run(slopes: Array, noise: Noise) -> Sums:
    """Return the sums of one run with slopes [m, r, k] at its r checkpoints."""
    rest, run = noise.rest**2, noise.run**2
    total = slopes.sum(axis=1)
    shrink = run / (rest + slopes.shape[1] * run)
    squares = np.einsum("mrk,mrj->mkj", slopes, slopes) - shrink[:, None, None] * total[:, :, None] * total[:, None]
    left = 1 - shrink * slopes.shape[1]
    return Sums(squares / rest[:, None, None], total * (left / rest)[:, None], slopes.shape[1] * left / rest)


def no_runs(draws: int, parameters: int) -> Sums:
    return Sums(np.zeros((draws, parameters, parameters)), np.zeros((draws, parameters)), np.zeros(draws))


def variance_of(information: Array, gradient: Array) -> Array:
    """Return gradient' information^-1 gradient [..., m] for gradients [m, k]; information [..., m, k, k]."""
    eye = NEARLY_NONE * np.eye(gradient.shape[-1])
    wide = np.broadcast_to(gradient, (*information.shape[:-2], gradient.shape[-1]))
    found = np.linalg.solve(information + eye, wide[..., None])[..., 0]
    return np.asarray((wide * found).sum(axis=-1), dtype=np.float64)
