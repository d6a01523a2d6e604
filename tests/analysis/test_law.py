import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from analysis.law import Law, fit_curve, fit_laws
from analysis.reading import load_table
from analysis.statistics import pearson
from analysis.table import Cell, Protocol, Row, Table, Trial, gflops

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


DATA = Path(__file__).parents[1] / "data" / "law"


def only(of: Table | str) -> Law:
    """The law of a table, or of a file in tests/data/law, that has one."""
    (law,) = fit_laws(load_table(DATA / of) if isinstance(of, str) else of).laws
    return law


FOUR = [
    row("s", "S", 1e5, 60.0),
    row("b", "B", 4e5, 33.0),
    row("l", "L", 1e6, 24.0),
    row("x", "XL", 6e6, 9.0),
]


def test_the_published_points() -> None:
    law = fit_curve(PUBLISHED_C, FID, floor=0.0)
    assert 0.479 <= law.b <= 0.481 and law.b_low is not None and law.b_high is not None
    assert (law.b_high - law.b_low) / 2 == pytest.approx(0.129, abs=0.0005)
    assert law.b_low < 0.456 < law.b_high  # the paper's own exponent
    assert 5.5e5 < law.a < 6.5e5


def test_the_published_correlations() -> None:
    fid_at_50k = [15.237, 9.534, 4.600, 4.021]
    linear, logarithmic = pearson(G_FORWARD / 2e9, fid_at_50k), pearson(np.log(G_FORWARD), fid_at_50k)
    assert linear.r is not None and round(linear.r, 3) == -0.918
    assert logarithmic.r is not None and round(logarithmic.r, 3) == -0.996


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


# ---------------------------------------------------------------- points


def test_seeds_are_averaged_in_logarithms() -> None:
    second = row("s2", "S", 1.005e5, 64.0, seed=1)
    point = only(table(*FOUR, second)).points[0]
    assert (point.gflops, point.trials) == (1.0025e5, ("s", "s2"))
    assert point.value == pytest.approx((60 * 64) ** 0.5)


def test_a_size_at_another_length_is_another_point() -> None:
    """An exact law with b = 0.45, one size of which was trained 64 times longer as well."""
    law = only("onelong.csv")
    assert (len(law.points), law.curve.sizes) == (5, 4)
    assert law.curve.b == pytest.approx(0.45, abs=1e-6)
    assert law.curve.b_low == pytest.approx(0.45, abs=1e-4) and law.curve.b_high == pytest.approx(0.45, abs=1e-4)


def test_fifteen_runs_of_seven_sizes_are_fifteen_points() -> None:
    law = only("isoflop.csv")
    assert (len(law.points), law.curve.sizes) == (15, 7)
    assert "several lengths" in law.curve.test.not_possible


def test_published_points_may_have_equal_labels() -> None:
    """Two networks of one name and seed, but of different cost, are two networks."""
    law = only("chinchilla.csv")
    assert sum(len(point.values) for point in law.points) == 123 and law.curve.sizes == 35


def test_one_seed_entered_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"s2 and s2b are both S2/2 with seed 0 \(.*row 4; .*row 6\); delete one"):
        only("dupseed.csv")


def test_checkpoints_are_no_points() -> None:
    table = load_table(DATA / "traj.csv")
    law = only(table)
    assert sum(len(trial.rows) for trial in table.trials) == 60 and len(table.trials) == 12
    assert [len(point.values) for point in law.points] == [3, 3, 3, 3] and law.curve.sizes == 4


def test_only_the_last_evaluation_counts() -> None:
    early = row("s", "S", 5e4, 200.0, step=50, status="running", measured=Protocol("fd_lite", 1000, "ref", "v1"))
    trials = (*table(*FOUR[1:]).trials, Trial("s", (early, FOUR[0])))
    assert only(Table(Path("runs"), trials)).points == only(table(*FOUR)).points


def test_broken_trials_are_left_out_and_listed() -> None:
    nan = row("s_nan", "S", 1e5, float("nan"), status="diverged", reason="g_loss is nan at step 90")
    cut = row("l_cut", "L", 5e5, 99.0, step=50, status="running")
    laws = fit_laws(table(*FOUR, nan, cut))
    assert laws.laws[0].points == only(table(*FOUR)).points
    assert [(e.trial, e.status, e.reason) for e in laws.excluded] == [
        ("s_nan", "diverged", "g_loss is nan at step 90"),
        ("l_cut", "running", "unfinished: step 50 of 100"),
    ]


