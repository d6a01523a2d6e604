import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from analysis.figures.rates import plot
from analysis.rates import Grid, Transfer, analyse, summary
from analysis.reading import load_table
from analysis.table import Cell, Facts, Protocol, Row, Table, Trial
from gat_sweep.sweep import load_sweep

DATA = Path(__file__).parents[1] / "data" / "law"
SWEEP = Path(__file__).parents[2] / "sweeps" / "lr_transfer.yaml"
WIDTHS = {"S": 384, "B": 768, "L": 1280, "XL": 1536}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
FID = Protocol("fid", 5000, "ref", "v1")


def base(size: str) -> float:
    """Eq. 4: 4e-4 at the width of S."""
    return 4e-4 * WIDTHS[size] ** -1 * 384


def trial(
    name: str, size: str, value: float, factors: tuple[float, float] = (1, 1), rate_of: str | None = None,
    seed: int = 0, status: str = "done", config: dict[str, Any] | None = None, measured: Protocol = FID,
) -> Trial:  # fmt: skip
    row = Row(
        trial=name, cell=Cell(size, size, 2), seed=seed, step=100 if status == "done" else 40, steps=100,
        flops=1e15, g_forward_flops=1e7 * WIDTHS[size], value=value if status == "done" else math.nan,
        measured=measured, status=status, reason="" if status == "done" else "g_loss is nan at step 40",
    )  # fmt: skip
    lr = base(rate_of or size)
    said = {"train.rate_of": rate_of, "train.rate_g": factors[0], "train.rate_d": factors[1], "seed": seed}
    said |= {"model.generator": size, "train.batch": 512} | (config or {})
    return Trial(name, (row,), Facts(said, {}, lr * factors[0], lr * factors[1], WIDTHS[size], WIDTHS[size]))


def table(*trials: Trial) -> Table:
    """A table of trials; of several with one name, the last."""
    return Table(Path("runs"), tuple({trial.name: trial for trial in trials}.values()))


def grid(
    network: str, size: str, value: Callable[[float], float], factors: tuple[float, ...] = FACTORS,
    seeds: int = 2, broken: tuple[float, ...] = (), **changes: Any,
) -> list[Trial]:  # fmt: skip
    """A trial for each factor and seed; value is a function of the network's rate. Both networks share factor 1."""
    return [
        trial(
            f"{size}-{seed}" if factor == 1 else f"{network}-{size}-{factor}-{seed}", size, value(base(size) * factor),
            seed=seed,
            factors=(factor, 1) if network == "G" else (1, factor),
            status="diverged" if factor in broken else "done", **changes,
        )
        for factor in factors for seed in range(seeds)
    ]  # fmt: skip


def bowl(optimum: float, noise: Callable[[], float] = lambda: 0.0, curvature: float = 0.3) -> Callable[[float], float]:
    return lambda rate: 20 * math.exp(curvature * math.log(rate / optimum) ** 2 + noise())


def noise(seed: int, scale: float = 0.03) -> Callable[[], float]:
    rng = np.random.default_rng(seed)
    return lambda: float(rng.normal(0, scale))


def only(transfer: Transfer) -> Grid:
    (found,) = transfer.grids
    return found


# ---------------------------------------------------------------- optima


def test_a_minimum_inside_the_grid_is_an_optimum() -> None:
    found = only(analyse(table(*grid("G", "S", bowl(5e-4, noise(1))))))
    assert (found.network, found.size, found.width, found.remark) == ("G", "S/2", 384, None)
    assert found.curve is not None and found.curve.low is not None and found.curve.high is not None
    assert found.curve.low < 5e-4 < found.curve.high
    assert [len(seeds.values) for seeds in found.rates] == [2] * 5
    assert [seeds.rate for seeds in found.rates] == pytest.approx([4e-4 * f for f in FACTORS])


@pytest.mark.parametrize(
    ("optimum", "said"),
    [
        (2.5e-3, "above 1.6e-3, the last rate with a value; extend the grid upwards"),
        (6e-5, "below 1e-4, the last rate with a value; extend the grid downwards"),
    ],
)
def test_an_optimum_outside_its_grid_is_remarked_and_kept(optimum: float, said: str) -> None:
    found = only(analyse(table(*grid("G", "S", bowl(optimum, noise(1, 0.001))))))
    assert found.remark == said
    assert found.curve is not None and found.curve.vertex == pytest.approx(optimum, rel=0.05)


