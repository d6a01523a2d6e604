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
from scipy import optimize

from analysis.figures.split import plot
from analysis.fits.first_order import fit_first_order
from analysis.reading import load_table
from analysis.split import Surface, analyse, summary
from analysis.table import Cell, Facts, Protocol, Row, Table, Trial
from analysis.two_laws import Choice

DATA = Path(__file__).parent.parent / "data"

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


def additive(
    e: float,
    a: float,
    a_g: float,
    k: float,
    a_d: float,
    noise: float = 0.0,
    seeds: int = 1,
    draw: int = 0,
    cells: Any = CELLS,
) -> Table:
    """Additive in units of the mean C_G and C_D: a and k are the heights of the terms there."""
    rng = np.random.default_rng(draw)
    trials = []
    for g, d in cells:
        x, y = np.array(log_compute(g, d)) - CENTRE
        value = e + a * math.exp(-a_g * x) + k * math.exp(-a_d * y)
        trials += [trial(g, d, value * math.exp(noise * rng.normal()), seed) for seed in range(seeds)]
    return table(trials)


def best_of(a: float, a_g: float, k: float, a_d: float, gflops: float) -> float:
    """G's share at the best split of this planted law, by scipy."""

    def value(share: float) -> float:
        x, y = math.log(gflops * share) - CENTRE[0], math.log(gflops * (1 - share)) - CENTRE[1]
        return a * math.exp(-a_g * x) + k * math.exp(-a_d * y)

    return float(optimize.minimize_scalar(value, bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-9}).x)


def holds(row: Any, truth: float) -> bool:
    return (row.low is None or row.low <= truth) and (row.high is None or truth <= row.high)


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
    x, y = np.array([log_compute(*cell) for cell in CELLS]).T
    value = np.array([np.log(mean.values).mean() for mean in surface.cells])  # a point is a cell
    first = sm.OLS(value, np.stack([np.ones_like(x), x, y], 1)).fit()
    found = report["first_order"]
    for i, (key, sign) in enumerate([("log_a", 1), ("b_g", -1), ("b_d", -1)]):
        assert found[key]["estimate"] == pytest.approx(sign * first.params[i], rel=1e-8)
        assert sorted(sign * first.conf_int(0.05)[i]) == pytest.approx([found[key]["low"], found[key]["high"]])
        assert found[key]["p"] == pytest.approx(first.pvalues[i])
    difference, compared = first.t_test([0, 1, -1]), found["difference"]
    assert compared["estimate"] == pytest.approx(difference.effect[0])
    assert [compared["t"], compared["p"]] == pytest.approx([float(difference.tvalue[0, 0]), float(difference.pvalue)])
    assert [compared["low"], compared["high"]] == pytest.approx(difference.conf_int(0.05)[0].tolist())

    # With as many seeds in every cell, the lack of fit is that of the law over trials.
    over_trials = sm.OLS(np.log([v for mean in surface.cells for v in mean.values]), np.kron(np.eye(16), [[1], [1]]))
    narrow = sm.OLS(over_trials.endog, np.repeat(np.stack([np.ones_like(x), x, y], 1), 2, axis=0)).fit()
    f, p, _ = over_trials.fit().compare_f_test(narrow)
    fit = found["lack_of_fit"]
    assert [fit["f"], fit["p"]] == pytest.approx([f, p]) and fit["degrees_of_freedom"] == [13, 16]
    assert fit["seeds_std_log"] == pytest.approx(math.sqrt(over_trials.fit().scale))


def test_cells_that_stray_more_than_seeds_do_not_narrow_the_exponents() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        trials = []
        for g, d in CELLS:
            x, y = log_compute(g, d)
            stray = rng.normal(0, 0.1)
            trials += [
                trial(g, d, math.exp(15 - 0.2 * x - 0.3 * y + stray + rng.normal(0, 0.03)), seed) for seed in range(3)
            ]
        compute, value = np.array([log_compute(*cell) for cell in CELLS]), [np.log([t.last.value for t in trials])]
        law = fit_first_order(*compute.T, np.reshape(value, (16, 3)).mean(axis=1), -1)
        found = law.contrast((0, 1, 0))
        inside += found.low <= 0.2 <= found.high
    assert 0.92 <= inside / 300 <= 0.98


