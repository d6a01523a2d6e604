"""Which of two laws of a split a table allows: the additive law, or the first-order one.

Neither is a special case of the other, so each is tested with draws from it (Williams 1970): how often does the other
law fit better beside it than it did in the table? The draws of the first-order law have its fit and its residual sum,
and only the direction of the residuals is random: given these two, the test is exact (Langsrud 2005, rotation tests).
The other test is not exact and rejects a true additive law less often than LEVEL.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fits.additive import AdditiveLaw, residual_sums
from analysis.fits.first_order import FirstOrder
from analysis.statistics import ROUNDING

Array = NDArray[np.float64]
DRAWS = 199  # from each law
# Not 5 %: a law that is rejected wrongly takes its interval with it, and the share's would hold the truth in 90 %.
LEVEL = 0.02


@dataclass(frozen=True)
class Choice:
    """The p of each law. A law is rejected where its p is at most LEVEL."""

    first_order: float
    additive: float

    @property
    def standing(self) -> tuple[str, ...]:
        """The laws that are not rejected; both, if both are."""
        laws = {"additive": self.additive, "first_order": self.first_order}
        return tuple(name for name, p in laws.items() if p > LEVEL) or tuple(laws)

    @property
    def verdict(self) -> str:
        additive, first = (f"(p = {p:.2g})" for p in (self.additive, self.first_order))
        match self.additive > LEVEL, self.first_order > LEVEL:
            case True, False:
                return f"the additive law: the first-order one is rejected {first}"
            case False, True:
                return f"the first-order law: the additive one is rejected {additive}"
            case True, True:
                return f"both laws fit: neither the additive one {additive} nor the first-order one {first} is rejected"
        return f"neither law fits: the additive one {additive} and the first-order one {first} are rejected"


def choose(first: FirstOrder, additive: AdditiveLaw) -> Choice:
    """Test each law against the other, both fitted to the same points. Equal input gives equal p."""
    points, n = additive.points, additive.n
    # Of the values themselves: with one seed for all tables the errors of the draws would be the same in all.
    random = np.random.default_rng(additive.log_value.view(np.uint32))
    design, _ = np.linalg.qr(np.column_stack([np.ones(n), points.x, points.y]))
    rounding = n * ROUNDING**2

    def ratios(log_values: Array) -> Array:
        """Return ln of the first-order law's residual sum over the additive law's [DRAWS]."""
        left = ((log_values - log_values @ design @ design.T) ** 2).sum(axis=1)
        return np.log((left + rounding) / (residual_sums(points, log_values) + rounding))

    found = math.log((first.rss + rounding) / (additive.rss + rounding))
    noise = random.normal(0, 1, (2, DRAWS, n))
    residuals = noise[0] - noise[0] @ design @ design.T
    residuals *= np.sqrt((first.rss + rounding) / (residuals**2).sum(axis=1, keepdims=True))
    fitted = points.log_values(additive.parameters[None])[0]
    others = fitted + noise[1] * math.sqrt((additive.rss + rounding) / additive.dof)
    above = int((ratios(first.fitted + residuals) >= found).sum())
    below = int((ratios(others) <= found).sum())
    return Choice((1 + above) / (DRAWS + 1), (1 + below) / (DRAWS + 1))
