import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from analysis.law import fit_law, fit_power_law
from analysis.reading import load_table
from analysis.statistics import pearson
from analysis.table import Cell, Protocol, Row, Table, Trial

# The paper's models: FID-50K (S, B, L at 50k iterations, XL at 100k), forward FLOP of one sample (2 per MAC).
FID = np.array([15.237, 9.534, 4.600, 3.02])
G_FORWARD = np.array([12.11e9, 46.00e9, 161.3e9, 237.1e9])
D_FORWARD = np.array([15.53e9, 49.91e9, 165.8e9, 242.0e9])
ITERATIONS = np.array([50e3, 50e3, 50e3, 100e3])
PUBLISHED_C = (3 * G_FORWARD + 15 * D_FORWARD) / 2 / 1e9 * 512 * ITERATIONS  # GFLOPs, multiply-adds


def row(trial: str, size: str, gflops: float, value: float, **changes: Any) -> Row:
    plain = Row(
        trial=trial, cell=Cell(size, size, 2), seed=0, step=100, steps=100, flops=gflops * 2e9,
        g_forward_flops=gflops * 2e6, value=value, measured=Protocol("fd_lite", 5000, "ref", "v1"),
        status="done", reason="",
    )  # fmt: skip
    return replace(plain, **changes)


def table(*rows: Row) -> Table:
    """A table of trials of one row each."""
    return Table(Path("runs"), tuple(Trial(r.trial, (r,)) for r in rows))


FOUR = [
    row("s", "S", 1e5, 60.0),
    row("b", "B", 4e5, 33.0),
    row("l", "L", 1e6, 24.0),
    row("x", "XL", 6e6, 9.0),
]


def test_the_published_points() -> None:
    law = fit_power_law(PUBLISHED_C, FID)
    assert 0.479 <= law.b <= 0.481
    assert (law.b_high - law.b_low) / 2 == pytest.approx(0.129, abs=0.0005)
    assert law.b_low < 0.456 < law.b_high  # the paper's own exponent
    assert 5.5e5 < law.a < 6.5e5


def test_the_published_correlations() -> None:
    fid_at_50k = [15.237, 9.534, 4.600, 4.021]
    linear, logarithmic = pearson(G_FORWARD / 2e9, fid_at_50k), pearson(np.log(G_FORWARD), fid_at_50k)
    assert linear.r is not None and round(linear.r, 3) == -0.918
    assert logarithmic.r is not None and round(logarithmic.r, 3) == -0.996


def test_a_planted_law_is_found() -> None:
    c = np.array([1e3, 7e4, 2e5, 9e6, 4e8])
    law = fit_power_law(c, 3.5e5 * c**-0.456)
    assert law.b == pytest.approx(0.456, rel=1e-12) and law.a == pytest.approx(3.5e5, rel=1e-11)
    assert law.b_high - law.b_low < 1e-12
    np.testing.assert_allclose(law.predict([1e10]), 3.5e5 * 1e10**-0.456, rtol=1e-11)


@pytest.mark.parametrize("n", [3, 4, 9])
def test_intervals_and_band_equal_statsmodels(n: int) -> None:
    rng = np.random.default_rng(n)
    c = np.exp(rng.uniform(10, 20, n))
    value = 5e4 * c**-0.4 * np.exp(rng.normal(0, 0.2, n))
    law = fit_power_law(c, value)

    reference = sm.OLS(np.log(value), sm.add_constant(np.log(c))).fit()
    (a_low, a_high), (slope_low, slope_high) = reference.conf_int(0.05)
    np.testing.assert_allclose([law.b_low, law.b_high], [-slope_high, -slope_low], rtol=1e-9)
    np.testing.assert_allclose([law.a_low, law.a_high], np.exp([a_low, a_high]), rtol=1e-8)
    assert law.residual_std == pytest.approx(np.sqrt(reference.scale))
    new = np.array([1e3, 1e6, 1e12])
    frame = reference.get_prediction(sm.add_constant(np.log(new))).summary_frame(alpha=0.05)
    low, high = law.band(new)
    np.testing.assert_allclose(low, np.exp(frame["obs_ci_lower"]), rtol=1e-8)
    np.testing.assert_allclose(high, np.exp(frame["obs_ci_upper"]), rtol=1e-8)


