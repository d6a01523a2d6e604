"""A run that is cut and resumed equals the straight run bit for bit: networks, EMA, optimizers, counters, rows."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import stopping_at, together
from helpers.trials import CPU, TINY, assert_same_state, rows, tensors, tiny_config, tiny_trial

from gat_sweep.compute import step_flops
from gat_sweep.data.dataset import load_dataset
from gat_sweep.monitor.budget import Meter
from gat_sweep.run.saved import saved_step
from gat_sweep.run.trial import Trial
from gat_sweep.train.feed import Feed
from gat_sweep.train.loop import train

Figures = Callable[..., None]
STEPS = 6
# Log points, evaluations and cuts fall on different steps.
UNEVEN = {"train__steps": STEPS, "train__log_every": 3, "train__eval_every": 4, "eval__samples": 64}


def logged(trial: Trial) -> dict[int, dict[str, float]]:
    """Losses by step, the last word on each; not the times, nor what the machine was busy with."""
    lines = [json.loads(line) for line in (trial.folder / "journal.jsonl").read_text().splitlines()]
    found = [line for line in lines if "loss_d" in line.get("metrics", {})]
    timed = ("seconds", "images_per_second")
    same = {line["step"]: {k: v for k, v in line["metrics"].items() if k not in timed} for line in found}
    return {step: {k: v for k, v in metrics.items() if not k.startswith("system/")} for step, metrics in same.items()}


def assert_same_run(straight: Trial, cut: Trial) -> None:
    assert_same_state(straight, cut, STEPS)
    same = ["step", "value", "status", "flops", "images", "flags"]
    assert [[r[k] for k in same] for r in rows(straight)] == [[r[k] for k in same] for r in rows(cut)]
    assert logged(straight) == logged(cut)


@pytest.mark.slow
@pytest.mark.reliability
def test_a_run_cut_at_any_step_equals_the_straight_one(home: Path, figures: Figures) -> None:
    """One worker, cut at each of its steps and resumed: G, D, EMA, both optimizers, running mean of w, counters, rows
    and logged means equal those of the straight run bit for bit."""
    straight = tiny_trial(home, "straight", **UNEVEN)
    assert train(straight, CPU).status == "done"
    for step in range(1, STEPS + 1):
        cut = tiny_trial(home, f"cut-{step}", **UNEVEN)
        outcome = train(cut, CPU, stopping_at(step))
        assert outcome.status == "stopped" and saved_step(cut.folder / "checkpoints") == outcome.step < STEPS + 1
        assert train(cut, CPU).status == "done"
        assert_same_run(straight, cut)
    thrice = tiny_trial(home, "thrice", **UNEVEN)
    for _ in range(3):
        train(thrice, CPU, stopping_at(1))
    assert train(thrice, CPU).status == "done"
    assert_same_run(straight, thrice)
    figures(cuts=STEPS + 3, runs_equal=STEPS + 1, tensors_compared=len(tensors(straight, STEPS)) * (STEPS + 1))


def test_a_trial_trained_on_equals_one_trained_through(home: Path) -> None:
    """Extended from 4 steps to 6: the same bits, and the row of step 4 stays as it was measured."""
    through = tiny_trial(home, "through", **UNEVEN)
    train(through, CPU)
    short = tiny_trial(home, "on", **{**UNEVEN, "train__steps": 4})
    assert train(short, CPU).status == "done" and short.status() == "done"
    longer = tiny_trial(home, "on", **UNEVEN)
    assert longer.status() == "running"
    assert train(longer, CPU).status == "done"
    assert_same_state(through, longer, STEPS)
    assert [r["value"] for r in rows(through)] == [r["value"] for r in rows(longer)]
    assert short.status() == "done"  # its steps are among those trained


def test_what_a_step_is_fed_does_not_depend_on_the_number_of_workers() -> None:
    """Images, latent codes, noise and augmentation, at every step, over the end of an epoch: the ranks' shares put
    together are one worker's batch, also where the workers do not divide it."""
    config = tiny_config(train__steps=2000)
    dataset = load_dataset(config.data)
    whole = Feed(config, dataset, CPU)
    for world in (2, 3, 8):
        ranks = [Feed(config, dataset, CPU, rank, world) for rank in range(world)]
        for step in (0, 1, 223, 224, 225, 1000):
            expected, parts = whole.batch(step), [feed.batch(step) for feed in ranks]
            assert len(expected) == 8 and max(map(len, parts)) - min(map(len, parts)) <= 1
            for one, *shares in zip(expected.tensors(), *(part.tensors() for part in parts), strict=True):
                axis = next(i for i, (a, b) in enumerate(zip(one.shape, shares[0].shape, strict=True)) if a != b)
                assert torch.equal(one, torch.cat(shares, dim=axis))


