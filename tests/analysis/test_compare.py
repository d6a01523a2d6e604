"""Arms compared: intervals against scipy, verdicts by the metric's direction, and what may not be compared."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.compare import analyse, summary
from analysis.figures.compare import plot
from analysis.reading import load_table
from analysis.table import Table

CASES = Path(__file__).parents[1] / "data" / "law"
HEADER = "trial,generator_size,seed,step,steps,flops,g_forward_flops,metric,value,mng.schedule,status"


def table_of(folder: Path, rows: list[str]) -> Table:
    path = folder / "t.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return load_table(path)


def row(
    arm: str, seed: int, value: float, size: str = "S", step: int = 10, status: str = "done", metric: str = "fid"
) -> str:
    cost = {"none": 1, "exp": 2, "msg": 3}[arm]
    return f"{size}-{arm}-{seed},{size},{seed},{step},10,{cost * step}e9,{len(size)}e9,{metric},{value},{arm},{status}"


def test_the_papers_seeds(tmp_path: Path) -> None:
    """A.17: S/2 at 10 epochs, four seeds, FID-5K."""
    values = [30.085, 31.157, 28.907, 31.069]
    (arm,) = analyse(table_of(tmp_path, [row("exp", i, v) for i, v in enumerate(values)])).arms
    assert (arm.label, arm.mean, arm.std) == (
        "S/2",
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
    )
    interval = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (arm.low, arm.high) == pytest.approx(interval)


def test_differences_have_dunnetts_intervals_over_all_arms(tmp_path: Path) -> None:
    """Arms of different sizes, with different numbers of seeds, against scipy's test of the logarithms."""
    random = np.random.default_rng(0)
    values = {arm: 20 * np.exp(random.normal(0, 0.1, n)) for arm, n in (("none", 4), ("exp", 5), ("msg", 3))}
    rows = [row(arm, seed, v) for arm, found in values.items() for seed, v in reversed(list(enumerate(found)))]
    found = analyse(table_of(tmp_path, rows))
    assert [arm.label for arm in found.arms] == ["schedule=none", "schedule=exp", "schedule=msg"]  # by compute
    logs = [np.log(values[arm]) for arm in ("exp", "msg", "none")]
    test = stats.dunnett(*logs[:2], control=logs[2], rng=0)
    interval = test.confidence_interval()
    assert [d.p_adjusted for d in found.differences] == pytest.approx(test.pvalue, abs=1e-3)  # by random numbers
    assert [d.ratio for d in found.differences] == pytest.approx([np.exp(x.mean() - logs[2].mean()) for x in logs[:2]])
    assert [d.ratio_low for d in found.differences] == pytest.approx(np.exp(interval.low), abs=1e-3)
    assert [d.ratio_high for d in found.differences] == pytest.approx(np.exp(interval.high), abs=1e-3)
    assert {(d.reference, d.method, d.degrees_of_freedom) for d in found.differences} == {
        ("schedule=none", "Dunnett", 9)
    }
    json.dumps(found.to_json(), allow_nan=False)


DIGITS = {"S": (676, 614, 484), "B": (459, 335, 421), "L": (263, 232, 302), "XL": (282, 246, 236)}


def sizes(folder: Path, different_seeds: bool = False) -> Table:
    """Four sizes of digits, three seeds each."""
    rows = [
        f"{size}{seed},{size},{seed + 10 * i * different_seeds},{value},1,10,{i}e12,1e9,fd_x"
        for i, (size, found) in enumerate(DIGITS.items(), 1)
        for seed, value in enumerate(found)
    ]
    path = folder / "sizes.csv"
    path.write_text("\n".join(["trial,generator_size,seed,value,x,step,flops,g_forward_flops,metric", *rows]))
    return load_table(path)


def test_disjoint_ranges_of_three_seeds_differ(tmp_path: Path) -> None:
    """Means of 266 and 591 with disjoint ranges; pairs of three seeds alone would leave two degrees of freedom."""
    for different in (False, True):  # seeds need not be the same in all arms
        found = analyse(sizes(tmp_path, different))
        assert {d.arm: d.verdict for d in found.differences} == dict.fromkeys(("B/2", "L/2", "XL/2"), "better")
        small = next(d for d in found.differences if d.arm == "L/2")
        assert small.ratio == pytest.approx(0.451, abs=1e-3) and small.degrees_of_freedom == 8
        assert small.p_adjusted is not None and small.p_adjusted < 0.001
        told = "arms have different seeds" if different else "a common effect of seeds has F(2, 6) = 1.69, p = 0.26"
        assert f"differences are not taken seed by seed: {told}" in summary(found.to_json())