def test_the_interval_covers_at_four_sizes() -> None:
    rng = np.random.default_rng(0)
    laws = 2000
    inside = banded = 0
    for _ in range(laws):
        c = PUBLISHED_C
        value = 6e5 * c**-0.48 * np.exp(rng.normal(0, 0.1, 4))
        law = fit_power_law(c, value)
        inside += law.b_low <= 0.48 <= law.b_high
        low, high = law.band(1e12)
        banded += low <= 6e5 * 1e12**-0.48 * np.exp(rng.normal(0, 0.1)) <= high
    assert 0.93 <= inside / laws <= 0.97
    assert 0.93 <= banded / laws <= 0.97


def test_fisher_interval() -> None:
    # r = -0.93 at n = 4: (-0.999, +0.29)
    x = np.array([-1.0, 0.0, 0.0, 1.0])
    noise = np.array([0.0, -1.0, 1.0, 0.0])  # orthogonal to x, and of its length
    found = pearson(x, -0.93 * x + np.sqrt(1 - 0.93**2) * noise)
    assert found.r == pytest.approx(-0.93)
    assert found.low == pytest.approx(-0.999, abs=5e-4) and found.high == pytest.approx(0.29, abs=5e-3)
    assert pearson([1, 2, 4], [3, 2, 2.5]).low is None  # no interval below four points
    assert pearson([1, 1, 1, 1], [1, 2, 3, 4]).r is None
    assert pearson([1, 2, 3, 4], [2, 4, 6, 8]).high == pytest.approx(1)


def test_seeds_are_averaged() -> None:
    second = row("s2", "S", 1.2e5, 64.0, seed=1)
    law = fit_law(table(*FOUR, second))
    assert law.fit.n == 4
    point = law.points[0]
    assert (point.gflops, point.value, point.trials) == (1.1e5, 62.0, ("s", "s2"))
    expected = fit_power_law([1.1e5, 4e5, 1e6, 6e6], [62, 33, 24, 9])
    assert law.fit == expected


def test_patch_and_discriminator_make_a_size() -> None:
    other = row("s4", "S", 5e4, 90.0, cell=Cell("S", "S", 4))
    paired = row("sb", "S", 2e5, 50.0, cell=Cell("S", "B", 2))
    assert [p.cell.label for p in fit_law(table(*FOUR, other, paired)).points] == [
        "S/4", "S/2", "G S, D B, /2", "B/2", "L/2", "XL/2"
    ]  # fmt: skip


def test_broken_trials_are_left_out_and_listed() -> None:
    nan = row("s_nan", "S", 1e5, float("nan"), status="diverged", reason="g_loss is nan at step 90")
    cut = row("l_cut", "L", 5e5, 99.0, step=50, status="running")
    law = fit_law(table(*FOUR, nan, cut))
    assert law.fit == fit_law(table(*FOUR)).fit
    assert [(e.trial, e.status, e.reason) for e in law.excluded] == [
        ("s_nan", "diverged", "g_loss is nan at step 90"),
        ("l_cut", "running", "unfinished: step 50 of 100"),
    ]


def test_only_the_last_evaluation_counts() -> None:
    early = row("s", "S", 5e4, 200.0, step=50, status="running", measured=Protocol("fd_lite", 1000, "ref", "v1"))
    trials = (*table(*FOUR[1:]).trials, Trial("s", (early, FOUR[0])))
    assert fit_law(Table(Path("runs"), trials)).fit == fit_law(table(*FOUR)).fit


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (Protocol("fid", 5000, "ref", "v1"), "metric is 'fd_lite' (as in b) or 'fid' (as in s)"),
        (Protocol("fd_lite", 50000, "ref", "v1"), "n is 5000 (as in b) or 50000 (as in s)"),
        (Protocol("fd_lite", 5000, "new", "v1"), "reference is 'ref' (as in b) or 'new' (as in s)"),
        (Protocol("fd_lite", None, "ref", ""), "n is 5000 (as in b) or None (as in s); protocol is 'v1'"),
    ],
)
def test_protocols_are_never_mixed(measured: Protocol, message: str) -> None:
    mixed = [*FOUR[1:], replace(FOUR[0], measured=measured)]
    with pytest.raises(ValueError) as error:
        fit_law(table(*mixed))
    assert str(error.value).startswith("final evaluations mix protocols") and message in str(error.value)