def test_an_interval_that_leaves_the_grid_is_remarked() -> None:
    found = only(analyse(table(*grid("G", "S", bowl(1.4e-3, noise(2, 0.05))))))
    assert found.remark == "the interval reaches beyond the rates with values"


def test_a_maximum_is_not_an_optimum() -> None:
    values = dict(zip(FACTORS, (9.2, 10.6, 11, 10.5, 9), strict=True))
    found = only(analyse(table(*grid("G", "S", lambda rate: values[round(rate / 4e-4, 2)] * (1 + 1e-3)))))
    assert (
        found.remark == "no minimum near the rates tried; extend the grid upwards"
        and found.curve is not None
        and found.curve.vertex is None
    )


def test_values_that_hardly_differ_give_no_interval() -> None:
    values = dict(zip(FACTORS, (10.0, 10.6, 9.8, 10.1, 10.3), strict=True))
    found = only(analyse(table(*grid("G", "S", lambda rate: values[round(rate / 4e-4, 2)], seeds=1))))
    assert found.remark == "no interval: the curves bend too little for their noise"


def test_a_network_where_a_higher_value_is_better() -> None:
    """Recall is the curve upside down: the same optima and the same slope."""
    low = sweep(-1, 0, "G")
    recall = Protocol("recall", 5000, "ref", "v1")
    high = [
        Trial(t.name, (replace(t.last, value=10 / t.last.value, measured=recall),), t.facts) for t in low
    ]  # fmt: skip
    a, b = analyse(table(*low)), analyse(table(*high))
    for name in ("slope", "low", "high"):
        assert getattr(b.fits["G"].slope, name) == pytest.approx(getattr(a.fits["G"].slope, name))
    for mine, other in zip(b.grids, a.grids, strict=True):
        assert mine.curve and other.curve and mine.curve.vertex == pytest.approx(other.curve.vertex)
    first = b.grids[0].curve
    other = a.grids[0].curve
    assert first and other and b.value(first, [1e-4]) == pytest.approx(10 / a.value(other, [1e-4]), rel=1e-6)
    assert b.to_json()["better"] == "higher"
    unnamed = [Trial(t.name, (replace(t.last, measured=Protocol("score", 5, "", "")),), t.facts) for t in low]
    with pytest.raises(ValueError, match="give --better lower or --better higher"):
        analyse(table(*unnamed))
    assert analyse(table(*unnamed), "lower").fits == a.fits


def test_a_diverged_rate_is_a_remark_and_not_a_value() -> None:
    trials = grid("G", "S", bowl(1.4e-3, noise(3)), FACTORS)
    lost = grid("G", "S", bowl(1.4e-3), (8.0, 16.0), broken=(8.0, 16.0))
    transfer = analyse(table(*trials, *lost))
    found = only(transfer)
    assert found.curve == only(analyse(table(*trials))).curve
    assert found.rates[-1].diverged == ("G-S-16.0-0", "G-S-16.0-1") and found.rates[-1].mean is None
    assert ("G-S-8.0-0", "g_loss is nan at step 40") in [(e.trial, e.reason) for e in transfer.excluded]
    assert "diverged at 0.0064: G-S-16.0-0, G-S-16.0-1" in summary(transfer.to_json())


def test_a_grid_is_not_extended_to_where_it_diverged() -> None:
    trials = grid("G", "S", bowl(2e-3, noise(3, 0.001)), FACTORS)
    lost = grid("G", "S", bowl(1.0), (8.0,), broken=(8.0,))
    assert only(analyse(table(*trials, *lost))).remark == (
        "above 1.6e-3, the last rate with a value; higher rates diverged"
    )


def test_a_rate_that_one_seed_survived_counts() -> None:
    trials = grid("G", "S", bowl(1.3e-3, noise(4)), (*FACTORS, 8.0))
    half = [
        trial(t.name, "S", 0, (t.facts.config["train.rate_g"], 1), seed=1, status="diverged")
        if t.facts.config["train.rate_g"] == 4 and t.last.seed == 1
        else t
        for t in trials
    ]
    found = only(analyse(table(*half)))
    survivor = found.rates[4]
    assert (survivor.trials, survivor.diverged, survivor.std) == (("G-S-4.0-0",), ("G-S-4.0-1",), None)
    assert found.remark is None and found.curve is not None and found.curve.vertex == pytest.approx(1.3e-3, rel=0.1)


