"""Predictions: written before a size begins, scored when it is done, on a run whose rows are planted."""

import json
import time
from pathlib import Path
from statistics import geometric_mean

import pytest
from helpers.planted import compute, finish, value_of
from helpers.processes import Gat

from analysis.law import fit_curve
from analysis.table import gflops
from gat_sweep.errors import UserError
from gat_sweep.results.predict import digest
from gat_sweep.run.journal import add_record
from gat_sweep.run.trial import Trial


@pytest.fixture
def gat(gat: Gat, tmp_path: Path) -> Gat:
    """Commands with the planted run's home."""
    return lambda *args: gat(*args, "--home", tmp_path)


def largest(sizes: list[Trial]) -> list[Trial]:
    return [trial for trial in sizes if trial.config.model.generator == "XL"]


def test_a_prediction_is_the_band_of_the_others_and_is_scored(sizes: list[Trial], tmp_path: Path, gat: Gat) -> None:
    code, out, err = gat("predict", "sizes", "--for", "XL", "--json")
    assert code == 0, err
    (said,) = json.loads(out)
    small = [t for t in sizes if t not in largest(sizes)]
    means = {
        size: geometric_mean([value_of(t) for t in small if t.config.model.generator == size])
        for size in ("S", "B", "L")
    }
    costs = [gflops(compute(next(t for t in small if t.config.model.generator == size))) for size in means]
    fit, target = fit_curve(costs, list(means.values())), gflops(compute(largest(sizes)[0]))
    assert said["gflops"] == pytest.approx(target) and said["predicted"] == pytest.approx(fit.predict([target])[0])
    assert (said["low"], said["high"]) == pytest.approx([float(end[0]) for end in fit.new_size([target], 2)])
    assert said["law"]["sizes"] == 3 and said["law"]["chosen"] == "free"
    assert said["low"] < said["predicted"] < said["high"] and said["seeds"] == 2 and len(said["trials"]) == 2
    assert said["seeds_low"] < said["predicted"] < said["seeds_high"] and said["digest"] == digest(said)

    code, out, _ = gat("fit-law", "sizes", "--json")
    (waiting,) = json.loads(out)["predictions"]
    assert waiting["before"] and waiting["intact"] and waiting["value"] is None and waiting["began"] is None

    time.sleep(1.1)  # times of writing are whole seconds
    for trial in largest(sizes):
        finish(trial, value_of(trial))
    code, out, _ = gat("fit-law", "sizes", "--json")
    (score,) = json.loads(out)["predictions"]
    assert score["before"] and score["inside"] and score["inside_seeds"] and score["began"] > said["written"]
    assert score["value"] == pytest.approx(geometric_mean([value_of(t) for t in largest(sizes)]))
    assert score["ratio"] == pytest.approx(score["value"] / said["predicted"])
    code, out, _ = gat("fit-law", "sizes")
    assert "inside, measured" in out and "written before its first step" in out
    assert "if sizes lay on the law exactly" in out


def test_what_was_altered_or_written_late_is_said(sizes: list[Trial], tmp_path: Path, gat: Gat) -> None:
    gat("predict", "sizes", "--for", "XL")
    (file,) = (tmp_path / "sizes" / "predictions").iterdir()
    for trial in largest(sizes):
        finish(trial, 10 * value_of(trial))
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "predicted": 10 * said["predicted"]}))
    code, out, _ = gat("fit-law", "sizes")
    assert code == 0 and "ALTERED, its digest" in out and "outside" not in out
    late = {**said, "written": "2099-01-01T00:00:00+00:00"}
    file.write_text(json.dumps({**late, "digest": digest(late)}))
    code, out, _ = gat("fit-law", "sizes")
    assert "written AFTER its first step" in out
    file.write_text("{}")
    code, _, err = gat("fit-law", "sizes")
    assert code == 2 and "is not a prediction" in err


def test_a_floor_that_is_known_reaches_the_prediction(sizes: list[Trial], gat: Gat) -> None:
    said, floored = (
        json.loads(gat("predict", "sizes", "--for", "XL", "--json", *more)[1])[0] for more in ([], ["--floor", "5"])
    )
    assert (floored["law"]["chosen"], floored["law"]["floor"]) == ("given", 5) and said["law"]["floor"] == 0
    assert floored["predicted"] > said["predicted"]
    code, _, err = gat("predict", "sizes", "--for", "XL", "--floor", "1e9")
    assert code == 2 and "is not below the smallest value" in err


def test_who_is_too_late_or_asks_for_nothing_is_refused(sizes: list[Trial], tmp_path: Path, gat: Gat) -> None:
    for args, said in [
        (["--for", "XXL"], "has no trial of size 'XXL'; it has B, L, S, XL"),
        (["--for", "S"], "of size S has already started"),
    ]:
        code, _, err = gat("predict", "sizes", *args)
        assert code == 2 and said in err and "\n" not in err.strip()
    add_record(largest(sizes)[1].folder, {"step": 0, "status": "running", "gpus": 0.0})
    code, _, err = gat("predict", "sizes", "--for", "XL")
    assert code == 2 and f"trial {largest(sizes)[1].id} of size XL has already started" in err
    assert not (tmp_path / "sizes" / "predictions").exists()


def test_a_size_is_held_back(sizes: list[Trial], tmp_path: Path, gat: Gat) -> None:
    """What is done is done and XL is held, so that nothing is begun; a size that is not there is named."""
    sweep = ["run", str(tmp_path / "sizes.yaml"), "--recipe", "digits", "--name", "sizes", "--seeds", "0,1"]
    code, out, err = gat(*sweep, "--hold", "XL")
    assert code == 0 and "2 of 8 trials are held back: XL" in out, err
    assert all(trial.status() == "waiting" for trial in largest(sizes))
    code, _, err = gat(*sweep, "--hold", "XS")
    assert code == 2 and "--hold XS: the sweep has no such size" in err


def test_a_law_of_too_few_sizes_predicts_nothing(sizes: list[Trial], tmp_path: Path, gat: Gat) -> None:
    for trial in sizes:
        if trial.config.model.generator == "S":
            trial.table.unlink()
    code, _, err = gat("predict", "sizes", "--for", "XL")
    assert code == 2 and "nothing to predict XL from: a law needs at least 3 complete sizes" in err
    assert isinstance(UserError("x"), ValueError)
