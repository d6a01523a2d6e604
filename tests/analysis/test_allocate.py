"""Which size for how long: published and planted tables, the three approaches, what is refused, the words."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.frontier import COSTS, MOST, frontier_rows, law, write_rows

from analysis.allocate import Allocation, analyse, summary, verdict
from analysis.checkpoints import find_checkpoints
from analysis.figures.allocate import plot
from analysis.fits.joint_fit import fit_joint
from analysis.isoflop import _budgets, at_compute, envelope, parabola, parabolas, vertices
from analysis.reading import load_table
from gat_sweep.results import paper

DATA, STUDY = Path(__file__).parents[1] / "data" / "law", Path(__file__).parents[2] / "docs" / "study"
Rows = list[dict[str, Any]]


def analysed(tmp_path: Path, rows: Rows, **asked: Any) -> Allocation:
    return analyse(load_table(write_rows(tmp_path / "table.csv", rows)), **asked)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Allocation:
    return analysed(tmp_path_factory.mktemp("frontier"), frontier_rows(), budget=2 * MOST)


# ---------------------------------------------------------------- known answers


def test_a_table_without_noise_gives_its_law() -> None:
    """3 + 900 c^-.35 + 2000 D^-.4 at three budgets: tests/data/law/isoflop.csv."""
    trajectories = find_checkpoints(load_table(DATA / "isoflop.csv"))
    joint, _ = fit_joint(trajectories.data)
    got = joint.coefficients()
    assert len(trajectories.sizes) == 7 and len(trajectories.rows) == 15
    assert [got[k] for k in ("floor", "a", "alpha", "b", "beta")] == pytest.approx([3, 900, 0.35, 2000, 0.4], rel=0.01)


def test_the_points_of_chinchilla() -> None:
    """Besiroglu et al. (2024) fit E 1.82, alpha .35, beta .37 to 240 of these points, so N* ~ C^.51; here are 123."""
    trajectories = find_checkpoints(load_table(DATA / "chinchilla.csv"))
    joint, kept = fit_joint(trajectories.data)
    exponent, low, high = joint.size_exponent()
    assert 0.51 <= exponent <= 0.53 and low is not None and high is not None and low < 0.51 < high
    alpha_low, alpha_high = joint.exponent_intervals()["alpha"]
    assert alpha_low is not None and alpha_high is not None and alpha_low < 0.35 < alpha_high
    assert joint.coefficients()["floor"] == pytest.approx(1.85, abs=0.06)
    # Large models that hardly trained stray by up to half of their loss.
    left_out = [row.trial for row, keep in zip(trajectories.rows, kept, strict=True) if not keep]
    assert "r1" in left_out and len(left_out) < 10


def test_l_for_as_long_as_xl_costs_is_predicted_from_the_grid_of_the_study() -> None:
    """L for 7,320 steps has the compute of XL's 2,000 and came to 147.8 (one seed); the grid ends at 2,000 steps."""
    trajectories = find_checkpoints(load_table(STUDY / "split.csv"))
    joint, _ = fit_joint(trajectories.data)
    large = next(size for size in trajectories.sizes if size.cell.label == "L/2")
    costs = np.array(large.costs)[:, None]
    ((low, high),) = joint.point_intervals(costs, [7320.0], runs=1)
    assert low is not None and high is not None and low < math.log(147.8) < high
    assert high - low < math.log(6)


def test_the_answer_is_that_of_the_planted_law(found: Allocation) -> None:
    log_costs = np.linspace(math.log(COSTS[0]), math.log(10 * COSTS[-1]), 20_001)
    values = [law(cost, 2 * MOST / cost) for cost in np.exp(log_costs)]
    best = math.exp(log_costs[int(np.argmin(values))])
    low, high = found.budget.cost_ends
    assert low is not None and high is not None and low < best < high
    below, above = found.budget.value_ends
    assert below is not None and above is not None and below < min(values) < above
    assert found.budget.cost * found.budget.images == pytest.approx(2 * MOST)


# ---------------------------------------------------------------- approaches 1 and 2


