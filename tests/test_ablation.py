"""Arms compared: against scipy and statsmodels, planted effects, and what may not be compared."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.ablation import compare, holm, summary
from analysis.ablation_figure import plot_ablation
from analysis.table import Table, load_table

HEADER = "trial,generator_size,seed,step,steps,flops,g_forward_flops,metric,value,mng.schedule,status"


def table_of(folder: Path, rows: list[str]) -> Table:
    path = folder / "t.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return load_table(path)


def row(arm: str, seed: int, value: float, size: str = "S", step: int = 10, status: str = "done") -> str:
    cost = {"none": 1, "exp": 2, "msg": 3}[arm]
    return f"{size}-{arm}-{seed},{size},{seed},{step},10,{cost * step}e9,{len(size)}e9,fd,{value},{arm},{status}"


def test_the_papers_seeds(tmp_path: Path) -> None:
    """A.17: S/2 at 10 epochs, four seeds, FID-5K."""
    values = [30.085, 31.157, 28.907, 31.069]
    (arm,) = compare(table_of(tmp_path, [row("exp", i, v) for i, v in enumerate(values)])).arms
    assert (arm.label, arm.mean, arm.std) == (
        "S/2",
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
    )
    interval = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (arm.low, arm.high) == pytest.approx(interval)


def test_differences_are_paired_t_tests_with_holms_adjustment(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = {arm: list(20 * np.exp(random.normal(0, 0.1, 5))) for arm in ("exp", "none", "msg")}
    rows = [row(arm, seed, v) for arm, found in values.items() for seed, v in reversed(list(enumerate(found)))]
    found = compare(table_of(tmp_path, rows))
    assert [arm.label for arm in found.arms] == ["schedule=none", "schedule=exp", "schedule=msg"]  # by compute
    raw = []
    for difference, arm in zip(found.differences, ("exp", "msg"), strict=True):
        logs = stats.ttest_rel(np.log(values[arm]), np.log(values["none"]))
        plain = stats.ttest_rel(values[arm], values["none"]).confidence_interval()
        assert difference.reference == "schedule=none" and difference.seeds == (0, 1, 2, 3, 4)
        assert difference.p == pytest.approx(logs.pvalue)
        interval = logs.confidence_interval()
        assert (difference.ratio_low, difference.ratio_high) == pytest.approx(np.exp([interval.low, interval.high]))
        assert (difference.low, difference.high) == pytest.approx([plain.low, plain.high])
        raw.append(logs.pvalue)
    assert [d.p_adjusted for d in found.differences] == pytest.approx(list(multipletests(raw, method="holm")[1]))
    many: list[float | None] = list(random.uniform(size=6) ** 3)
    assert holm([None, *many])[1:] == pytest.approx(list(multipletests(many, method="holm")[1]))
    json.dumps(found.to_json(), allow_nan=False)


def test_a_planted_effect_is_covered(tmp_path: Path) -> None:
    """Seeds that share half of how they stray: the paired interval holds the planted ratio, 0.9."""
    random, covered, draws = np.random.default_rng(1), 0, 400
    for _ in range(draws):
        shared = random.normal(0, 0.1, 4)
        one, other = (np.exp(shared + random.normal(0, 0.1, 4)) * 20 for _ in range(2))
        rows = [row("none", i, v) for i, v in enumerate(one)] + [row("exp", i, 0.9 * v) for i, v in enumerate(other)]
        (found,) = compare(table_of(tmp_path, rows)).differences
        assert found.ratio_low is not None and found.ratio_high is not None
        covered += found.ratio_low <= 0.9 <= found.ratio_high
    assert 0.92 < covered / draws < 0.98


def test_arms_are_compared_within_their_size(tmp_path: Path) -> None:
    rows = [row(arm, s, v * (1 + 0.01 * s), size) for size, arm, v in [
        ("S", "none", 50), ("S", "exp", 30), ("B", "none", 36), ("B", "exp", 24)] for s in range(3)]  # fmt: skip
    found = compare(table_of(tmp_path, rows))
    assert {(d.arm, d.reference): d.ratio for d in found.differences} == {
        ("S/2, schedule=exp", "S/2, schedule=none"): pytest.approx(0.6),
        ("B/2, schedule=exp", "B/2, schedule=none"): pytest.approx(2 / 3),
    }
    assert all(d.verdict == "better" for d in found.differences)


def test_one_seed_has_no_interval_and_sizes_alone_are_arms(tmp_path: Path) -> None:
    rows = ["S-exp-0,S,0,10,10,1e9,1e9,fd,20,exp,done", "B-exp-0,B,0,10,10,4e9,4e9,fd,10,exp,done"]
    broken = "L-exp-0,L,0,4,10,9e9,9e9,fd,,exp,diverged"
    found = compare(table_of(tmp_path, [*rows, broken]))
    (difference,) = found.differences
    assert (difference.arm, difference.reference, difference.ratio) == ("B/2", "S/2", pytest.approx(0.5))
    assert difference.low is difference.p is None and difference.verdict == "one seed: no interval"
    assert "left out: L-exp-0" in summary(found.to_json()) and "one seed" in summary(found.to_json())


def test_curves_are_over_steps_that_all_seeds_have(tmp_path: Path) -> None:
    rows = [row("exp", s, v, step=step, status="running" if step < 10 else "done") for s, step, v in [
        (0, 2, 9.0), (0, 5, 6.0), (0, 10, 4.0), (1, 5, 8.0), (1, 10, 2.0)]]  # fmt: skip
    found = compare(table_of(tmp_path, rows))
    assert found.arms[0].curve == ((5, 7, 6, 8), (10, 3, 2, 4))
    for name in "ab":
        plot_ablation(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    twice = [row("exp", 0, 5.0), row("exp", 0, 6.0).replace("S-exp-0", "S-exp-again")]
    with pytest.raises(ValueError, match=r"two trials have one seed and nothing else.*S-exp-0, S-exp-again"):
        compare(table_of(tmp_path, twice))
    with pytest.raises(ValueError, match="mix protocols"):
        compare(table_of(tmp_path, [row("exp", 0, 5.0), row("exp", 1, 5.0).replace(",fd,", ",fid,")]))
    with pytest.raises(ValueError, match="no trial is complete"):
        compare(table_of(tmp_path, [row("exp", 0, 5.0, step=4)]))
    assert math.isfinite(compare(table_of(tmp_path, [row("exp", 0, 5.0)])).arms[0].mean)
