import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from analysis.figures.split import plot
from analysis.reading import load_table
from analysis.split import Surface, analyse, summary
from analysis.table import Cell, Facts, Protocol, Row, Table, Trial

# Forward FLOP of one sample (2 per multiply-add) at patch 2.
G_FORWARD = {"S": 12.11e9, "B": 46.00e9, "L": 161.3e9, "XL": 237.1e9}
D_FORWARD = {"S": 15.53e9, "B": 49.91e9, "L": 165.8e9, "XL": 242.0e9}
IMAGES = 512 * 50e3
PROTOCOL = Protocol("fd_lite", 5000, "ref", "v1")


def trial(g: str, d: str, value: float, seed: int = 0, **changes: Any) -> Trial:
    flops = (3 * G_FORWARD[g] + 15 * D_FORWARD[d]) * IMAGES
    row = Row(
        trial=f"{g}-{d}-{seed}", cell=Cell(g, d, 2), seed=seed, step=100, steps=100, flops=flops,
        g_forward_flops=G_FORWARD[g], value=value, measured=PROTOCOL, status="done", reason="",
    )  # fmt: skip
    row = replace(row, **changes)
    return Trial(row.trial, (row,), Facts(d_forward_flops=D_FORWARD[d]))


def log_compute(g: str, d: str) -> tuple[float, float]:
    """ln C_G and ln C_D in GFLOPs."""
    return math.log(3 * G_FORWARD[g] * IMAGES / 2e9), math.log(15 * D_FORWARD[d] * IMAGES / 2e9)


CELLS = [(g, d) for g in G_FORWARD for d in D_FORWARD]
CENTRE = np.mean([log_compute(*cell) for cell in CELLS], axis=0)
TOTAL = np.mean([np.logaddexp(*log_compute(*cell)) for cell in CELLS])  # ln of the geometric mean C


def table(trials: list[Trial]) -> Table:
    return Table(Path("runs"), tuple(trials))


def planted(b_g: float, b_d: float, noise: float = 0.0, seeds: int = 1, draw: int = 0, cells: Any = CELLS) -> Table:
    rng = np.random.default_rng(draw)
    trials = []
    for g, d in cells:
        x, y = log_compute(g, d)
        for seed in range(seeds):
            trials.append(trial(g, d, math.exp(15 - b_g * x - b_d * y + noise * rng.normal()), seed))
    return table(trials)


def bowl(share: float, steepness: float = 0.05, noise: float = 0.0, seeds: int = 1, draw: int = 0) -> Table:
    """Curved along the split: at the cells' geometric mean C the least value is where G has this share of it."""
    rng = np.random.default_rng(draw)
    x0, y0 = TOTAL + math.log(share) - CENTRE[0], TOTAL + math.log(1 - share) - CENTRE[1]
    slope = 0.3  # along x, at the vertex; along y such that the derivative by the ratio is 0 there
    trials = []
    for g, d in CELLS:
        x, y = np.array(log_compute(g, d)) - CENTRE
        across = (x - x0) - (y - y0)
        mean = 3 - slope * (x - x0) - slope * (1 - share) / share * (y - y0) + steepness * across**2
        trials += [trial(g, d, math.exp(mean + noise * rng.normal()), seed) for seed in range(seeds)]
    return table(trials)


def report_of(surface: Surface) -> dict[str, Any]:
    return json.loads(json.dumps(surface.to_json(), allow_nan=False))


def test_planted_exponents_are_found_and_compute_is_split_by_forwards() -> None:
    report = report_of(analyse(planted(0.2, 0.35)))
    assert report["first_order"]["b_g"]["estimate"] == pytest.approx(0.2, rel=1e-9)
    assert report["first_order"]["b_d"]["estimate"] == pytest.approx(0.35, rel=1e-9)
    assert report["first_order"]["log_a"]["estimate"] == pytest.approx(15, rel=1e-9)
    cell = report["cells"][1]
    assert (cell["generator_size"], cell["discriminator_size"], cell["trials"]) == ("S", "B", ["S-B-0"])
    assert cell["gflops_g"] == pytest.approx(3 * G_FORWARD["S"] * IMAGES / 2e9)
    assert cell["gflops_d"] == pytest.approx(15 * D_FORWARD["B"] * IMAGES / 2e9)
    assert report["split_counted_from"] == "g_forward_flops and d_forward_flops"


