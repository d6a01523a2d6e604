"""allocate on a run: the line that trains its answer, GPU hours, and predictions at a budget and their scores."""

import json
import re
import shlex
import time
from pathlib import Path
from statistics import geometric_mean

import pytest
from helpers.planted_run import RATE, law, train
from helpers.processes import Gat

from analysis.table import gflops
from gat_sweep.commands.options import make_sweep
from gat_sweep.compute import step_flops
from gat_sweep.results.predict import digest
from gat_sweep.run.record import open_run
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep, load_sweep, sweep_file


def trials_of(home: Path, run: str, sweep: Sweep) -> list[Trial]:
    open_run(home, run, sweep)
    return [Trial(name, run, sweep.name, config, home) for name, config in sweep.trials.items()]


@pytest.fixture
def frontier(tmp_path: Path) -> list[Trial]:
    """The planted run `frontier-digits`, with a setting that is not the recipe's, on half a GPU per worker."""
    settings = {"train.steps": 300, "train.ema_decay": 0.95, "workers.gpus": 0.5, "eval.extras": ["fd_infinity"]}
    settings["ladder.XL.heads"] = 1  # every setting that is not the recipe's belongs to the line to run
    found = trials_of(tmp_path, "frontier-digits", load_sweep(sweep_file("frontier"), "digits", overrides=settings))
    for trial in found:
        train(trial, noise=0.02)
    return found


@pytest.fixture
def gat(gat: Gat, tmp_path: Path) -> Gat:
    """Commands with the planted run's home."""
    return lambda *args: gat(*args, "--home", tmp_path)


def of_command(line: str) -> Sweep:
    """The sweep of a printed command."""
    words = shlex.split(line)
    assert words[:3] == ["gat-sweep", "run", "one"]
    settings = tuple(words[i + 1] for i, word in enumerate(words) if word == "--set")
    return make_sweep("one", words[words.index("--recipe") + 1], "paper", settings, words[words.index("--seeds") + 1])


def test_the_line_to_run_trains_the_recommended_size_for_the_budget(frontier: list[Trial], gat: Gat) -> None:
    code, out, err = gat("allocate", "frontier-digits", "--budget", 300)
    assert code == 0, err
    assert re.match(r"At 300 GFLOPs: width \d+ \[", out)
    (line,) = [line.removeprefix("to train it: ") for line in out.splitlines() if line.startswith("to train it")]
    trials = of_command(line).trials
    assert [config.seed for config in trials.values()] == [2, 3]  # new ones: the run has 0 and 1
    for config in trials.values():
        like = next(t.config for t in frontier if t.config.model.generator == config.model.generator)
        assert gflops(step_flops(config) * config.train.steps) == pytest.approx(300, rel=0.01)
        same = {"train": config.train, "seed": config.seed}
        assert like.model_copy(update=same).identity() == config.identity()
        assert config.train.ema_decay == 0.95 and config.workers.gpus == 0.5 and config.ladder["XL"].heads == 1


def test_gpu_hours_are_those_of_the_runs_trials(frontier: list[Trial], gat: Gat) -> None:
    hours = 2 * 300 * 1e9 / RATE / 3600 * 0.5  # of 300 GFLOPs, at 2 FLOP per multiply-add, on half a GPU
    code, out, err = gat("allocate", "frontier-digits", "--gpu-hours", hours, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["budget"]["gflops"] == pytest.approx(300, rel=0.01) and report["gpu_hours"] == pytest.approx(hours)
    assert gat("allocate", "frontier-digits", "--gpu-hours", 1, "--budget", 5)[0] == 2


def test_a_prediction_at_a_budget_is_written_scored_and_not_fooled(
    frontier: list[Trial], tmp_path: Path, gat: Gat
) -> None:
    code, out, err = gat("predict", "frontier-digits", "--budget", 400, "--json")
    assert code == 0, err
    (said,) = json.loads(out)
    assert said["digest"] == digest(said) and said["low"] < said["predicted"] < said["high"]
    assert "is not complete yet" in gat("allocate", "frontier-digits")[1]
    (waiting,) = json.loads(gat("allocate", "frontier-digits", "--json")[1])["predictions"]
    assert waiting["intact"] and waiting["before"] and waiting["value"] is None

    time.sleep(1.1)  # times of writing are whole seconds
    best = trials_of(tmp_path, "best", of_command(said["command"]))
    assert [trial.id for trial in best] == said["trials"]
    for trial in best:
        train(trial, noise=0.02)
    (score,) = json.loads(gat("allocate", "frontier-digits", "--json")[1])["predictions"]
    measured = geometric_mean([law(trial.config, said["steps"]) for trial in best])
    assert score["before"] and score["inside"] and score["value"] == pytest.approx(measured, rel=0.05)
    assert "inside" in gat("allocate", "frontier-digits")[1]

    code, _, err = gat("predict", "frontier-digits", "--budget", 400)
    assert code == 2 and "has already started" in err
    (file,) = (tmp_path / "frontier-digits" / "predictions").iterdir()
    file.write_text(file.read_text().replace('"steps": ', '"steps": 1'))
    assert "ALTERED" in gat("allocate", "frontier-digits")[1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("predict", "frontier-digits"), "--for SIZE, or --budget"),
        (("predict", "frontier-digits", "--for", "XL", "--budget", "3"), "--for SIZE, or --budget"),
        (("predict", "frontier-digits", "--for", "XL", "--far"), "--far is for --budget"),
        (("predict", "frontier-digits", "--budget", "300", "--floor", "3"), "leave one out"),
        (("predict", "frontier-digits", "--budget", "1e6"), "too far from the table's checkpoints"),
        (("allocate", "frontier-digits", "--budget", "1e6"), "--far"),
        (("allocate", "nothing"), "no run 'nothing'"),
    ],
)
def test_what_is_refused_leaves_nothing(
    frontier: list[Trial], tmp_path: Path, gat: Gat, args: tuple[str, ...], words: str
) -> None:
    code, out, err = gat(*args)
    assert code == 2 and not out and words in err and err.count("\n") == 1
    assert not (tmp_path / "frontier-digits" / "predictions").exists()
    assert not (tmp_path / "frontier-digits" / "analysis").exists()


def test_hours_need_trials_that_were_trained_on_gpus(tmp_path: Path, gat: Gat) -> None:
    settings = {"train.steps": 300, "train.ema_decay": 0.95}
    for trial in trials_of(tmp_path, "cpu", load_sweep(sweep_file("frontier"), "digits", overrides=settings)):
        train(trial)
    code, _, err = gat("allocate", "cpu", "--gpu-hours", 1)
    assert code == 2 and "no trial of the run was trained on a GPU," in err
