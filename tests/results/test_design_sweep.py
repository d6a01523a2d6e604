"""design on recipes and runs: its sweep file plans at the cost that was said, and its commands are those to type."""

import itertools
import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.frontier import frontier_rows, write_rows
from helpers.planted_run import train

from gat_sweep.cli import cli
from gat_sweep.commands.options import make_sweep
from gat_sweep.compute import step_flops
from gat_sweep.errors import UserError
from gat_sweep.run.record import open_run
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep, load_sweep, sweep_file

STUDY = Path(__file__).parents[2] / "docs" / "study"
DIGITS = ["--recipe", "digits", "--set", "train.steps=600"]
SHORT = [*DIGITS, "--budget", "1800"]


def design(*words: str) -> dict:
    result = CliRunner().invoke(cli, ["design", *words, "--json"], catch_exceptions=False)
    report: dict = json.loads(result.stdout)
    return report


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        CliRunner().invoke(cli, ["design", *words], catch_exceptions=False)
    return str(error.value)


def sweep_of(command: str) -> Sweep:
    """The sweep that a printed `gat-sweep run` would train."""
    words = shlex.split(command)[2:]
    settings = tuple(value for option, value in itertools.pairwise(words) if option == "--set")
    return make_sweep(words[0], words[words.index("--recipe") + 1], "paper", settings, None)


def gflops(sweep: Sweep) -> float:
    return sum(step_flops(config) * config.train.steps for config in sweep.trials.values()) / 2e9


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("goal", ["exponent", "predict:XL", "allocate", "rates"])
def test_sweep_file_is_the_design_at_its_price(goal: str) -> None:
    report = design("--goal", goal, *DIGITS, "--budget", "20000" if goal == "rates" else "1800")
    best = report["best"]
    sweep = sweep_of(report["run"][0])
    held = [c for c in sweep.trials.values() if goal == "predict:XL" and c.model.generator == "XL"]
    paid = gflops(sweep) - sum(step_flops(config) * config.train.steps for config in held) / 2e9
    assert paid == pytest.approx(best["price"], rel=1e-6)
    assert gflops(sweep) == pytest.approx(best["price"] + (report["held_price"] or 0), rel=1e-6)
    assert best["price"] <= report["budget"]
    assert {c.model.generator for c in sweep.trials.values() if c not in held} == {c["size"] for c in best["cells"]}
    assert len({config.seed for config in sweep.trials.values()}) == best["seeds"]
    assert len(held) == (best["seeds"] if goal == "predict:XL" else 0)
    last = {"predict:XL": "gat-sweep predict design-predict-digits --for XL", "exponent": "gat-sweep fit-law"}
    assert last.get(goal, f"gat-sweep {goal}") in report["run"][1]


def test_lengths_of_an_allocation_are_old_enough_and_have_evaluations() -> None:
    sweep = sweep_of(design("--goal", "allocate", *SHORT)["run"][0])
    for config in sweep.trials.values():
        young = 5 / (1 - config.train.ema_decay)
        evaluated = [s for s in range(1, config.train.steps + 1) if config.train.evaluates(s)]
        assert sum(step >= young for step in evaluated) >= 3


def test_the_same_command_twice_is_fine_and_another_design_is_not_overwritten() -> None:
    design("--goal", "exponent", *SHORT)
    before = Path("design-exponent/design-exponent.yaml").read_bytes()
    design("--goal", "exponent", *SHORT)
    assert "is another sweep; give --out" in refused("--goal", "exponent", *SHORT[:-1], "400")
    assert Path("design-exponent/design-exponent.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--goal", "exponent", "--budget", "1", "--recipe", "digits"], "3 sizes with one seed cost"),
        (["--goal", "predict", *SHORT], "expected exponent, predict:SIZE, allocate or rates"),
        (["--goal", "predict:XXL", *SHORT], "recipe 'digits' has no size 'XXL'"),
        (["--goal", "predict:XL", "--at", "L", *SHORT], "both name a size"),
        (["--goal", "exponent", "--recipe", "digits"], "give --budget in GFLOPs, or --hours"),
        (["--goal", "exponent", "--hours", "3"], "--hours goes with --calibrate, or with --mfu and --peak-tflops"),
        (["--goal", "exponent", "--budget", "3", "--calibrate"], "--budget goes without them"),
        (["no-such-run", "--goal", "exponent", "--budget", "3"], "no run 'no-such-run'"),
        (["there", "--goal", "exponent", "--budget", "3", "--recipe", "digits"], "leave --recipe and --set out"),
        (["--goal", "exponent", *SHORT, "--out", "a b"], "--out 'a b': use letters, digits"),
        (["--goal", "exponent", *SHORT, "--out", "/proc/nope"], "is not a folder that can be written"),
        (["--goal", "allocate", *SHORT, "--half-width", "0.5"], "it is a factor above 1"),
        (["--goal", "predict:", *SHORT], "--goal 'predict:': expected"),
        (
            [str(STUDY / "frontier.csv"), "--goal", "allocate", "--budget", "1e11"],
            "measured on digits, and the recipe is",
        ),
    ],
)
def test_refuses_in_one_line_and_writes_nothing(words: list[str], message: str) -> None:
    text = refused(*words)
    assert message in text
    assert "\n" not in text
    assert not list(Path().glob("design-*"))