def test_a_higher_inception_score_is_better() -> None:
    table = load_table(CASES / "cmp_is.csv")
    (rise,) = analyse(table, reference="schedule=none").differences
    assert (rise.arm, rise.verdict) == ("schedule=exp", "better") and rise.ratio == pytest.approx(1.6, abs=0.02)
    (fall,) = analyse(table, reference="schedule=exp").differences
    assert fall.verdict == "worse"
    with pytest.raises(ValueError, match="of inception_score, a higher value is better, but --better lower was given"):
        analyse(table, better="lower")


def test_a_metric_without_a_direction_is_lower_or_higher(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, [row(a, s, v + s, metric="mine") for a, v in (("none", 50), ("exp", 20)) for s in (0, 1)]
    )
    report = analyse(table).to_json()
    assert (report["better"], report["differences"][0]["verdict"]) == (None, "lower")
    assert "mine (give --better lower or --better higher)" in summary(report)
    for asked, verdict in (("lower", "better"), ("higher", "worse")):
        report = analyse(table, better=asked).to_json()
        assert (report["better"], report["differences"][0]["verdict"]) == (asked, verdict)
        assert f"mine ({asked} is better)" in summary(report)


def test_seeds_that_move_all_arms_are_taken_out(tmp_path: Path) -> None:
    values = {"none": (20, 40, 30, 25), "exp": (18.5, 35, 27, 22.2)}
    found = analyse(table_of(tmp_path, [row(arm, s, v) for arm, vs in values.items() for s, v in enumerate(vs)]))
    (difference,) = found.differences
    paired = stats.ttest_rel(np.log(values["exp"]), np.log(values["none"]))
    interval = paired.confidence_interval()
    assert (difference.method, difference.degrees_of_freedom) == ("Dunnett, seed by seed", 3)
    assert difference.p == difference.p_adjusted == pytest.approx(paired.pvalue)
    assert (difference.ratio_low, difference.ratio_high) == pytest.approx(np.exp([interval.low, interval.high]))
    assert "differences are taken seed by seed: a common effect of seeds has F(3, 3)" in summary(found.to_json())


def test_a_noisy_arm_is_named_and_compared_by_its_own_noise(tmp_path: Path) -> None:
    values = {"none": (20, 20.5, 19.8), "exp": (18.2, 18.0, 18.5), "msg": (30, 60, 15)}
    found = analyse(table_of(tmp_path, [row(arm, s, v) for arm, vs in values.items() for s, v in enumerate(vs)]))
    exp, msg = found.differences
    assert (exp.method, msg.method, msg.verdict) == ("Dunnett", "Welch", "not significantly different")
    welch = stats.ttest_ind(np.log(values["msg"]), np.log(values["none"]), equal_var=False)
    assert (msg.p, msg.degrees_of_freedom) == pytest.approx((welch.pvalue, welch.df))
    assert msg.p_adjusted == pytest.approx(1 - (1 - welch.pvalue) ** 2)
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [one["arm"] for one in report["noise"]["noisier"]] == ["schedule=msg"]
    assert "schedule=msg is noisier than the other arms: compared by its own noise (F(2, 4) = " in summary(report)


def test_arms_are_compared_within_their_size(tmp_path: Path) -> None:
    rows = [row(arm, s, v * (1 + 0.01 * s), size) for size, arm, v in [
        ("S", "none", 50), ("S", "exp", 30), ("B", "none", 36), ("B", "exp", 24)] for s in range(3)]  # fmt: skip
    found = analyse(table_of(tmp_path, rows))
    assert {(d.arm, d.reference): d.ratio for d in found.differences} == {
        ("S/2, schedule=exp", "S/2, schedule=none"): pytest.approx(0.6),
        ("B/2, schedule=exp", "B/2, schedule=none"): pytest.approx(2 / 3),
    }
    assert all(d.verdict == "better" for d in found.differences)


def test_one_seed_has_no_interval_and_sizes_alone_are_arms(tmp_path: Path) -> None:
    rows = ["S-exp-0,S,0,10,10,1e10,1e9,fid,20,exp,done", "B-exp-0,B,0,10,10,4e10,4e9,fid,10,exp,done"]
    broken = "L-exp-0,L,0,4,10,9e10,9e9,fid,,exp,diverged"
    found = analyse(table_of(tmp_path, [*rows, broken]))
    (difference,) = found.differences
    assert (difference.arm, difference.reference, difference.ratio) == ("B/2", "S/2", pytest.approx(0.5))
    assert difference.ratio_low is difference.p is difference.method is None
    assert difference.verdict == "no interval" and found.to_json()["noise"] is None
    assert "left out: L-exp-0" in summary(found.to_json()) and "one seed" in summary(found.to_json())


