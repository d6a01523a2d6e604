"""Which of two laws of a split a table allows: the additive law, or the first-order one.

Neither is a special case of the other, so each is tested with draws from it (Williams 1970): how often does the other
law fit better beside it than it did in the table?
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.additive import ROUNDING, AdditiveLaw, residual_sums
from analysis.first_order import FirstOrder

Array = NDArray[np.float64]
DRAWS = 199  # from each law
LEVEL = 0.05


@dataclass(frozen=True)
class Choice:
    """The p of each law. A law is rejected where its p is below LEVEL."""

    first_order: float
    additive: float

    @property
    def standing(self) -> tuple[str, ...]:
        """The laws that are not rejected; both, if both are."""
        laws = {"additive": self.additive, "first_order": self.first_order}
        return tuple(name for name, p in laws.items() if p >= LEVEL) or tuple(laws)

    @property
    def verdict(self) -> str:
        additive, first = (f"(p = {p:.2g})" for p in (self.additive, self.first_order))
        match self.additive >= LEVEL, self.first_order >= LEVEL:
            case True, False:
                return f"the additive law: the first-order one is rejected {first}"
            case False, True:
                return f"the first-order law: the additive one is rejected {additive}"
            case True, True:
                return f"both laws fit: neither the additive one {additive} nor the first-order one {first} is rejected"
        return f"neither law fits: the additive one {additive} and the first-order one {first} are rejected"


def choose(first: FirstOrder, additive: AdditiveLaw) -> Choice:
    """Test each law against the other, both fitted to the same points. Equal input gives equal p."""
    random, n = np.random.default_rng(0), additive.n
    points = additive.points
    design, _ = np.linalg.qr(np.column_stack([np.ones(n), points.x, points.y]))
    rounding = n * ROUNDING**2
    found = math.log((first.rss + rounding) / (additive.rss + rounding))
    p = []
    for fitted, rss, dof, sign in (
        (first.fitted, first.rss, first.dof, 1),
        (points.log_values(additive.parameters[None])[0], additive.rss, additive.dof, -1),
    ):
        noise = max(math.sqrt(rss / dof), ROUNDING)
        drawn = fitted + random.normal(0, noise, (DRAWS, n))
        left = drawn - drawn @ design @ design.T
        ratio = np.log(((left**2).sum(axis=1) + rounding) / (residual_sums(points, drawn) + rounding))
        p.append((1 + int((sign * ratio >= sign * found).sum())) / (DRAWS + 1))
    return Choice(*p)