def test_which_network_pays_more() -> None:
    def verdicts(b_g: float, b_d: float) -> tuple[str, str]:
        report = analyse(planted(b_g, b_d, noise=0.02)).to_json()
        return report["first_order"]["difference"]["verdict"], report["best_split"]["equal_sizes"]["verdict"]

    # At equal sizes D has some five sixths of the compute: a FLOP in G pays more unless b_d is five times b_g.
    assert verdicts(0.2, 0.4) == ("scaling D pays more", "an added FLOP pays more in G")
    assert verdicts(0.4, 0.2) == ("scaling G pays more", "an added FLOP pays more in G")
    assert verdicts(0.03, 0.5) == ("scaling D pays more", "an added FLOP pays more in D")


def test_best_split_of_the_first_order_law_is_the_closed_form() -> None:
    exact = analyse(planted(0.15, 0.35)).at_mean
    assert [exact.share, exact.low, exact.high] == pytest.approx([0.3, 0.3, 0.3], abs=1e-6)

    x, y = np.array([log_compute(*cell) for cell in CELLS]).T
    value = np.log([t.last.value for t in planted(0.15, 0.35, noise=0.05).trials])
    law = fit_first_order(x, y, value, -1)
    assert law.share() == pytest.approx(law.coefficients[1] / law.coefficients[1:].sum())
    low, high = law.share_interval(0.01, 0.99)
    assert low is not None and high is not None
    for share in (low, high):  # Fieller: what is gained by a move to G is just not significant
        gain = law.contrast((0, 1 - share, -share))
        assert gain.p == pytest.approx(0.05)
    assert law.share_interval(0.01, law.share()) == (low, None)  # type: ignore[arg-type]
    assert law.share_interval(law.share(), 0.99) == (None, high)  # type: ignore[arg-type]
    assert law.share_interval(0.8, 0.9) == (None, 0.8) and law.share_interval(0.01, 0.1) == (0.1, None)


# ---------------------------------------------------------------- two laws


SUM = {"e": 5.0, "a": 2.5, "a_g": 0.3, "k": 2.0, "a_d": 0.4}


def test_a_planted_additive_law_is_chosen_with_its_share_as_a_function_of_the_budget() -> None:
    surface = analyse(additive(**SUM, noise=0.003, draw=1))
    assert surface.standing == ("additive",) and surface.choice is not None and surface.choice.first_order <= 0.02
    law = {key: SUM[key] for key in ("a", "a_g", "k", "a_d")}
    shares = []
    for split in (surface.at_mean, *surface.curve):
        truth = best_of(**law, gflops=split.gflops)
        assert split.share == pytest.approx(truth, abs=0.03) and holds(split, truth)
        shares.append(split.share)
    assert shares[1:] == sorted(shares[1:])  # a_d is larger, so D needs ever less of it
    report = report_of(surface)
    assert report["additive"]["a_g"]["low"] < 0.3 < report["additive"]["a_g"]["high"]
    assert report["additive"]["E"]["low"] < 5 < report["additive"]["E"]["high"]
    totals = [mean.gflops for mean in surface.cells]
    assert surface.curve[0].gflops == pytest.approx(min(totals)) and surface.curve[-1].gflops == pytest.approx(
        max(totals)
    )
    assert surface.at_mean.gflops == pytest.approx(math.exp(TOTAL)) and surface.at_mean.trained
    assert not surface.curve[0].trained and not surface.curve[-1].trained


def test_a_sum_that_a_first_order_law_misses() -> None:
    surface = analyse(load_table(DATA / "law" / "split_sum.csv"))
    assert surface.standing == ("additive",)
    for split in (surface.at_mean, *surface.curve):
        share = np.linspace(0.01, 0.99, 9801)
        value = 300 * (split.gflops * share) ** -0.3 + 2000 * (split.gflops * (1 - share)) ** -0.4
        assert holds(split, share[value.argmin()]) and split.low is not None and split.high is not None


def test_a_planted_first_order_law_is_chosen_and_its_share_is_constant() -> None:
    surface = analyse(planted(0.2, 0.3, noise=0.03, draw=1))
    assert surface.standing == ("first_order",)
    assert len({(split.share, split.low, split.high) for split in surface.curve}) == 1
    assert holds(surface.at_mean, 0.4)
    assert "the additive one is rejected" in report_of(surface)["choice"]["verdict"]
    assert "best split at every C" in summary(report_of(surface))


