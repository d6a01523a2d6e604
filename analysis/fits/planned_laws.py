"""Laws that a design is averaged over: value at a size and a length, what is known before, and fits to checkpoints.

u is ln of the GFLOPs per image and w is ln of the images, both less those of the goal, where every law is at its level:

    ln value = level + ln(floor + (1 - floor) t)
    t = s(u) exp(-beta w)                             one power law of size and length (pure, floor, break)
    t = share s(u) + (1 - share) exp(-beta w)         the joint law (joint.py)
    s(u) = exp(-alpha u + bend K ln(1 + exp((knee - u) / K)))        alpha above the knee, alpha + bend below it

floor and share are shares of the value at the goal. A law that lacks a parameter has it at NONE.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fits.descent import MEDIUM, Array, Index, minimise
from analysis.fits.joint import Checkpoints
from analysis.fits.reml import covariance, effects_of

PARAMETERS = ("level", "alpha", "beta", "floor", "share", "bend", "knee")
LEVEL, ALPHA, BETA, FLOOR, SHARE, BEND, KNEE = range(len(PARAMETERS))
NONE = np.array([0.0, 0.4, 0.4, 0.0, 0.5, 0.0, 0.0])
LOW = np.array([-np.inf, 0.05, 0.05, 0.0, 0.02, -1.0, -np.inf])
HIGH = np.array([np.inf, 3.0, 3.0, 0.95, 0.98, 2.0, np.inf])
# What is taken as known before any data, as means and standard deviations; the knee's are those of the sizes.
MEANS = np.array([0.0, 0.4, 0.4, 0.3, 0.5, 0.0, np.nan])
SPREADS = np.array([2.0, 0.25, 0.25, 0.25, 0.25, 0.4, np.nan])
K = 0.25  # e-folds of c within which a break is smooth
STEP = 1e-5  # of a parameter, for derivatives
STARTS = 24
REACH, GRID, HALVINGS = 12.0, 481, 50  # search for the best size: e-folds of c about the goal, steps, bisections
USUAL, LEAST = 0.1, 1e-3  # standard deviations of ln value: where the data do not tell one, and the least
SPARE = 2  # degrees of freedom below which a standard deviation is not taken from data
REJECTED = 6.0  # difference of AIC, a likelihood ratio of 1 to 20 with equal parameters


@dataclass(frozen=True)
class PlannedLaw:
    """The form of a law: its own parameters, and whether size and length add or multiply."""

    name: str
    own: tuple[int, ...]
    adds: bool = False

    def log_values(self, p: Array, u: Array, w: Array) -> Array:
        """Return ln value [m, r] of laws p [m, 7] at u and w, each [r] or [m, r]."""
        size = _log_size(p[:, :, None], u)
        length, floor, share = -p[:, [BETA]] * w, p[:, [FLOOR]], p[:, [SHARE]]
        falling = share * np.exp(size) + (1 - share) * np.exp(length) if self.adds else np.exp(size + length)
        found: Array = p[:, [LEVEL]] + np.log(floor + (1 - floor) * falling)
        return found

    def slopes(self, p: Array, u: Array, w: Array) -> Array:
        """Return the derivatives of ln value by the own parameters [m, r, k]."""
        found = [self.log_values(high, u, w) - self.log_values(low, u, w) for high, low in self.moved(p)]
        return np.stack(found, axis=2) / (2 * STEP)

    def moved(self, p: Array) -> list[tuple[Array, Array]]:
        """Return, for each own parameter, the laws p [m, 7] with it a STEP higher and a STEP lower."""
        steps = np.eye(p.shape[1])[list(self.own)] * STEP
        return [(p + step, p - step) for step in steps]

    def exponent(self, p: Array) -> Array:
        """Return -d ln value / d ln c at the goal [m]."""
        near = np.array([-1e-3, 1e-3])
        low, high = self.log_values(p, near, np.zeros(2)).T
        return (low - high) / 2e-3

    def log_best_cost(self, p: Array) -> Array:
        """Return u with the least value [m] at the compute of the goal, where w = -u. Only for laws that add."""
        u = np.linspace(-REACH, REACH, GRID)
        best = np.clip(self.log_values(p, u, -u).argmin(axis=1), 1, GRID - 2)
        low, high = u[best - 1], u[best + 1]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rises = self._gain(p, middle) > 0
            low, high = np.where(rises, low, middle), np.where(rises, middle, high)
        return np.asarray((low + high) / 2)

    def _gain(self, p: Array, u: Array) -> Array:
        """Return a multiple of the derivative of the value by u [m] at w = -u."""
        alpha, beta, share, bend, knee = (p[:, i] for i in (ALPHA, BETA, SHARE, BEND, KNEE))
        fall = alpha + bend / (1 + np.exp((u - knee) / K))
        return np.asarray((1 - share) * beta * np.exp(beta * u) - share * fall * np.exp(_log_size(p, u)))


def _log_size(p: Array, u: Array) -> Array:
    """Return ln s(u) of laws p [m, 7] at u [m], or of laws p [m, 7, 1] at u [r] or [m, r]."""
    alpha, bend, knee = p[:, ALPHA], p[:, BEND], p[:, KNEE]
    return np.asarray(-alpha * u + bend * K * (np.logaddexp(0, (knee - u) / K) - np.logaddexp(0, knee / K)))


OF_SIZES = (
    PlannedLaw("pure", (LEVEL, ALPHA, BETA)),
    PlannedLaw("floor", (LEVEL, ALPHA, BETA, FLOOR)),
    PlannedLaw("joint", (LEVEL, ALPHA, BETA, FLOOR, SHARE), adds=True),
    PlannedLaw("break", (LEVEL, ALPHA, BETA, BEND, KNEE)),
)
JOINT = PlannedLaw("joint", (LEVEL, ALPHA, BETA, SHARE), adds=True)
OF_FRONTIERS = (  # laws with a best size at a compute
    JOINT,
    PlannedLaw("joint with a floor", (LEVEL, ALPHA, BETA, FLOOR, SHARE), adds=True),
    PlannedLaw("joint with a break", (LEVEL, ALPHA, BETA, SHARE, BEND, KNEE), adds=True),
)


@dataclass(frozen=True)
class Prior:
    """What is taken as known of the parameters before the data."""

    mean: Array  # [7]
    spread: Array  # [7], standard deviations
    knees: tuple[float, float]  # where the knee may be

    @classmethod
    def of(cls, u: Array, level: float = 0.0) -> "Prior":
        """Return the prior for sizes at u; level: of ln value at the goal."""
        mean, spread = MEANS.copy(), SPREADS.copy()
        mean[KNEE], spread[KNEE] = (u.min() + u.max()) / 2, max(np.ptp(u) / 3, K)
        mean[LEVEL] = level
        return cls(mean, spread, (float(u.min()), float(u.max())))

    def precision(self, law: PlannedLaw) -> Array:
        return np.diag(self.spread[list(law.own)] ** -2.0)

    def bounds(self) -> tuple[Array, Array]:
        low, high = LOW.copy(), HIGH.copy()
        low[KNEE], high[KNEE] = self.knees
        return low, high

    def covariance(self, law: PlannedLaw) -> Array:
        return np.diag(self.spread[list(law.own)] ** 2.0)

    def around(
        self, law: PlannedLaw, centre: Array, covariance: Array, count: int, random: np.random.Generator
    ) -> Array:
        """Return laws [count, 7] drawn about `centre` [7], with the covariance [k, k] of the own parameters.

        A parameter beyond its bounds is set to the bound.
        """
        p, own = np.repeat(NONE[None], count, axis=0), list(law.own)
        p[:, own] = random.multivariate_normal(centre[own], covariance, count)
        return np.clip(p, *self.bounds())


@dataclass(frozen=True)
class Spread:
    """Standard deviations of ln value; None where the data do not tell them."""

    size: float | None  # of sizes about a law
    degrees: int  # of freedom of `size`
    run: float | None  # of runs of a size
    checkpoint: float | None  # of checkpoints of a run


@dataclass(frozen=True)
class Fitted:
    """A law fitted to checkpoints together with its prior."""

    law: PlannedLaw
    parameters: Array  # [7]
    covariance: Array  # [k, k], of the own ones
    aic: float
    strays: Array  # [n], of ln value
    slopes: Array  # [n, k]


def fit_planned(
    law: PlannedLaw, prior: Prior, data: Checkpoints, at: tuple[Array, Array], root: Array, random: np.random.Generator
) -> Fitted:
    """Fit a law to checkpoints by generalised least squares, with the prior as further residuals.

    at: u and w of the checkpoints, each [n]. root: [n, n], which makes residuals independent with variance 1.
    """
    own, u, w = list(law.own), *at
    low, high = prior.bounds()
    scale = prior.spread[own]

    def whole(p: Array) -> Array:
        full = np.repeat(NONE[None], len(p), axis=0)
        full[:, own] = p
        return full

    def evaluate(p: Array, _: Index) -> tuple[Array, Array]:
        full = whole(p)
        error = (law.log_values(full, u, w) - data.log_value) @ root.T
        prior_slopes = np.repeat(np.diag(1 / scale)[None], len(p), axis=0)
        return (
            np.concatenate([error, (p - prior.mean[own]) / scale], axis=1),
            np.concatenate([root @ law.slopes(full, u, w), prior_slopes], axis=1),
        )

    starts = prior.around(law, prior.mean, prior.covariance(law), STARTS, random)[:, own]
    found, rss, _ = minimise(evaluate, starts, low[own], high[own], MEDIUM)
    best = whole(found[[rss.argmin()]])
    slopes = law.slopes(best, u, w)[0]
    weighted = root @ slopes
    covariance = np.linalg.inv(prior.precision(law) + weighted.T @ weighted)
    strays = (law.log_values(best, u, w) - data.log_value)[0]
    return Fitted(law, best[0], covariance, float(rss.min()) + 2 * len(own), strays, slopes)


def fit_all(
    laws: Sequence[PlannedLaw], prior: Prior, data: Checkpoints, at: tuple[Array, Array], random: np.random.Generator
) -> tuple[list[Fitted], Spread]:
    """Fit laws to checkpoints with one noise for all; return them and the noise.

    The noise is that about the law with the smallest residuals, so that it is not the misfit of a simpler law.
    """
    n = len(data.log_value)
    first = [fit_planned(law, prior, data, at, np.eye(n) / USUAL, random) for law in laws]
    spread = _spread_of(min(first, key=lambda fit: float((fit.strays**2).sum())), data)
    size, run, rest = (
        USUAL if one is None else max(one, LEAST) for one in (spread.size, spread.run, spread.checkpoint)
    )
    if spread.checkpoint is None:
        rest = LEAST  # a run has one checkpoint, so its effect is all there is
    chol = np.linalg.cholesky(covariance(n, [size, run], [data.size, data.run], rest))
    root = np.linalg.inv(chol)
    return [fit_planned(law, prior, data, at, root, random) for law in laws], spread


def _spread_of(fit: Fitted, data: Checkpoints) -> Spread:
    """Return the noise about a law, by restricted maximum likelihood.

    That of runs and checkpoints is taken with a free level of each size, so that no misfit of sizes counts.
    """
    sizes, runs, n = len(np.unique(data.size)), len(np.unique(data.run)), len(data.run)
    levels = (data.size[:, None] == np.unique(data.size)).astype(np.float64)
    free = _independent(np.column_stack([levels, fit.slopes]))
    left = n - free.shape[1]
    run = checkpoint = None
    if runs < n and left > SPARE:
        effects, checkpoint = effects_of(_residual(fit.strays, free), free, [data.run] if runs > sizes else [])
        run = effects[0] if effects else None
    elif runs == n and left > SPARE:
        run = effects_of(_residual(fit.strays, free), free, [])[1]
    degrees = sizes - len(fit.law.own)
    told = degrees >= SPARE and n > sizes
    size = effects_of(fit.strays, fit.slopes, data.groups)[0][0] if told else None
    return Spread(size, degrees if told else 0, run, checkpoint)


def _independent(design: Array) -> Array:
    """Return a basis of the columns of a design [n, k]."""
    u, s, _ = np.linalg.svd(design, full_matrices=False)
    return u[:, s > 1e-9 * s[0]]


def _residual(y: Array, design: Array) -> Array:
    return np.asarray(y - design @ np.linalg.lstsq(design, y, rcond=None)[0])


def kept(fits: Sequence[Fitted]) -> NDArray[np.bool_]:
    """Return which laws the data do not reject: those whose AIC is within REJECTED of the least one."""
    aic = np.array([fit.aic for fit in fits])
    return np.asarray(aic - aic.min() <= REJECTED)