def test_a_grid_of_both_networks_gives_the_law_of_equal_sizes() -> None:
    """Where G and D were trained in several sizes each; a D of another size for every G is a size like others."""
    mixed = [row("sb", "S", 2e5, 50.0, cell=Cell("S", "B", 2)), row("bs", "B", 3e5, 45.0, cell=Cell("B", "S", 2))]
    laws = fit_laws(table(*FOUR, *mixed))
    assert laws.laws[0].points == only(table(*FOUR)).points
    assert [e.trial for e in laws.excluded] == ["sb", "bs"] and "`split`" in laws.excluded[0].reason
    smaller = {"S": "XS", "B": "S", "L": "B", "XL": "L"}
    rows = [replace(r, cell=Cell(r.cell.generator_size, smaller[r.cell.generator_size], 2)) for r in FOUR]
    assert len(only(table(*rows)).points) == 4


# ---------------------------------------------------------------- patch sizes


def test_patch_sizes_have_laws_of_their_own() -> None:
    """Published FIDs of twelve models: three patch sizes with four widths each, and no law of twelve sizes."""
    laws = fit_laws(load_table(DATA / "dit_all.csv"))
    assert [(law.patch, round(law.curve.b, 3), law.curve.sizes) for law in laws.laws] == [
        (2, 0.427, 4), (4, 0.288, 4), (8, 0.108, 4)
    ]  # fmt: skip
    assert laws.slopes is not None and laws.slopes["differ"] and laws.slopes["p"] < 0.001


def test_one_exponent_is_that_of_an_analysis_of_covariance() -> None:
    """Against statsmodels: a slope with an intercept for each patch size, and the F test of their interaction."""
    found = load_table(DATA / "dit_all.csv")
    c = np.log([gflops(trial.last.flops) for trial in found.trials])
    v = np.log([trial.last.value for trial in found.trials])
    groups = np.array([[trial.cell.patch == patch for patch in (2, 4, 8)] for trial in found.trials], dtype=float)
    joint = sm.OLS(v, np.column_stack([groups, c])).fit()
    apart = sm.OLS(v, np.column_stack([groups, groups * c[:, None]])).fit()
    f, p, _ = apart.compare_f_test(joint)
    slopes = fit_laws(found).slopes
    assert slopes is not None
    assert (slopes["f"], slopes["p"]) == pytest.approx((f, p))
    low, high = -joint.conf_int()[-1][::-1]
    assert (slopes["b"], slopes["b_low"], slopes["b_high"]) == pytest.approx((-joint.params[-1], low, high))


def test_a_patch_size_with_few_sizes_has_no_law() -> None:
    rows = [row("s4", "S", 5e4, 90.0, cell=Cell("S", "S", 4)), row("b4", "B", 2e5, 50.0, cell=Cell("B", "B", 4))]
    laws = fit_laws(table(*FOUR, *rows))
    assert [law.patch for law in laws.laws] == [2] and laws.without == {4: "2 complete sizes (S/4, B/4)"}
    assert laws.at(4) is None


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(("file", "f"), [("noisyfloor6.csv", 52.1), ("noisyfloor8.csv", 23.9)])
def test_a_planted_floor_is_found(file: str, f: float) -> None:
    """4 + 3500 C^-0.45 with noise of 3 %."""
    law = only(file).curve
    assert law.chosen == "found" and law.test.f == pytest.approx(f, abs=0.1)
    assert law.floor_high is not None and law.floor_low < 4 < law.floor_high
    assert law.b_low is not None and law.b_high is not None and law.b_low < 0.45 < law.b_high < law.b_low + 0.14


@pytest.mark.parametrize("file", ["threeonC.csv", "sameC.csv"])
def test_sizes_at_one_compute_give_a_law(file: str) -> None:
    law = only(file)
    assert len(law.points) == 4 and 0.4 < law.curve.b < 0.5


