"""The change of an output per step against width: planted answers, and that the steps are training's."""

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.trials import tiny_config, tiny_trial
from PIL import Image
from scipy import stats

from analysis.coord_check import Changes, fit_slope, fit_steps, log_slopes, report
from analysis.figures.coord_check import plot
from analysis.statistics import mean_interval
from gat_sweep.commands.coord_check import coord_check
from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import load_dataset
from gat_sweep.errors import UserError
from gat_sweep.gat.scaling import adapted_learning_rate
from gat_sweep.inspection.coord_check import (
    CoordCheckOptions,
    check_widths,
    make_probe,
    make_trial,
    measure,
    rms,
    trained,
)
from gat_sweep.run.checkpoint import open_checkpoint
from gat_sweep.train.feed import Feed
from gat_sweep.train.loop import train

CPU = torch.device("cpu")
WIDTHS = [8, 16, 32, 64, 128]


# ---------------------------------------------------------------- statistics


def linear_model(rule: str, seeds: int = 4, steps: int = 3, probes: int = 50) -> np.ndarray:
    """A.11's f(x) = w x on N(0, 1) inputs, plain SGD on one of them: |change| there, [S, W, T]."""
    found = np.zeros((seeds, len(WIDTHS), steps))
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        for i, width in enumerate(WIDTHS):
            rate = adapted_learning_rate(1e-3, 16, width) if rule == "eq4" else 1e-3
            for step in range(steps):
                x, w = random.normal(size=(probes, width)), random.normal(size=width) / math.sqrt(width)
                after = w - rate * random.choice([-1, 1], probes)[:, None] * x  # an SGD step for each x (Eq. 15)
                change = np.einsum("nc,nc->n", after, x) - x @ w
                found[seed, i, step] = math.sqrt(np.mean(change**2))
    return found


@pytest.mark.parametrize(("rule", "theory"), [("eq4", 0.0), ("none", 1.0)])
def test_a_linear_model_has_the_slopes_of_a11(rule: str, theory: float) -> None:
    slope = fit_slope(WIDTHS, linear_model(rule))
    assert abs(slope.mean - theory) < 0.06  # E|x|^4 is C^2 + 2C: a little flatter than C at small widths
    assert slope.low is not None and slope.high is not None and slope.high - slope.low < 0.1
    assert all(abs(step.mean - theory) < 0.08 for step in fit_steps(WIDTHS, linear_model(rule)))


def test_slopes_are_least_squares_in_logarithms() -> None:
    values = np.random.default_rng(0).lognormal(size=(3, 5, 4))
    for seed, step in np.ndindex(3, 4):
        expected = stats.linregress(np.log(WIDTHS), np.log(values[seed, :, step])).slope
        assert log_slopes(WIDTHS, values[seed, :, step]) == pytest.approx(expected, rel=1e-12)
        assert fit_steps(WIDTHS, values)[step].by_seed[seed] == pytest.approx(expected, rel=1e-12)
    over_steps = [stats.linregress(np.log(WIDTHS), np.log(one).mean(axis=1)).slope for one in values]
    found = fit_slope(WIDTHS, values)
    assert found.by_seed == pytest.approx(over_steps, rel=1e-12)
    interval = stats.t.interval(0.95, 2, loc=np.mean(over_steps), scale=stats.sem(over_steps))
    assert (found.low, found.high) == pytest.approx(interval, rel=1e-12)
    alone = fit_slope(WIDTHS, values[:1])
    assert (alone.low, alone.high) == (None, None) and alone.mean == pytest.approx(over_steps[0])


def test_the_interval_covers_the_true_slope() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        slope = mean_interval(random.normal(0.5, 0.2, 3))
        assert slope.low is not None and slope.high is not None
        covered += slope.low < 0.5 < slope.high
    assert 0.935 < covered / 2000 < 0.965


def planted(slopes: dict[str, float], size: float = 0.5) -> list[Changes]:
    """Changes C^slope by rule, 3 seeds apart by a factor, 4 steps; outputs of size C^size."""
    x = np.array(WIDTHS, dtype=float)[None, :, None]
    seeds, steps = np.array([1.0, 2.0, 4.0])[:, None, None], np.array([1.0, 0.5, 0.3, 0.2])[None, None]
    return [
        Changes(network, "output", rule, seeds * steps * x**slope, seeds * x**size * np.ones_like(steps))
        for network in "GD"
        for rule, slope in slopes.items()
    ]


