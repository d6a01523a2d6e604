"""What a sweep is estimated to take: hours from a rate, memory, cost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import Gat
from helpers.trials import recipe, tiny_config
from rich.console import Console

from gat_sweep.commands.plan import plan_command, plan_table
from gat_sweep.plan import Rate, rate_at, trial_plan
from gat_sweep.recipe import resolve
from gat_sweep.speed import calibration
from gat_sweep.sweep import load_sweep, varied_text

SWEEPS = Path(__file__).parents[1] / "sweeps"


def test_hours_are_steps_and_evaluations_at_a_rate() -> None:
    """2000 steps of 0.9 s, and samples in 5 evaluations, shared by two workers; cost for both."""
    config = resolve(recipe("digits"), {"workers.count": 2})
    found = trial_plan(config, Rate(step=0.9, sample=0.01), price=3)
    hours = (2000 * 0.9 + 5 * 1797 / 2 * 0.01) / 3600
    assert found["hours"] == pytest.approx(hours)
    assert (found["worker_hours"], found["cost"]) == pytest.approx((2 * hours, 6 * hours))
    odd = resolve(recipe("digits"), {"train.steps": 2001})
    assert trial_plan(odd, Rate(0, 3600 / 1797))["hours"] == pytest.approx(6)  # and one after the last step
    assert "hours" not in trial_plan(config)


def test_a_trial_that_goes_on_costs_what_it_adds() -> None:
    light, heavy, _ = load_sweep(SWEEPS / "penalty_schedule.yaml", "digits").trials.values()
    first, second = (trial_plan(config, Rate(1.0, 0.0)) for config in (light, heavy))
    assert (first["steps"], second["steps"]) == (4000, 2000)
    assert second["total_flops"] * 2 == first["total_flops"] and second["hours"] == pytest.approx(2000 / 3600)


def test_an_mfu_is_a_rate() -> None:
    """Table 2's S/2: a step of 64 images per worker at 40 % of 100 TFLOP/s; of an evaluation, G's forward alone."""
    config = resolve(recipe("imagenet256"))
    info = trial_plan(config)
    rate = rate_at(config, 0.4, 1e14)
    assert rate.step == pytest.approx(info["iteration_flops_total"] * 64 / 4e13)
    assert rate.sample == pytest.approx(info["g_forward_flops"] / 4e13) and info["workers"] == 8


def test_memory_is_what_a_worker_would_choose() -> None:
    config = resolve(recipe("imagenet256"), {"model.generator": "XL", "model.discriminator": "XL"})
    free = trial_plan(config)
    tight = trial_plan(config.model_copy(update={"workers": config.workers.model_copy(update={"memory_gib": 40.0})}))
    assert free["memory_bytes_least"] < tight["memory_bytes"] <= 40 * 2**30 < free["memory_bytes"]


def test_a_calibration_times_each_shape_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate differs with the networks and the batch, not with seed, rate or length."""
    seconds = iter([9.0, 9.0, 3.0, 1.0, 2.0, 5.0, 4.0] * 3)  # two to warm up, of the others the median: 3
    real = calibration.timed

    def planted(step: Any, device: torch.device) -> float:
        real(step, device)
        return next(seconds)

    monkeypatch.setattr(calibration, "timed", planted)
    monkeypatch.setattr(calibration, "_sample_seconds", lambda *_: 0.5)
    said: list[str] = []
    configs = [
        tiny_config(),
        tiny_config(seed=3, train__rate_g=2.0, train__steps=100),
        tiny_config(train__batch=16, workers__count=2),  # also 8 images each
        tiny_config(train__batch=16),
        tiny_config(model__generator="B"),
    ]
    rates = calibration.calibrate(configs, torch.device("cpu"), said.append)
    assert rates == [Rate(3.0, 0.5)] * 5 and len(said) == 3
    assert said[1] == "timing G S, D S, p=2, 16 images per worker"


def test_plan_from_the_command_line(gat: Gat) -> None:
    sweep = ("plan", str(SWEEPS / "alignment.yaml"), "--recipe", "digits")
    code, out, _ = gat(*sweep, "--mfu", "0.4", "--peak-tflops", "312", "--price", "2", "--json")
    found = json.loads(out)
    rows = found["trials"].values()
    assert code == 0 and len(rows) == 8
    for key in ("total_flops", "worker_hours", "cost"):
        assert found[key] == pytest.approx(sum(row[key] for row in rows))
    assert found["cost"] == pytest.approx(2 * found["worker_hours"])
    code, out, _ = gat(*sweep)
    assert code == 0 and "align_weight=0.0, steps=2400, after=S-p2-s0-" in out and "hours" not in out
    for more, words in [
        (("--mfu", "0.4"), "--peak-tflops"),
        (("--calibrate", "--mfu", "0.4", "--peak-tflops", "3"), "--calibrate, or"),
        (("--price", "3"), "--price needs hours"),
    ]:
        code, _, err = gat(*sweep, *more)
        assert code == 2 and words in err and len(err.splitlines()) == 1


def test_a_table_says_the_range_of_memory_and_no_powers_of_ten() -> None:
    sweep = load_sweep(SWEEPS / "resolution.yaml", "imagenet256")
    plan = plan_command(sweep, False, (0.4, 3.12e14), 2.0, None)
    console = Console(width=250)
    with console.capture() as capture:
        console.print(plan_table(plan))
    assert "38.8 to 413" in capture.get() and "│ 1,6" in capture.get() and "e+" not in capture.get()


def test_what_varies_is_said_in_short() -> None:
    varied = {"model.generator": "S", "seed": 3, "train.rate_g": 0.5, "train.rate_of": None, "start.trial": None}
    assert varied_text(varied) == "rate_g=0.5, rate_of=-"
    assert varied_text({"start.trial": "S-p2-s0-1", "start.step": 4}) == "after=S-p2-s0-1"
