"""Runs the self-test: each interval's coverage, with its own uncertainty.

A 95 % interval should hold the truth in 93 to 97 % of so many draws; below that it is too narrow.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from analysis.selftest import case as sizes
from analysis.selftest import compare, law, rates, split
from analysis.selftest.case import Case

BAR = (0.93, 0.97)
CASES = (law.cases, split.cases, rates.cases, compare.cases)


def run_selftest(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure each interval's coverage over the draws, its own 95 % interval, and whether it meets BAR, for JSON.

    say: receives a line for each interval when it is done.
    """
    rows = []
    for one in (one for cases in CASES for one in cases()):
        rows.append(_measure(one))
        say(f"{one.interval}{one.planted and f', {one.planted}'}: {rows[-1]['coverage']:.1%} of {rows[-1]['draws']}")
    return rows


def _measure(one: Case) -> dict[str, Any]:
    draws = sizes.SLOW_DRAWS if one.slow else sizes.DRAWS
    random = np.random.default_rng(0)
    found = [one.draw(random) for _ in range(draws)]
    held = sum(draw.truth for draw in found)
    interval = stats.binomtest(held, draws).proportion_ci(method="wilson")
    return {
        "interval": one.interval,
        "planted": one.planted,
        "draws": draws,
        "held": held,
        "coverage": held / draws,
        "low": float(interval.low),
        "high": float(interval.high),
        "unbounded": sum(not draw.bounded for draw in found),
        # The coverage is an estimate: it fails only if its whole interval lies outside the bar.
        "passes": bool(interval.low <= BAR[1] and interval.high >= BAR[0]),
    }
