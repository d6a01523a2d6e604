"""The law with a floor: planted answers, what is not identifiable, and what a pinned floor does."""

import math

import numpy as np
import pytest
from scipy import optimize

from analysis.floor import compare_floors, fit_floor_law
from analysis.law import fit_power_law
from analysis.statistics import aicc

C = np.geomspace(1e4, 1e8, 8)


def test_a_planted_floor_is_found_from_every_start() -> None:
    fit = fit_floor_law(C, 5 + 3e3 * C**-0.45)
    assert (fit.floor, fit.b) == pytest.approx((5, 0.45), rel=1e-4) and fit.a == pytest.approx(3e3, rel=1e-3)
    assert len(fit.starts) == 20 and fit.agreeing == 20 and all(start.converged for start in fit.starts)
    assert fit.b_low is not None and fit.b_high is not None and fit.b_high - fit.b_low < 1e-3


def test_without_a_floor_it_is_the_power_law() -> None:
    value = 3e3 * C**-0.45 * np.exp(np.random.default_rng(1).normal(0, 0.05, 8))
    pinned, plain = fit_floor_law(C, value, floor=0.0), fit_power_law(C, value)
    assert (pinned.a, pinned.b) == pytest.approx((plain.a, plain.b), rel=1e-6)
    # With the floor known the model is linear in logarithms, where the profile is Student's interval.
    assert (pinned.b_low, pinned.b_high) == pytest.approx((plain.b_low, plain.b_high), abs=1e-4)


def test_the_optimum_is_scipys() -> None:
    """Against a global search of the same sum of squares."""
    value = (5 + 3e3 * C**-0.45) * np.exp(np.random.default_rng(2).normal(0, 0.03, 8))
    fit = fit_floor_law(C, value)

    def rss(p: np.ndarray) -> float:
        return float(((np.log(value) - np.log(p[0] + np.exp(p[1]) * C ** -p[2])) ** 2).sum())

    found = optimize.differential_evolution(rss, [(0, value.min()), (0, 15), (0, 2)], rng=0, tol=1e-10, maxiter=3000)
    assert fit.rss == pytest.approx(found.fun, rel=1e-5) and fit.b == pytest.approx(found.x[2], rel=1e-2)


def test_an_interval_that_has_no_end_says_so() -> None:
    """Two far sizes at the floor: how steeply the rest came down is anybody's guess."""
    value = np.array([10.0, 5.02, 5.01, 4.99])
    fit = fit_floor_law([1.0, 1e3, 2e3, 4e3], value)
    assert fit.b_high is None and fit.b_low is not None and fit.b_low < fit.b


def test_aicc_counts_sigma_and_needs_points() -> None:
    assert aicc(0.5, 4, 3) is None and aicc(0.5, 5, 4) is None
    assert aicc(0.5, 5, 3) == pytest.approx(5 * math.log(0.1) + 6 + 24)
    assert aicc(0.5, 6, 4) == pytest.approx(6 * math.log(0.5 / 6) + 8 + 40)


def test_below_six_sizes_neither_law_is_chosen() -> None:
    for n in (3, 4, 5):
        report = compare_floors(C[:n], 5 + 3e3 * C[:n] ** -0.45)
        assert report["verdict"] == f"not identifiable: {n} sizes, a comparison with and without a floor needs 6"
        assert (report["with_floor"] is None) == (n < 4)


@pytest.mark.parametrize(("floor", "said"), [(6.0, "with a floor"), (0.0, "without a floor")])
def test_aicc_finds_the_planted_law(floor: float, said: str) -> None:
    noise = np.exp(np.random.default_rng(3).normal(0, 0.02, 8))
    assert f"AICc prefers the law {said} by" in compare_floors(C, (floor + 3e3 * C**-0.45) * noise)["verdict"]


def test_a_pinned_floor_shows_what_it_does_to_the_exponent() -> None:
    value = 5 + 3e3 * C[:4] ** -0.45
    rows = compare_floors(C[:4], value, pinned=5.0)["pinned"]
    assert [row["floor"] for row in rows] == [0, 2.5, 4.5, 5, 5.5]
    exponents = [row["b"] for row in rows]
    assert exponents == sorted(exponents) and exponents[3] == pytest.approx(0.45, rel=1e-5)
    with pytest.raises(ValueError, match="not below the smallest value"):
        compare_floors(C[:4], value, pinned=value.min())


@pytest.mark.parametrize(
    ("c", "v", "floor"), [([1, 2, 3], [3, 2, 1], None), ([1, 2], [3, 2], 0.5), ([5, 5, 5, 5], [4, 3, 2, 1], None)]
)
def test_too_few_points_are_refused(c: list[float], v: list[float], floor: float | None) -> None:
    with pytest.raises(ValueError, match="points at different C"):
        fit_floor_law(c, v, floor)
