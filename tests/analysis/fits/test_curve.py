"""The curve with a floor: planted answers, a global search of the same sum of squares, intervals by brute force."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, stats

from analysis.fits.curve import fit_floors, region, scan_floors
from analysis.law import fit_curve
from analysis.noise import Noise

C = np.geomspace(1e4, 1e8, 8)


def test_a_planted_floor_is_found() -> None:
    fit = fit_curve(C, 5 + 3e3 * C**-0.45)
    assert fit.chosen == "found" and fit.test.f is not None and fit.test.f > 1e6
    assert (fit.floor, fit.b) == pytest.approx((5, 0.45), rel=1e-5) and fit.a == pytest.approx(3e3, rel=1e-4)
    assert fit.b_low is not None and fit.b_high is not None and fit.b_low < 0.45 < fit.b_high < fit.b_low + 1e-4
    np.testing.assert_allclose(fit.predict([1e10]), 5 + 3e3 * 1e10**-0.45, rtol=1e-5)


@pytest.mark.parametrize("n", [3, 4, 9])
def test_without_a_floor_all_is_students(n: int) -> None:
    random = np.random.default_rng(n)
    c = np.exp(random.uniform(10, 20, n))
    value = 5e4 * c**-0.4 * np.exp(random.normal(0, 0.2, n))
    fit = fit_curve(c, value, floor=0.0)
    reference = sm.OLS(np.log(value), sm.add_constant(np.log(c))).fit()
    _, (slope_low, slope_high) = reference.conf_int(0.05)
    np.testing.assert_allclose([fit.b, fit.b_low, fit.b_high], -np.array([reference.params[1], slope_high, slope_low]))
    assert fit.residual_std == pytest.approx(np.sqrt(reference.scale))
    new = np.array([1e3, 1e6, 1e12])
    frame = reference.get_prediction(sm.add_constant(np.log(new))).summary_frame(alpha=0.05)
    np.testing.assert_allclose(np.log(fit.band(new)), [frame["mean_ci_lower"], frame["mean_ci_upper"]], rtol=1e-6)
    np.testing.assert_allclose(
        np.log(fit.new_size(new, 1)), [frame["obs_ci_lower"], frame["obs_ci_upper"]], rtol=2e-3, atol=2e-3
    )


def test_weights_are_those_of_least_squares() -> None:
    random = np.random.default_rng(1)
    value = 3e3 * C**-0.4 * np.exp(random.normal(0, 0.1, 8))
    noise = Noise(float(np.log(C).mean()), slope=0.5, spread=0.1, effect=0.05)
    seeds = [1, 2, 3, 4, 4, 3, 2, 1]
    fit = fit_curve(C, value, 0.0, noise, seeds)
    reference = sm.WLS(np.log(value), sm.add_constant(np.log(C)), weights=1 / noise.variance(C, seeds)).fit()
    low, high = -reference.conf_int()[1][::-1]
    np.testing.assert_allclose([fit.b, fit.b_low, fit.b_high], [-reference.params[1], low, high])


def noisy(seed: int, noise: float = 0.05, floor: float = 5.0) -> np.ndarray:
    return (floor + 3e3 * C**-0.45) * np.exp(np.random.default_rng(seed).normal(0, noise, len(C)))


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_is_that_of_a_global_search(seed: int) -> None:
    value = noisy(seed)
    fits = scan_floors(C, value)
    best = int(fits.rss.argmin())

    def rss(p: np.ndarray) -> float:
        return float(((np.log(value) - np.log(p[0] + np.exp(p[1]) * C ** -p[2])) ** 2).sum())

    found = optimize.differential_evolution(rss, [(0, value.max()), (0, 15), (0, 2)], rng=0, tol=1e-12, maxiter=3000)
    assert fits.rss[best] == pytest.approx(found.fun, rel=1e-6) and fits.converged[best]
    assert fits.b[best] == pytest.approx(found.x[2], rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_ranges_are_those_of_brute_force(seed: int) -> None:
    """Over a fine grid of all three parameters."""
    value = noisy(seed)
    scanned = scan_floors(C, value)
    limit = float(scanned.rss.min()) * (1 + stats.f.ppf(0.95, 1, 5) / 5)
    found = region(C, value, scanned, limit)
    x = np.log(C) - np.log(C).mean()
    floors, exponents, levels = np.linspace(0, 8, 81), np.linspace(0.2, 1.0, 161), np.linspace(-2, 4, 301)
    falling = levels[:, None, None, None] - exponents[:, None, None] * x
    rss = ((np.log(value) - np.logaddexp(np.log(np.maximum(floors, 1e-300))[:, None], falling)) ** 2).sum(axis=-1)
    level, b, floor = (
        grid[index] for grid, index in zip((levels, exponents, floors), np.nonzero(rss <= limit), strict=True)
    )
    assert found.exponents() == pytest.approx((b.min(), b.max()), abs=0.01)
    assert found.floors() == pytest.approx((floor.min(), floor.max()), abs=0.15)
    for c in (1e3, 1e6, 1e10):
        curve = floor + np.exp(level - b * (np.log(c) - np.log(C).mean()))
        low, high = found.values([c])
        # A grid of points lies inside, so its range is a little narrower.
        assert low[0] <= curve.min() <= low[0] * 1.05 and high[0] >= curve.max() >= high[0] * 0.95


def test_an_interval_without_an_end_says_so() -> None:
    """Three sizes at the floor: how steeply the value came down before is not known."""
    fit = fit_curve([1.0, 1e3, 2e3, 4e3, 8e3], [10.0, 5.02, 5.01, 4.99, 5.0])
    assert fit.chosen == "found" and fit.b_high is None and fit.b_low is not None and fit.b_low < fit.b


def test_the_floor_is_found_by_a_one_sided_f_test() -> None:
    """Against the F statistic by hand; the p is half, because E = 0 lies at the edge (Self and Liang 1987)."""
    value = noisy(5, 0.03)
    fit = fit_curve(C, value)
    plain = float(fit_floors(C, value, [0.0]).rss[0])
    free = float(scan_floors(C, value).rss.min())
    f = (plain - free) / (free / 5)
    assert fit.test.f == pytest.approx(f) and fit.test.p == pytest.approx(stats.f.sf(f, 1, 5) / 2)
    assert fit.test.found and fit.degrees_of_freedom == 5


def test_a_floor_that_is_not_found_is_allowed_for() -> None:
    """The lower end is that of Student's t, the upper one is higher: a floor would make b larger."""
    value = noisy(1, 0.1, floor=0.0)
    fit, plain = fit_curve(C, value), fit_curve(C, value, floor=0.0)
    assert fit.chosen == "free" and fit.floor == 0 and fit.b == pytest.approx(plain.b)
    assert fit.b_low == pytest.approx(plain.b_low) and fit.b_high is not None and plain.b_high is not None
    assert fit.b_high > plain.b_high and fit.floor_high is not None and fit.floor_high > 0
    assert fit.band([1e10])[1] > plain.band([1e10])[1] and fit.band([1e10])[0] == pytest.approx(plain.band([1e10])[0])