def test_the_report_tells_change_from_size() -> None:
    rows = report(WIDTHS, planted({"eq4": 0.2, "none": 1.3}))
    assert [(row["network"], row["rule"], row["theory"]) for row in rows] == [
        ("G", "eq4", 0.0), ("G", "none", 1.0), ("D", "eq4", 0.0), ("D", "none", 1.0),
    ]  # fmt: skip
    for row, slope in zip(rows, (0.2, 1.3) * 2, strict=True):
        assert row["change"]["slope"] == pytest.approx(slope) and row["size"]["slope"] == pytest.approx(0.5)
        assert row["relative"]["slope"] == pytest.approx(slope - 0.5)
        assert [step["slope"] for step in row["steps"]] == pytest.approx([slope] * 4)
        assert row["change"]["high"] - row["change"]["low"] < 1e-9  # seeds differ by a factor alone


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_refused(bad: float) -> None:
    values = np.ones((2, 5, 3))
    values[1, 2, 0] = bad
    with pytest.raises(ValueError, match="zero or not finite"):
        fit_slope(WIDTHS, values)
    with pytest.raises(ValueError, match="two widths"):
        fit_slope([8], np.ones((2, 1, 3)))


@pytest.mark.slow
def test_the_figure_is_drawn_the_same_twice(tmp_path: Path) -> None:
    measured = planted({"eq4": 0.0, "none": 1.0})
    for name in "ab":
        files = plot(WIDTHS, measured, 1, tmp_path / name)
        assert [file.suffix for file in files] == [".svg", ".png"]
    for suffix in ("svg", "png"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    alone = [Changes(m.network, m.layer, m.rule, m.change[:1], m.size[:1]) for m in measured]
    plot(WIDTHS, alone, 101, tmp_path / "one")
    with Image.open(tmp_path / "one.png") as image:
        assert image.width > 1000


# ---------------------------------------------------------------- training


def test_rates_are_eq4s_or_the_same() -> None:
    config = tiny_config(train__rate_d=2.0, train__base_lr=1e-3)
    for width in WIDTHS:
        eq4, none = (make_trial(config, width, rule, 3, 7) for rule in ("eq4", "none"))
        assert eq4.lr_g == pytest.approx(1e-3 * 16 / width) and none.lr_g == pytest.approx(1e-3)
        assert eq4.lr_d == 2 * eq4.lr_g and none.lr_d == 2 * none.lr_g
        for trial in (eq4, none):
            specs = trial.generator_spec, trial.discriminator_spec
            assert {(spec.width, spec.depth, spec.width // spec.heads) for spec in specs} == {(width, 4, 8)}
            assert (trial.seed, trial.train.steps) == (3, 7)


@pytest.mark.parametrize("overrides", [{}, {"objective__align_weight": 1.0, "teacher": None}])
def test_steps_are_those_of_training(tmp_path: Path, home_with_reference: Path, overrides: dict[str, Any]) -> None:
    """After as many steps as train() made, the weights are the same bit for bit."""
    (tmp_path / "cache").symlink_to(home_with_reference / "cache")
    trial = tiny_trial(tmp_path, seed=5, **overrides)
    assert train(trial, CPU).status == "done"
    *_, engine = trained(trial.config, Feed(trial.config, load_dataset(trial.config.data), CPU))
    for part in ("generator", "discriminator"):
        here = getattr(engine, part).state_dict()
        there = {name: torch.full_like(value, torch.nan) for name, value in here.items()}
        holder = type(getattr(engine, part))(getattr(engine, part).spec)
        holder.load_state_dict(there)
        open_checkpoint(trial.folder / "checkpoints" / "step_00000004").restore({part: holder})
        assert all(torch.equal(value, holder.state_dict()[name]) for name, value in here.items())


def test_a_change_is_of_its_own_networks_step() -> None:
    """What is measured is the difference of the outputs, by hand; a frozen network's change is zero."""
    config = make_trial(tiny_config(), 8, "eq4", 1, 3)
    dataset = load_dataset(config.data)
    feed = Feed(config, dataset, CPU)
    found = measure(config, dataset, feed, warmup=1)
    assert {key: values.shape for key, values in found.items()} == {
        (network, layer): (2, 2) for network in "GD" for layer in ("output", "last block")
    }
    probe = make_probe(config, dataset, CPU)
    engines = trained(config, feed)
    states: list[dict[str, torch.Tensor]] = []
    for engine in engines:
        with torch.no_grad():
            image = engine.generator.sample(probe.z, probe.y)
            logit = engine.discriminator(probe.levels.transpose(0, 1).flatten(1, 2), probe.y)[0]
        states.append({"G": image.clone(), "D": logit.clone()})
    for network in "GD":
        for step in (1, 2):
            change, size = states[step + 1][network] - states[step][network], states[step][network]
            expected = [value.square().mean().sqrt().item() for value in (change, size)]
            np.testing.assert_allclose(found[network, "output"][step - 1], expected, rtol=1e-5)
    slow = config.model_copy(update={"train": config.train.model_copy(update={"rate_d": 1e-30})})
    still = measure(slow, dataset, feed, warmup=0)
    assert not still["D", "output"][:, 0].any() and (still["G", "output"] > 0).all()


def test_the_probe_is_the_same_at_every_width() -> None:
    probes = []
    for width, rule in ((8, "eq4"), (32, "none")):
        config = make_trial(tiny_config(), width, rule, 2, 3)
        probes.append(make_probe(config, load_dataset(config.data), CPU))
    for name in ("z", "y", "levels"):
        assert torch.equal(getattr(probes[0], name), getattr(probes[1], name))
    other = make_trial(tiny_config(), 8, "eq4", 3, 3)
    assert not torch.equal(make_probe(other, load_dataset(other.data), CPU).z, probes[0].z)
    assert rms(torch.tensor([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))


def test_without_the_rule_a_wide_network_moves_more(tmp_path: Path) -> None:
    """The command, from options to files; at the first step the rules differ by their rates' ratio."""
    options = ["--recipe", "digits", "--widths", "32,8,16", "--seeds", "0,1", "--steps", "2", "--batch", "16"]
    out = tmp_path / "new"
    result = CliRunner().invoke(coord_check, [*options, "--out", str(out), "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert sorted(path.name for path in out.iterdir()) == [f"coord-check.{suffix}" for suffix in ("json", "png", "svg")]
    assert json.loads((out / "coord-check.json").read_text()) == shown
    assert shown["widths"] == [8, 16, 32] and shown["rates"]["none"] == [8e-3] * 3
    assert shown["rates"]["eq4"] == [16e-3, 8e-3, 4e-3]
    slopes = {(row["network"], row["layer"], row["rule"]): row for row in shown["slopes"]}
    values = {(m["network"], m["layer"], m["rule"]): np.array(m["change"]) for m in shown["measured"]}
    for network in "GD":
        eq4, none = (slopes[network, "output", rule]["change"] for rule in ("eq4", "none"))
        assert none["slope"] > eq4["slope"] + 0.3
        assert len(eq4["by_seed"]) == 2 and eq4["low"] < eq4["slope"] < eq4["high"]
        assert values[network, "output", "eq4"].shape == (2, 3, 2)
        # At width 16, the base width, both rules are the same trial.
        assert (values[network, "output", "eq4"][:, 1] == values[network, "output", "none"][:, 1]).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--widths", "8"], "--widths 8: a slope needs at least two; give 8,16,32"),
        (["--widths", "8,12"], "12 is not a multiple of 8, the width of a head in recipe 'digits' at size S"),
        (["--widths", "8,0"], "0 is not a multiple of 8"),
        (["--widths", "8,a"], "--widths 8,a: expected whole numbers with commas"),
        (["--seeds", ""], "--seeds : expected whole numbers"),
        (["--seeds", "-1"], "--seeds -1: expected whole numbers"),
        (["--recipe", "imagenet256"], "data.path is not set"),
        (["--set", "train.base_lr=1e30"], r"width 8, .*, seed 0: gradient norm of . is .* at step \d"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, options: list[str], says: str) -> None:
    whole = options if "--recipe" in options else ["--recipe", "digits", *options]
    arguments = ["--steps", "3", "--out", str(tmp_path), *whole]
    with pytest.raises(UserError, match=says) as raised:
        coord_check.main(arguments, standalone_mode=False)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_widths_fit_the_heads_of_the_recipe() -> None:
    def widths(config: TrialConfig) -> list[int]:
        return check_widths(config, CoordCheckOptions())

    assert widths(tiny_config()) == WIDTHS
    assert widths(tiny_config(model__generator="B", model__discriminator="B")) == [12, 24, 48, 96, 192]
    with pytest.raises(UserError, match=r"8 is not a multiple of 12, .* at size B"):
        widths(tiny_config(model__discriminator="B"))
    assert isinstance(coord_check, click.Command)