def test_parabolas_are_biased_without_noise_where_the_powers_differ() -> None:
    """Czech et al. (2026): a parabola through exact isoFLOP points has its vertex beside the optimum."""
    compute, sizes = 1e4, tuple("abcdefghi")
    for alpha, beta, least, most in ((0.4, 0.4, 0.0, 1e-9), (0.3, 0.6, 0.03, 1.0)):
        best = math.log(alpha / beta) / (alpha + beta) + math.log(compute) * beta / (alpha + beta)
        log_costs = best + np.log(2.0) * np.arange(-4, 5)
        values = np.exp(-alpha * log_costs) + np.exp(-beta * (math.log(compute) - log_costs))
        made = parabola(compute, sizes, log_costs, np.log(1 + values))
        assert made.vertex is not None and least <= abs(made.vertex - best) <= most


def test_the_vertex_interval_is_where_the_slope_may_be_0() -> None:
    random = np.random.default_rng(3)
    x = np.linspace(-2, 2, 7)
    made = parabola(1.0, tuple("abcdefg"), x, 0.3 * (x - 0.4) ** 2 + random.normal(0, 0.05, 7))
    assert made.vertex is not None and made.low is not None and made.high is not None
    design = np.vander(x, 3, increasing=True)
    q, rss, *_ = np.linalg.lstsq(design, np.array(made.log_values), rcond=None)
    covariance = rss[0] / 4 * np.linalg.inv(design.T @ design)
    for end in (made.low, made.high):
        slope = np.array([0, 1, 2 * end])
        assert abs(slope @ q) / math.sqrt(slope @ covariance @ slope) == pytest.approx(2.776, abs=0.001)  # t, 4 degrees
    assert made.low < made.vertex < made.high


def test_where_sizes_meet_at_one_compute_there_is_one_parabola_and_no_power() -> None:
    """As in a study that trained its small sizes for longer: only around e^5.1 do four sizes have checkpoints."""
    ends = {0: (0.0, 5.1), 1: (0.3, 5.12), 2: (5.0, 9.7), 3: (5.05, 10.0)}
    curves = {i: (np.array(x), np.array([2.0, 1.0])) for i, x in ends.items()}
    (compute,) = _budgets(curves)
    assert 5.05 <= compute <= 5.1
    one = parabola(math.exp(compute), tuple("abcd"), [0, 1, 2, 3], [3.0, 2.0, 2.1, 3.0])
    assert one.vertex is not None
    assert vertices((one,)).remark == "1 of 1 computes have a vertex within the sizes"


def test_parabolas_stand_only_where_four_sizes_meet() -> None:
    """Two groups of four sizes; between them no compute has four."""
    ends = dict(
        enumerate([(0.0, 4.0), (0.1, 4.1), (0.2, 4.2), (0.3, 4.3), (6.0, 9.6), (6.1, 9.7), (6.2, 9.8), (6.3, 10.0)])
    )
    curves = {i: (np.array(x), np.array([2.0, 1.0])) for i, x in ends.items()}
    computes = _budgets(curves)
    assert len(computes) == len(set(computes)) == 6
    assert all(len(at_compute(curves, compute)) >= 4 for compute in computes)
    assert min(computes) < 4 and max(computes) > 6


def test_all_three_ways_agree_without_noise_on_a_symmetric_law(tmp_path: Path) -> None:
    rows = frontier_rows(lambda cost, images: 10 + (cost / 5e-3) ** -0.4 * 50 + (images / 1e5) ** -0.4 * 50, noise=0.0)
    table = find_checkpoints(load_table(write_rows(tmp_path / "t.csv", rows)))
    joint, kept = fit_joint(table.data)
    best = float(joint.optimum([400.0])[0, 0])
    for approach in (envelope(table, kept), vertices(parabolas(table, kept))):
        cost = approach.cost(400.0)
        assert cost is not None and cost == pytest.approx(best, rel=0.25), approach


def test_what_the_law_leaves_out_moves_no_way(tmp_path: Path) -> None:
    """The envelope and the parabolas of a table with a value six times too large, left out, are those without it."""
    rows = frontier_rows()
    without = find_checkpoints(load_table(write_rows(tmp_path / "a.csv", rows[:20] + rows[21:])))
    rows[20]["value"] *= 6
    found = find_checkpoints(load_table(write_rows(tmp_path / "b.csv", rows)))
    kept = np.array([(row.trial, row.step) != (rows[20]["trial"], rows[20]["step"]) for row in found.rows])
    every = np.ones(len(without.rows), dtype=bool)
    assert (~kept).sum() == 1 and kept.sum() == len(every)
    assert envelope(found, kept) == envelope(without, every)
    for a, b in zip(parabolas(found, kept), parabolas(without, every), strict=True):
        assert a.log_values == pytest.approx(b.log_values) and a.sizes == b.sizes