# ---------------------------------------------------------------- two workers


@pytest.mark.slow
@pytest.mark.reliability
def test_two_workers_cut_at_every_step(home: Path, figures: Figures) -> None:
    """Two workers, cut at each of their steps by asking one of them: both stop at the same step, and the resumed run
    equals the straight one bit for bit."""
    two = {**UNEVEN, "workers__count": 2}
    straight = tiny_trial(home, "straight", **two)
    together(straight, home / "store-straight")
    for step in range(1, STEPS):
        cut = tiny_trial(home, f"cut-{step}", **two)
        together(cut, home / f"store-{step}-a", cut=step)
        assert 0 < saved_step(cut.folder / "checkpoints") < STEPS + 1 and cut.status() != "done"
        together(cut, home / f"store-{step}-b")
        assert_same_run(straight, cut)
    figures(cuts=STEPS - 1, runs_equal=STEPS - 1)


@pytest.mark.slow
@pytest.mark.reliability
def test_a_run_on_changing_workers_is_the_run_on_one(home: Path, figures: Figures) -> None:
    """Two workers, then three with shares of 2, 3 and 3 images, then one: the same images and counters as one worker
    throughout, and the same numbers but for the order of sums."""
    alone = tiny_trial(home, "alone", **UNEVEN)
    train(alone, CPU)
    elastic = tiny_trial(home, "elastic", **UNEVEN, workers__count={"min": 1, "max": 3})
    together(elastic, home / "store-2", cut=2)
    first = saved_step(elastic.folder / "checkpoints")
    together(elastic, home / "store-3", cut=2, world=3)
    second = saved_step(elastic.folder / "checkpoints")
    assert 0 < first < second < STEPS
    assert train(elastic, CPU).status == "done"
    same = ["step", "status", "flops", "images", "flags"]
    assert [[row[key] for key in same] for row in rows(alone)] == [[row[key] for key in same] for row in rows(elastic)]
    expected, found = tensors(alone, STEPS), tensors(elastic, STEPS)
    apart = 0.0
    for name, value in expected.items():
        if value.is_floating_point() and name.startswith("ema"):
            apart = max(apart, float((value - found[name]).abs().max()))
    assert 0 < apart < 1e-4
    values = [(a["value"], b["value"]) for a, b in zip(rows(alone), rows(elastic), strict=True) if a["value"]]
    assert all(b == pytest.approx(a, rel=1e-3) for a, b in values)
    figures(workers="2, 3, 1", changed_at_steps=f"{first} and {second}", largest_difference=f"{apart:.1e}")


# ---------------------------------------------------------------- kills


@pytest.mark.slow
@pytest.mark.reliability
def test_kills_at_random_moments(home: Path, figures: Figures) -> None:
    """`gat-sweep train` killed with SIGKILL at random moments, anywhere from its start to a save or an evaluation, and
    run again until done: equal to the straight run bit for bit."""
    steps, random = 40, np.random.default_rng(0)
    values = {**TINY, "train.steps": steps, "train.eval_every": 10, "train.log_every": 3, "workers.save_minutes": 0.002}
    straight = Trial("", "straight", "train", tiny_config(**{k.replace(".", "__"): v for k, v in values.items()}), home)
    settings = [f"--set={key}={value}" for key, value in values.items()]

    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gat_sweep.cli", "train", "--recipe", "digits", "--home", str(home)]
        return subprocess.Popen([*command, "--name", name, *settings], stdout=subprocess.DEVNULL)

    def trial(name: str) -> Trial:
        (folder,) = (home / name / "trials").iterdir()
        return Trial(folder.name, name, "train", straight.config, home)

    assert start("straight").wait() == 0
    began = time.monotonic()
    assert start("timed").wait() == 0
    length = time.monotonic() - began
    straight = trial("straight")
    kills = runs = lost = 0
    while kills < 20 or (home / f"killed-{runs}").exists():
        process = start(f"killed-{runs}")
        try:
            code = process.wait(random.uniform(0.3, 1.0) * length if kills < 20 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert code == 0
        killed = trial(f"killed-{runs}")
        assert_same_state(straight, killed, steps)
        assert [r["value"] for r in rows(straight)] == [r["value"] for r in rows(killed)]
        trained = round(Meter(killed).read().flops / step_flops(killed.config))
        assert trained >= steps
        lost, runs = lost + trained - steps, runs + 1
    figures(kills=kills, runs_until_done=runs, runs_equal=runs, steps_trained_twice=lost, of_steps=runs * steps)
