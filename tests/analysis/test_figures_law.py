import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter

from analysis.figures.law import plot_laws
from analysis.figures.style import label_points, number_text, set_ticks
from analysis.law import fit_laws
from analysis.reading import load_table
from analysis.table import Table

HEADER = "trial,generator_size,seed,step,steps,flops,g_forward_flops,metric,value,n,status,reason"
COST = {"S": 12.11e9, "B": 46.00e9, "L": 161.3e9, "XL": 237.1e9}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Four sizes, two seeds, five evaluations each; the second L diverges half way, the second XL is cut."""
    rng = np.random.default_rng(0)
    lines = [HEADER]
    for size, g in COST.items():
        for seed in (0, 1):
            for step in range(20, 101, 20):
                flops = 60 * g * 512 * step
                value = 6e5 * (60 * g * 512 * 100 / 2e9) ** -0.48 * (100 / step) * np.exp(rng.normal(0, 0.02))
                broken = (size, seed, step) == ("L", 1, 60)
                status = "diverged" if broken else "done" if step == 100 else "running"
                reason = "costs $5 and $6" if broken else ""
                lines.append(
                    f"{size}{seed},{size},{seed},{step},100,{flops},{g},fd_efficientnet_lite0,"
                    f"{'' if broken else value},5000,{status},{reason}"
                )
                if broken or (size, seed, step) == ("XL", 1, 40):
                    break
    path = tmp_path / "results.csv"
    path.write_text("\n".join(lines) + "\n")
    return load_table(path)


def test_the_figure_says_what_it_shows_and_is_reproducible(table: Table, tmp_path: Path) -> None:
    laws = fit_laws(table)
    law = laws.laws[0].curve
    svg, png = plot_laws(table, laws, tmp_path / "figures" / "law.v1")
    assert (svg.name, png.name) == ("law.v1.svg", "law.v1.png")
    assert sorted(svg.parent.iterdir()) == [png, svg]  # no partial files
    assert png.read_bytes().startswith(b"\x89PNG")

    text = svg.read_text()
    said = "\n".join(re.findall(r"<!-- (.*?) -->", text, flags=re.DOTALL))  # matplotlib's comment per text
    assert "fd_efficientnet_lite0   (N = 5,000 generated images)" in said
    assert "multiply-adds" in said and "a new size, 95 %" in said and "std of a seed" in said and "4 sizes" in said
    assert f"{-law.b:.3f}" in said and f"{law.b_low:.3f}" in said
    assert all(f"\n{label}\n" in said for label in ("S/2", "B/2", "L/2", "XL/2"))
    assert "L1 (L/2): costs" in said and "XL1 (XL/2): unfinished: step 40 of" in said
    assert "FID" not in said and "<dc:date>" not in text

    again, _ = plot_laws(table, laws, tmp_path / "again")
    assert again.read_bytes() == svg.read_bytes()


def test_sizes_at_almost_equal_compute(tmp_path: Path) -> None:
    # The exponent is so large that a, the band's end and the interval's are beyond floating point.
    points = [("S", 1e18, 90), ("B", 1.01e18, 40), ("L", 1.02e18, 30)]
    rows = [f"{s},{s},0,1,1,{flops},1e9,fd,{v},," for s, flops, v in points]
    path = tmp_path / "equal.csv"
    path.write_text("\n".join([HEADER.removesuffix(",reason"), *rows]) + "\n")
    table = load_table(path)
    laws = fit_laws(table)
    curve = laws.laws[0].curve
    assert math.isinf(curve.a) and curve.b > 50
    assert 20 < curve.predict([1.01e18 / 2e9])[0] < 90
    assert all(path.stat().st_size > 0 for path in plot_laws(table, laws, tmp_path / "equal"))


@pytest.mark.parametrize(("low", "high"), [(0.93, 0.99), (9.1, 12.0), (3.0, 20.0), (7.0, 300.0), (1e6, 1e13)])
def test_an_axis_of_any_range_has_labels(low: float, high: float) -> None:
    axes = Figure().add_subplot(yscale="log")
    axes.set_ylim(low, high)
    set_ticks(axes.yaxis, low, high)
    seen = [tick for tick in axes.yaxis.get_majorticklocs() if low <= tick <= high]
    labels = {number_text(tick, 6) for tick in seen}
    assert 3 <= len(labels) == len(seen) <= 10
    assert isinstance(axes.yaxis.get_minor_formatter(), NullFormatter)


def test_numbers_of_a_figure() -> None:
    assert [number_text(v, 6) for v in (0.95, 20.0, 5000.0)] == ["0.95", "20", "5000"]
    assert number_text(1e9, 6) == "$10^{9}$" and number_text(352000.0, 3) == r"$3.52\times 10^{5}$"


def test_labels_keep_off_each_other(tmp_path: Path) -> None:
    """Twelve models, several of which almost coincide."""
    table = load_table(Path(__file__).parents[1] / "data" / "law" / "dit_all.csv")
    figure = Figure(figsize=(8.6, 5.8))
    axes = figure.add_subplot(xscale="log", yscale="log")
    points = [(trial.last.flops, trial.last.value) for trial in table.trials]
    axes.plot(*zip(*points, strict=True), "o")
    figure.draw_without_rendering()
    label_points(axes, points, [trial.cell.label for trial in table.trials])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line that leads to it
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    (svg, _) = plot_laws(table, fit_laws(table), tmp_path / "law")
    assert "patch 8" in svg.read_text()


def test_labels_of_an_axis_are_of_one_kind() -> None:
    axes = Figure().add_subplot(xscale="log")
    axes.set_xlim(1e3, 1e7)
    set_ticks(axes.xaxis, 1e3, 1e7)
    labels = [axes.xaxis.get_major_formatter()(tick) for tick in (1e4, 1e5)]
    assert labels == ["$10^{4}$", "$10^{5}$"]