# ---------------------------------------------------------------- what is left out, what is refused


def test_young_checkpoints_and_broken_trials_are_left_out(tmp_path: Path) -> None:
    rows = frontier_rows()
    for row in rows:
        row["status"] = "running" if row["trial"] == "w8-s0" else "done"
        row["reason"] = ""
        if row["trial"] == "w12-s1" and row["step"] == row["steps"]:
            row |= {"status": "diverged", "reason": "gradient norm", "value": ""}
    table = find_checkpoints(load_table(write_rows(tmp_path / "t.csv", rows)))
    assert table.averaged == 250 and table.young > 0 and min(row.step for row in table.rows) >= 250
    trials = {row.trial for row in table.rows}
    assert "w8-s0" in trials and "w12-s1" not in trials and [e.trial for e in table.excluded] == ["w12-s1"]


def changed(**more: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [row | (more if row["trial"] == "w20-s0" else dict.fromkeys(more, "")) for row in rows]


def only_last(rows: Rows) -> Rows:
    return [row for row in rows if row["step"] == row["steps"]]


@pytest.mark.parametrize(
    ("change", "asked", "words"),
    [
        (lambda rows: [row for row in rows if row["generator_size"] in ("w8", "w12", "w16", "w20")], {}, "5 sizes"),
        (only_last, {}, "train the small ones longer"),
        (lambda rows: [row | {"step": 1000, "steps": 1000} for row in only_last(rows)], {}, "3 lengths"),
        (lambda rows: [row | {"patch": 4 if row["seed"] else 2} for row in rows], {}, "patch"),
        (changed(**{"start.trial": "w20-s1"}), {}, "w20-s0 continues another trial"),
        (changed(**{"objective.gp_weight": 10}), {}, "differ in more than size, seed and length (objective.gp_weight"),
        (lambda rows: [row | {"n": 1797 + row["seed"]} for row in rows], {}, "n is"),
        (lambda rows: [row | {"seed": 0} for row in rows], {}, "with seed 0 at step"),
        (lambda rows: [row | {"metric": "precision"} for row in rows], {}, "higher"),
        (lambda rows: [row | {"data_images": 10 + row["seed"]} for row in rows], {}, "data sets of several sizes"),
        (lambda rows: rows, {"budget": 11 * MOST}, "--far"),
        (lambda rows: rows, {"budget": 1.0}, "--far"),
        (lambda rows: [row | {"value": 10 + 1e6 / row["images"]} for row in rows], {}, "does not fall with size"),
        (lambda rows: [row | {"value": 9 + row["g_width"]} for row in rows], {}, "does not fall with images"),
    ],
)  # fmt: skip
def test_what_gives_no_answer_is_refused(
    tmp_path: Path, change: Callable[[Rows], Rows], asked: dict[str, Any], words: str
) -> None:
    rows = change(frontier_rows())
    for row in rows:
        if row["step"] == 1000 and row["steps"] == 1000:
            row["images"] = 64_000
            row["flops"] = row["g_width"] * 64_000 * 2e6
    with pytest.raises(ValueError, match=r".") as refused:
        analysed(tmp_path, rows, **asked)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_the_end_that_is_missing_is_named_and_far_allows_it(tmp_path: Path) -> None:
    rows = frontier_rows(lambda cost, images: 5 + 100 * (cost / 1e-3) ** -0.9 + 100 * (images / 1e3) ** -0.9, sizes=5)
    with pytest.raises(ValueError, match="larger than w24/2, the largest of the table"):
        analysed(tmp_path, rows, budget=9 * MOST)
    found = analysed(tmp_path, rows, budget=9 * MOST, far=True)
    assert not found.budget.within and "beyond w24/2, which is a guess" in verdict(found.to_json())


# ---------------------------------------------------------------- words and figure


def test_the_words_say_size_length_value_and_what_else_costs_the_same(found: Allocation) -> None:
    report = found.to_json()
    text = summary(report)
    first = text.splitlines()[0]
    assert first.startswith("At 1.8e+03 GFLOPs: width ") and "(between w" in first and "images, fd_x " in first
    assert "w32/2 for 2,344 steps costs the same: a run is predicted at" in text
    assert "lower envelope" in text and "isoFLOP parabolas" in text and "apart by a factor of" in text
    assert "no image is seen often enough" in text and "the running average still holds the beginning" in text
    assert report["at_budget"][-1]["steps"] == pytest.approx(2 * MOST / COSTS[-1] / 64)
    assert report["recommended"] in {row["size"] for row in report["at_budget"]}


def test_epochs_are_said_and_the_worth_of_images_seen_again(tmp_path: Path) -> None:
    rows = [row | {"data_images": 2_000} for row in frontier_rows()]
    report = analysed(tmp_path, rows).to_json()
    assert report["law"]["repeats"] and report["law"]["epochs"] == pytest.approx(MOST / COSTS[0] / 2_000, rel=0.01)
    assert "epochs: " in summary(report) and "worth of images seen again: R = " in summary(report)


def test_images_seen_again_that_lose_nothing_have_no_worth_in_json(tmp_path: Path) -> None:
    """The rows know no repetition, and the estimate is infinite: null in JSON, which has no infinity."""
    report = analysed(tmp_path, [row | {"data_images": 500} for row in frontier_rows()]).to_json()
    assert report["law"]["epochs_worth"]["estimate"] is None and json.dumps(report, allow_nan=False)
    assert "worth of images seen again: R = no loss [" in summary(report)


def test_the_figure_is_drawn_and_equal_input_gives_equal_bytes(found: Allocation, tmp_path: Path) -> None:
    one, two = plot(found, tmp_path / "one"), plot(found, tmp_path / "two")
    assert [path.suffix for path in one] == [".svg", ".png"]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True)] == [True, True]