def test_printed_commands_find_another_home_and_a_sweep_file_comes_last(tmp_path: Path) -> None:
    report = design("--goal", "exponent", *SHORT, "--home", "elsewhere")
    assert all(command.endswith(f"--home {tmp_path / 'elsewhere'}") for command in report["run"])
    Path("part/design.json").mkdir(parents=True)
    result = CliRunner().invoke(cli, ["design", "--goal", "exponent", *SHORT, "--out", "part"])
    assert result.exit_code != 0
    assert not Path("part/part.yaml").exists()


def test_hours_are_those_of_plan(tmp_path: Path) -> None:
    report = design(
        "--goal", "exponent", "--recipe", "digits", "--hours", "2", "--mfu", "0.1", "--peak-tflops", "0.01"
    )  # fmt: skip
    plan = CliRunner().invoke(
        cli,
        ["plan", "design-exponent/design-exponent.yaml", "--recipe", "digits", "--mfu", "0.1", "--peak-tflops", "0.01",
         "--json"],
    )  # fmt: skip
    assert json.loads(plan.stdout)["worker_hours"] == pytest.approx(report["best"]["price"], rel=1e-6)


def test_a_run_is_joined_by_new_seeds_and_keeps_its_trials(tmp_path: Path) -> None:
    """Its own trials are in the file, so that `run --name` goes on with it."""
    sweep = load_sweep(sweep_file("frontier"), "digits", overrides={"objective.gp_weight": 0.02})
    open_run(tmp_path / "runs", "there", sweep)
    for name, config in sweep.trials.items():
        train(Trial(name, "there", "frontier", config, tmp_path / "runs"), noise=0.03)
    report = design("there", "--goal", "allocate", "--budget", "2000", "--home", "runs")
    assert "--name there" in report["run"][0]
    assert "--set objective.gp_weight=0.02" in report["run"][0]
    after = sweep_of(report["run"][0])
    assert set(sweep.trials) < set(after.trials)
    new = [config for name, config in after.trials.items() if name not in sweep.trials]
    assert min(config.seed for config in new) == 2
    assert gflops(Sweep("", "", "", dict(enumerate(new)))) == pytest.approx(report["best"]["price"], rel=1e-6)
    open_run(tmp_path / "runs", "there", after)  # nothing of the record is in the way
    assert report["known"]["runs_that_count"] >= 10


def test_a_file_tells_the_laws_and_stays_apart(tmp_path: Path) -> None:
    table = write_rows(tmp_path / "t.csv", frontier_rows())
    report = design(str(table), "--goal", "exponent", *SHORT)
    assert report["known"]["runs_that_count"] == 0
    assert report["noise"]["of"] == "data"
    assert "--name" not in report["run"][0]


def test_a_run_of_one_length_is_joined_for_a_prediction_of_its_next_size(tmp_path: Path) -> None:
    """S, B and L are there; the file has them, new ones, and XL, which the command holds back."""
    config = {"train.steps": 600, "train.eval_every": 600}
    held = load_sweep(sweep_file("widths"), "digits", overrides=config, seeds=[0, 1])
    sweep = Sweep("w", "", "digits", {k: c for k, c in held.trials.items() if c.model.generator != "XL"})
    open_run(tmp_path / "runs", "there", sweep)
    for name, one in sweep.trials.items():
        train(Trial(name, "there", "w", one, tmp_path / "runs"), noise=0.03)
    report = design("there", "--goal", "predict:XL", "--budget", "500", "--home", "runs")
    after = sweep_of(report["run"][0])
    assert set(sweep.trials) < set(after.trials)
    assert {c.train.steps for c in after.trials.values()} == {600}
    assert "--hold XL" in report["run"][0] and "--name there" in report["run"][0]
    assert report["known"]["runs_that_count"] == 6
    assert report["best"]["error"] < report["before"]
    open_run(tmp_path / "runs", "there", after)
    assert "L is in there already" in refused("there", "--goal", "predict:L", "--budget", "500", "--home", "runs")