def test_laws_that_both_fit_have_the_interval_of_both() -> None:
    surface = analyse(additive(**SUM, noise=0.1))
    assert set(surface.standing) == {"additive", "first_order"}
    for split in surface.curve:
        for law in split.by_law.values():
            assert split.low is None or (law.low is not None and split.low <= law.low)
            assert split.high is None or (law.high is not None and split.high >= law.high)
    assert surface.at_mean.share == surface.at_mean.by_law[surface.standing[0]].share
    assert "both laws fit" in summary(report_of(surface))


def test_a_choice_is_reproducible_and_neither_may_fit() -> None:
    assert analyse(additive(**SUM, noise=0.1)).choice == analyse(additive(**SUM, noise=0.1)).choice
    neither = Choice(0.01, 0.02)
    assert neither.standing == ("additive", "first_order") and neither.verdict.startswith("neither law fits")
    assert Choice(0.01, 0.5).standing == ("additive",) and Choice(0.5, 0.01).standing == ("first_order",)
    assert Choice(0.01, 0.5).verdict == "the additive law: the first-order one is rejected (p = 0.01)"


@pytest.mark.slow
def test_the_headline_covers_whichever_law_is_planted_and_a_law_is_seldom_rejected_wrongly() -> None:
    # 400 draws have a standard error of 1.1 % at 95 %.
    draws, truth = 400, best_of(SUM["a"], SUM["a_g"], SUM["k"], SUM["a_d"], math.exp(TOTAL))
    sums = [analyse(additive(**SUM, noise=0.03, draw=draw)) for draw in range(draws)]
    firsts = [analyse(planted(0.2, 0.3, noise=0.1, draw=draw)) for draw in range(draws)]
    assert sum(holds(surface.at_mean, truth) for surface in sums) / draws >= 0.91
    assert sum(holds(surface.at_mean, 0.4) for surface in firsts) / draws >= 0.9
    assert sum("additive" not in surface.standing for surface in sums) / draws < 0.05
    assert sum("first_order" not in surface.standing for surface in firsts) / draws < 0.05
    assert sum(surface.standing == ("additive",) for surface in sums) / draws > 0.25


def test_an_interval_that_reaches_the_ends_of_the_grid_says_so() -> None:
    report = report_of(analyse(planted(0.0, 0.4, noise=0.05, draw=1)))
    split = report["best_split"]["at_mean"]
    assert split["low"] is None and split["high"] < 0.2
    assert f"at most {split['high']:.1%}" in summary(report)
    low, high = report["best_split"]["shares_of_cells"]
    shares = [cell["g_share"] for cell in report["cells"]]
    assert [low, high] == [min(shares), max(shares)]
    four = [(g, d) for g in "SB" for d in "SB"]
    unknown = report_of(analyse(planted(0.1, 0.1, noise=0.3, cells=four)))
    assert f"any share from {unknown['best_split']['shares_of_cells'][0]:.1%}" in summary(unknown)


def test_no_best_split_where_compute_does_not_help() -> None:
    surface = analyse(planted(-0.3, -0.4, noise=0.02))
    assert surface.no_split == "no best split: fd_lite does not get better with compute"
    assert surface.no_split in summary(report_of(surface))
    assert surface.pays_more().startswith("not possible")


