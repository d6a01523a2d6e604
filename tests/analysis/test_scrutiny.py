"""Checks of a law: each refits it to other points, and planted tables say what has to come out."""

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf

from analysis.law import Law, fit_curve, fit_laws
from analysis.noise import estimate_noise
from analysis.points import Point
from analysis.reading import load_table
from analysis.scrutiny import fit_clustered, scrutinise
from analysis.statistics import lack_of_fit
from analysis.table import Cell, Table

DATA = Path(__file__).parents[1] / "data" / "law"
SIZES = {"S": 1e4, "B": 1e5, "L": 1e6, "XL": 1e7}  # GFLOPs
ITEMS = {"g_forward": 1.0, "g_backward": 2.0, "d_step_real": 9.0, "g_step_d_real": 3.0, "teacher_forward": 5.0}


def table_of(folder: Path, value: Any, seeds: int = 2, items: bool = True, **last: Any) -> Table:
    """Each size at a quarter, half and all of its steps; value(size, seed, gflops). last: columns of S's first seed."""
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        columns = ["trial", "generator_size", "seed", "step", "steps", "flops", "g_forward_flops", "metric", "value"]
        writer = csv.DictWriter(file, [*columns, "flags", "flops_per_image", "d_forward_flops"])
        writer.writeheader()
        for size, seed, part in itertools.product(SIZES, range(seeds), (0.25, 0.5, 1.0)):
            c = SIZES[size] * part
            values = [
                f"{size}{seed}",
                size,
                seed,
                int(100 * part),
                100,
                c * 2e9,
                SIZES[size],
                "fd",
                value(size, seed, c),
            ]
            row: dict[str, Any] = dict(zip(columns, values, strict=True))
            if items:
                scaled = {name: flops * SIZES[size] for name, flops in ITEMS.items()}
                row |= {"flops_per_image": json.dumps(scaled), "d_forward_flops": SIZES[size]}
            writer.writerow(row | (last if (size, seed) == ("S", 0) else {}))
    return load_table(path)


def exact(size: str, seed: int, c: float) -> float:
    return 3e3 * c**-0.4


def only(table: Table, floor: float | None = None) -> Law:
    (law,) = fit_laws(table, floor).laws
    return law


def scrutinised(table: Table, floor: float | None = None) -> dict[str, Any]:
    report = scrutinise(table, only(table, floor))
    json.dumps(report, allow_nan=False)
    return report


def test_on_an_exact_law_every_check_gives_its_exponent(tmp_path: Path) -> None:
    report = scrutinised(table_of(tmp_path, exact))
    for row in [*report["without_run"], report["checkpoints"], *report["itemisations"]]:
        assert row["b"] == pytest.approx(0.4, rel=1e-9)
    for row in [*report["leave_one_size_out"], *report["roll_forward"], report["largest_size"]]:
        assert row["ratio"] == pytest.approx(1, rel=1e-9)
    assert [row["size"] for row in report["leave_one_size_out"]] == ["S/2", "B/2", "L/2", "XL/2"]
    assert [(row["size"], row["sizes"]) for row in report["roll_forward"]] == [("XL/2", 3)]
    assert len(report["without_run"]) == 8 and report["seed_spread_log"] == pytest.approx(0, abs=1e-12)
    assert (report["checkpoints"]["checkpoints"], report["checkpoints"]["sizes"]) == (24, 4)
    assert report["flagged"] == [] and report["lack_of_fit"] == {"not_possible": "the seeds have equal values"}


def test_a_size_off_the_law_is_seen_from_the_others(tmp_path: Path) -> None:
    """XL is 3 times what the law of the others says: outside, and the exponent hangs on it."""

    def bent(size: str, seed: int, c: float) -> float:
        return exact(size, seed, c) * (3 if size == "XL" else 1) * (1 + 0.001 * seed)

    report = scrutinised(table_of(tmp_path, bent))
    largest = report["largest_size"]
    assert largest == report["leave_one_size_out"][-1]
    assert largest["size"] == "XL/2" and not largest["inside"] and largest["ratio"] == pytest.approx(3, rel=1e-2)
    assert report["roll_forward"][0]["ratio"] == pytest.approx(largest["ratio"])


def test_leaving_a_run_out_leaves_the_other_seed_of_its_size(tmp_path: Path) -> None:
    """By hand: without XL's second seed its point is the first."""
    random = np.random.default_rng(0)
    noise = {(size, seed): random.normal(1, 0.1) for size in SIZES for seed in range(2)}

    def value(size: str, seed: int, c: float) -> float:
        return exact(size, seed, c) * noise[size, seed]

    row = next(r for r in scrutinised(table_of(tmp_path, value))["without_run"] if r["trial"] == "XL1")
    means = [exact(s, 0, c) * np.sqrt(noise[s, 0] * noise[s, 1]) for s, c in SIZES.items()]
    means[-1] = exact("XL", 0, 1e7) * noise["XL", 0]
    assert row["b"] == pytest.approx(fit_curve(list(SIZES.values()), means, floor=0.0).b, rel=1e-9)
    few = scrutinised(table_of(tmp_path, value, seeds=1))
    assert all(row["b"] is not None for row in few["without_run"]) and few["seed_spread_log"] is None


