import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from analysis.fits.additive import AdditiveLaw, fit_additive, residual_sums
from analysis.fits.descent import EXPONENTS, Points

X, Y = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e3, 3e4, 4), np.geomspace(5e3, 1.5e5, 4)))
TRUTH = {"floor": 5.0, "a": 40.0, "alpha": 0.3, "b": 300.0, "beta": 0.4}


def value_of(floor: float, a: float, alpha: float, b: float, beta: float) -> np.ndarray:
    return floor + a * X**-alpha + b * Y**-beta


def noisy(noise: float, draw: int, **changes: float) -> np.ndarray:
    return value_of(**TRUTH | changes) * np.exp(np.random.default_rng(draw).normal(0, noise, len(X)))


def by_scipy(value: np.ndarray, root: Any = 1.0, split: tuple[float, float] | None = None) -> float:
    """Least residual sum of many starts; split: a budget and ln(x / y) where the law must be least."""
    u, w = np.log(X) - np.log(X).mean(), np.log(Y) - np.log(Y).mean()

    def residuals(p: np.ndarray) -> np.ndarray:
        floor, a, alpha, beta = p[:4]
        if split is None:
            b = p[4]
        else:  # the derivative along x + y = budget is 0
            x = split[0] / (1 + math.exp(-split[1]))
            y = split[0] - x
            b = a * alpha / x * (x / np.exp(np.log(X).mean())) ** -alpha
            b /= beta / y * (y / np.exp(np.log(Y).mean())) ** -beta
        return root * (np.log(value) - np.log(np.maximum(floor + a * np.exp(-alpha * u) + b * np.exp(-beta * w), 1e-9)))

    low, high = [0, 0, EXPONENTS[0], EXPONENTS[0], 0], [np.inf, np.inf, EXPONENTS[1], EXPONENTS[1], np.inf]
    n = 4 if split else 5
    starts = [
        [share * value.min(), 1, a, b, 1] for share in (0.2, 0.8) for a in (0.1, 0.3, 0.9) for b in (0.1, 0.3, 0.9)
    ]
    found = [
        optimize.least_squares(residuals, s[:n], bounds=(low[:n], high[:n]), x_scale="jac", ftol=1e-12, xtol=1e-12)
        for s in starts
    ]
    return min(2 * float(one.cost) for one in found)