def test_a_grid_of_sizes_has_a_best_split_at_every_compute(tmp_path: Path) -> None:
    rows = []
    for i, g in enumerate((1e-3, 3e-3, 9e-3)):
        for j, d in enumerate((4e-3, 12e-3, 36e-3)):
            for k in range(4):
                step = round(300 / (g + d) / 64 / 1.6**k)
                value = 10 + 40 * (g / 3e-3) ** -0.6 + 40 * (d / 12e-3) ** -0.4 + 40 * (step * 64 / 2e4) ** -0.5
                rows.append(
                    {
                        "trial": f"{i}-{j}", "generator_size": "SBL"[i], "discriminator_size": "SBL"[j], "step": step,
                        "flops": (g + d) * 2e9 * 64 * step, "images": 64 * step, "metric": "fd_x", "value": value,
                        "flops_per_image": f'{{"g_forward": {g * 2e9}, "d_forward": {d * 2e9}}}',
                    }
                )  # fmt: skip
    found = analysed(tmp_path, rows, budget=300)
    report = found.to_json()
    assert report["law"]["alpha1"]["estimate"] == pytest.approx(0.6, rel=0.05)
    assert report["law"]["alpha2"]["estimate"] == pytest.approx(0.4, rel=0.05)
    shares = np.linspace(0.01, 0.99, 981)
    costs = found.budget.cost * np.stack([shares, 1 - shares])
    values = found.law.predict(costs, np.full(len(shares), found.budget.images))
    assert found.budget.share == pytest.approx(shares[values.argmin()], abs=0.002)
    assert "of it for G" in verdict(report) and "between" not in verdict(report)
    assert [path.suffix for path in plot(found, tmp_path / "grid")] == [".svg", ".png"]


def test_the_papers_own_points_are_too_few(tmp_path: Path) -> None:
    """Four sizes, and a second length of one: Table 3 and Fig. 8 (XL at 100k iterations)."""
    paper.write_table(tmp_path / "table3.csv", paper.ITEMISED)
    with pytest.raises(ValueError, match=r"at least 5 sizes are needed, this table has 4 \(S/2, B/2, L/2, XL/2\)"):
        analyse(load_table(tmp_path / "table3.csv"))