def test_curves_are_over_steps_that_all_seeds_have(tmp_path: Path) -> None:
    rows = [row("exp", s, v, step=step, status="running" if step < 10 else "done") for s, step, v in [
        (0, 2, 9.0), (0, 5, 6.0), (0, 10, 4.0), (1, 5, 8.0), (1, 10, 2.0)]]  # fmt: skip
    found = analyse(table_of(tmp_path, rows))
    assert found.arms[0].curve == ((5, 7, 6, 8), (10, 3, 2, 4))
    for name in "ab":
        plot(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    twice = [row("exp", 0, 5.0), row("exp", 0, 6.0).replace("S-exp-0", "S-exp-again")]
    with pytest.raises(ValueError, match=r"S-exp-0 and S-exp-again are both S/2 with seed 0 \(.*row 2; .*row 3\)"):
        analyse(table_of(tmp_path, twice))
    with pytest.raises(ValueError, match="mix protocols"):
        analyse(table_of(tmp_path, [row("exp", 0, 5.0), row("exp", 1, 5.0).replace(",fid,", ",fd_x,")]))
    with pytest.raises(ValueError, match="no trial is complete"):
        analyse(table_of(tmp_path, [row("exp", 0, 5.0, step=4)]))
    assert math.isfinite(analyse(table_of(tmp_path, [row("exp", 0, 5.0)])).arms[0].mean)


def study(folder: Path, columns: str, rows: list[str]) -> Table:
    """Of rows `trial,size,seed,value,...`, ten steps each, with the further columns."""
    path = folder / "study.csv"
    lines = [f"trial,generator_size,seed,value,{columns},step,flops,g_forward_flops,metric"]
    path.write_text("\n".join(lines + [f"{row},10,1e10,1e9,fid" for row in rows]) + "\n")
    return load_table(path)


def alignment(folder: Path) -> Table:
    """Fig. 5c's design with three seeds: each trial that goes on has another one to start from, and more steps."""
    rows = []
    for size, value in (("S", 50.0), ("B", 36.0)):
        for seed in range(3):
            v = value * (1 + 0.02 * seed)
            rows += [
                f"{size}a{seed},{size},{seed},{0.6 * v},{size},1,20,",
                f"{size}w{seed},{size},{seed},{v},{size},0,20,",
                f"{size}r{seed},{size},{seed},{0.5 * v},{size},0,24,{size}a{seed}",
                f"{size}k{seed},{size},{seed},{0.55 * v},{size},1,24,{size}a{seed}",
            ]
    return study(folder, "model.generator,objective.align_weight,train.steps,start.trial", rows)


def test_trials_that_go_on_are_one_arm_whatever_they_start_from(tmp_path: Path) -> None:
    found = analyse(alignment(tmp_path))
    arms = ["align_weight=0", "align_weight=0, after=another", "align_weight=1", "align_weight=1, after=another"]
    assert [arm.label for arm in found.arms] == [f"{size}/2, {arm}" for size in "BS" for arm in arms]
    assert all(len(arm.values) == 3 for arm in found.arms)
    assert {d.reference for d in found.differences} == {"B/2, align_weight=0", "S/2, align_weight=0"}


def test_a_reference_is_taken_at_every_size(tmp_path: Path) -> None:
    table = alignment(tmp_path)
    found = analyse(table, reference="S/2, align_weight=1, after=another")
    assert {d.reference for d in found.differences} == {f"{size}/2, align_weight=1, after=another" for size in "SB"}
    assert all(d.arm[:3] == d.reference[:3] for d in found.differences) and len(found.differences) == 6
    removed = next(d for d in found.differences if d.arm == "B/2, align_weight=0, after=another")
    assert removed.ratio == pytest.approx(0.5 / 0.55) and removed.verdict == "better"
    with pytest.raises(ValueError, match="no arm is called 'kept'; use one of: B/2, align_weight=0; B/2, align"):
        analyse(table, reference="kept")
    sizes = study(tmp_path, "n", [f"{size}{s},{size},{s},{9 + s},5" for size in "SBL" for s in (0, 1)])
    assert {(d.arm, d.reference) for d in analyse(sizes, "B/2").differences} == {("L/2", "B/2"), ("S/2", "B/2")}


def test_labels_name_what_varies_once(tmp_path: Path) -> None:
    """Not what follows from the size, nor from another setting, nor what most arms have."""
    rows = [f"{s}{b}{r},{s},0,9,{s},{b},{80 // b},{r}" for s in "SB" for b, r in [(4, "no"), (8, "no"), (4, "yes")]]
    found = analyse(study(tmp_path, "ladder.width,train.batch,train.epochs,train.rule", rows))
    assert [arm.label for arm in found.arms if arm.cell.generator_size == "S"] == [
        "S/2",
        "S/2, batch=8",
        "S/2, rule=yes",
    ]
    two = study(tmp_path, "g.depth,d.depth", ["a,S,0,9,4,4", "b,S,0,8,4,8", "c,S,0,7,8,4", "d,S,0,7,8,8"])
    assert analyse(two).arms[1].label == "g.depth=4, d.depth=8"  # `depth` alone would be either


def test_learning_rates_without_a_config_are_arms_too(tmp_path: Path) -> None:
    """Two rates with one seed each are not two seeds of one arm."""
    found = analyse(study(tmp_path, "lr_g", ["a,S,0,20,1e-4", "b,S,1,40,2e-4"]))
    assert [(arm.label, arm.std) for arm in found.arms] == [("lr_g=0.0001", None), ("lr_g=0.0002", None)]
    (difference,) = found.differences
    assert (difference.verdict, difference.ratio) == ("no interval", pytest.approx(2))


def test_an_arm_with_one_seed_has_the_noise_of_the_others(tmp_path: Path) -> None:
    values = {"none": (20, 22, 19), "exp": (15,), "msg": (2,)}
    found = analyse(table_of(tmp_path, [row(arm, s, v) for arm, vs in values.items() for s, v in enumerate(vs)]))
    assert [(d.verdict, d.degrees_of_freedom) for d in found.differences] == [
        ("not significantly different", 2),
        ("better", 2),
    ]


def test_an_interval_without_an_end_that_a_float_holds(tmp_path: Path) -> None:
    """One degree of freedom and two seeds that are far apart."""
    found = analyse(table_of(tmp_path, [row("none", 0, 1e-40), row("none", 1, 1e40), row("exp", 2, 1.0)]))
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (report["differences"][0]["ratio_low"], report["differences"][0]["ratio_high"]) == (0, None)
    assert "schedule=exp / schedule=none: 1 [0, inf], not significantly different" in summary(report)
    plot(found, tmp_path / "figure")


def test_an_arm_that_broke_altogether_is_listed_with_n_0(tmp_path: Path) -> None:
    rows = [row("exp", 0, 5.0), row("exp", 1, 6.0), "m,S,0,4,10,9e9,1e9,fid,,msg,diverged"]
    rows += ["e,S,2,4,10,9e9,1e9,fid,,exp,failed"]
    found = analyse(table_of(tmp_path, rows))
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [(arm["label"], arm["n"], arm["mean"]) for arm in report["arms"]] == [
        ("schedule=exp", 2, 5.5),
        ("schedule=msg", 0, None),
    ]
    assert [(e["trial"], e["arm"]) for e in report["excluded"]] == [("m", "schedule=msg"), ("e", "schedule=exp")]
    assert set(report["arms"][0]) == set(report["arms"][1])
    assert "schedule=msg: no complete trial, n = 0" in summary(report) and "left out: e" in summary(report)
    plot(found, tmp_path / "figure")


def test_trials_of_other_lengths_are_no_replicates(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("trial,generator_size,seed,step,flops,g_forward_flops,metric,value\n")
    with path.open("a") as file:
        file.write("a,S,0,10,1e10,1e9,fid,20\nb,S,1,20,2e10,1e9,fid,40\n")
    with pytest.raises(ValueError, match=r"of S/2 end at different steps \(10, 20\) and are not replicates: a, b"):
        analyse(load_table(path))


def test_equal_arms_do_not_differ(tmp_path: Path) -> None:
    """Without any spread, a difference of 0 is not evidence, and an equal difference in all seeds is certain."""
    same, worse = ([row(arm, s, v * (10 + s)) for s in (0, 1, 2)] for arm, v in (("exp", 1), ("msg", 2)))
    found = analyse(table_of(tmp_path, [*same, *worse, *(row("none", s, 10 + s) for s in (0, 1, 2))]))
    assert [(d.arm, d.p, d.verdict) for d in found.differences] == [
        ("schedule=exp", 1.0, "not significantly different"),
        ("schedule=msg", 0.0, "worse"),
    ]
