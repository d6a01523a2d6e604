"""Standard deviations of nested random effects, by restricted maximum likelihood (Patterson and Thompson 1971)."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize

from analysis.fits.descent import Array, Index
from analysis.statistics import ROUNDING

FAR = (-9.0, 9.0)  # bounds of ln variance of an effect, in units of the variance of the rest


def covariance(points: int, effects: Sequence[float], groups: Sequence[Index], rest: float) -> Array:
    """Return the covariance [points, points] of points that share effects with their groups, and have a rest each.

    effects: standard deviation for each of `groups`, which are labels [n]. rest: the standard deviation of the rest.
    """
    total = rest**2 * np.eye(points)
    for effect, labels in zip(effects, groups, strict=True):
        total += effect**2 * (labels[:, None] == labels)
    return total


def effects_of(residual: Array, slopes: Array, groups: Sequence[Index]) -> tuple[list[float], float]:
    """Return the standard deviation of the effect of each of `groups`, labels [n], and that of the rest.

    residual [n], slopes [n, k]: of a fit of k parameters, which is taken as linear.
    """
    slopes = slopes[:, np.abs(slopes).max(axis=0, initial=0) > 0]  # the exponent of a part that is 0 has none
    spare = len(residual) - slopes.shape[1]
    same = [(labels[:, None] == labels).astype(np.float64) for labels in groups]

    def scaled(log_ratios: Array) -> tuple[float, float]:
        """Minus twice the log likelihood, and the variance of the rest."""
        ratios = np.exp(np.clip(log_ratios, *FAR))
        whole = np.eye(len(residual)) + sum(ratio * part for ratio, part in zip(ratios, same, strict=True))
        root = np.linalg.cholesky(whole)
        q, r = np.linalg.qr(np.linalg.solve(root, slopes))
        left = np.linalg.solve(root, residual)
        left = left - q @ (q.T @ left)
        rest = max(float(left @ left) / spare, ROUNDING**2)
        logs = np.log(np.diag(root)).sum() + np.log(np.abs(np.diag(r))).sum()
        return float(2 * logs + spare * np.log(rest)), rest

    if not groups:
        return [], float(np.sqrt(scaled(np.zeros(0))[1]))
    corners = np.vstack([np.zeros(len(groups)), 2 * np.eye(len(groups))])
    found = optimize.minimize(
        lambda log_ratios: scaled(log_ratios)[0],
        corners[0],
        method="Nelder-Mead",
        options={"initial_simplex": corners, "xatol": 0.02, "fatol": 1e-3},
    )
    rest = scaled(found.x)[1]
    return np.sqrt(np.exp(np.clip(found.x, *FAR)) * rest).tolist(), float(np.sqrt(rest))
