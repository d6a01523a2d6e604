"""Self-test of the intervals (`fit-law --selftest`): how often they hold the known answer of a drawn law.

A 95 % interval should hold the truth in 93 to 97 % of so many draws; below that it is too narrow.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import stats

from analysis.floor import fit_floor_law
from analysis.law import fit_power_law
from analysis.scrutiny import fit_clustered

BAR = (0.93, 0.97)
DRAWS = 2000  # a standard error of 0.5 % at 95 %
SLOW_DRAWS = 400  # for a fit without closed form; a standard error of 1.1 %
A, B, FLOOR = 3.5e3, 0.45, 4.0
NOISE = 0.1  # standard deviation of ln value between sizes, as in the paper's four points

Draw = Callable[[np.random.Generator], tuple[bool, bool]]  # (the interval holds the truth, it has both ends)


def run_selftest(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure each interval's coverage over the draws, its own 95 % interval, and whether it meets BAR, for JSON.

    say: receives a line for each interval when it is done.
    """
    rows = []
    for name, draw, draws in _cases():
        random = np.random.default_rng(0)
        found = [draw(random) for _ in range(draws)]
        held, bounded = (sum(part) for part in zip(*found, strict=True))
        interval = stats.binomtest(held, draws).proportion_ci(method="wilson")
        row = {
            "interval": name,
            "draws": draws,
            "held": held,
            "coverage": held / draws,
            "low": float(interval.low),
            "high": float(interval.high),
            "unbounded": draws - bounded,
            # The coverage is an estimate: it fails only if its whole interval lies outside the bar.
            "passes": bool(interval.low <= BAR[1] and interval.high >= BAR[0]),
        }
        say(f"{name}: {row['coverage']:.1%} of {draws}")
        rows.append(row)
    return rows


def _cases() -> Iterator[tuple[str, Draw, int]]:
    for sizes in (3, 4, 8):
        yield f"exponent, {sizes} sizes (Student t)", _exponent(sizes), DRAWS
        yield f"next size, from {sizes} (prediction band)", _next_size(sizes), DRAWS
    yield "exponent with a floor, 8 sizes (profile)", _with_floor(8, None), SLOW_DRAWS
    yield "exponent with a pinned floor, 4 sizes (profile)", _with_floor(4, FLOOR), SLOW_DRAWS
    yield "exponent over checkpoints of 12 runs (jackknife by run)", _checkpoints(4, 3), DRAWS


def _law(compute: np.ndarray, floor: float = 0.0) -> np.ndarray:
    return floor + A * compute**-B


def _exponent(sizes: int) -> Draw:
    compute = np.geomspace(1e4, 1e6, sizes)

    def draw(random: np.random.Generator) -> tuple[bool, bool]:
        fit = fit_power_law(compute, _law(compute) * np.exp(random.normal(0, NOISE, sizes)))
        return fit.b_low <= B <= fit.b_high, True

    return draw


def _next_size(sizes: int) -> Draw:
    compute = np.geomspace(1e4, 1e6, sizes + 1)

    def draw(random: np.random.Generator) -> tuple[bool, bool]:
        value = _law(compute) * np.exp(random.normal(0, NOISE, sizes + 1))
        low, high = fit_power_law(compute[:-1], value[:-1]).band(compute[-1:])
        return bool(low[0] <= value[-1] <= high[0]), True

    return draw


def _with_floor(sizes: int, pinned: float | None) -> Draw:
    compute = np.geomspace(1e4, 1e7, sizes)
    noise = NOISE if pinned is not None else NOISE / 3  # a floor can only be found in points with little noise

    def draw(random: np.random.Generator) -> tuple[bool, bool]:
        value = _law(compute, FLOOR) * np.exp(random.normal(0, noise, sizes))
        fit = fit_floor_law(compute, value, pinned)
        low, high = (end if end is not None else side for end, side in ((fit.b_low, -np.inf), (fit.b_high, np.inf)))
        return low <= B <= high, fit.b_low is not None and fit.b_high is not None

    return draw


def _checkpoints(sizes: int, seeds: int, checkpoints: int = 5) -> Draw:
    runs = np.repeat(np.arange(sizes * seeds), checkpoints)
    ends = np.tile(np.repeat(np.geomspace(1e4, 1e6, sizes), seeds), 1)
    compute = (ends[:, None] * np.linspace(1 / checkpoints, 1, checkpoints)).ravel()

    def draw(random: np.random.Generator) -> tuple[bool, bool]:
        together = np.repeat(random.normal(0, NOISE, sizes * seeds), checkpoints)  # what a run's checkpoints share
        value = _law(compute) * np.exp(together + random.normal(0, NOISE / 2, len(compute)))
        found = fit_clustered(compute, value, runs)
        return found.b_low <= B <= found.b_high, True

    return draw