def test_where_everything_diverges_there_is_no_optimum() -> None:
    lost = grid("G", "S", bowl(1e-3), broken=FACTORS)
    transfer = analyse(table(*lost, *grid("G", "B", bowl(1e-4, noise(1)))))
    assert [g.curve is None for g in transfer.grids] == [True, False]
    assert transfer.grids[0].remark == "too few rates have values (0)"
    assert transfer.fits["G"].slope.verdict == "not identifiable: a slope needs grids at two widths or more"
    with pytest.raises(ValueError, match="no complete trial"):
        analyse(table(*lost))


def test_a_seed_twice_at_one_rate_is_refused() -> None:
    plain = grid("G", "S", bowl(5e-4, noise(0)))
    again = [Trial("again", plain[0].rows, plain[0].facts)]
    with pytest.raises(ValueError, match=r"G-S-0\.25-0 and again are both S/2 with seed 0"):
        analyse(table(*plain, *again))


# ---------------------------------------------------------------- the slope


def sweep(power: float, seed: int, networks: str = "GD", seeds: int = 2) -> list[Trial]:
    """Both networks' grids at four widths; the optimum is at 5e-4 for S and goes as width^power."""
    drawn = noise(seed)
    trials = {}
    for network in networks:
        for size, width in WIDTHS.items():
            optimum = 5e-4 * (width / 384) ** power
            factors = tuple(f * optimum / base(size) for f in FACTORS) if power else (*FACTORS, 8.0, 16.0)
            for t in grid(network, size, bowl(optimum, drawn), factors, seeds):
                trials[t.name] = t
    return list(trials.values())


def test_optima_that_fall_with_the_width_are_found() -> None:
    transfer = analyse(table(*sweep(-1, 0)))
    assert [(g.network, g.width) for g in transfer.grids] == [(n, w) for n in "GD" for w in WIDTHS.values()]
    for fit in transfer.fits.values():
        assert fit.slope.low is not None and fit.slope.high is not None
        assert fit.slope.low < -1 < fit.slope.high and fit.slope.high - fit.slope.low < 0.3
        assert fit.slope.verdict.startswith("consistent with -1 (p = 0.")
        assert ", differs from 0 (p = " in fit.slope.verdict


def test_one_rate_for_all_widths_differs_from_minus_one() -> None:
    slope = analyse(table(*sweep(0, 1))).fits["D"].slope
    assert slope.verdict.startswith("differs from -1 (p = ") and ", consistent with 0 (p = " in slope.verdict
    assert slope.p_minus_one is not None and slope.p_minus_one < 0.01 and slope.slope == pytest.approx(0, abs=0.1)


def test_skewed_curves_have_a_slope() -> None:
    """One seed, four widths, optima at slope -1. The values rise 2.7 times at one end of every grid."""
    transfer = analyse(load_table(DATA / "rates_skew.csv"))
    for fit in transfer.fits.values():
        assert fit.slope.low is not None and fit.slope.high is not None
        assert fit.slope.low < -1 < fit.slope.high and fit.slope.high - fit.slope.low < 0.15
    for found in transfer.grids:
        assert found.remark is None and found.curve is not None and found.curve.low and found.curve.high
        assert found.curve.low < 0.08 / found.width < found.curve.high
    assert "flat" not in summary(transfer.to_json()) and "fails" not in summary(transfer.to_json())


def test_one_width_has_no_slope() -> None:
    transfer = analyse(table(*grid("G", "S", bowl(5e-4, noise(0)))))
    assert transfer.fits["G"].slope.slope is None and "D" not in transfer.fits
    text = summary(transfer.to_json())
    assert "not identifiable: a slope needs grids at two widths" in text
    assert "D: no rate grid" in text and "no cross-check" in text
    assert "S/2, width 384: optimum 0.000" in text and "optima on one line not possible" in text


def test_a_width_without_a_minimum_counts() -> None:
    """B was tried far above its optimum alone. The curve that it shares with the others says where that is."""
    drawn = noise(7, 0.01)
    high = grid("G", "B", bowl(2.5e-4, drawn), (4.0, 8.0, 16.0, 32.0))
    rest = [t for size in ("S", "L", "XL") for t in grid("G", size, bowl(0.192 / WIDTHS[size], drawn))]
    transfer = analyse(table(*rest, *high))
    found = transfer.of("G")[1]
    assert found.curve is not None and found.curve.vertex == pytest.approx(2.5e-4, rel=0.1)
    assert found.remark == "below 8e-4, the last rate with a value; extend the grid downwards"
    slope = transfer.fits["G"].slope
    assert slope.low is not None and slope.high is not None and slope.low < -1 < slope.high


