"""Fit of the joint law (joint.py): generalised least squares of ln value, with effects of sizes and of runs.

Both variances are estimated by restricted maximum likelihood, and checkpoints that are far from the law are left out.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from analysis.fits.descent import FINE, SMALL, START_EXPONENTS, Array, minimise
from analysis.fits.joint import Checkpoints, JointLaw
from analysis.fits.reml import covariance, effects_of
from analysis.statistics import ROUNDING

EXACT = 1e-3  # of ln value: closer to the law than that, a checkpoint is not an outlier
SAME = 1e-6  # relative difference below which two residual sums are the same optimum
HEAVY, OUTLIER = 20, 5.0  # rounds of a fit with heavy tails; robust standard deviations
ROUNDS = 2  # of estimating the variances and fitting again


def fit_joint(data: Checkpoints) -> tuple[JointLaw, NDArray[np.bool_]]:
    """Fit a joint law to checkpoints; return it, and which of them it was fitted to [n].

    A checkpoint farther than OUTLIER robust standard deviations from a law with heavy tails (Student's t with 4
    degrees of freedom: Lange et al. 1989) is left out.
    Raises ValueError for fewer checkpoints than parameters, which leave no degree of freedom.
    """
    parameters, n = 2 * len(data.costs) + 4, len(data.log_value)
    if n <= parameters:
        raise ValueError(f"a joint law needs {parameters + 1} checkpoints, and this table has {n}")
    law, starts = _begun(data)
    law = _fitted(law, starts)
    for _ in range(HEAVY):
        stray, spread = _strays(law)
        weights = 5 / (4 + (stray / spread) ** 2)
        law = _fitted(replace(law, root=np.diag(np.sqrt(weights))), law.parameters[None])
    kept = np.abs(stray) <= OUTLIER * spread
    law, starts = _begun(data.some(kept))
    law = _fitted(law, starts)
    for _ in range(ROUNDS):
        error, slopes = (part[0] for part in replace(law, root=np.eye(int(kept.sum()))).errors(law.parameters[None]))
        effects, rest = effects_of(error, slopes[:, ~law.at_bound], law.data.groups)
        rest = max(rest, ROUNDING)
        root = np.linalg.inv(np.linalg.cholesky(covariance(len(error), effects, law.data.groups, rest)))
        law = _fitted(replace(law, effects=tuple(effects), rest=rest, root=root), np.vstack([starts, law.parameters]))
    return law, kept


def _begun(data: Checkpoints) -> tuple[JointLaw, Array]:
    """Return a law that is not fitted yet, and the starts of its fit [s, k]."""
    logs, n = np.log(np.vstack([data.costs, data.images[None]])), len(data.log_value)
    law = JointLaw(data, np.zeros(2 * len(logs) + 2), logs.mean(axis=1), (), 1.0, np.eye(n), math.inf, 0, 0, False)
    return law, _starts(law, logs)


def _strays(law: JointLaw) -> tuple[Array, float]:
    """Return how far ln value of each checkpoint is from the law [n], and a robust standard deviation of that."""
    stray = law.data.log_value - np.log(law.predict(law.data.costs, law.data.images))
    return stray, max(float(stats.median_abs_deviation(stray, scale="normal")), EXACT)


def _fitted(law: JointLaw, starts: Array) -> JointLaw:
    """Return the law fitted with its own `root`, from starts [s, k]."""
    p, rss, ended = minimise(lambda p, _: law.errors(p), starts, *law.bounds, FINE)
    best = int(rss.argmin())
    agreeing = int((rss <= rss[best] * (1 + SAME) + len(law.data.log_value) * 1e-9).sum())
    return replace(
        law,
        parameters=p[best],
        rss=float(rss[best]),
        starts=len(starts),
        agreeing=agreeing,
        converged=bool(ended[best]),
    )


def _starts(law: JointLaw, logs: Array) -> Array:
    """Return starts [s, k]: the best exponents on a grid, each low or high; the law is linear in the rest.

    The heights are not below 0 (non-negative least squares), with residuals relative to the values.
    """
    value = np.exp(law.data.log_value)
    grids = np.stack(np.meshgrid(*[START_EXPONENTS] * law.terms, indexing="ij")).reshape(law.terms, -1).T
    middle = START_EXPONENTS[len(START_EXPONENTS) // 2]
    best: dict[tuple[bool, ...], tuple[float, Array]] = {}
    for exponents in grids:
        powers = np.exp(-exponents[:, None] * (logs - law.centre[:, None]))
        heights, left = optimize.nnls(np.vstack([np.ones_like(value), powers]).T / value[:, None], np.ones_like(value))
        corner = tuple((exponents < middle).tolist())
        if corner not in best or left < best[corner][0]:
            heights = np.maximum(heights, SMALL * value.min())
            pairs = np.stack([heights[1:], exponents], axis=1).ravel()
            best[corner] = (left, np.array([heights[0], *pairs, 0.0]))
    starts = np.array([start for _, start in best.values()])
    if law.repeats:
        lossy = starts.copy()
        lossy[:, -1] = 0.05  # R of 20 epochs
        starts = np.vstack([starts, lossy])
    return starts
