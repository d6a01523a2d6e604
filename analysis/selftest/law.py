"""Self-test of the law's intervals."""

from collections.abc import Callable, Iterator

import numpy as np

from analysis.floor import fit_floor_law
from analysis.law import fit_power_law
from analysis.scrutiny import fit_clustered
from analysis.selftest.case import Case, Held

A, B, FLOOR = 3.5e3, 0.45, 4.0
NOISE = 0.1  # standard deviation of ln value between sizes, as in the paper's four points

Draw = Callable[[np.random.Generator], Held]


def cases() -> Iterator[Case]:
    for sizes in (3, 4, 8):
        yield Case(f"exponent, {sizes} sizes (Student t)", "", _exponent(sizes))
        yield Case(f"next size, from {sizes} (prediction band)", "", _next_size(sizes))
    yield Case("exponent with a floor, 8 sizes (profile)", "", _with_floor(8, None), slow=True)
    yield Case("exponent with a pinned floor, 4 sizes (profile)", "", _with_floor(4, FLOOR), slow=True)
    yield Case("exponent over checkpoints of 12 runs (jackknife by run)", "", _checkpoints(4, 3))


def _law(compute: np.ndarray, floor: float = 0.0) -> np.ndarray:
    return floor + A * compute**-B


def _exponent(sizes: int) -> Draw:
    compute = np.geomspace(1e4, 1e6, sizes)

    def draw(random: np.random.Generator) -> Held:
        fit = fit_power_law(compute, _law(compute) * np.exp(random.normal(0, NOISE, sizes)))
        return Held(fit.b_low <= B <= fit.b_high)

    return draw


def _next_size(sizes: int) -> Draw:
    compute = np.geomspace(1e4, 1e6, sizes + 1)

    def draw(random: np.random.Generator) -> Held:
        value = _law(compute) * np.exp(random.normal(0, NOISE, sizes + 1))
        low, high = fit_power_law(compute[:-1], value[:-1]).band(compute[-1:])
        return Held(bool(low[0] <= value[-1] <= high[0]))

    return draw


def _with_floor(sizes: int, pinned: float | None) -> Draw:
    compute = np.geomspace(1e4, 1e7, sizes)
    noise = NOISE if pinned is not None else NOISE / 3  # a floor can only be found in points with little noise

    def draw(random: np.random.Generator) -> Held:
        value = _law(compute, FLOOR) * np.exp(random.normal(0, noise, sizes))
        fit = fit_floor_law(compute, value, pinned)
        low, high = (end if end is not None else side for end, side in ((fit.b_low, -np.inf), (fit.b_high, np.inf)))
        return Held(low <= B <= high, fit.b_low is not None and fit.b_high is not None)

    return draw


def _checkpoints(sizes: int, seeds: int, checkpoints: int = 5) -> Draw:
    runs = np.repeat(np.arange(sizes * seeds), checkpoints)
    ends = np.tile(np.repeat(np.geomspace(1e4, 1e6, sizes), seeds), 1)
    compute = (ends[:, None] * np.linspace(1 / checkpoints, 1, checkpoints)).ravel()

    def draw(random: np.random.Generator) -> Held:
        together = np.repeat(random.normal(0, NOISE, sizes * seeds), checkpoints)  # what a run's checkpoints share
        value = _law(compute) * np.exp(together + random.normal(0, NOISE / 2, len(compute)))
        found = fit_clustered(compute, value, runs)
        return Held(found.b_low <= B <= found.b_high)

    return draw