def test_estimates_equal_statsmodels() -> None:
    surface = analyse(planted(0.2, 0.3, noise=0.1, seeds=2))
    report = report_of(surface)
    x, y = np.array([log_compute(*cell) for cell in CELLS for _ in (0, 1)]).T
    value = np.log([value for mean in surface.cells for value in mean.values])
    first = sm.OLS(value, np.stack([np.ones_like(x), x, y], 1)).fit()
    found = report["first_order"]
    for i, (key, sign) in enumerate([("log_a", 1), ("b_g", -1), ("b_d", -1)]):
        assert found[key]["estimate"] == pytest.approx(sign * first.params[i], rel=1e-9)
        assert sorted(sign * first.conf_int(0.05)[i]) == pytest.approx([found[key]["low"], found[key]["high"]])
        assert found[key]["p"] == pytest.approx(first.pvalues[i])
    difference = first.t_test([0, 1, -1])
    compared = report["comparison"]["per_log_compute"]
    assert compared["estimate"] == pytest.approx(difference.effect[0])
    assert [compared["t"], compared["p"]] == pytest.approx([float(difference.tvalue[0, 0]), float(difference.pvalue)])
    assert [compared["low"], compared["high"]] == pytest.approx(difference.conf_int(0.05)[0].tolist())

    u, v = x - CENTRE[0], y - CENTRE[1]
    second = sm.OLS(value, np.stack([np.ones_like(u), u, v, u * u, v * v, u * v], 1)).fit()
    terms = [report["quadratic"][term] for term in ("1", "x", "y", "x^2", "y^2", "xy")]
    assert [t["estimate"] for t in terms] == pytest.approx(second.params.tolist(), rel=1e-8)
    assert [t["t"] for t in terms] == pytest.approx(second.tvalues.tolist(), rel=1e-8)
    # AICc by its definition from the likelihood, sigma counted; differences are free of the constant.
    n = len(value)
    corrected = [-2 * fit.llf + 2 * k + 2 * k * (k + 1) / (n - k - 1) for fit, k in ((first, 4), (second, 7))]
    mine = report["quadratic"]["aicc"] - report["first_order"]["aicc"]
    assert mine == pytest.approx(corrected[1] - corrected[0])
    cells = sm.OLS(value, np.kron(np.eye(16), [[1], [1]])).fit()
    f, p, _ = cells.compare_f_test(first)
    assert report["replicates"]["lack_of_fit_f"] == pytest.approx(f) and report["replicates"]["p"] == pytest.approx(p)
    assert report["replicates"]["pure_error_std_log"] == pytest.approx(math.sqrt(cells.scale))


def test_intervals_cover_and_equal_exponents_are_told_apart_in_one_of_twenty() -> None:
    draws, inside, verdicts, curved = 400, np.zeros(4), [], 0
    for draw in range(draws):
        surface = analyse(planted(0.3, 0.3, noise=0.1, seeds=2, draw=draw))
        report = surface.to_json()
        exponents = [report["first_order"][key] for key in ("b_g", "b_d")]
        compared = report["comparison"]
        differences = [compared[key] for key in ("per_log_compute", "per_log_compute_over_cell_means")]
        for i, (row, truth) in enumerate(zip([*exponents, *differences], (0.3, 0.3, 0, 0), strict=True)):
            inside[i] += row["low"] <= truth <= row["high"]
        verdicts.append(compared["per_log_compute"]["verdict"])
        curved += report["replicates"]["p"] < 0.05
    assert ((inside / draws >= 0.93) & (inside / draws <= 0.97)).all()
    told = verdicts.count("scaling D pays more"), verdicts.count("scaling G pays more")
    assert 0.03 <= sum(told) / draws <= 0.07 and min(told) > 0.005 * draws
    assert sum(told) + verdicts.count("not significantly different") == draws
    assert 0.03 <= curved / draws <= 0.07


