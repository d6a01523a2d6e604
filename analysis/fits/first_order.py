"""The first-order law of a split, ln value = ln a -+ b_g ln C_G -+ b_d ln C_D, by least squares, and its best split."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.statistics import CONFIDENCE

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of coefficients: 95 % Student-t interval, t, and the two-sided p of its being 0."""

    estimate: float
    low: float
    high: float
    t: float
    p: float


@dataclass(frozen=True)
class FirstOrder:
    """ln a, b_g and b_d, and their covariance [3, 3]; an exponent is above 0 if the metric gets better with compute."""

    coefficients: Array
    covariance: Array
    fitted: Array  # [n], of ln value
    rss: float

    @property
    def dof(self) -> int:
        return len(self.fitted) - len(self.coefficients)

    @property
    def quantile(self) -> float:
        return float(special.stdtrit(self.dof, (1 + CONFIDENCE) / 2))

    def contrast(self, weights: ArrayLike) -> Contrast:
        """Return weights [3] @ coefficients."""
        w = np.asarray(weights, dtype=np.float64)
        estimate, error = float(w @ self.coefficients), math.sqrt(max(float(w @ self.covariance @ w), 0.0))
        t = estimate / error if error > 0 else math.copysign(math.inf, estimate) if estimate else 0.0
        half = self.quantile * error
        return Contrast(estimate, estimate - half, estimate + half, t, 2 * float(special.stdtr(self.dof, -abs(t))))

    def difference(self) -> dict[str, Any]:
        """Return b_d - b_g, and the network that pays more per unit of the logarithm of its own compute."""
        found = self.contrast((0, -1, 1))
        verdict = "not significantly different"
        if found.low > 0 or found.high < 0:
            verdict = f"scaling {'D' if found.low > 0 else 'G'} pays more"
        return asdict(found) | {"verdict": verdict}

    def improves(self) -> bool:
        """Whether more compute for both may make the metric better; otherwise no split is best."""
        return self.contrast((0, 1, 1)).high > 0

    def share(self) -> float | None:
        """Return G's share of compute at the best split, at every budget; None if it is not between 0 and 1."""
        g, d = self.coefficients[1:]
        return float(g / (g + d)) if g > 0 and d > 0 else None

    def share_interval(self, low: float, high: float) -> tuple[float | None, float | None]:
        """Return the 95 % interval of the best share within [low, high]; an end is None where it goes beyond.

        An interval wholly below `low` is (None, low), and one wholly above `high` is (high, None). It is Fieller's: the
        shares s at which (1 - s) b_g - s b_d, what the metric gains as compute goes to G, may be 0.
        """
        # The square of the gain less its limit is a quadratic in s, and negative inside the interval.
        (gg, gd), (_, dd) = self.covariance[1:, 1:] * self.quantile**2
        g, d = self.coefficients[1:]
        square, linear, constant = (g + d) ** 2 - (gg + 2 * gd + dd), gg + gd - g * (g + d), g**2 - gg
        beyond = [square * edge**2 + 2 * linear * edge + constant <= 0 for edge in (low, high)]
        if all(beyond):
            return None, None
        root = math.sqrt(max(linear**2 - square * constant, 0.0))  # negative by rounding alone
        ends = sorted((sign * root - linear) / square for sign in (-1, 1))
        if square < 0:  # every share but those between the ends
            return None if not beyond[1] or beyond[0] else float(ends[1]), float(ends[0]) if beyond[0] else None
        if not any(beyond) and not low <= ends[0] <= high:
            return (None, low) if ends[0] < low else (high, None)
        return None if beyond[0] else float(ends[0]), None if beyond[1] else float(ends[1])


def fit_first_order(log_g: ArrayLike, log_d: ArrayLike, log_value: ArrayLike, better: int) -> FirstOrder:
    """Fit points [n] by least squares; better: -1 if a lower value is better, 1 if a higher one is."""
    value = np.asarray(log_value, dtype=np.float64)
    compute = better * np.stack([log_g, log_d], axis=1).astype(np.float64)
    # Far from the points the columns are nearly equal, so the fit is made at their means.
    centre = compute.mean(axis=0)
    design = np.column_stack([np.ones(len(value)), compute - centre])
    coefficients = np.linalg.lstsq(design, value, rcond=None)[0]
    fitted = design @ coefficients
    rss = float(((value - fitted) ** 2).sum())
    covariance = np.linalg.inv(design.T @ design) * rss / (len(value) - 3)
    back = np.eye(3)
    back[0, 1:] = -centre
    return FirstOrder(back @ coefficients, back @ covariance @ back.T, fitted, rss)
