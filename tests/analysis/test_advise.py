"""The advisor: its widths against statsmodels with the cell really added, and a planted ranking."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from analysis.advise import analyse, summary
from analysis.law import fit_law
from analysis.reading import load_table
from analysis.table import Table

SIZES = {"S": 1e4, "B": 1e5, "L": 1e6, "XL": 1e7}  # GFLOPs


def table_of(folder: Path, seeds: int, noise: float = 0.1, between: float = 0.0) -> Table:
    random = np.random.default_rng(0)
    rows = ["trial,generator_size,seed,step,flops,g_forward_flops,metric,value"]
    for size, c in SIZES.items():
        own = random.normal(0, between)
        for seed in range(seeds):
            value = 3e3 * c**-0.4 * math.exp(own + random.normal(0, noise))
            rows.append(f"{size}{seed},{size},{seed},10,{2e9 * c},{c},fd,{value}")
    path = folder / "t.csv"
    path.write_text("\n".join(rows))
    return load_table(path)


def width(x: np.ndarray, variance: np.ndarray, at: float) -> float:
    """Of the law at a point, by statsmodels, with variances taken for known."""
    fit = sm.WLS(np.zeros(len(x)), sm.add_constant(x), weights=1 / variance).fit(cov_type="fixed scale")
    row = np.array([1.0, at])
    return float(stats.t.ppf(0.975, len(x) - 2) * math.sqrt(row @ fit.normalized_cov_params @ row))


def test_widths_are_those_of_a_fit_with_the_cell_added(tmp_path: Path) -> None:
    found = analyse(table_of(tmp_path, seeds=3, between=0.3))
    assert found.seeds is not None and found.between > 0
    x, at = np.log(list(SIZES.values())), math.log(1e7)
    between, seeds = found.between**2, found.seeds**2
    assert found.half_width == pytest.approx(width(x, np.full(4, between + seeds / 3), at))
    rows = {candidate.what: candidate for candidate in found.candidates}
    variance = np.array([between + seeds / 4, *[between + seeds / 3] * 3])
    assert rows["one more seed of S/2"].half_width == pytest.approx(width(x, variance, at))
    middle = rows["a size between L/2 and XL/2, 3 seeds"]
    added = np.append(x, (x[2] + x[3]) / 2)
    assert middle.half_width == pytest.approx(width(added, np.full(5, between + seeds / 3), at))
    assert middle.gflops == pytest.approx(3 * math.sqrt(1e6 * 1e7)) and middle.trials == 3
    assert all(
        candidate.gain == pytest.approx(found.half_width - candidate.half_width) for candidate in found.candidates
    )
    assert all(candidate.prediction_half_width > candidate.half_width for candidate in found.candidates)


def test_a_cheap_size_is_worth_more_per_gflop_and_a_dear_one_more_in_all(tmp_path: Path) -> None:
    """Four sizes lack degrees of freedom, and the cheapest size also adds one."""
    report = analyse(table_of(tmp_path, seeds=2, between=0.2)).to_json()
    assert report["candidates"][0]["what"].startswith("a size at half of S/2")
    assert report["largest_gain"].startswith("a size at twice XL/2")
    gains = [row["gain_per_gflop"] for row in report["candidates"]]
    assert gains == sorted(gains, reverse=True)
    json.dumps(report, allow_nan=False)
    assert "largest gain at any cost: a size at twice XL/2" in summary(report)


def test_without_replicates_only_new_sizes_are_compared(tmp_path: Path) -> None:
    found = analyse(table_of(tmp_path, seeds=1))
    assert found.seeds is None and not any("more seed" in candidate.what for candidate in found.candidates)
    assert any("no size has two seeds" in remark for remark in found.remarks)


def test_what_gives_no_advice_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lie on a law exactly"):
        analyse(table_of(tmp_path, seeds=2, noise=0.0))
    path = tmp_path / "two.csv"
    path.write_text("\n".join((tmp_path / "t.csv").read_text().splitlines()[:4]))
    with pytest.raises(ValueError, match="needs at least 3 complete sizes"):
        analyse(load_table(path))


def test_one_seed_a_size_is_ordinary_least_squares_with_the_cell_on_the_line(tmp_path: Path) -> None:
    table = table_of(tmp_path, seeds=1)
    law, c = fit_law(table).fit, np.array(list(SIZES.values()))
    target, new = 1e8, 3e6
    found = analyse(table, target_gflops=target, candidates=[new])
    there = np.array([[1.0, math.log(target)]])
    values = [p.value for p in fit_law(table).points]

    def reference(c: np.ndarray, values: list[float]) -> tuple[float, float]:
        """Half-widths of statsmodels' own intervals, with the residual deviation held at the law's."""
        fit = sm.OLS(np.log(values), sm.add_constant(np.log(c))).fit()
        said = fit.get_prediction(there).summary_frame(alpha=0.05).iloc[0]
        held = law.residual_std / math.sqrt(fit.scale) / 2
        return (said.mean_ci_upper - said.mean_ci_lower) * held, (said.obs_ci_upper - said.obs_ci_lower) * held

    assert (found.half_width, found.prediction_half_width) == pytest.approx(reference(c, values))
    (candidate,) = found.candidates
    after = reference(np.append(c, new), [*values, float(law.predict(new))])
    assert (candidate.half_width, candidate.prediction_half_width) == pytest.approx(after)
    assert candidate.gflops == pytest.approx(new) and candidate.what == "a size at 3e+06 GFLOPs, 1 seed"
    assert found.target == "C = 1e+08 GFLOPs" and not any("weighs all sizes alike" in r for r in found.remarks)


def test_an_end_is_worth_more_than_the_middle(tmp_path: Path) -> None:
    """At a target beyond all sizes, in all: what pins the slope is far from the mean."""
    found = analyse(table_of(tmp_path, seeds=1), target_gflops=1e8, candidates=[1e7, 3e5, 1e4])
    gain = {round(math.log10(candidate.gflops), 1): candidate.gain for candidate in found.candidates}
    assert gain[7.0] > gain[5.5] and gain[4.0] > gain[5.5]
    assert found.to_json()["largest_gain"] == "a size at 1e+07 GFLOPs, 1 seed"


def test_where_seeds_differ_in_number_the_fits_own_interval_is_said_too(tmp_path: Path) -> None:
    """fit-law weighs all sizes alike; one with a single seed among many has less to say."""
    table = table_of(tmp_path, seeds=6)
    lone = [trial for trial in table.trials if trial.cell.generator_size != "XL" or trial.last.seed == 0]
    found = analyse(Table(table.path, tuple(lone)))
    (remark,) = [remark for remark in found.remarks if "weighs all sizes alike" in remark]
    there = fit_law(Table(table.path, tuple(lone))).fit
    low, high = there.band(1e7, of=10**12)  # of so many new points that only the law's own is left
    assert f"factor of {math.sqrt(float(high / low)):.3g} there" in remark


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_compute_is_positive(tmp_path: Path, wrong: float) -> None:
    table = table_of(tmp_path, seeds=1)
    with pytest.raises(ValueError, match="give positive numbers of GFLOPs"):
        analyse(table, target_gflops=wrong)
    with pytest.raises(ValueError, match="give positive numbers of GFLOPs"):
        analyse(table, candidates=[1e5, wrong])


def test_protocols_are_not_mixed(tmp_path: Path) -> None:
    table_of(tmp_path, seeds=1)
    path = tmp_path / "t.csv"
    path.write_text(path.read_text().replace("B0,B,0,10,200000000000000.0,100000.0,fd", "B0,B,0,10,2e14,1e5,fid"))
    assert ",fid," in path.read_text()
    with pytest.raises(ValueError, match="mix protocols"):
        analyse(load_table(path))