# ---------------------------------------------------------------- what is compared with what


def test_trials_of_other_kinds_are_not_part_of_a_grid() -> None:
    plain = grid("G", "S", bowl(5e-4, noise(0)))
    strangers = [
        trial("both", "S", 1.0, (2, 2)),
        trial("of-b", "S", 1.0, (2, 1), rate_of="B"),
        trial("batch", "S", 1.0, (2, 1), config={"train.batch": 64}),
        trial("failed", "S", 1.0, (2, 1), status="failed"),
    ]
    transfer = analyse(table(*plain, *strangers))
    assert transfer.grids == analyse(table(*plain)).grids and transfer.cross_check == ()
    reasons = {e.trial: e.reason for e in transfer.excluded}
    unused = "not part of a rate grid or a cross-check"
    assert reasons == {"both": unused, "of-b": unused, "batch": unused, "failed": "g_loss is nan at step 40"}


def test_two_grids_of_one_size_are_refused() -> None:
    plain = grid("G", "S", bowl(5e-4, noise(0)))
    other = grid("G", "S", bowl(5e-4, noise(0)), config={"train.batch": 64})
    other = [Trial(f"{t.name} again", t.rows, t.facts) for t in other]
    with pytest.raises(ValueError) as error:
        analyse(table(*plain, *other))
    assert str(error.value) == (
        "S/2 has a rate grid of G under several configs, fit them separately; they differ in train.batch"
    )
    deep = [Trial(f"{t.name} deep", (replace(t.last, cell=Cell("B", "B", 4)),), t.facts) for t in plain]
    with pytest.raises(ValueError, match=r"rate grids of G have several patch sizes, fit them separately: \[2, 4\]"):
        analyse(table(*plain, *deep))


def test_mixed_protocols_are_refused() -> None:
    mixed = [*grid("G", "S", bowl(5e-4)), *grid("G", "B", bowl(2e-4), measured=Protocol("fid", 50000, "ref", "v1"))]
    with pytest.raises(ValueError, match="mix protocols"):
        analyse(table(*mixed))


def test_a_table_without_comparisons_is_refused() -> None:
    with pytest.raises(ValueError, match="no complete trial is in a rate grid"):
        analyse(table(trial("s", "S", 20), trial("b", "B", 15)))


def test_a_grid_from_a_csv(tmp_path: Path) -> None:
    drawn = bowl(5e-4, noise(0))
    lines = ["trial,generator_size,step,flops,g_forward_flops,metric,value,seed,status,lr_g,lr_d,g_width,remark"]
    for i, rate in enumerate((1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)):
        for seed in (0, 1):
            lines.append(f"t{i}{seed},S,100,1e15,1e9,fid,{drawn(rate)},{seed},done,{rate},4e-4,384,note {i}{seed}")
    lines.append("lost,S,7,1e14,1e9,fid,,0,diverged,3.2e-3,4e-4,384,too hot")  # and its steps are not known
    path = tmp_path / "grid.csv"
    path.write_text("\n".join(lines))
    transfer = analyse(load_table(path))
    found = only(transfer)
    assert found.curve is not None and found.curve.vertex == pytest.approx(5e-4, rel=0.1)
    assert found.rates[-1].diverged == ("lost",) and transfer.cross_check == ()
    path.write_text("\n".join(line.replace(",384", ",") for line in lines))
    with pytest.raises(ValueError, match="'t00' belongs to a rate grid, but has no g_width"):
        analyse(load_table(path))


