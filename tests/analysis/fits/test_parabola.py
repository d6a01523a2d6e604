import math
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from analysis.fits.parabola import Curves, fit_curves

WIDTHS = (384, 768, 1280, 1536)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def draw(
    random: np.random.Generator, widths: tuple[int, ...] = WIDTHS, factors: tuple[float, ...] = FACTORS,
    seeds: int = 1, noise: float = 0.05, slope: float = -1.0, cubic: float = 0.0, own: float = 0.0, shared: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Grids at factors of 0.2 / width; the optimum is at 1 for the mean ln width.

    own: standard deviation of a width's own ln optimum about the line. shared: of what a seed does to a width's level.
    """
    w = np.log(widths) - np.log(widths).mean()
    width = np.repeat(np.arange(len(w)), len(factors) * seeds)
    seed = np.tile(np.arange(seeds), len(w) * len(factors))
    x = np.tile(np.repeat(np.log(factors), seeds), len(w)) - w[width]
    z = x - (slope * w + random.normal(0, own, len(w)))[width]
    y = (
        0.3 * z**2
        + cubic * z**3
        + random.normal(0, noise, len(z))
        + random.normal(0, shared, (len(w), seeds))[width, seed]
    )
    return {"widths": widths, "width": width, "rate": np.exp(x), "value": 20 * np.exp(y), "seed": seed}


def parabolas(data: dict[str, Any], tilts: bool) -> Any:
    """The common parabola by statsmodels: levels, tilts (one a width, or on a line over ln width), curvature last."""
    u, log_width = np.log(data["rate"]), np.log(data["widths"])[data["width"]]
    levels = (data["width"][:, None] == np.arange(len(data["widths"]))).astype(float)
    own = levels * u[:, None] if tilts else np.stack([u, u * log_width], axis=1)
    return sm.OLS(np.log(data["value"]), np.column_stack([levels, own, u**2])).fit()


def test_the_intervals_of_a_parabola_are_fiellers() -> None:
    """With three rates a curve is a parabola; its slope and its vertices are ratios of coefficients of a regression."""
    data = draw(np.random.default_rng(1), (384, 768, 1536), (0.25, 1.0, 4.0))
    found = fit_curves(**data)
    assert found.degree == 2
    line, free = parabolas(data, tilts=False), parabolas(data, tilts=True)
    slope, c = line.params[-2], line.params[-1]
    assert found.slope.slope == pytest.approx(-slope / (2 * c), abs=1e-9)
    for end in (found.slope.low, found.slope.high):
        assert end is not None and str(found.slope.method).startswith("Student t over 9 trials")
        test = line.t_test(np.array([0, 0, 0, 0, 1, 2 * end]))
        assert float(np.squeeze(test.pvalue)) == pytest.approx(0.05, rel=1e-6)
    for at, p in ((-1, found.slope.p_minus_one), (0, found.slope.p_zero)):
        assert p == pytest.approx(float(np.squeeze(line.t_test(np.array([0, 0, 0, 0, 1, 2 * at])).pvalue)), rel=1e-6)
    for i, curve in enumerate(found.of):
        assert curve is not None and curve.vertex is not None and curve.low is not None and curve.high is not None
        assert math.log(curve.vertex) == pytest.approx(-free.params[3 + i] / (2 * free.params[-1]))
        for end in (curve.low, curve.high):
            weights = np.zeros(7)
            weights[3 + i], weights[-1] = 1, 2 * math.log(end)
            assert float(np.squeeze(free.t_test(weights).pvalue)) == pytest.approx(0.05, rel=1e-6)
        mine = data["width"] == i
        np.testing.assert_allclose(curve.predict(data["rate"][mine]), np.exp(free.fittedvalues[mine]), rtol=1e-8)
    assert found.residual_std == pytest.approx(math.sqrt(free.scale), rel=1e-6)
    f, p, _ = free.compare_f_test(line)
    assert found.checks.one_line == pytest.approx(p, rel=1e-4) and f < 1


def test_a_scatter_above_the_noise_gives_student_t_over_widths() -> None:
    data = draw(np.random.default_rng(1), noise=0.02, own=0.2)
    found = fit_curves(**data)
    optima = [math.log(curve.vertex) for curve in found.of if curve and curve.vertex]
    reference = sm.OLS(optima, sm.add_constant(np.log(WIDTHS))).fit()
    assert found.checks.one_line is not None and found.checks.one_line < 0.01
    assert str(found.slope.method).startswith("Student t over 4 widths")
    assert found.slope.slope == pytest.approx(reference.params[1])
    assert [found.slope.low, found.slope.high] == pytest.approx(reference.conf_int(0.05)[1].tolist())
    assert found.slope.p_zero == pytest.approx(reference.pvalues[1])
    assert found.slope.p_minus_one == pytest.approx(float(np.squeeze(reference.t_test("x1 = -1").pvalue)))


def coverage(draws: int, slope: float = -1.0, **planted: Any) -> tuple[float, float, list[Curves]]:
    """Return the share of slopes' intervals that hold the truth, that of bounded ones, and the fits."""
    random = np.random.default_rng(0)
    fits = [fit_curves(**draw(random, slope=slope, **planted)) for _ in range(draws)]
    held = []
    for fit in fits:
        low, high, p = fit.slope.low, fit.slope.high, fit.slope.p_zero if slope == 0 else fit.slope.p_minus_one
        held.append(low is None or (high is not None and low <= slope <= high))
        assert p is None or (p >= 0.05) == held[-1]
    return float(np.mean(held)), float(np.mean([fit.slope.low is not None for fit in fits])), fits


@pytest.mark.parametrize(
    "planted",
    [{}, {"cubic": 0.1}, {"cubic": 0.1, "slope": 0.0}, {"own": 0.1}, {"seeds": 3, "shared": 0.2}, {"noise": 0.2}],
)
def test_the_interval_of_the_slope_covers(planted: dict[str, Any]) -> None:
    held, bounded, _ = coverage(200, **planted)
    assert 0.92 <= held <= 0.995 and bounded > 0.9


def test_the_intervals_of_vertices_cover_on_skewed_curves() -> None:
    _, _, fits = coverage(100, cubic=0.1)
    truth = np.exp(-(np.log(WIDTHS) - np.log(WIDTHS).mean()))
    held = [
        curve.low is None or curve.low <= at <= (curve.high or 0)
        for fit in fits
        for curve, at in zip(fit.of, truth, strict=True)
        if curve
    ]
    assert len(held) == 400 and 0.92 <= np.mean(held) <= 0.98


def test_an_optimum_outside_of_its_grid_still_counts() -> None:
    """Three widths show their minimum. The fourth was tried below it only; the common curve says where it is."""
    data = draw(np.random.default_rng(2), noise=0.01)
    kept = (data["width"] < 3) | (data["rate"] * 1536 / 870 < 1.01)
    cut = fit_curves(data["widths"], *(data[key][kept] for key in ("width", "rate", "value", "seed")))
    whole = fit_curves(**data)
    assert cut.slope.slope == pytest.approx(whole.slope.slope, abs=0.05)
    assert cut.of[3] and whole.of[3] and cut.of[3].vertex == pytest.approx(whole.of[3].vertex, rel=0.1)


def test_a_quartic_only_where_a_test_asks_for_it() -> None:
    random = np.random.default_rng(0)
    assert np.mean([fit_curves(**draw(random, cubic=0.05)).degree == 4 for _ in range(100)]) < 0.12
    data = draw(random, noise=0.01)
    z = np.log(data["rate"]) + (np.log(WIDTHS) - np.log(WIDTHS).mean())[data["width"]]
    data["value"] = data["value"] * np.exp(0.1 * z**4)
    assert fit_curves(**data).degree == 4


def test_checks_find_what_they_are_for() -> None:
    random = np.random.default_rng(1)
    data = draw(random, seeds=2, noise=0.02)
    good = fit_curves(**data).checks
    assert min(p for p in (good.one_line, good.one_curve, good.replicates) if p is not None) > 0.001
    z = np.log(data["rate"]) + (np.log(WIDTHS) - np.log(WIDTHS).mean())[data["width"]]
    steep = fit_curves(**data | {"value": data["value"] * np.exp(0.2 * z**2 * (data["width"] == 2))}).checks
    assert steep.one_curve is not None and steep.one_curve < 1e-6
    jagged = fit_curves(
        **data | {"value": data["value"] * np.exp(0.3 * (-1.0) ** data["width"] * (np.abs(z) < 0.1))}
    ).checks
    assert jagged.replicates is not None and jagged.replicates < 1e-6
    assert fit_curves(**draw(random)).checks.replicates is None  # one seed


def test_one_width_has_a_vertex_and_no_slope() -> None:
    data = draw(np.random.default_rng(0), (384,))
    found = fit_curves(**data)
    assert found.degree == 2 and found.slope.verdict == "not identifiable: a slope needs grids at two widths or more"
    u = np.log(data["rate"])
    reference = sm.OLS(np.log(data["value"]), np.stack([u**0, u, u**2], axis=1)).fit()
    assert found.of[0] and found.of[0].low and found.of[0].vertex
    assert math.log(found.of[0].vertex) == pytest.approx(-reference.params[1] / 2 / reference.params[2])
    test = reference.t_test(np.array([0, 1, 2 * math.log(found.of[0].low)]))
    assert float(np.squeeze(test.pvalue)) == pytest.approx(0.05, rel=1e-6)
    assert fit_curves(**draw(np.random.default_rng(0), (384,), seeds=2)).degree == 3


def test_exact_curves_have_exact_answers() -> None:
    found = fit_curves(**draw(np.random.default_rng(0), noise=0.0))
    assert found.slope.slope == pytest.approx(-1, abs=1e-6)
    assert found.slope.low is not None and found.slope.high is not None and found.slope.high - found.slope.low < 1e-4
    assert found.slope.verdict.startswith("consistent with -1") and ", differs from 0" in found.slope.verdict
    for curve, width in zip(found.of, WIDTHS, strict=True):
        assert curve and curve.low and curve.vertex and curve.high and curve.low < curve.vertex < curve.high
        assert curve.vertex == pytest.approx(np.exp(np.log(WIDTHS).mean()) / width, rel=1e-5)


def test_what_cannot_be_known_is_said() -> None:
    random = np.random.default_rng(0)
    level = draw(random)
    assert "bend too little for their noise" in fit_curves(**level | {"value": np.full(20, 7.0)}).slope.verdict
    hill = fit_curves(**level | {"value": 1 / level["value"]})
    assert hill.slope.slope is None and {curve.vertex for curve in hill.of if curve} == {None}
    two = fit_curves(**draw(random, factors=(1.0, 2.0)))
    assert two.degree is None and two.of == (None,) * 4
    assert two.slope.verdict == "not identifiable: no width has values at three rates"
    alone = fit_curves([384], [0, 0, 0], [1, 2, 4], [3, 2, 3], [0, 0, 0])
    assert alone.residual_std is None and alone.of[0] and alone.of[0].vertex == pytest.approx(2)
    assert alone.of[0].low is None and alone.checks.replicates is None


def test_seeds_of_their_own_at_every_rate_share_a_level() -> None:
    data = draw(np.random.default_rng(0))
    apart = fit_curves(**data | {"seed": np.arange(20)})
    assert apart == fit_curves(**data)