def test_two_metrics_at_the_last_step_are_refused() -> None:
    other = replace(FOUR[0], measured=Protocol("kid", 5000, "ref", "v1"))
    with pytest.raises(ValueError, match="metric is 'fd_lite'"):
        fit_law(Table(Path("runs"), (*table(*FOUR[1:]).trials, Trial("s", (other, FOUR[0])))))


def test_fewer_than_three_sizes_are_refused() -> None:
    lost = replace(FOUR[2], status="diverged", reason="d_loss is inf at step 30", value=float("nan"))
    with pytest.raises(ValueError) as error:
        fit_law(table(FOUR[0], FOUR[1], lost))
    assert str(error.value) == (
        "a law needs at least 3 complete sizes, this table has 2 (S/2, B/2); "
        "left out: l (L/2): d_loss is inf at step 30"
    )
    with pytest.raises(ValueError, match=r"this table has 0; left out: l \(L/2\)"):
        fit_law(table(lost))
    with pytest.raises(ValueError, match=r"this table has 1 \(S/2\); left out: none"):
        fit_law(table(FOUR[0]))


def test_three_sizes_give_a_wide_interval_and_valid_json() -> None:
    law = fit_law(table(*FOUR[:3]))
    report = json.loads(json.dumps(law.to_json(), allow_nan=False))
    assert report["n"] == 3 and report["degrees_of_freedom"] == 1
    assert report["b_high"] - report["b_low"] > 0.1
    assert report["pearson_gflops"] < -0.8 and report["pearson_gflops_low"] is None
    # So wide that an end of a's interval is not a finite number.
    close = [replace(r, flops=(1 + i / 100) * 2e15) for i, r in enumerate(FOUR[:3])]
    wild = fit_law(table(*close[:2], replace(close[2], value=60.0)))
    assert json.loads(json.dumps(wild.to_json(), allow_nan=False))["a_high"] is None


def test_json_of_a_law() -> None:
    report = json.loads(json.dumps(fit_law(table(*FOUR)).to_json(), allow_nan=False))
    assert {"b", "b_low", "b_high", "a", "n", "pearson_gflops", "metric", "points", "excluded"} < set(report)
    assert report["b_low"] < report["b"] < report["b_high"]
    assert (report["metric"], report["metric_n"], report["n"]) == ("fd_lite", 5000, 4)
    assert report["spearman"] == pytest.approx(-1)
    assert "multiply-adds" in report["unit"] and "2 per multiply-add" in report["conventions"]
    assert report["points"][0] == {
        "generator_size": "S", "discriminator_size": "S", "patch": 2, "gflops": 1e5,
        "g_forward_gflops": 100.0, "value": 60.0, "trials": ["s"], "values": [60.0],
    }  # fmt: skip


def test_points_at_one_compute_are_refused() -> None:
    with pytest.raises(ValueError, match="different compute"):
        fit_power_law([5, 5, 5], [1, 2, 3])
    with pytest.raises(ValueError, match="at least 3"):
        fit_power_law([5, 6], [1, 2])


def test_trials_of_one_size_that_differ_in_more_than_the_seed_are_no_replicates(tmp_path: Path) -> None:
    """A grid of rates has no one point a size. Columns without a dot may say what they like."""
    header = "trial,generator_size,step,flops,g_forward_flops,metric,value,seed,note,train.rate_g"
    rows = [
        f"{s}{r},{s},10,{i}e9,{i}e9,fd,{10 / i + r},{r},{s}{r},{{}}" for i, s in enumerate("SBL", 1) for r in (0, 1)
    ]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *(row.format(1) for row in rows)]))
    assert fit_law(load_table(path)).fit.n == 3
    path.write_text("\n".join([header, *(row.format(1 + (row[0] == "B") * int(row[1])) for row in rows)]))
    with pytest.raises(ValueError, match=r"of B/2 differ in more than the seed \(train\.rate_g, as B0 and B1\)"):
        fit_law(load_table(path))
