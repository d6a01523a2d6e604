"""Predictions: written before a size begins, scored when it is done, on a run whose rows are planted."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from test_cli import call

from analysis.law import fit_power_law
from analysis.table import gflops
from gat_sweep.errors import UserError
from gat_sweep.plan import iteration_flops
from gat_sweep.results.predict import digest
from gat_sweep.run.journal import add_record
from gat_sweep.run.record import open_run
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep
from gat_sweep.train.recorder import trial_constants

SIZES = "[S, B, L, XL]"
SWEEP = f"about: sizes\nset: {json.dumps(TINY)}\nzip: {{model.generator: {SIZES}, model.discriminator: {SIZES}}}\n"


def compute(trial: Trial) -> float:
    config = trial.config
    return float(sum(iteration_flops(config).values()) * config.train.batch * config.train.steps)


def value_of(trial: Trial) -> float:
    return 3e3 * gflops(compute(trial)) ** -0.4 * [0.97, 1.04][trial.config.seed]


def finish(trial: Trial, value: float) -> None:
    add_record(trial.folder, {"step": 0, "status": "running", "gpus": 0.0})
    table = RunTable(trial.table, trial_constants("sizes", "sizes", trial.id, trial.config))
    shared = {"metric": "fd_x", "n": 64, "reference": "r", "protocol": "{}", "flops": compute(trial), "seconds": 1.0}
    table.put(step=trial.config.train.steps, status="done", reason="", value=value, **shared)


@pytest.fixture
def trials(tmp_path: Path) -> list[Trial]:
    """Four sizes of two seeds; all but XL are done."""
    (tmp_path / "sizes.yaml").write_text(SWEEP)
    sweep = load_sweep(tmp_path / "sizes.yaml", "digits", seeds=[0, 1])
    open_run(tmp_path, "sizes", sweep)
    found = [Trial(name, "sizes", "sizes", config, tmp_path) for name, config in sweep.trials.items()]
    for trial in found:
        if trial.config.model.generator != "XL":
            finish(trial, value_of(trial))
    return found


@pytest.fixture
def gat(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *args: call(capsys, monkeypatch, *args, "--home", str(tmp_path))


def largest(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.config.model.generator == "XL"]


def test_a_prediction_is_the_band_of_the_others_and_is_scored(trials: list[Trial], tmp_path: Path, gat: Any) -> None:
    code, out, err = gat("predict", "sizes", "--for", "XL", "--json")
    assert code == 0, err
    (said,) = json.loads(out)
    small = [t for t in trials if t not in largest(trials)]
    means = {
        size: np.mean([value_of(t) for t in small if t.config.model.generator == size]) for size in ("S", "B", "L")
    }
    costs = [gflops(compute(next(t for t in small if t.config.model.generator == size))) for size in means]
    fit, target = fit_power_law(costs, list(means.values())), gflops(compute(largest(trials)[0]))
    assert said["gflops"] == pytest.approx(target) and said["predicted"] == pytest.approx(float(fit.predict(target)))
    assert (said["low"], said["high"]) == pytest.approx([float(end[0]) for end in fit.band([target])])
    assert said["low"] < said["predicted"] < said["high"] and said["seeds"] == 2 and len(said["trials"]) == 2
    assert said["seeds_low"] < said["predicted"] < said["seeds_high"] and said["digest"] == digest(said)

    code, out, _ = gat("fit-law", "sizes", "--json")
    (waiting,) = json.loads(out)["predictions"]
    assert waiting["before"] and waiting["intact"] and waiting["value"] is None and waiting["began"] is None

    time.sleep(1.1)  # times of writing are whole seconds
    for trial in largest(trials):
        finish(trial, value_of(trial))
    code, out, _ = gat("fit-law", "sizes", "--json")
    (score,) = json.loads(out)["predictions"]
    assert score["before"] and score["inside"] and score["inside_seeds"] and score["began"] > said["written"]
    assert score["value"] == pytest.approx(np.mean([value_of(t) for t in largest(trials)]))
    assert score["ratio"] == pytest.approx(score["value"] / said["predicted"])
    code, out, _ = gat("fit-law", "sizes")
    assert "inside, it is" in out and "written before its first step" in out


def test_what_was_altered_or_written_late_is_said(trials: list[Trial], tmp_path: Path, gat: Any) -> None:
    gat("predict", "sizes", "--for", "XL")
    (file,) = (tmp_path / "sizes" / "predictions").iterdir()
    for trial in largest(trials):
        finish(trial, 10 * value_of(trial))
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "predicted": 10 * said["predicted"]}))
    code, out, _ = gat("fit-law", "sizes")
    assert code == 0 and "ALTERED since" in out and "outside" not in out
    late = {**said, "written": "2099-01-01T00:00:00+00:00"}
    file.write_text(json.dumps({**late, "digest": digest(late)}))
    code, out, _ = gat("fit-law", "sizes")
    assert "written AFTER its first step" in out
    file.write_text("{}")
    code, _, err = gat("fit-law", "sizes")
    assert code == 2 and "is no prediction" in err


def test_who_is_too_late_or_asks_for_nothing_is_refused(trials: list[Trial], tmp_path: Path, gat: Any) -> None:
    for args, said in [
        (["--for", "XXL"], "has no trial of size 'XXL'; it has B, L, S, XL"),
        (["--for", "S"], "of size S has begun already"),
    ]:
        code, _, err = gat("predict", "sizes", *args)
        assert code == 2 and said in err and "\n" not in err.strip()
    add_record(largest(trials)[1].folder, {"step": 0, "status": "running", "gpus": 0.0})
    code, _, err = gat("predict", "sizes", "--for", "XL")
    assert code == 2 and f"trial {largest(trials)[1].id} of size XL has begun already" in err
    assert not (tmp_path / "sizes" / "predictions").exists()


def test_a_size_is_held_back(trials: list[Trial], tmp_path: Path, gat: Any) -> None:
    """What is done is done and XL is held, so that nothing is begun; a size that is not there is named."""
    sweep = ["run", str(tmp_path / "sizes.yaml"), "--recipe", "digits", "--name", "sizes", "--seeds", "0,1"]
    code, out, err = gat(*sweep, "--hold", "XL")
    assert code == 0 and "2 of 8 trials are held back: XL" in out, err
    assert all(trial.status() == "waiting" for trial in largest(trials))
    code, _, err = gat(*sweep, "--hold", "XS")
    assert code == 2 and "--hold XS: the sweep has no such size" in err


def test_a_law_of_too_few_sizes_predicts_nothing(trials: list[Trial], tmp_path: Path, gat: Any) -> None:
    for trial in trials:
        if trial.config.model.generator == "S":
            trial.table.unlink()
    code, _, err = gat("predict", "sizes", "--for", "XL")
    assert code == 2 and "nothing to predict XL from: a law needs at least 3 complete sizes" in err
    assert isinstance(UserError("x"), ValueError)
