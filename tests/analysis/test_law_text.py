"""The laws in words: six lines for a law, and what does not agree with it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.law import fit_laws
from analysis.law_text import law_text, summary, verdict
from analysis.reading import load_table
from analysis.scrutiny import scrutinise
from analysis.table import strict_json

DATA = Path(__file__).parents[1] / "data" / "law"
HEADER = "trial,generator_size,seed,step,flops,g_forward_flops,metric,value,flops_per_image"


def report_of(path: Path, floor: float | None = None) -> dict[str, Any]:
    table = load_table(path)
    laws = fit_laws(table, floor)
    found = strict_json(laws.head() | {"laws": [law.to_json() | scrutinise(table, law) for law in laws.laws]})
    assert isinstance(found, dict)
    return dict(json.loads(json.dumps(found, allow_nan=False)))


def written(folder: Path, values: dict[str, list[float]], items: str = "") -> Path:
    """A table of sizes at C = 1e4, 1e5 and so on, with seeds."""
    rows = [
        f"{size}-{seed},{size},{seed},10,{2 * 10.0 ** (13 + i)},{10.0 ** (9 + i)},fd_x,{value},{items}"
        for i, (size, seeds) in enumerate(values.items())
        for seed, value in enumerate(seeds)
    ]
    path = folder / "t.csv"
    path.write_text("\n".join([HEADER, *rows]))
    return path


def test_a_law_takes_five_lines() -> None:
    """The sixth says where the files are."""
    report = report_of(DATA / "noisyfloor6.csv")
    law, floor, lack, largest, correlation = summary(report).splitlines()
    assert law.startswith(
        "fid = 3.824 + 2964 C^-0.4367, b = 0.4367 [0.3817, 0.4937], E = 3.824 [2.403, 5.006] (6 sizes"
    )
    assert floor == (
        "floor: found, F(1, 3) = 52.1, p = 0.0027 (one-sided); a bend of another kind, as of one length, looks the same"
    )
    assert lack == "lack of fit: no test is possible: no size has two seeds; all sizes are taken as equally noisy"
    assert largest.startswith("S5/2 from the other sizes: 6.8") and largest.endswith("measured 6.323: inside")
    assert "Pearson" in correlation and "Spearman -1.000" in correlation
    assert verdict(report) == "fid = 3.824 + 2964 C^-0.4367, b [0.3817, 0.4937]"
    report["laws"][0]["flagged"] = [{"trial": "s0", "size": "S0/2", "flags": "D collapsed"}]
    assert verdict(report).endswith("b [0.3817, 0.4937], 1 of its trials flagged")


def test_everything_else_is_there_when_it_is_asked_for() -> None:
    report = report_of(DATA / "traj.csv", floor=1.0)
    short, long = summary(report).splitlines(), summary(report, verbose=True).splitlines()
    assert len(short) == 5 and set(short) < set(long)
    for words in ("b without s0-seed0", "from cheaper ones", "through all 60 checkpoints", "with a floor of 0.5"):
        assert any(words in line for line in long), words


def test_a_floor_that_the_points_do_not_allow_is_said() -> None:
    assert "given, 1; the points alone DO NOT ALLOW IT: [2.403, 5.006]" in summary(
        report_of(DATA / "noisyfloor6.csv", 1.0)
    )


def test_each_patch_size_has_its_lines() -> None:
    text = summary(report_of(DATA / "dit_all.csv"))
    assert all(f"patch {patch}: fid = " in text for patch in (2, 4, 8))
    assert "one exponent for all patch sizes: rejected, F(2, 6) = 53.3, p = 0.00015" in text


def test_a_metric_that_rises_is_said_to_rise(tmp_path: Path) -> None:
    text = summary(report_of(written(tmp_path, {"S": [1.0], "B": [2.0], "L": [3.9], "XL": [8.1]})))
    assert "floor: no test is possible: the metric does not fall" in text
    assert ": fd_x rises with compute" in text and "C^0.3" in text and "C^-" not in text


@pytest.mark.parametrize(
    ("a", "b", "floor", "text"),
    [
        (3000.0, 0.5, 0.0, "fd = 3000 C^-0.5"),
        (5.0, 1e-18, 0.0, "fd = 5 C^0"),
        (3.0, -0.2, 0.0, "fd = 3 C^0.2"),
        (3.0, 0.2, 4.0, "fd = 4 + 3 C^-0.2"),
    ],
)
def test_a_formula(a: float, b: float, floor: float, text: str) -> None:
    assert law_text("fd", {"log10_a": math.log10(a), "b": b, "floor": floor}) == text


def test_what_does_not_agree_is_said_without_being_asked(tmp_path: Path) -> None:
    """C counted in forwards of D alone grows otherwise; without the last run the exponent leaves its interval."""
    report = report_of(written(tmp_path, {"S": [10.0, 10.1], "B": [5.0, 5.1], "L": [2.5, 2.52], "XL": [1.26, 1.25]}))
    law = report["laws"][0]
    assert len(summary(report).splitlines()) == 5
    law["itemisations"] = [{"counted": "G alone", "b": law["b_high"] + 1, "b_low": 0, "b_high": 1}]
    law["without_run"][0]["b"] = law["b_low"] - 1
    text = summary(report)
    assert "OUTSIDE its interval, with C counted as G alone" in text and "OUTSIDE its interval, without S-0" in text


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    report = report_of(written(tmp_path, {"S": [10.0], "B": [5.0], "L": [2.5]}))
    report["excluded"] = [{"trial": f"t{i}", "reason": "no memory"} for i in range(5)]
    text = summary(report)
    assert "left out: t2: no memory" in text and "t3" not in text and "2 more, --verbose lists them" in text
    assert "left out: t4: no memory" in summary(report, verbose=True)


def test_a_seed_that_alone_makes_a_floor_is_named(tmp_path: Path) -> None:
    """A power law without a floor, of which one seed of the largest size failed."""
    random = np.random.default_rng(12)
    seeds = {f"S{i}": [500 * 1.9**-i * math.exp(e) for e in random.normal(0, 0.03, 3)] for i in range(9)}
    report = report_of(written(tmp_path, seeds))
    assert not report["laws"][0]["floor_test"]["found"] and "found without" not in summary(report)
    seeds["S8"][1] *= 6
    report = report_of(written(tmp_path, seeds))
    assert report["laws"][0]["floor_test"]["found"]
    assert "a floor is not found without S8-1" in summary(report).splitlines()


def test_seeds_that_bend_the_law_are_said(tmp_path: Path) -> None:
    """Seeds 2 and 3 are twice as bad at every size, and only the two smallest have them."""
    exact = {size: 100.0 / 2**i for i, size in enumerate("abcdef")}
    noise = np.random.default_rng(0).normal(0, 0.02, (6, 4))
    rows = {
        size: [value * (1 + seed // 2) * math.exp(noise[i, seed]) for seed in range(4 if i < 2 else 2)]
        for i, (size, value) in enumerate(exact.items())
    }
    line = next(x for x in summary(report_of(written(tmp_path, rows))).splitlines() if x.startswith("SEEDS"))
    b = float(line.split("b = ")[1].split()[0])
    assert "over the seeds of all sizes, 0, 1, b = " in line and b == pytest.approx(math.log10(2), abs=0.01)
    shared = {size: seeds[:2] for size, seeds in rows.items()}
    assert "SEEDS" not in summary(report_of(written(tmp_path, shared)))
    apart = {
        size: [value * math.exp(e) for e in noise[i, : 4 if i < 2 else 2]]
        for i, (size, value) in enumerate(exact.items())
    }
    assert "SEEDS" not in summary(report_of(written(tmp_path, apart)))
