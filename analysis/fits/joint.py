"""The joint law of size and length of training: value = floor + sum of a_j c_j^-alpha_j + b D^-beta.

c_j is the compute of network j for an image, in GFLOPs: one term for both networks together, or one for each. D is the
images seen. C = (sum of c_j) D is the training compute, so the law says which size has the least value at a C, and for
how many images (Hoffmann et al. 2022, approach 3; for their c and D, C = 6 N D).

Images seen again are worth less. With U images in the data set, D is replaced by U (1 + R (1 - exp(-(D / U - 1) / R)))
where D > U (Muennighoff et al. 2023, Eq. 5); 1 / R = 0 means that nothing is lost. 1 / R is a parameter of the law if
training went beyond FEW epochs.

Checkpoints are not independent: those of a run share its seed, and runs of a size share what the size strays from the
law. joint_fit.py fits the law with both effects.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.fits.descent import (
    COARSE,
    EXPONENTS,
    FLOOR,
    SMALL,
    Array,
    Index,
    minimise,
)
from analysis.fits.profile import intervals
from analysis.statistics import CONFIDENCE, ROUNDING

FEW = 4.0  # epochs up to which an image seen again is worth a new one (Muennighoff et al. 2023)
NEWTON, FARTHEST = 60, 20.0  # steps to an optimum; ln of the farthest one from the middle of the points
STIFF = 1e4  # weight of a held value's distance, in units of its variance
REACH = 5.0  # standard errors, times the quantile, within which the end of an interval is searched

Ends = tuple[float | None, float | None]
# A function of laws [m, k] and of which of the asked values each is [m]: values [m], and their derivatives [m, k].
Quantity = Callable[[Array, Index], tuple[Array, Array]]


@dataclass(frozen=True)
class Checkpoints:
    """Evaluations of runs: where they are, ln value, and which share a size and a run; each [n]."""

    costs: Array  # [J, n], GFLOPs per image of each network
    images: Array
    log_value: Array
    size: Index  # labels
    run: Index  # labels; a run has one size
    data_images: float | None = None  # U; None if it is not known

    def some(self, which: NDArray[np.bool_]) -> "Checkpoints":
        """Return the checkpoints of a mask [n]."""
        images, log_value, size, run = self.images[which], self.log_value[which], self.size[which], self.run[which]
        return Checkpoints(self.costs[:, which], images, log_value, size, run, self.data_images)

    @property
    def epochs(self) -> float:
        """The most epochs of the data that a run went through; 0 if that is not known."""
        return float(self.images.max()) / self.data_images if self.data_images else 0.0

    @property
    def groups(self) -> list[Index]:
        """Labels of the effects that can be estimated beside the rest: first of sizes, then of runs."""
        sizes, runs, n = len(np.unique(self.size)), len(np.unique(self.run)), len(self.run)
        return ([self.size] if sizes < n else []) + ([self.run] if sizes < runs < n else [])


@dataclass(frozen=True)
class JointLaw:
    """A joint law through checkpoints, and how its fit ended."""

    data: Checkpoints
    parameters: Array  # [2 J + 4]: floor, a_1, alpha_1, ..., b, beta, 1 / R; heights at the centre of the points
    centre: Array  # [J + 1], means of ln c_j and ln D
    effects: tuple[float, ...]  # standard deviations of ln value of the groups of `data`
    rest: float
    root: Array  # [n, n], which makes residuals independent with variance 1
    rss: float
    starts: int
    agreeing: int
    converged: bool

    # ---------------------------------------------------------------- the law

    @property
    def terms(self) -> int:
        return len(self.centre)

    @property
    def repeats(self) -> bool:
        """Whether 1 / R is a parameter."""
        return self.data.epochs > FEW

    @property
    def bounds(self) -> tuple[Array, Array]:
        low = np.array([0.0, *[0.0, EXPONENTS[0]] * self.terms, 0.0])
        high = np.array([np.inf, *[np.inf, EXPONENTS[1]] * self.terms, 1.0 if self.repeats else 0.0])
        return low, high

    @property
    def at_bound(self) -> NDArray[np.bool_]:
        low, high = self.bounds
        return (self.parameters <= low) | (self.parameters >= high)

    def coefficients(self) -> dict[str, float]:
        """Return floor, the heights for the caller's units, the exponents, and R (infinite if 1 / R is 0)."""
        p, names = self.parameters, [f"{j}" for j in range(1, self.terms)] if self.terms > 2 else [""]
        found = {"floor": float(p[FLOOR])}
        for j, name in enumerate([*(f"a{n}" for n in names), "b"]):
            found[name] = float(p[1 + 2 * j] * math.exp(p[2 + 2 * j] * self.centre[j]))
        for j, name in enumerate([*(f"alpha{n}" for n in names), "beta"]):
            found[name] = float(p[2 + 2 * j])
        return found | {"epochs_worth": 1 / float(p[-1]) if p[-1] else math.inf}

    def predict(self, costs: ArrayLike, images: ArrayLike) -> Array:
        """Return the value at costs [J, m] and images [m]."""
        c, d = np.atleast_2d(np.asarray(costs, dtype=np.float64)), np.asarray(images, dtype=np.float64)
        return self._curve(self.parameters[None], np.log(c)[:, None], np.log(d)[None])[0][0]

    def optimum(self, compute: ArrayLike) -> Array:
        """Return the costs [J, m] with the least value at each compute [m]; C over their sum is the images."""
        c = np.asarray(compute, dtype=np.float64)
        return np.exp(self._optimum(np.repeat(self.parameters[None], len(c), axis=0), np.log(c)))

    def _worth(self, log_images: Array, waste: Array) -> tuple[Array, Array, Array]:
        """Return ln of what images are worth, and its derivatives by ln D and by 1 / R."""
        unique = self.data.data_images
        if unique is None or not self.repeats:
            return log_images, np.ones_like(log_images), np.zeros_like(log_images)
        again = np.maximum(np.exp(log_images) / unique - 1, 0)
        x = waste * again
        kept = np.exp(-x)
        with np.errstate(invalid="ignore", divide="ignore"):
            repeats = np.where(x > 1e-6, -np.expm1(-x) / waste, again * (1 - x / 2))
            slope = np.where(x > 1e-3, (x * kept + np.expm1(-x)) / waste**2, -(again**2) * (0.5 - x / 3))
        worth = unique * (1 + repeats)
        log_worth = np.where(again > 0, np.log(worth), log_images)
        by_images = np.where(again > 0, np.exp(log_images) * kept / worth, 1.0)
        return log_worth, by_images, np.where(again > 0, unique * slope / worth, 0.0)

    def _curve(self, p: Array, log_costs: Array, log_images: Array) -> tuple[Array, Array]:
        """Return values [m, n] of laws p [m, k] at log_costs [J, 1 or m, n] and log_images [1 or m, n]; derivatives."""
        log_worth, _, by_waste = self._worth(log_images, p[:, [-1]])
        logs = [*log_costs, log_worth]
        value, slopes = p[:, [FLOOR]] * np.ones_like(logs[0]), [np.ones((len(p), logs[0].shape[1]))]
        last = value
        for j, (log, centre) in enumerate(zip(logs, self.centre, strict=True)):
            power = np.exp(-p[:, [2 + 2 * j]] * (log - centre))
            last = p[:, [1 + 2 * j]] * power
            value = value + last
            slopes += [power, -(log - centre) * last]
        slopes.append(-p[:, [-2]] * last * by_waste)
        return value, np.stack([np.broadcast_to(slope, value.shape) for slope in slopes], axis=2)

    def _optimum(self, p: Array, log_compute: Array) -> Array:
        """Return ln of the best costs [J, m] for laws p [m, k] at ln C [m], by Newton's method.

        Without a loss of repeated images the value is convex in them.
        """
        middle = self.centre[:-1, None]
        v = np.repeat(middle, len(p), axis=1)
        for _ in range(NEWTON):
            gradient, matrix = self._conditions(p, v, log_compute)
            step = np.clip(np.linalg.solve(matrix, gradient.T[:, :, None])[:, :, 0].T, -1, 1)
            v = np.clip(v - step, middle - FARTHEST, middle + FARTHEST)
            if np.abs(step).max() < 1e-11:
                break
        return v

    def _conditions(self, p: Array, v: Array, log_compute: Array) -> tuple[Array, Array]:
        """Return the derivatives of the value at ln C by ln costs v [J, m]: the first [J, m], and the second [m, J, J].

        Costs and images are those of the laws p [m, k]; images follow from C.
        """
        networks = self.terms - 1
        a, alpha = p[:, 1 : 1 + 2 * networks : 2].T, p[:, 2 : 2 + 2 * networks : 2].T
        b, beta = p[:, -3], p[:, -2]
        total = np.logaddexp.reduce(v, axis=0)
        shares, log_images = np.exp(v - total), log_compute - total
        log_worth, g, _ = self._worth(log_images, p[:, -1])
        images = b * np.exp(-beta * (log_worth - self.centre[-1]))
        own = a * np.exp(-alpha * (v - self.centre[:-1, None]))
        epochs = np.exp(log_images) / self.data.data_images if self.data.data_images else np.zeros(len(p))
        bend = np.where(g < 1, g * (1 - p[:, -1] * epochs - g), 0.0)  # derivative of g by ln D
        one = np.eye(networks)[:, :, None]
        matrix = beta * images * ((beta * g**2 - g - bend) * shares[:, None] * shares[None] + g * shares[:, None] * one)
        matrix = (matrix + (alpha**2 * own)[:, None] * one).transpose(2, 0, 1)
        matrix = matrix + (1e-12 * np.trace(matrix, axis1=1, axis2=2) + 1e-300)[:, None, None] * np.eye(networks)
        gradient: Array = -alpha * own + beta * images * g * shares
        return gradient, matrix

    def _optimum_moves(self, p: Array, v: Array, log_compute: Array) -> Array:
        """Return the derivatives of ln of the best costs v by the parameters [J, m, k], by the implicit function."""
        k, steps = len(self.parameters), self._steps()
        first, matrix = self._conditions(p, v, log_compute)
        many = np.repeat(p, k, axis=0) + np.tile(np.diag(steps), (len(p), 1))
        moved, _ = self._conditions(many, np.repeat(v, k, axis=1), np.repeat(log_compute, k))
        change = (moved.reshape(len(v), len(p), k) - first[:, :, None]) / steps
        return np.asarray(-np.linalg.solve(matrix, change.transpose(1, 0, 2)).transpose(1, 0, 2), dtype=np.float64)

    # ---------------------------------------------------------------- intervals

    def floor_interval(self) -> Ends:
        """Return the 95 % interval of the floor; its lower end is 0 where the points do not exclude that."""
        low, high = self._intervals(self._parameter(FLOOR), 1, 0.0, float(np.exp(self.data.log_value.min())))[0]
        return low or 0.0, high

    def exponent_intervals(self) -> dict[str, Ends]:
        """Return the 95 % interval of each exponent."""
        names = [name for name in self.coefficients() if name.startswith(("alpha", "beta"))]
        return {name: self._intervals(self._parameter(2 + 2 * j), 1, *EXPONENTS)[0] for j, name in enumerate(names)}

    def size_exponent(self) -> tuple[float, float | None, float | None]:
        """Return beta / (alpha + beta), the power of C with which the best cost grows, and its 95 % interval.

        Only for one network term. Where images repeat it is the power while they are new.
        """

        def power(p: Array, _: Index) -> tuple[Array, Array]:
            total = p[:, -2] + p[:, 2]
            slopes = np.zeros_like(p)
            slopes[:, -2], slopes[:, 2] = p[:, 2] / total**2, -p[:, -2] / total**2
            return p[:, -2] / total, slopes

        low, high = self._intervals(power, 1, 0.0, 1.0)[0]
        return float(power(self.parameters[None], np.zeros(1, dtype=np.intp))[0][0]), low, high

    def cost_intervals(self, compute: ArrayLike) -> list[Ends]:
        """Return the 95 % interval of ln of the best cost (that of all networks) at each compute [m]."""
        log_compute = np.log(np.asarray(compute, dtype=np.float64))

        def log_cost(p: Array, asked: Index) -> tuple[Array, Array]:
            v = self._optimum(p, log_compute[asked])
            total = np.logaddexp.reduce(v, axis=0)
            moves = self._optimum_moves(p, v, log_compute[asked])
            return total, (np.exp(v - total)[:, :, None] * moves).sum(axis=0)

        return self._intervals(log_cost, len(log_compute))

    def share_intervals(self, compute: ArrayLike) -> list[Ends]:
        """Return the 95 % interval of the logit of the first network's best share at each compute [m]."""
        log_compute = np.log(np.asarray(compute, dtype=np.float64))

        def logit(p: Array, asked: Index) -> tuple[Array, Array]:
            v = self._optimum(p, log_compute[asked])
            moves = self._optimum_moves(p, v, log_compute[asked])
            return v[0] - v[1], moves[0] - moves[1]

        return self._intervals(logit, len(log_compute))

    def value_intervals(self, compute: ArrayLike) -> list[Ends]:
        """Return the 95 % interval of ln of the least value at each compute [m]."""
        log_compute = np.log(np.asarray(compute, dtype=np.float64))

        def log_value(p: Array, asked: Index) -> tuple[Array, Array]:
            v = self._optimum(p, log_compute[asked])
            # At the optimum the value does not change with the costs, so the derivatives are those at fixed costs.
            return self._log_values(p, v, log_compute[asked] - np.logaddexp.reduce(v, axis=0))

        return self._intervals(log_value, len(log_compute))

    def point_intervals(self, costs: ArrayLike, images: ArrayLike, runs: int | None = None) -> list[Ends]:
        """Return the 95 % interval of ln value at costs [J, m] and images [m].

        runs: the mean over so many runs of a size that is not in the table is predicted, with its own effects.
        """
        u = np.log(np.atleast_2d(np.asarray(costs, dtype=np.float64)))
        w = np.log(np.asarray(images, dtype=np.float64))

        def log_value(p: Array, asked: Index) -> tuple[Array, Array]:
            return self._log_values(p, u[:, asked], w[asked])

        return self._intervals(log_value, len(w), more=self.new_variance(runs) if runs else 0.0)

    def _parameter(self, i: int) -> Quantity:
        return lambda p, _: (p[:, i], np.repeat(np.eye(p.shape[1])[[i]], len(p), axis=0))

    def _log_values(self, p: Array, log_costs: Array, log_images: Array) -> tuple[Array, Array]:
        """Return ln value [m] of laws p [m, k] at ln costs [J, m] and ln images [m], and its derivatives [m, k]."""
        value, slopes = self._curve(p, log_costs[:, :, None], log_images[:, None])
        return np.log(value[:, 0]), slopes[:, 0] / value

    @property
    def size_effect(self) -> float | None:
        """Standard deviation between sizes; None where no size has two checkpoints."""
        return self.effects[0] if self.effects else None

    @property
    def run_effect(self) -> float | None:
        """Standard deviation between runs of a size; None where no size has two runs of several checkpoints."""
        return self.effects[1] if len(self.effects) > 1 else None

    def new_variance(self, runs: int) -> float:
        """Return the variance of the mean ln value over runs of one new size, about the law."""
        size, run = self.size_effect or 0.0, self.run_effect or 0.0
        return size**2 + (run**2 + self.rest**2) / runs

    def worth_interval(self) -> Ends:
        """Return the 95 % interval of R, the epochs that images seen again are worth; None: no end."""
        low, high = self._intervals(self._parameter(len(self.parameters) - 1), 1, 0.0, 1.0)[0]
        return high and 1 / high, low and 1 / low

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the intervals: one less than there are sizes."""
        return len(np.unique(self.data.size)) - 1

    @property
    def quantile(self) -> float:
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.degrees))

    def errors(self, p: Array) -> tuple[Array, Array]:
        """Return residuals of laws p [m, k] at the data, with variance 1, [m, n], and their derivatives [m, n, k]."""
        value, slopes = self._curve(p, np.log(self.data.costs)[:, None], np.log(self.data.images)[None])
        return (np.log(value) - self.data.log_value) @ self.root.T, self.root @ (slopes / value[:, :, None])

    def _variances(self, gradient: Array, free: Index) -> tuple[Array, Array]:
        """Return the variance of quantities with gradients [m, k]: by the law as it is, and over sizes (a jackknife).

        free: parameters that are not held. Both take the law as linear.
        """
        error, design = (part[0] for part in self.errors(self.parameters[None]))
        design, g = design[:, free], gradient[:, free]
        normal = design.T @ design
        moves = []
        for label in np.unique(self.data.size):
            out = self.data.size == label
            left = normal - design[out].T @ design[out]
            moves.append(np.linalg.lstsq(left, design[out].T @ error[out], rcond=1e-10)[0])
        own = np.einsum("mi,ij,mj->m", g, np.linalg.pinv(normal), g)
        return own, (len(moves) - 1) / len(moves) * ((g @ np.array(moves).T) ** 2).sum(axis=1)

    def _intervals(
        self,
        quantity: Quantity,
        count: int,
        low: float = -math.inf,
        high: float = math.inf,
        more: float = 0.0,
    ) -> list[Ends]:
        """Return the 95 % profile interval of each of `count` quantities, within [low, high].

        The profile takes the effects of sizes as equal at all lengths. The variance over sizes, by leaving out one at a
        time, does not; where it is larger, the interval is widened by the ratio. more: variance to add to each.
        """
        p, asked = self.parameters, np.arange(count)
        best, gradient = quantity(np.repeat(p[None], count, axis=0), asked)
        every = np.flatnonzero(self.bounds[1] > self.bounds[0])
        own, jackknife = self._variances(gradient, np.flatnonzero(~self.at_bound))
        whole, over_sizes = self._variances(gradient, every)
        stuck = own <= 1e-3 * whole  # it depends on what is at a bound
        own, jackknife = np.where(stuck, whole, own), np.where(stuck, over_sizes, jackknife)
        own = np.maximum(own, ROUNDING**2)
        grown = np.maximum(jackknife / own, 1.0) + more / own
        error = np.sqrt(own)
        reach = REACH * self.quantile * np.sqrt(grown) * error
        limit = self.rss + grown * self.quantile**2

        def fit(values: Array, walks: Index, starts: Array) -> tuple[Array, Array]:
            return self._held(quantity, walks % count, values, math.sqrt(STIFF) / error[walks % count], starts)

        ends = (np.maximum(best - reach, low), np.minimum(best + reach, high))
        return intervals(fit, best, *ends, p, self.rss, limit)

    def _steps(self) -> Array:
        """Return steps of the parameters [k] for derivatives of a quantity."""
        floor = float(np.exp(self.data.log_value.min()))
        size = np.array([floor, *[floor, 1.0] * self.terms, 1.0])
        return 1e-5 * np.maximum(np.abs(self.parameters), SMALL * size)

    def _held(
        self, quantity: Quantity, asked: Index, values: Array, stiff: Array, starts: Array
    ) -> tuple[Array, Array]:
        """Fit laws whose quantity has the given value [m]; return parameters [m, k] and residual sums [m]."""

        def evaluate(p: Array, fits: Index) -> tuple[Array, Array]:
            error, slopes = self.errors(p)
            found, gradient = quantity(p, asked[fits])
            held = stiff[fits] * (found - values[fits])
            return (
                np.concatenate([error, held[:, None]], axis=1),
                np.concatenate([slopes, (stiff[fits, None] * gradient)[:, None]], axis=1),
            )

        p = starts.copy()
        heights = [FLOOR, *range(1, 1 + 2 * self.terms, 2)]
        p[:, heights] = np.maximum(p[:, heights], SMALL * np.exp(self.data.log_value.min()))  # 0 would hardly move
        p, _, _ = minimise(evaluate, p, *self.bounds, COARSE)
        return p, (self.errors(p)[0] ** 2).sum(axis=1)