def test_every_trial_of_the_sweep_has_a_place(tmp_path: Path) -> None:
    drawn, rows = noise(0), []
    trials = load_sweep(SWEEP, "imagenet256", seeds=[0, 1]).trials
    for name, config in trials.items():
        values = [
            bowl(0.2 / config.ladder[size].width, drawn)(rate)
            for size, rate in ((config.model.generator, config.lr_g), (config.model.discriminator, config.lr_d))
        ]
        rows.append({
            "trial": name, "generator_size": config.model.generator, "discriminator_size": config.model.discriminator,
            "patch": config.model.patch, "seed": config.seed, "step": config.train.steps, "steps": config.train.steps,
            "flops": 1e18, "g_forward_flops": 1e6 * config.ladder[config.model.generator].width, "metric": "fid",
            "value": values[0] * values[1], "n": 5000, "reference": "", "protocol": "", "status": "done", "reason": "",
            "lr_g": config.lr_g, "lr_d": config.lr_d, "config": json.dumps(config.identity()),
        })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "runs.parquet")
    transfer = analyse(load_table(tmp_path / "runs.parquet"))
    assert transfer.excluded == ()
    assert [(g.network, g.size, len(g.rates)) for g in transfer.grids] == [
        (network, f"{size}/2", 5) for network in "GD" for size in WIDTHS
    ]
    assert {len(seeds.values) for g in transfer.grids for seeds in g.rates} == {2}
    assert [fit.slope.verdict[:18] for fit in transfer.fits.values()] == ["consistent with -1"] * 2
    assert [[c.rate for c in row.columns] for row in transfer.cross_check] == [["S", "B"]] * 2
    assert [(row.own, row.best, len(row.ratios)) for row in transfer.cross_check] == [("S", "S", 1), ("B", "B", 1)]
    assert all(
        ratio.low is not None and ratio.low < ratio.log_ratio for row in transfer.cross_check for ratio in row.ratios
    )


# ---------------------------------------------------------------- Table 4

PUBLISHED = (("S", 4e-4, 22.080), ("S", 2e-4, 26.410), ("B", 2e-4, 15.610), ("B", 4e-4, 56.720))


def published(path: Path, columns: str, tell: Callable[[float], str]) -> Table:
    lines = [f"trial,generator_size,step,flops,g_forward_flops,metric,value,n,{columns}"]
    lines += [
        f"{size}-{rate:g},{size},50000,1e18,{1e9 * WIDTHS[size]},fid,{value},5000,{tell(rate)}"
        for size, rate, value in PUBLISHED
    ]
    path.write_text("\n".join(lines))
    return load_table(path)


def test_the_published_table_4(tmp_path: Path) -> None:
    transfer = analyse(published(tmp_path / "t4.csv", "lr_g,train.rate_of", lambda lr: f"{lr},{'SB'[lr < 3e-4]}"))
    small, large = transfer.cross_check
    assert (small.size, small.own, small.best) == ("S/2", "S", "S") and (large.own, large.best) == ("B", "B")
    assert [(c.rate, c.mean, c.std) for c in small.columns] == [("S", 22.080, None), ("B", 26.410, None)]
    assert [(c.rate, c.mean, c.std) for c in large.columns] == [("S", 56.720, None), ("B", 15.610, None)]
    (ratio,) = large.ratios
    assert (ratio.rate, ratio.low, ratio.high) == ("S", None, None)
    assert ratio.log_ratio == pytest.approx(math.log(56.720 / 15.610))
    assert transfer.grids == () and transfer.fits == {}
    text = summary(transfer.to_json())
    assert "G: no rate grid\nD: no rate grid" in text
    assert "S/2 by rate: S: 22.08 (n = 1); B: 26.41 (n = 1), log ratio to its own rate 0.18; best: S" in text


@pytest.mark.parametrize("columns", ["lr_g", "lr_g,lr_d"])
def test_the_published_table_4_by_rate(tmp_path: Path, columns: str) -> None:
    found = published(tmp_path / "t4.csv", columns, lambda lr: ",".join([str(lr)] * len(columns.split(","))))
    rows = analyse(found).cross_check
    assert [(row.size, row.own, row.best, row.ratios) for row in rows] == [
        ("S/2", None, 4e-4, ()), ("B/2", None, 2e-4, ()),
    ]  # fmt: skip
    assert [[(c.rate, c.mean) for c in row.columns] for row in rows] == [
        [(2e-4, 26.410), (4e-4, 22.080)], [(2e-4, 15.610), (4e-4, 56.720)],
    ]  # fmt: skip


def test_ratios_are_paired_by_seed() -> None:
    own, other = (20.0, 22.0, 25.0), (30.0, 34.0, 37.0)
    trials = [trial(f"own{i}", "B", v, seed=i) for i, v in enumerate(own)]
    trials += [trial(f"of-s{i}", "B", v, seed=i, rate_of="S") for i, v in enumerate(other)]
    trials += [trial("lost", "B", 0, seed=9, rate_of="S", status="diverged"), trial("alone", "L", 9)]
    row = analyse(table(*trials)).cross_check[0]
    assert (row.size, row.own, row.best) == ("B/2", "B", "B")
    (ratio,) = row.ratios
    difference = np.log(other) - np.log(own)
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert ratio.log_ratio == pytest.approx(difference.mean())
    assert (ratio.low, ratio.high) == (pytest.approx(low), pytest.approx(high))
    of_s = next(seeds for seeds in row.columns if seeds.rate == "S")
    assert of_s.diverged == ("lost",) and of_s.std == pytest.approx(np.std(other, ddof=1))
    assert "diverged: lost" in summary(analyse(table(*trials)).to_json())