def test_trials_of_one_size_that_differ_in_more_than_the_seed_are_no_replicates(tmp_path: Path) -> None:
    """A grid of rates has no one point a size. Columns without a dot may say what they like."""
    header = "trial,generator_size,step,flops,g_forward_flops,metric,value,seed,note,train.rate_g"
    rows = [
        f"{s}{r},{s},10,{i}e12,{i}e9,fd,{10 / i + r},{r},{s}{r},{{}}" for i, s in enumerate("SBL", 1) for r in (0, 1)
    ]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *(row.format(1) for row in rows)]))
    assert len(only(load_table(path)).points) == 3
    path.write_text("\n".join([header, *(row.format(1 + (row[0] == "B") * int(row[1])) for row in rows)]))
    with pytest.raises(ValueError, match=r"of B/2 differ in more than the seed \(train\.rate_g, as B0 and B1\)"):
        fit_laws(load_table(path))


# ---------------------------------------------------------------- refusals


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
        fit_laws(table(*mixed))
    assert str(error.value).startswith("final evaluations mix protocols") and message in str(error.value)


def test_two_metrics_at_the_last_step_are_refused() -> None:
    other = replace(FOUR[0], measured=Protocol("kid", 5000, "ref", "v1"))
    with pytest.raises(ValueError, match="metric is 'fd_lite'"):
        fit_laws(Table(Path("runs"), (*table(*FOUR[1:]).trials, Trial("s", (other, FOUR[0])))))


def test_sizes_that_cost_the_same_but_for_whole_steps_are_refused() -> None:
    """Trained to one compute, sizes differ by less than a step of the largest one; an exponent would be noise."""
    compute = 1e3 * (1 + 0.002 * np.arange(6))
    with pytest.raises(ValueError, match="all points have the same; `allocate` is for that"):
        fit_curve(compute, [9.0, 7.0, 6.0, 5.5, 6.5, 8.0])


def test_fewer_than_three_sizes_are_refused() -> None:
    lost = replace(FOUR[2], status="diverged", reason="d_loss is inf at step 30", value=float("nan"))
    with pytest.raises(ValueError) as error:
        fit_laws(table(FOUR[0], FOUR[1], lost))
    assert str(error.value) == (
        "a law needs at least 3 complete sizes of one patch size; this table has 2 complete sizes (S/2, B/2); "
        "left out: l (L/2): d_loss is inf at step 30"
    )
    with pytest.raises(ValueError, match=r"no trial is complete; left out: l \(L/2\)"):
        fit_laws(table(lost))


# ---------------------------------------------------------------- JSON


def test_three_sizes_give_a_wide_interval_and_valid_json() -> None:
    report = json.loads(json.dumps(only(table(*FOUR[:3])).to_json(), allow_nan=False))
    assert report["sizes"] == 3 and report["degrees_of_freedom"] == 1
    assert report["b_low"] < report["b"] - 0.05 and "3 sizes leave no degree" in report["floor_test"]["not_possible"]


def test_json_of_a_law() -> None:
    laws = fit_laws(table(*FOUR))
    head = json.loads(json.dumps(laws.head(), allow_nan=False))
    assert (head["metric"], head["metric_n"], head["one_exponent"]) == ("fd_lite", 5000, None)
    assert "multiply-adds" in head["unit"] and "2 per multiply-add" in head["conventions"]
    report = json.loads(json.dumps(laws.laws[0].to_json(), allow_nan=False))
    assert report["b_low"] < report["b"] < report["b_high"] and report["sizes"] == 4
    assert report["law"] == "fd_lite = a C^-b" and report["chosen"] == "a power law without a floor"
    assert report["points"][0] == {
        "generator_size": "S", "discriminator_size": "S", "patch": 2, "gflops": 1e5,
        "g_forward_gflops": 100.0, "value": pytest.approx(60.0), "trials": ["s"], "values": [60.0],
    }  # fmt: skip


@pytest.mark.parametrize("b", [0.0, -0.05, 0.05])
def test_a_given_floor_lets_a_metric_rise(b: float) -> None:
    """The interval covers the planted exponent as often as it says, whether the metric falls, rises or does neither."""
    c, random = np.geomspace(1e3, 1e6, 9), np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        value = (5 + 5 * (c / 3e4) ** -b) * np.exp(random.normal(0, 0.02, 9))
        law = fit_curve(c, value, floor=5.0)
        covered += law.b_low is not None and law.b_high is not None and law.b_low <= b <= law.b_high
    assert covered >= 53  # of 60 at 95 %: fewer with a chance of 1 %