def test_a_given_floor_is_not_doubted() -> None:
    value = 5 + 3e3 * C[:4] ** -0.45
    fit = fit_curve(C[:4], value, floor=5.0)
    assert (fit.chosen, fit.floor, fit.floor_low, fit.floor_high) == ("given", 5, 5, 5)
    assert fit.b == pytest.approx(0.45) and fit.test.not_possible == "the floor is given"
    for floor in (float(value.min()), -1.0):
        with pytest.raises(ValueError, match="not below the smallest value"):
            fit_curve(C[:4], value, floor=floor)


def test_a_metric_that_rises_has_students_interval() -> None:
    """It does not fall towards a floor, so there is none to allow for."""
    c, value = [1e3, 1e4, 1e5, 1e6], [5.0, 6.0, 9.0, 8.0]
    fit, plain = fit_curve(c, value), fit_curve(c, value, floor=0.0)
    assert (fit.b_low, fit.b_high) == pytest.approx((plain.b_low, plain.b_high)) and fit.b < 0
    assert fit.test.not_possible == "the metric does not fall"


def test_points_of_one_size_are_not_independent() -> None:
    """Four sizes at five lengths, where a size strays as a whole: the interval is wider than for twenty points."""
    random = np.random.default_rng(0)
    sizes = np.repeat(np.arange(4), 5)
    c = np.geomspace(1e4, 1e7, 4)[sizes] * np.tile(np.geomspace(1, 10, 5), 4)
    value = 3e3 * c**-0.4 * np.exp(random.normal(0, 0.2, 4)[sizes] + random.normal(0, 0.01, 20))
    fit, apart = fit_curve(c, value, sizes=sizes.tolist()), fit_curve(c, value, floor=0.0)
    assert (fit.points, fit.sizes, fit.degrees_of_freedom) == (20, 4, 2)
    assert fit.b_low is not None and apart.b_low is not None and fit.b - fit.b_low > 2 * (apart.b - apart.b_low)
    assert fit.test.p is None and "not independent" in fit.test.not_possible


@pytest.mark.parametrize(
    ("c", "message"), [([5.0, 5, 5], "all points have the same"), ([5.0, 6], "at least 3 sizes, got 2")]
)
def test_too_few_points_are_refused(c: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_curve(c, range(1, len(c) + 1))