def test_which_network_pays_more() -> None:
    def verdicts(b_g: float, b_d: float) -> tuple[str, str]:
        compared = analyse(planted(b_g, b_d, noise=0.02)).to_json()["comparison"]
        return compared["per_log_compute"]["verdict"], compared["per_flop"]["verdict"]

    # At equal sizes D has some five sixths of the compute: a FLOP in G pays more unless b_d is five times b_g.
    assert verdicts(0.2, 0.4) == ("scaling D pays more", "an added FLOP pays more in G")
    assert verdicts(0.4, 0.2) == ("scaling G pays more", "an added FLOP pays more in G")
    assert verdicts(0.03, 0.5) == ("scaling D pays more", "an added FLOP pays more in D")


def test_a_flop_pays_the_same_in_both_at_the_best_split() -> None:
    share = analyse(planted(0.3, 0.3)).equal_share
    assert share == pytest.approx(1 / (1 + math.exp(np.mean([np.diff(log_compute(s, s)) for s in G_FORWARD]))))
    told = [
        analyse(planted(share, 1 - share, noise=0.1, draw=draw)).to_json()["comparison"]["per_flop"]["verdict"]
        for draw in range(300)
    ]
    assert 0.02 <= 1 - told.count("not significantly different") / 300 <= 0.08


def test_best_split_of_the_first_order_law_is_the_closed_form() -> None:
    exact = analyse(planted(0.15, 0.35)).first_split
    assert exact.share == pytest.approx(0.3, abs=1e-6)

    fit = analyse(planted(0.15, 0.35, noise=0.05)).first
    split = analyse(planted(0.15, 0.35, noise=0.05)).first_split
    _, g, d = -fit.coefficients
    assert split.share == pytest.approx(g / (g + d), abs=1e-6)
    # Fieller: (g - f (g + d))^2 = t^2 times its variance, a quadratic equation in f.
    (gg, gd), (_, dd) = fit.covariance[1:, 1:] * fit.quantile**2
    ends = sorted(np.roots([(g + d) ** 2 - gg - 2 * gd - dd, -2 * (g * (g + d) - gg - gd), g**2 - gg]))
    assert [split.low, split.high] == pytest.approx(ends, abs=1e-3)


def test_no_split_of_exponents_that_may_be_zero() -> None:
    split = analyse(planted(0.0, 0.4, noise=0.05, draw=1)).first_split
    assert split.share is None and split.remark == "no best split: b_g not significantly above 0"
    both = analyse(planted(-0.3, -0.4, noise=0.02)).first_split
    assert both.share is None and both.remark.startswith("no best split: b_g and b_d not")


@pytest.mark.parametrize("share", [0.15, 0.25, 0.4])
def test_a_planted_best_split_is_found_by_the_quadratic_surface(share: float) -> None:
    surface = analyse(bowl(share))
    assert surface.quadratic_split.share == pytest.approx(share, abs=1e-6)
    noisy = report_of(analyse(bowl(share, noise=0.02, seeds=2, draw=1)))
    split = noisy["best_split"]["quadratic"]
    assert split["low"] < share < split["high"] and split["high"] - split["low"] < 0.2
    assert noisy["aicc_verdict"].startswith("AICc prefers the quadratic surface by")
    assert noisy["best_split"]["gflops"] == pytest.approx(math.exp(TOTAL))
    assert noisy["replicates"]["verdict"].startswith("the first-order law does not fit")


def test_the_interval_of_the_best_split_covers() -> None:
    draws = 400
    splits = [analyse(bowl(0.25, noise=0.05, draw=draw)).quadratic_split for draw in range(draws)]
    found = [s for s in splits if s.low is not None and s.high is not None]
    assert len(found) > 0.99 * draws
    assert 0.93 <= sum(s.low <= 0.25 <= s.high for s in found) / len(found) <= 0.97  # type: ignore[operator]


def test_a_plane_is_not_called_curved() -> None:
    said = [analyse(planted(0.2, 0.3, noise=0.1, draw=draw)).to_json()["aicc_verdict"] for draw in range(100)]
    assert sum("prefers the first-order law" in verdict for verdict in said) >= 80