# ---------------------------------------------------------------- report and figure


@pytest.fixture
def transfer() -> Transfer:
    """Four widths in G, of which L was tried below its best rate only; two in D; S and B at each other's rate."""
    trials = {t.name: t for t in sweep(-1, 0, "G")}
    trials |= {t.name: t for t in grid("G", "S", bowl(1.0), (8.0, 16.0), broken=(8.0, 16.0))}
    trials |= {t.name: t for size in "SB" for t in grid("D", size, bowl(base(size), noise(5)))}
    edge = grid("G", "L", bowl(1.5e-4, noise(6)), (0.0625, 0.125, 0.25, 0.5, 1.0))
    kept = [t for t in trials.values() if t.cell.generator_size != "L"] + edge
    crossed = [trial("cost $5", "S", 26.4, rate_of="B")]
    return analyse(table(*kept, *crossed, trial("of-s", "B", 56.7, rate_of="S"), trial("x", "XL", 4, (2, 2))))


def test_json_is_strict_and_names_the_trials(transfer: Transfer) -> None:
    report = json.loads(json.dumps(transfer.to_json(), allow_nan=False))
    assert (report["metric"], report["metric_n"], report["confidence"], report["better"]) == (
        "fid",
        5000,
        0.95,
        "lower",
    )
    found = report["networks"]["G"]
    assert found["verdict"].startswith("consistent with -1") and found["low"] < found["slope"] < found["high"]
    assert found["degree"] == 3 and set(found["checks"]) == {"one_line", "one_curve", "replicates"}
    small, large = found["grids"][0], found["grids"][2]
    assert small["curve"]["low"] < small["curve"]["vertex"] < small["curve"]["high"] and small["remark"] is None
    assert small["rates"][0]["trials"] == ["G-S-0.3125-0", "G-S-0.3125-1"]
    assert "extend the grid upwards" in large["remark"]
    assert report["networks"]["D"]["method"] == "Student t over 20 trials of 2 widths"
    assert {e["trial"] for e in report["excluded"]} == {"x", *(f"G-S-{f}-{s}" for f in (8.0, 16.0) for s in (0, 1))}
    assert [row["size"] for row in report["cross_check"]] == ["S/2", "B/2"]
    # A grid of equal values has no curvature, and so no vertex.
    level = analyse(table(*grid("D", "S", lambda rate: 7.0))).to_json()
    assert json.dumps(level, allow_nan=False) and level["networks"]["G"] is None
    assert summary(level) and summary(report)


def test_the_figure(transfer: Transfer, tmp_path: Path) -> None:
    svg, png = plot(transfer, tmp_path / "figures" / "rates.v1")
    assert (svg.name, png.name) == ("rates.v1.svg", "rates.v1.png")
    text = svg.read_text()
    for said in ("learning rate of G", "learning rate of D", "width of D", "diverged", "L/2: best 1.", "rate of S"):
        assert said in text
    again, _ = plot(transfer, tmp_path / "again")
    assert again.read_bytes() == svg.read_bytes()


def test_figures_of_one_half(transfer: Transfer, tmp_path: Path) -> None:
    d_alone = analyse(table(*grid("D", "S", bowl(4e-4, noise(0)))))
    text = plot(d_alone, tmp_path / "d")[0].read_text()
    assert "learning rate of D" in text and "learning rate of G" not in text and "rate of S" not in text
    crossed = analyse(table(trial("a", "S", 22.1), trial("b", "S", 26.4, rate_of="B")))
    text = plot(crossed, tmp_path / "crossed")[0].read_text()
    assert "rate of B" in text and "learning rate of" not in text
    lost = analyse(table(*grid("G", "S", bowl(1.0), broken=FACTORS), trial("a", "B", 1), trial("b", "B", 2, (2, 1))))
    assert "not identifiable" in plot(lost, tmp_path / "lost")[0].read_text()