def test_itemisations_take_their_items(tmp_path: Path) -> None:
    """Costs by hand, from 20 FLOP per image in all; a table without items has none."""
    table = table_of(tmp_path, exact)
    rows = {row["counted"]: row["gflops"][0] for row in scrutinised(table)["itemisations"]}
    assert rows["everything in an iteration"] == pytest.approx(1e4)
    assert rows["everything but teacher and alignment projector"] == pytest.approx(1e4 * 15 / 20)
    assert rows["G alone"] == pytest.approx(1e4 * 3 / 20) and rows["D alone"] == pytest.approx(1e4 * 12 / 20)
    assert rows["3 G + 15 D forwards"] == pytest.approx(1e4 * 18 / 20)
    assert scrutinised(table_of(tmp_path, exact, items=False))["itemisations"] == []


def test_flags_are_listed_and_the_trial_stays(tmp_path: Path) -> None:
    table = table_of(tmp_path, exact, flags="D says the same of everything")
    report = scrutinised(table)
    assert report["flagged"] == [{"trial": "S0", "size": "S/2", "flags": "D says the same of everything"}]
    assert len(only(table).points[0].trials) == 2


def test_clusters_against_statsmodels() -> None:
    """The same exponent, and an interval as wide as statsmodels' with its correction for few clusters, or wider."""
    random = np.random.default_rng(0)
    sizes = np.repeat(np.arange(12), 5)
    c = np.exp(random.normal(10, 2, 60))
    value = 3e3 * c**-0.4 * np.exp(np.repeat(random.normal(0, 0.2, 12), 5) + random.normal(0, 0.05, 60))
    found = fit_clustered(c, value, sizes)
    theirs = sm.OLS(np.log(value), sm.add_constant(np.log(c))).fit(
        cov_type="cluster", cov_kwds={"groups": sizes}, use_t=True
    )
    low, high = -theirs.conf_int()[1][::-1]
    assert found.b == pytest.approx(-theirs.params[1], rel=1e-9)
    assert 1 <= (found.b_high - found.b_low) / (high - low) < 1.5
    with pytest.raises(ValueError, match="needs 3 of them, got 2"):
        fit_clustered(c[:10], value[:10], sizes[:10])


def test_lack_of_fit_is_that_of_an_anova() -> None:
    """Against statsmodels: a mean for each size against a line, from two seeds each."""
    random = np.random.default_rng(4)
    effects = [0.1, -0.2, 0.15, 0.0]
    x, y = np.repeat(np.log(list(SIZES.values())), 2), np.empty(8)
    y[:] = np.log(3e3) - 0.4 * x + np.repeat(effects, 2) + random.normal(0, 0.05, 8)
    line = sm.OLS(y, sm.add_constant(x)).fit()
    means = sm.OLS(y, np.kron(np.eye(4), np.ones((2, 1)))).fit()
    f, p, _ = means.compare_f_test(line)
    found = lack_of_fit(y.reshape(4, 2), line.fittedvalues[::2], 2)
    assert found["degrees_of_freedom"] == [2, 4] and found["found"]
    assert (found["f"], found["p"]) == pytest.approx((f, p))


def test_sizes_that_stray_are_told_from_seeds() -> None:
    """The study on digits: F(2, 8) = 7.5, p = .014."""
    report = scrutinised(load_table(Path(__file__).parents[2] / "docs" / "study" / "widths.csv"))
    found = report["lack_of_fit"]
    assert found["found"] and (found["f"], found["p"]) == (pytest.approx(7.5, abs=0.1), pytest.approx(0.014, abs=1e-3))
    assert report["known_floors"] == {"split_half": 81.2}


@pytest.mark.parametrize("file", ["threeonC.csv", "sameC.csv"])
def test_a_check_that_is_not_possible_says_so(file: str) -> None:
    """Without the only size at another C nothing is left to fit; the other checks are made."""
    report = scrutinised(load_table(DATA / file))
    refused = [row for row in report["leave_one_size_out"] if "not_possible" in row]
    assert report["leave_one_size_out"]
    if file == "threeonC.csv":
        assert [row["size"] for row in refused] == ["S3/2"] and "same" in refused[0]["not_possible"]
    assert all(row["b"] is not None or "not_possible" in row for row in report["without_run"])


def test_what_a_given_floor_does_is_shown() -> None:
    table = load_table(DATA / "noisyfloor6.csv")
    fitting, wrong = scrutinised(table, 4.0)["given_floor"], scrutinised(table, 1.0)["given_floor"]
    assert fitting["agrees"] and not wrong["agrees"]
    assert [row["floor"] for row in fitting["others"]] == pytest.approx([0, 2, 3.6, 4.4])
    exponents = [row["b"] for row in fitting["others"]]
    assert exponents == sorted(exponents)