@pytest.mark.parametrize("changes", [{}, {"floor": 0.0}, {"alpha": 0.1, "beta": 0.9, "b": 3e4}, {"a": 0.0}])
def test_a_planted_law_is_found(changes: dict[str, float]) -> None:
    planted = TRUTH | changes
    law = fit_additive(X, Y, value_of(**planted))
    found = law.coefficients()
    names = ["floor", "b", "beta"] if planted["a"] == 0 else list(planted)
    assert [found[name] for name in names] == pytest.approx([planted[name] for name in names], rel=1e-3, abs=1e-3)
    assert law.converged and law.agreeing >= 1 and law.rss < 1e-13
    assert law.predict([2e3, 5e3], [1e4, 1e5]) == pytest.approx(
        [planted["floor"] + planted["a"] * x ** -planted["alpha"] + planted["b"] * y ** -planted["beta"]
         for x, y in ((2e3, 1e4), (5e3, 1e5))], rel=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_no_start_of_scipy_finds_a_better_law(noise: float) -> None:
    for draw in range(4):
        value = noisy(noise, draw)
        law = fit_additive(X, Y, value)
        assert law.rss <= by_scipy(value) * (1 + 1e-6)
        assert law.rss == pytest.approx(float(((np.log(value) - np.log(law.predict(X, Y))) ** 2).sum()))
        assert law.converged and law.agreeing >= 2


def test_weights_count() -> None:
    value, weights = noisy(0.1, 1), np.linspace(1, 3, len(X))
    law = fit_additive(X, Y, value, weights)
    root = np.sqrt(weights / weights.mean())
    assert law.rss == pytest.approx(by_scipy(value, root), rel=1e-6)
    assert fit_additive(X, Y, value, 7 * weights).parameters == pytest.approx(law.parameters)
    assert abs(fit_additive(X, Y, value).rss / law.rss - 1) > 0.01


def test_units_change_nothing() -> None:
    value = noisy(0.05, 2)
    one, other = fit_additive(X, Y, value), fit_additive(1e9 * X, 1e-3 * Y, 1e-7 * value)
    assert other.rss == pytest.approx(one.rss)
    a, b = one.coefficients(), other.coefficients()
    assert [b["alpha"], b["beta"], b["floor"]] == pytest.approx([a["alpha"], a["beta"], 1e-7 * a["floor"]], rel=1e-4)
    assert other.predict(1e9 * X, 1e-3 * Y) == pytest.approx(1e-7 * one.predict(X, Y), rel=1e-5)


def test_what_ended_at_a_bound_is_named_and_is_a_degree_of_freedom() -> None:
    law = fit_additive(X, Y, np.exp(15 - 0.2 * np.log(X) - 0.3 * np.log(Y)))
    assert law.at_bound == ("floor",) and law.dof == 12
    steep = fit_additive(X, Y, 5 + 1e13 * X**-4.5 + 300 * Y**-0.4)
    assert steep.at_bound == ("alpha",) and steep.coefficients()["alpha"] == EXPONENTS[1]
    assert fit_additive(X, Y, noisy(0.01, 0)).at_bound == ()


def test_too_few_points_are_refused() -> None:
    for x, y in ((X[:5], Y[:5]), (X[:8], Y[:8]), (np.minimum(X, 3e3), Y)):
        with pytest.raises(ValueError, match="needs 6 points, with three values of x and three of y"):
            fit_additive(x, y, np.linspace(2, 1, len(x)))


def test_many_at_once_are_as_good_as_one_at_a_time() -> None:
    values = np.stack([noisy(0.1, draw) for draw in range(50)])
    together = residual_sums(Points.of(X, Y), np.log(values))
    alone = np.array([fit_additive(X, Y, value).rss for value in values])
    assert together == pytest.approx(alone, rel=5e-3)


# ---------------------------------------------------------------- the best split


def least(law: AdditiveLaw, budget: float) -> float:
    """ln(x / y) of the least value, by scipy."""

    def value(r: float) -> float:
        x = budget / (1 + math.exp(-r))
        return float(law.predict([x], [budget - x])[0])

    return float(optimize.minimize_scalar(value, bounds=(-12, 12), method="bounded", options={"xatol": 1e-9}).x)


def test_the_best_split_has_the_least_value_and_changes_with_the_budget() -> None:
    law = fit_additive(X, Y, value_of(**TRUTH))
    splits = [law.log_split(budget) for budget in (1e4, 1e5, 1e6)]
    assert splits == pytest.approx([least(law, budget) for budget in (1e4, 1e5, 1e6)], abs=1e-4)
    assert splits[0] < splits[1] < splits[2]  # beta is larger: y needs ever less
    without_x, without_y = law.parameters.copy(), law.parameters.copy()
    without_x[1], without_y[3] = 0, 0
    assert replace(law, parameters=without_x).log_split(1e5) == -math.inf
    assert replace(law, parameters=without_y).log_split(1e5) == math.inf


def test_the_ends_of_an_interval_are_as_bad_as_the_f_test_allows() -> None:
    value = noisy(0.05, 3)
    law = fit_additive(X, Y, value)
    assert law.limit == pytest.approx(law.rss * (1 + stats.f.ppf(0.95, 1, law.dof) / law.dof))
    (low, high), (lower, upper) = law.split_intervals([5e4, 1e5], -6, 6)
    for budget, end in ((5e4, low), (5e4, high), (1e5, lower), (1e5, upper)):
        assert end is not None
        assert by_scipy(value, split=(budget, end)) == pytest.approx(law.limit, rel=2e-3)
    assert low < law.log_split(5e4) < high  # type: ignore[operator]


def test_an_interval_that_goes_beyond_says_so() -> None:
    law = fit_additive(X, Y, noisy(0.05, 3))
    low, high = law.split_intervals([5e4], -6, 6)[0]
    assert low is not None and high is not None
    middle = law.log_split(5e4)
    cut_low, cut_high = (low + middle) / 2, (high + middle) / 2
    assert law.split_intervals([5e4], cut_low, cut_high)[0] == (None, None)
    assert law.split_intervals([5e4], -6, cut_high)[0] == (pytest.approx(low, abs=1e-2), None)
    assert law.split_intervals([5e4], high + 1, high + 2)[0] == (None, high + 1)
    assert law.split_intervals([5e4], low - 2, low - 1)[0] == (low - 1, None)
    # The optimum is beyond, but the interval is not wholly.
    assert law.split_intervals([5e4], cut_high, 6)[0] == (None, pytest.approx(high, abs=1e-2))


def test_intervals_of_parameters_hold_the_truth_and_a_floor_ends_at_zero() -> None:
    law = fit_additive(X, Y, noisy(0.01, 4))
    for name, truth in TRUTH.items():
        if name not in ("a", "b"):
            low, high = law.interval(name)
            assert low is not None and high is not None and low < truth < high
    assert fit_additive(X, Y, noisy(0.1, 4)).interval("floor")[0] == 0.0


def test_exact_points_have_intervals_of_nearly_no_width() -> None:
    law = fit_additive(X, Y, value_of(**TRUTH))
    low, high = law.split_intervals([5e4], -6, 6)[0]
    assert low is not None and high is not None and low < law.log_split(5e4) < high and high - low < 1e-3


@pytest.mark.slow
def test_profiles_cover() -> None:
    law = fit_additive(X, Y, value_of(**TRUTH))
    budget, draws = 5e4, 300
    truth = law.log_split(budget)
    held = np.zeros(3)
    for draw in range(draws):
        found = fit_additive(X, Y, noisy(0.03, 1000 + draw))
        ends = [found.split_intervals([budget], -6, 6)[0], found.interval("alpha"), found.interval("beta")]
        for i, ((low, high), at) in enumerate(zip(ends, (truth, TRUTH["alpha"], TRUTH["beta"]), strict=True)):
            held[i] += (low is None or low <= at) and (high is None or at <= high)
    assert ((held / draws >= 0.92) & (held / draws <= 0.985)).all()
