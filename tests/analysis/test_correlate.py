"""Correlations over sizes: the paper's own points, references, and what few points can say."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.correlate import analyse, summary
from analysis.figures.correlate import plot
from analysis.reading import load_table
from analysis.statistics import spearman
from analysis.table import Table
from gat_sweep.results import paper

HEADER = "trial,generator_size,step,steps,flops,g_forward_flops,metric,value,patch,n,seed"


def table_of(folder: Path, *lines: str) -> Table:
    path = folder / "t.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return load_table(path)


def test_the_papers_four_sizes(tmp_path: Path) -> None:
    """At 50k iterations, though XL has a point at 100k: -0.918 with GFLOPs, -0.996 with their logarithm, -0.994."""
    paper.write_table(tmp_path / "paper.csv", paper.FORWARDS)
    report = analyse(load_table(tmp_path / "paper.csv")).to_json()
    assert report["step"] == 50_000 and [m["value"] for m in report["models"]] == pytest.approx(
        [15.237, 9.534, 4.6, 4.021]
    )
    found = [report[name]["r"] for name in ("pearson", "pearson_log_gflops", "pearson_log_log")]
    assert found == pytest.approx([-0.918, -0.996, -0.994], abs=1e-3)
    # Four points that fall in order: the rank correlation is -1, and no interval can be had from that.
    assert report["spearman"] == {"r": pytest.approx(-1), "low": None, "high": None}
    assert report["pearson"]["high"] > 0  # what r = -0.92 is worth at n = 4
    json.dumps(report, allow_nan=False)
    assert "Pearson with log GFLOPs: -0.996" in summary(report)


def test_spearman_is_scipys_with_an_interval_that_covers() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 20))
    y += x
    found = spearman(x, y)
    assert found.r == pytest.approx(stats.spearmanr(x, y).statistic)
    rho, covered, draws = 0.6, 0, 1000
    truth = 6 / math.pi * math.asin(rho / 2)  # of ranks, for a normal pair
    for _ in range(draws):
        u, v = random.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 20).T
        interval = spearman(u, v)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= truth <= interval.high
    assert 0.94 < covered / draws < 0.985  # a little wide at n = 20


def test_seeds_are_averaged_and_patches_are_models(tmp_path: Path) -> None:
    found = analyse(
        table_of(
            tmp_path,
            *(f"S2{i},S,10,10,4e12,4e9,fd,{10 * 2**i},2,5,{i}" for i in range(3)),
            "S4,S,10,10,1e12,1e9,fd,40,4,5,0",
            "B2,B,10,10,8e12,8e9,fd,10,2,5,0",
            "L2,L,5,10,8e12,8e9,fd,10,2,5,0",
        )
    )
    assert [(m.cell.label, len(m.trials)) for m in found.models] == [("S/4", 1), ("S/2", 3), ("B/2", 1)]
    assert [m.value for m in found.models] == pytest.approx([40, 20, 10])
    assert [e.trial for e in found.excluded] == ["L2"] and found.pearson.low is None
    for name in ("a", "b"):
        plot(found, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    sizes = [f"{s},{s},10,10,1e12,{i}e9,fd,5,2,{{}},0" for i, s in enumerate("SBL", 1)]
    with pytest.raises(ValueError, match=r"n is 5 \(as in S\) or 6 \(as in L\)"):
        analyse(table_of(tmp_path, sizes[0].format(5), sizes[1].format(5), sizes[2].format(6)))
    with pytest.raises(ValueError, match="needs 3 sizes or patches, this table has 2"):
        analyse(table_of(tmp_path, sizes[0].format(5), sizes[1].format(5)))
    with pytest.raises(ValueError, match="no step at which every complete trial"):
        analyse(table_of(tmp_path, "S,S,10,10,1e12,1e9,fd,5,2,5,0", "B,B,20,20,1e12,2e9,fd,5,2,5,0"))
    (tmp_path / "u.csv").write_text("trial,generator_size,step,flops,metric,value\nS,S,1,1e9,fd,3\n")
    with pytest.raises(ValueError, match="S has no g_forward_flops, which a correlation needs; add the column"):
        analyse(load_table(tmp_path / "u.csv"))
