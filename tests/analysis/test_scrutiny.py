"""Checks of a law: each refits it to other points, and planted tables say what has to come out."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from analysis.law import fit_law, fit_power_law
from analysis.reading import load_table
from analysis.scrutiny import fit_clustered, scrutinise
from analysis.selftest.run import run_selftest
from analysis.table import Table
from gat_sweep.commands.fit_law import selftest_table

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


def scrutinised(table: Table, floor: float | None = None) -> dict[str, Any]:
    report = scrutinise(table, fit_law(table), floor)
    json.dumps(report, allow_nan=False)
    return report


def test_on_an_exact_law_every_check_gives_its_exponent(tmp_path: Path) -> None:
    report = scrutinised(table_of(tmp_path, exact))
    for row in [*report["without_run"], report["checkpoints"], *report["itemisations"]]:
        assert row["b"] == pytest.approx(0.4, rel=1e-9)
    for row in [*report["leave_one_size_out"], *report["roll_forward"]]:
        assert row["ratio"] == pytest.approx(1, rel=1e-9)
    assert [row["size"] for row in report["leave_one_size_out"]] == ["S/2", "B/2", "L/2", "XL/2"]
    assert [(row["size"], row["fitted_to"]) for row in report["roll_forward"]] == [("XL/2", 3)]
    assert len(report["without_run"]) == 8 and report["seed_spread_log"] == pytest.approx(0, abs=1e-12)
    assert (report["checkpoints"]["checkpoints"], report["checkpoints"]["runs"]) == (24, 8)
    assert report["flagged"] == []


def test_a_size_off_the_law_is_seen_from_the_others(tmp_path: Path) -> None:
    """XL is 3 times what the law of the others says: outside, and the exponent hangs on it."""

    def bent(size: str, seed: int, c: float) -> float:
        return exact(size, seed, c) * (3 if size == "XL" else 1) * (1 + 0.001 * seed)

    report = scrutinised(table_of(tmp_path, bent))
    *_, largest = report["leave_one_size_out"]
    assert largest["size"] == "XL/2" and not largest["inside"] and largest["ratio"] == pytest.approx(3, rel=1e-2)
    assert report["roll_forward"][0]["ratio"] == pytest.approx(largest["ratio"])


def test_leaving_a_run_out_leaves_the_other_seed_of_its_size(tmp_path: Path) -> None:
    """By hand: without XL's second seed its point is the first."""
    random = np.random.default_rng(0)
    noise = {(size, seed): random.normal(1, 0.1) for size in SIZES for seed in range(2)}

    def value(size: str, seed: int, c: float) -> float:
        return exact(size, seed, c) * noise[size, seed]

    row = next(r for r in scrutinised(table_of(tmp_path, value))["without_run"] if r["trial"] == "XL1")
    means = [exact(s, 0, c) * np.mean([noise[s, 0], noise[s, 1]]) for s, c in SIZES.items()]
    means[-1] = exact("XL", 0, 1e7) * noise["XL", 0]
    assert row["b"] == pytest.approx(fit_power_law(list(SIZES.values()), means).b, rel=1e-9)
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
    assert len(fit_law(table).points[0].trials) == 2


def test_clusters_against_statsmodels() -> None:
    """The same exponent, and an interval as wide as statsmodels' with its correction for few clusters, or wider."""
    random = np.random.default_rng(0)
    runs = np.repeat(np.arange(12), 5)
    c = np.exp(random.normal(10, 2, 60))
    value = 3e3 * c**-0.4 * np.exp(np.repeat(random.normal(0, 0.2, 12), 5) + random.normal(0, 0.05, 60))
    found = fit_clustered(c, value, runs)
    theirs = sm.OLS(np.log(value), sm.add_constant(np.log(c))).fit(
        cov_type="cluster", cov_kwds={"groups": runs}, use_t=True
    )
    low, high = -theirs.conf_int()[1][::-1]
    assert found.b == pytest.approx(-theirs.params[1], rel=1e-9)
    assert 1 <= (found.b_high - found.b_low) / (high - low) < 1.5
    independent = fit_power_law(c, value)
    assert found.b_high - found.b_low != pytest.approx(independent.b_high - independent.b_low, rel=0.05)
    with pytest.raises(ValueError, match="needs 3 of them, got 2"):
        fit_clustered(c[:10], value[:10], runs[:10])


def test_the_selftest_measures_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few draws here; an interval that is a third as wide as it should be fails it."""
    from analysis import law
    from analysis.selftest import case

    monkeypatch.setattr(case, "DRAWS", 400)
    monkeypatch.setattr(case, "SLOW_DRAWS", 10)
    said: list[str] = []
    rows = run_selftest(said.append)
    assert len(rows) == len(said) == 9 and all(row["passes"] for row in rows)
    assert selftest_table(rows).row_count == 9
    monkeypatch.setattr(case, "SLOW_DRAWS", 2)  # of laws with a floor, which are not looked at again
    quantile = law.slope_t_quantile
    monkeypatch.setattr(law, "slope_t_quantile", lambda n: quantile(n) / 3)
    narrow = [row for row in run_selftest(said.append) if "sizes (Student t)" in row["interval"]]
    assert len(narrow) == 3 and not any(row["passes"] for row in narrow)