def test_the_floor_that_is_known_from_the_pictures_is_shown(tmp_path: Path) -> None:
    assert "not_possible" in scrutinised(table_of(tmp_path, exact))["known_floors"]
    lines = (tmp_path / "table.csv").read_text().splitlines()
    (tmp_path / "with.csv").write_text("\n".join([f"{lines[0]},split_half", *(f"{line},1.25" for line in lines[1:])]))
    assert scrutinised(load_table(tmp_path / "with.csv"))["known_floors"] == {"split_half": 1.25}


def test_a_table_without_the_cost_of_a_forward_pass_has_a_law(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{s},{s},10,{c},fd,{v}" for s, c, v in (("S", 1e14, 9), ("B", 1e15, 5), ("L", 1e16, 3))]
    path.write_text("\n".join(["trial,generator_size,step,flops,metric,value", *rows]))
    report = scrutinised(load_table(path))
    assert report["correlation"] == {"not_possible": "the table has no g_forward_flops"}


# ---------------------------------------------------------------- noise


def points_of(spreads: list[float], seeds: int = 40) -> list[Point]:
    """Sizes exactly on a law, whose seeds spread by so much."""
    random = np.random.default_rng(0)
    points = []
    for i, (c, spread) in enumerate(zip(np.geomspace(1e4, 1e7, len(spreads)), spreads, strict=True)):
        deviations = random.normal(0, spread, seeds)
        values = 3e3 * c**-0.4 * np.exp(deviations - deviations.mean())
        mean = float(np.exp(np.log(values).mean()))
        points.append(Point(Cell(f"S{i}", f"S{i}", 2), float(c), None, mean, (), tuple(values.tolist())))
    return points


def test_noise_that_grows_is_seen() -> None:
    """Ten times the spread over three decades of C: the variance goes as C^(2/3)."""
    noise = estimate_noise(points_of([0.03, 0.065, 0.14, 0.3]))
    assert noise.slope == pytest.approx(2 / 3, abs=0.1) and noise.p is not None and noise.p < 1e-6
    assert noise.effect == 0  # all sizes lie on the law
    ratio = noise.variance(1e7, 1) / noise.variance(1e4, 1)
    assert ratio == pytest.approx(100, rel=0.5) and noise.variance(1e5, 4) == pytest.approx(noise.variance(1e5, 1) / 4)


def test_the_variance_of_a_new_size_knows_that_the_slope_is_an_estimate() -> None:
    """By hand: the mean of a lognormal."""
    noise = estimate_noise(points_of([0.03, 0.065, 0.14, 0.3], seeds=3))
    x = np.log([p.gflops for p in points_of([0.1] * 4)])
    assert noise.slope_variance == pytest.approx(2 / (2 * float(((x - x.mean()) ** 2).sum())))
    far = np.exp((np.log(1e9) - x.mean()) ** 2 * noise.slope_variance / 2)
    within = noise.variance(1e9, 3) - noise.effect**2
    assert noise.of_new(1e9, 3) == pytest.approx(noise.effect**2 + within * far) and far > 1.5


def test_without_seeds_all_variances_are_equal() -> None:
    noise = estimate_noise([replace(point, values=(point.value,)) for point in points_of([0.1] * 4)])
    assert "0 points have several seeds" in noise.not_possible
    assert noise.variance([1e4, 1e7], [1, 5]).tolist() == [1, 1]


def test_sizes_that_stray_have_a_variance_of_their_own() -> None:
    """By hand: the weighted squares about a line are as large as their degrees of freedom."""
    strays = [0.2, -0.2, -0.2, 0.2]
    points = [
        replace(p, value=p.value * np.exp(s), values=tuple(v * np.exp(s) for v in p.values))
        for p, s in zip(points_of([0.05] * 4), strays, strict=True)
    ]
    noise = estimate_noise(points)
    x, y = np.log([p.gflops for p in points]), np.log([p.value for p in points])
    weights = 1 / noise.variance([p.gflops for p in points], [len(p.values) for p in points])
    line = sm.WLS(y, sm.add_constant(x), weights=weights).fit()
    assert float(weights @ line.resid**2) == pytest.approx(2) and noise.effect > 0.1


def test_an_effect_of_seeds_is_that_of_a_two_way_anova(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, (4, 3))

    def value(size: str, seed: int, c: float) -> float:
        return float(3e3 * c**-0.4 * np.exp(noise[list(SIZES).index(size), seed] + 0.1 * seed))

    table = table_of(tmp_path, value, seeds=3)
    found = scrutinise(table, only(table))["common_seeds"]
    logs = noise + 0.1 * np.arange(3) - 0.4 * np.log(list(SIZES.values()))[:, None]
    frame = pd.DataFrame({"log": logs.ravel(), "size": np.repeat(list(SIZES), 3), "seed": np.tile(["a", "b", "c"], 4)})
    anova = sm.stats.anova_lm(smf.ols("log ~ size + seed", frame).fit())
    assert found["f"] == pytest.approx(anova.loc["seed", "F"]) and found["p"] == pytest.approx(
        anova.loc["seed", "PR(>F)"]
    )
    assert found["degrees_of_freedom"] == [2, 6] and not found["unequal"]