def test_a_minimum_at_the_edge_is_no_optimum_and_the_edge_is_named() -> None:
    # b_g is so small that all compute should go to D, beyond the largest D trained.
    to_d = analyse(planted(0.001, 0.4))
    for split in (to_d.first_split, to_d.quadratic_split):
        assert (split.share, split.low, split.high) == (None, None, None)
        assert split.remark.startswith("no optimum: the best split is at the edge of the grid: G S, D ")
        assert split.remark.endswith("try smaller G or larger D)")
    to_g = analyse(planted(0.4, 0.001))
    assert "the edge of the grid: G XL, D" in to_g.quadratic_split.remark
    assert "try larger G or smaller D" in to_g.quadratic_split.remark
    assert to_g.quadratic_split.remark in summary(report_of(to_g))
    # A bowl whose bottom lies where even the largest G has too little compute at this total.
    assert "the edge of the grid: G XL" in analyse(bowl(0.6)).quadratic_split.remark


def test_a_minimum_whose_interval_reaches_the_edge_does_not_count() -> None:
    flat = [analyse(bowl(0.25, steepness=0.01, noise=0.3, draw=draw)).quadratic_split for draw in range(20)]
    remarks = {split.remark.split(":")[0] for split in flat if split.share is None}
    assert remarks == {"no optimum", "no valid optimum"}
    assert all(split.low is None for split in flat if split.share is None)


def test_too_few_cells_for_a_quadratic_surface() -> None:
    four = report_of(analyse(planted(0.2, 0.3, noise=0.01, cells=[(g, d) for g in "SB" for d in "SB"])))
    assert four["quadratic"] is None and four["best_split"]["quadratic"]["share"] is None
    assert four["aicc_verdict"] == "not identifiable: a quadratic surface needs 9 cells, this table has 4"
    assert four["first_order"]["aicc"] is None and four["first_order"]["degrees_of_freedom"] == 1

    wide = dict.fromkeys("abcde")
    for i, name in enumerate(wide):  # two sizes of G cannot bend along C_G
        G_FORWARD.setdefault(name, 1e9), D_FORWARD.setdefault(name, 1e9 * 3**i)
    try:
        ten = analyse(planted(0.2, 0.3, cells=[(g, d) for g in "SB" for d in wide]))
    finally:
        for name in wide:
            del G_FORWARD[name], D_FORWARD[name]
    assert "three sizes of G with three of D" in ten.to_json()["aicc_verdict"]


@pytest.mark.parametrize(
    "cells",
    [
        [("S", "S"), ("B", "B"), ("L", "L"), ("XL", "XL")],  # not quite a line in the paper's sizes, but no surface
        [("S", d) for d in D_FORWARD],
        [("S", "S"), ("S", "B"), ("B", "S")],
        [],
    ],
)
def test_cells_on_one_line_are_refused(cells: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match="at least 4 complete cells that are not on one line") as error:
        analyse(planted(0.2, 0.3, cells=cells))
    assert "train sizes of G with other sizes of D" in str(error.value) and "\n" not in str(error.value)


def test_mixed_protocols_patches_and_compute_are_refused() -> None:
    trials = list(planted(0.2, 0.3).trials)
    other = trial("S", "S", 9.0, 7, measured=PROTOCOL._replace(n=50000))
    with pytest.raises(ValueError, match="mix protocols"):
        analyse(table([*trials, other]))
    with pytest.raises(ValueError, match="needs one patch size, this table has 2, 4"):
        analyse(table([*trials, trial("S", "S", 9.0, 7, cell=Cell("S", "S", 4))]))
    with pytest.raises(ValueError, match=r"differ in training compute \(S-S-0, S-S-7\)"):
        analyse(table([*trials, trial("S", "S", 9.0, 7, flops=trials[0].last.flops * 2)]))


def test_broken_trials_are_left_out_and_listed() -> None:
    broken = trial("XL", "S", math.nan, 1, status="diverged", reason="g_loss is nan at step 90")
    whole = planted(0.2, 0.3, noise=0.1)
    report = report_of(analyse(table([*whole.trials, broken])))
    assert report["first_order"] == report_of(analyse(whole))["first_order"]
    sizes = {"size": "G XL, D S, /2", "generator_size": "XL", "discriminator_size": "S", "patch": 2}
    assert report["excluded"] == [
        {"trial": "XL-S-1", **sizes, "status": "diverged", "reason": "g_loss is nan at step 90"}
    ]
    assert summary(report).endswith("left out: XL-S-1: g_loss is nan at step 90")