def test_of_a_metric_that_rises_the_first_order_law_alone_is_fitted() -> None:
    measured = PROTOCOL._replace(metric="inception_score")
    trials = [
        trial(g, d, math.exp(-5 + 0.1 * x + 0.15 * y), measured=measured)
        for g, d in CELLS
        for x, y in [log_compute(g, d)]
    ]
    report = report_of(analyse(table(trials)))
    assert report["additive"] is None and report["choice"]["standing"] == ["first_order"]
    assert "of inception_score a higher value is better" in report["choice"]["verdict"]
    assert report["laws"]["first_order"] == "inception_score = a * C_G^b_g * C_D^b_d"
    assert report["first_order"]["b_g"]["estimate"] == pytest.approx(0.1)
    assert report["best_split"]["at_mean"]["share"] == pytest.approx(0.4)
    unnamed = table([replace(t, rows=(replace(t.last, measured=PROTOCOL._replace(metric="q")),)) for t in trials])
    assert report_of(analyse(unnamed, better="higher"))["first_order"] == report["first_order"]
    with pytest.raises(ValueError, match="give --better lower or --better higher"):
        analyse(unnamed)


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ([(g, d) for g in "SB" for d in "SB"], "4 cells of 2 sizes of G and 2 of D"),
        ([(g, d) for g in "SB" for d in D_FORWARD], "8 cells of 2 sizes of G and 4 of D"),
        ([("S", "S"), ("B", "B"), ("L", "L"), ("S", "B"), ("L", "S")], "5 cells of 3 sizes of G and 3 of D"),
    ],
)
def test_too_few_sizes_for_the_additive_law(cells: list[tuple[str, str]], found: str) -> None:
    report = report_of(analyse(planted(0.2, 0.3, noise=0.01, cells=cells)))
    assert report["additive"] is None
    verdict = f"the first-order law alone: the additive law needs 6 cells of 3 sizes of each, this table has {found}"
    assert report["choice"]["verdict"] == verdict and verdict in summary(report)
    assert holds(analyse(planted(0.2, 0.3, noise=0.01, cells=cells)).at_mean, 0.4)


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
    trials = [replace(t, rows=(replace(t.last, g_forward_flops=None),)) for t in planted(0.2, 0.3).trials]
    with pytest.raises(ValueError, match="S-S-0 lacks g_forward_flops, and"):
        analyse(table(trials))
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
    assert report["first_order"]["difference"]["verdict"] == "not significantly different"
    assert report["first_order"]["lack_of_fit"] == {"not_possible": "the seeds have equal values"}
    assert summary(report)
    assert all(path.stat().st_size for path in plot(surface, tmp_path / "flat"))


def test_the_summary_says_what_was_tested() -> None:
    text = summary(report_of(analyse(planted(0.2, 0.4, noise=0.03, seeds=2))))
    assert text.startswith("32 trials of 16 cells; the first-order law: the additive one is rejected (p = 0.0")
    assert "fd_lite = a * C_G^-b_g * C_D^-b_d" in text and "fd_lite = E + A_G * C_G^-a_g + A_D * C_D^-a_d" in text
    assert re.search(r"b_d - b_g = 0\.\d+ \[0\.\d+, 0\.\d+\]: scaling D pays more, per log unit of its compute", text)
    assert re.search(r"best split at every C: 3\d\.\d% to G, \[", text)
    assert "where G has 15." in text and "between seeds" in text
    both = summary(report_of(analyse(additive(**SUM, noise=0.003))))
    assert re.search(r"at C = \S+ GFLOPs: \d+\.\d% to G, \[\d+\.\d%, \d+\.\d%\]\n", both)
    assert both.count("(sizes beyond those trained)") == 2


def test_the_figure_says_what_it_shows_and_is_reproducible(tmp_path: Path) -> None:
    trials = [t for t in planted(0.2, 0.35, noise=0.05, seeds=2).trials if t.name[:4] != "XL-S"]
    surface = analyse(table(trials))
    svg, png = plot(surface, tmp_path / "surface")
    assert (svg.name, png.name) == ("surface.svg", "surface.png")
    said = re.findall(r"<!-- (.*?) -->", svg.read_text(), flags=re.DOTALL)  # matplotlib's comment per text
    for mean in surface.cells:
        assert f"{math.exp(np.log(mean.values).mean()):.4g}" in said
    assert {"none", "size of G", "size of D", "fd_lite, mean over seeds", "G XL", "D S"} <= set(said)
    assert {"G's share of compute", "best split, first-order law", "95 % interval", "40%"} <= set(said)
    assert any("at equal sizes: an added FLOP pays more in G" in text for text in said)
    again = plot(analyse(table(trials)), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [svg.read_bytes(), png.read_bytes()]
    both = analyse(additive(**SUM, noise=0.1))
    said = re.findall(r"<!-- (.*?) -->", plot(both, tmp_path / "both")[0].read_text(), flags=re.DOTALL)
    assert {"best split, first-order law", "best split, additive law"} <= set(said)
