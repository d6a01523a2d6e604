import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from analysis.parabola import fit_exponent, fit_parabola

WIDTHS = (384, 768, 1280, 1536)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_parabola_equals_statsmodels(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    rate = np.repeat(3e-4 * np.array(FACTORS), seeds)
    value = 20 * np.exp(0.4 * np.log(rate / 4e-4) ** 2 + rng.normal(0, 0.05, len(rate)))
    found = fit_parabola(rate, value)
    u = np.log(rate) - found.centre
    reference = sm.OLS(np.log(value), np.stack([np.ones_like(u), u, u**2], axis=1)).fit()
    np.testing.assert_allclose([found.level, found.tilt, found.curvature], reference.params, rtol=1e-9)
    np.testing.assert_allclose([found.curvature_low, found.curvature_high], reference.conf_int(0.05)[2], rtol=1e-9)
    assert found.residual_std == pytest.approx(math.sqrt(reference.scale))
    b, c = reference.params[1:]
    assert math.log(found.vertex) == pytest.approx(found.centre - b / (2 * c))
    gradient = np.array([0, -1 / (2 * c), b / (2 * c**2)])
    assert found.vertex_error == pytest.approx(math.sqrt(gradient @ reference.cov_params() @ gradient))
    # By definition, the ends of Fieller's interval are where the slope b + 2 c w just differs significantly from 0.
    for end in (found.vertex_low, found.vertex_high):
        assert end is not None
        test = reference.t_test(np.array([0, 1, 2 * (math.log(end) - found.centre)]))
        assert float(np.squeeze(test.pvalue)) == pytest.approx(0.05, rel=1e-6)


def test_the_interval_of_the_vertex_covers() -> None:
    rng = np.random.default_rng(0)
    rate, truth, fits = np.repeat(3e-4 * np.array(FACTORS), 2), 5e-4, 1000
    inside = bounded = 0
    for _ in range(fits):
        found = fit_parabola(rate, np.exp(0.1 * np.log(rate / truth) ** 2 + rng.normal(0, 0.03, 10)))
        bounded += found.vertex_low is not None
        inside += found.vertex_low is None or found.vertex_low <= truth <= (found.vertex_high or 0)
    assert bounded / fits > 0.99
    assert 0.93 <= inside / fits <= 0.97


def test_an_interval_is_there_exactly_where_the_curvature_differs_from_zero() -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(200):
        found = fit_parabola(FACTORS, np.exp(0.1 * np.log(FACTORS) ** 2 + rng.normal(0, 0.15, 5)))
        assert found.curvature_low is not None and found.curvature_high is not None
        told_apart = found.curvature_low > 0 or found.curvature_high < 0
        assert (found.vertex_low is not None) == told_apart
        seen.add(told_apart)
    assert seen == {True, False}


def test_three_rates_determine_a_parabola_and_leave_no_interval() -> None:
    found = fit_parabola([1, 2, 4], [3, 2, 3])
    assert found.vertex == pytest.approx(2) and found.predict(2) == pytest.approx(2)
    assert (found.curvature_low, found.vertex_low, found.residual_std, found.lack_of_fit_p) == (None,) * 4
    with pytest.raises(ValueError, match="at least 3 rates, got 2"):
        fit_parabola([1, 2, 2], [3, 2, 3])


def test_lack_of_fit() -> None:
    rate, rng = np.repeat(FACTORS, 3), np.random.default_rng(2)
    cubic = np.exp(0.2 * np.log(rate) ** 3 + rng.normal(0, 0.01, 15))
    found = fit_parabola(rate, cubic)
    assert found.lack_of_fit_p is not None and found.lack_of_fit_p < 1e-6
    # The same as comparing the parabola with one free mean per rate.
    x, y = np.log(rate), np.log(cubic)
    free = sm.OLS(y, (x[:, None] == np.unique(x)).astype(float)).fit()
    _, p, _ = free.compare_f_test(sm.OLS(y, np.stack([x**0, x, x**2], axis=1)).fit())
    assert found.lack_of_fit_p == pytest.approx(p, rel=1e-6)
    good = [
        fit_parabola(rate, np.exp(0.3 * np.log(rate) ** 2 + rng.normal(0, 0.05, 15))).lack_of_fit_p for _ in range(300)
    ]
    assert 0.01 < np.mean(np.array(good, dtype=float) < 0.05) < 0.1
    assert fit_parabola(FACTORS, [5, 3, 2, 3.1, 5]).lack_of_fit_p is None  # no replicates


@pytest.mark.parametrize("n", [3, 4, 7])
def test_the_slope_equals_statsmodels(n: int) -> None:
    rng = np.random.default_rng(n)
    widths = np.exp(rng.uniform(5, 8, n))
    optima = 0.2 / widths * np.exp(rng.normal(0, 0.2, n))
    found = fit_exponent(widths, optima, np.ones(n), n)
    reference = sm.OLS(np.log(optima), sm.add_constant(np.log(widths))).fit()
    np.testing.assert_allclose([found.low, found.high], reference.conf_int(0.05)[1], rtol=1e-8)
    assert found.slope == pytest.approx(reference.params[1])
    assert found.p_zero == pytest.approx(reference.pvalues[1], rel=1e-6)
    assert found.p_minus_one == pytest.approx(float(np.squeeze(reference.t_test("x1 = -1").pvalue)), rel=1e-6)


def test_the_interval_of_the_slope_covers() -> None:
    """From trials to slope, with the noise of the trials alone."""
    rng = np.random.default_rng(0)
    rates, sweeps = np.repeat(FACTORS, 2), 400
    inside = 0
    for _ in range(sweeps):
        fits = [
            fit_parabola(rates / width, np.exp(0.3 * np.log(rates) ** 2 + rng.normal(0, 0.05, 10))) for width in WIDTHS
        ]
        found = fit_exponent(WIDTHS, [f.vertex for f in fits], [f.vertex_error for f in fits], 4)
        assert found.low is not None and found.high is not None and found.p_minus_one is not None
        assert (found.p_minus_one >= 0.05) == (found.low <= -1 <= found.high)
        inside += found.low <= -1 <= found.high
    assert 0.93 <= inside / sweeps <= 0.97


def test_two_widths_have_the_vertices_errors_alone() -> None:
    found = fit_exponent([384, 768], [4e-4, 2e-4], [0.03, 0.04], 4)
    assert found.slope == pytest.approx(-1) and str(found.method).startswith("normal, from the standard errors")
    half = stats.norm.ppf(0.975) * 0.05 / math.log(2)
    assert (found.low, found.high) == (pytest.approx(-1 - half), pytest.approx(-1 + half))
