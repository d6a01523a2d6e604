"""Self-test of the split's intervals: the exponents of both laws, and G's share of compute at the best split."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy import special

from analysis.best_split import best_splits
from analysis.fits.additive import fit_additive
from analysis.fits.first_order import fit_first_order
from analysis.selftest.case import Case, Held
from analysis.two_laws import choose

FLOOR, A_G, EXPONENT_G, A_D, EXPONENT_D = 5.0, 300.0, 0.3, 2000.0, 0.4
B_G, B_D = 0.2, 0.3
SEEDS, CELLS = 0.05, 0.1  # standard deviations of ln value between seeds, and between cells, which seeds share
SMALL = 0.03

Draw = Callable[[np.random.Generator], Held]
Ends = tuple[float | None, float | None]


def cases() -> Iterator[Case]:
    yield Case("exponent of G, first-order law, 9 cells (Student t)", "", _first_exponent(3, 0.0, 1))
    strays = "cells stray by 0.1, their 3 seeds by 0.05"
    yield Case("exponent of G, first-order law, 16 cells (Student t)", strays, _first_exponent(4, CELLS, 3))
    yield Case("best share, first-order law, 16 cells (Fieller)", strays, _first_share(4, CELLS, 3))
    yield Case("best share, first-order law, 9 cells (Fieller)", "", _first_share(3, 0.0, 1))
    yield Case("exponent of G, additive law, 16 cells (profile)", "", _additive_exponent(4), slow=True)
    yield Case("best share, additive law, 16 cells (profile)", "", _additive_share(4), slow=True)
    yield Case("best share, of the laws not rejected, 16 cells, additive", "", _either(4), slow=True)


def _grid(sizes: int) -> np.ndarray:
    """Return C_G and C_D of sizes^2 cells [n, 2]; each spans a factor of 27."""
    g, d = np.meshgrid(1.5e6 * np.geomspace(1, 27, sizes), 7.5e6 * np.geomspace(1, 27, sizes))
    return np.column_stack([g.ravel(), d.ravel()])


def _noise(random: np.random.Generator, n: int, stray: float, seeds: int) -> np.ndarray:
    """Return what a cell's mean ln value is off by [n]."""
    noise: np.ndarray = random.normal(0, stray, n) + random.normal(0, SEEDS, (seeds, n)).mean(axis=0)
    return noise


def _first(compute: np.ndarray) -> np.ndarray:
    law: np.ndarray = 9 - B_G * np.log(compute[:, 0]) - B_D * np.log(compute[:, 1])
    return law


def _additive(compute: np.ndarray) -> np.ndarray:
    law: np.ndarray = np.log(FLOOR + A_G * compute[:, 0] ** -EXPONENT_G + A_D * compute[:, 1] ** -EXPONENT_D)
    return law


def _budget(compute: np.ndarray) -> float:
    return math.exp(float(np.log(compute.sum(axis=1)).mean()))


def _best_share(budget: float) -> float:
    """The planted additive law's, by search."""
    share = special.expit(np.linspace(-5, 5, 100001))
    value = A_G * (budget * share) ** -EXPONENT_G + A_D * (budget * (1 - share)) ** -EXPONENT_D
    return float(share[value.argmin()])


def _held(ends: Ends, truth: float) -> Held:
    low, high = ends
    held = (low is None or low <= truth) and (high is None or truth <= high)
    return Held(held, low is not None and high is not None)


def _first_exponent(sizes: int, stray: float, seeds: int) -> Draw:
    compute = _grid(sizes)
    g, d = compute.T

    def draw(random: np.random.Generator) -> Held:
        value = _first(compute) + _noise(random, len(compute), stray, seeds)
        found = fit_first_order(np.log(g), np.log(d), value, -1).contrast((0, 1, 0))
        return _held((found.low, found.high), B_G)

    return draw


def _first_share(sizes: int, stray: float, seeds: int) -> Draw:
    compute = _grid(sizes)
    g, d = compute.T

    def draw(random: np.random.Generator) -> Held:
        value = _first(compute) + _noise(random, len(compute), stray, seeds)
        ends = fit_first_order(np.log(g), np.log(d), value, -1).share_interval(0.007, 0.84)
        return _held(ends, B_G / (B_G + B_D))

    return draw


def _additive_exponent(sizes: int) -> Draw:
    compute = _grid(sizes)
    g, d = compute.T

    def draw(random: np.random.Generator) -> Held:
        value = _additive(compute) + random.normal(0, SMALL, len(compute))
        return _held(fit_additive(g, d, np.exp(value)).interval("alpha"), EXPONENT_G)

    return draw


def _additive_share(sizes: int) -> Draw:
    compute = _grid(sizes)
    g, d = compute.T
    budget, truth = _budget(compute), special.logit(_best_share(_budget(compute)))

    def draw(random: np.random.Generator) -> Held:
        value = _additive(compute) + random.normal(0, SMALL, len(compute))
        return _held(fit_additive(g, d, np.exp(value)).split_intervals([budget], -5, 1.7)[0], truth)

    return draw


def _either(sizes: int) -> Draw:
    """The share that `split` prints: of the laws that its test leaves, with the additive law planted."""
    compute = _grid(sizes)
    g, d = compute.T
    budget, truth = _budget(compute), _best_share(_budget(compute))

    def draw(random: np.random.Generator) -> Held:
        value = _additive(compute) + random.normal(0, SMALL, len(compute))
        first, additive = fit_first_order(np.log(g), np.log(d), value, -1), fit_additive(g, d, np.exp(value))
        found = best_splits([budget], compute, first, additive, choose(first, additive).standing)[0]
        return _held((found.low, found.high), truth)

    return draw
