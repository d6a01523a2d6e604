"""The best split of compute between G and D as a function of the budget, by the laws that a table allows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.fits.additive import AdditiveLaw
from analysis.fits.first_order import FirstOrder

METHOD = (
    "G's share of C_G + C_D = gflops where the law has its best value. share is that of the standing law that fits "
    "best, and low to high holds the 95 % intervals of all standing laws: profiles (F test) of the additive law, "
    "Fieller's of the first-order law. They are searched among the shares of the cells; an end that is null lies "
    "beyond them. trained says whether that C_G and C_D lie between the smallest and the largest of the cells."
)
Ends = tuple[float | None, float | None]


@dataclass(frozen=True)
class Share:
    """G's share at the best split and its 95 % interval; None is beyond the shares of the cells."""

    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class BestSplit:
    """The share of a budget [GFLOPs] by the standing laws together, and by each law that was fitted."""

    gflops: float
    share: float | None
    low: float | None
    high: float | None
    trained: bool  # whether sizes with this compute lie within those trained
    by_law: dict[str, Share]


def best_splits(
    budgets: Sequence[float],
    compute: np.ndarray,
    first: FirstOrder,
    additive: AdditiveLaw | None,
    standing: Sequence[str],
) -> list[BestSplit]:
    """Return the best split of each budget [GFLOPs].

    compute: C_G and C_D of the cells [n, 2]. standing: the laws that count, that which fits best first.
    """
    log_ratios = np.log(compute[:, 0] / compute[:, 1])
    low, high = float(log_ratios.min()), float(log_ratios.max())
    shares = _share(low), _share(high)
    constant = Share(_among(first.share(), shares), *first.share_interval(*shares))
    laws: list[dict[str, Share]] = [{"first_order": constant} for _ in budgets]
    if additive is not None:
        for law, budget, ends in zip(laws, budgets, additive.split_intervals(budgets, low, high), strict=True):
            best = _among(_share(additive.log_split(budget)), shares)
            law["additive"] = Share(best, *(None if end is None else _share(end) for end in ends))
    return [_together(budget, law, standing, compute) for budget, law in zip(budgets, laws, strict=True)]


def _together(budget: float, laws: dict[str, Share], standing: Sequence[str], compute: np.ndarray) -> BestSplit:
    share = laws[standing[0]].share
    lows, highs = [laws[law].low for law in standing], [laws[law].high for law in standing]
    low = None if None in lows else min(end for end in lows if end is not None)
    high = None if None in highs else max(end for end in highs if end is not None)
    trained = False
    if share is not None:
        at = budget * np.array([share, 1 - share])
        trained = bool((at >= compute.min(axis=0)).all() and (at <= compute.max(axis=0)).all())
    return BestSplit(budget, share, low, high, trained, laws)


def _share(log_ratio: float) -> float:
    return float(special.expit(log_ratio))


def _among(share: float | None, shares: tuple[float, float]) -> float | None:
    return share if share is not None and shares[0] <= share <= shares[1] else None