def write_csv(path: Path, columns: dict[str, Any]) -> Table:
    """Trials S, B x S, B with values 40, 30, 20, 10, and more columns, each a function of the sizes."""
    rows = []
    for value, (g, d) in zip((40, 30, 20, 10), [(g, d) for g in "SB" for d in "SB"], strict=True):
        row = {"trial": g + d, "generator_size": g, "discriminator_size": d, "step": 10, "flops": 1e18}
        row |= {"g_forward_flops": G_FORWARD[g], "metric": "fd_lite", "value": value}
        rows.append(row | {name: column(g, d) for name, column in columns.items()})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return load_table(path)


def test_compute_is_split_by_the_items_of_an_iteration(tmp_path: Path) -> None:
    def items(g: str, d: str) -> str:
        one, two = G_FORWARD[g], D_FORWARD[d]
        own, other = {"g_forward": one, "g_backward": 2 * one}, {"d_step_real": 12 * two, "g_step_d_fake": 4 * two}
        return json.dumps(own | other | {"teacher_forward": 1e9})

    report = report_of(analyse(write_csv(tmp_path / "runs.csv", {"flops_per_image": items})))
    assert report["split_counted_from"] == "flops_per_image"
    for cell in report["cells"]:
        g, d = 3 * G_FORWARD[cell["generator_size"]], 16 * D_FORWARD[cell["discriminator_size"]] + 1e9
        assert cell["g_share"] == pytest.approx(g / (g + d))
        assert cell["gflops"] == pytest.approx(1e18 / 2e9)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SS lacks d_forward_flops, and not all trials have flops_per_image"):
        analyse(write_csv(tmp_path / "none.csv", {}))
    only_g = {"flops_per_image": lambda g, d: '{"g_forward": 1e9}'}
    with pytest.raises(ValueError, match="SS's flops_per_image must be positive for both"):
        analyse(write_csv(tmp_path / "half.csv", only_g))


def test_trials_without_items_make_all_count_by_forwards() -> None:
    trials = list(planted(0.2, 0.3).trials)
    itemised = replace(trials[0], facts=replace(trials[0].facts, items={"g_forward": 1.0, "d_step_real": 1.0}))
    assert report_of(analyse(table([itemised, *trials[1:]]))) == report_of(analyse(table(trials)))


def test_equal_values_are_valid_json_and_can_be_drawn(tmp_path: Path) -> None:
    surface = analyse(table([trial(g, d, 1.0, seed) for g, d in CELLS for seed in (0, 1)]))
    report = report_of(surface)
    assert report["comparison"]["per_log_compute"]["verdict"] == "not significantly different"
    assert report["replicates"]["lack_of_fit_f"] is None  # nothing varies
    assert summary(report)
    assert all(path.stat().st_size for path in plot(surface, tmp_path / "flat"))


def test_the_summary_says_what_was_tested() -> None:
    text = summary(report_of(analyse(planted(0.2, 0.4, noise=0.03, seeds=2))))
    assert "fd_lite = a * C_G^-b_g * C_D^-b_d, 32 trials of 16 cells" in text
    assert re.search(r"b_d - b_g = 0\.\d+ \[0\.\d+, 0\.\d+\]: scaling D pays more, per log unit of that network", text)
    assert re.search(r"first-order law: best split at C = \S+ GFLOPs: 3\d\.\d% to G \[", text)
    assert "where G has 15." in text and "AICc prefers" in text and "between seeds" in text


def test_the_figure_says_what_it_shows_and_is_reproducible(tmp_path: Path) -> None:
    trials = [t for t in planted(0.2, 0.35, noise=0.05, seeds=2).trials if t.name[:4] != "XL-S"]
    surface = analyse(table(trials))
    svg, png = plot(surface, tmp_path / "surface")
    assert (svg.name, png.name) == ("surface.svg", "surface.png")
    said = re.findall(r"<!-- (.*?) -->", svg.read_text(), flags=re.DOTALL)  # matplotlib's comment per text
    for mean in surface.cells:
        assert f"{np.mean(mean.values):.4g}" in said
    assert {"none", "size of G", "size of D", "fd_lite, mean over seeds", "G XL", "D S"} <= set(said)
    assert any("per log unit of compute: scaling D pays more" in text for text in said)
    assert any("per FLOP: an added FLOP pays more in G" in text for text in said)
    again = plot(analyse(table(trials)), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [svg.read_bytes(), png.read_bytes()]
