"""claims: planted studies in which the paper is right, wrong, or cannot be told, by the sweep files that ship."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers.planted_run import train

from analysis.claims import CLAIMS
from analysis.table import gflops
from gat_sweep.cli import cli
from gat_sweep.compute import step_flops
from gat_sweep.config import ADDED, TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.recipe import load_recipe
from gat_sweep.results.study import loaded_table
from gat_sweep.run.record import open_run
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep, sweep_file

Value = Callable[[TrialConfig, int], float]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plant(study: str, value: Value, noise: float = 0.02, seeds: int = 3, name: str = "") -> None:
    """A run of a study in the home `runs`, with values as given."""
    sweep = load_sweep(sweep_file(study), "digits", overrides={"train.eval_every": 400}, seeds=list(range(seeds)))
    open_run(Path("runs"), name or study, sweep)
    for number, (trial, config) in enumerate(sweep.trials.items()):
        stray = np.random.default_rng(number).normal(0, noise)  # each trial's own, at all of its steps
        where = Trial(trial, name or study, study, config, Path("runs"))
        train(where, value_of=lambda c, step, stray=stray: value(c, step) * math.exp(stray))  # type: ignore[misc]


def claims(*sources: str) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(cli, ["claims", *sources, "--json"], catch_exceptions=False)
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    assert [row["claim"] for row in rows] == [claim.name for claim in CLAIMS]
    return {row["claim"]: row for row in rows}


def width(config: TrialConfig, network: str) -> int:
    return config.ladder[getattr(config.model, network)].width


def of_compute(b: float) -> Value:
    """1000 C^-b, whatever else differs."""
    return lambda config, step: 1000 * (gflops(step_flops(config)) * step) ** -b


def verdicts(found: dict[str, dict[str, Any]], *names: str) -> list[str]:
    return [found[name]["verdict"] for name in names]


LINEAR = "the exponential schedule beats the linear one"
SIZES = ("the metric falls with size", "it is a power law of compute", "it correlates with G's GFLOPs")


def test_a_power_law_is_confirmed_and_what_was_not_run_says_how() -> None:
    plant("widths", of_compute(0.5))
    found = claims()
    assert verdicts(found, *SIZES[:2]) == ["confirmed", "confirmed"]
    assert found[SIZES[1]]["here"].startswith("b = 0.5")
    for claim in CLAIMS:
        if claim.studies[0] != "widths" and claim.name != "seeds agree":
            assert found[claim.name]["verdict"] == "not run"
            assert found[claim.name]["to decide it"] == f"gat-sweep run {claim.studies[0]} --recipe digits"
    assert "| confirmed | widths |" in Path("claims/claims.md").read_text()


def test_larger_sizes_that_are_worse_contradict() -> None:
    plant("widths", of_compute(-0.3))
    assert verdicts(claims(), *SIZES[:2]) == ["contradicted", "contradicted"]


def test_a_bend_is_not_a_power_law() -> None:
    """The largest size is worse than the next one, beyond its seeds; all are better than the smallest."""
    wide = load_recipe("digits")["ladder"]["XL"]["width"]
    plant("widths", lambda c, step: of_compute(0.5)(c, step) * (1.6 if width(c, "generator") == wide else 1))
    found = claims()
    assert found[SIZES[1]]["verdict"] == "contradicted"


def test_noise_decides_nothing_and_says_how_many_seeds_would() -> None:
    plant("widths", of_compute(0.4), noise=0.3)
    found = claims()
    row = found[SIZES[0]]
    assert row["verdict"] == "not decided"
    assert row["seeds"] > 3
    assert row["to decide it"].endswith(f"--seeds 0-{row['seeds'] - 1} --name widths")


@pytest.mark.parametrize(("better", "expected"), [("exp", "confirmed"), ("none", "contradicted"), ("", "not decided")])
def test_arms_of_mng(better: str, expected: str) -> None:
    plant("mng", lambda c, step: 100.0 if c.mng.schedule == better else 150.0, noise=0.02)
    found = claims()
    assert found["MNG is better than none"]["verdict"] == expected
    if better == "exp":
        names = ("the exponential schedule beats the linear one", "noise is better than resizing (MSG-GAN)")
        assert verdicts(found, *names) == ["confirmed", "confirmed"]
        ratio = float(found["MNG is better than none"]["here"].split()[1])
        assert ratio == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(("loss", "expected"), [(1.05, "confirmed"), (2.0, "contradicted")])
def test_alignment_and_its_removal(loss: float, expected: str) -> None:
    def value(config: TrialConfig, step: int) -> float:
        if config.start:
            return 100 if config.objective.align_weight else 100 * loss
        return 120 if config.objective.align_weight else 200

    plant("alignment", value, noise=0.01)
    found = claims()
    assert found["alignment helps"]["verdict"] == "confirmed"
    assert found["alignment removed at the end loses little"]["verdict"] == expected


@pytest.mark.parametrize(("of_d", "expected"), [(0.6, "confirmed"), (0.05, "contradicted")])
def test_d_against_g(of_d: float, expected: str) -> None:
    plant(
        "decoupled", lambda c, _: 1e3 * width(c, "discriminator") ** (-2 * of_d) * width(c, "generator") ** -0.6, 0.01
    )
    assert claims()["D pays more than G"]["verdict"] == expected


@pytest.mark.parametrize(("slope", "expected"), [(-1.0, "confirmed"), (0.0, "contradicted")])
def test_best_rates_over_widths(slope: float, expected: str) -> None:
    def value(config: TrialConfig, step: int) -> float:
        far = math.log(config.lr_d / (8e-3 * (width(config, "discriminator") / 16) ** slope))
        near = math.log(config.lr_g / (8e-3 * (width(config, "generator") / 16) ** slope))
        return 100 * math.exp(0.2 * (far**2 + near**2))

    plant("lr_transfer", value, noise=0.01, seeds=4)
    found = claims()
    assert verdicts(found, "G's best rate falls as 1 / width", "D's best rate falls as 1 / width") == [expected] * 2
    assert found["each size is better at its own rate"]["verdict"] == ("confirmed" if slope else "contradicted")


def test_patches_and_seeds() -> None:
    plant("patch_sizes", lambda c, _: 50.0 * c.model.patch, noise=0.02)
    plant("seeds", lambda c, _: 100.0, noise=0.035, seeds=12)
    found = claims()
    assert found["patch 2 is better than patch 4"]["verdict"] == "confirmed"
    assert found["seeds agree"]["verdict"] == "confirmed"


def test_a_table_says_its_recipe_and_what_it_cannot_answer(tmp_path: Path) -> None:
    study = Path(__file__).parents[2] / "docs" / "study"
    found = claims(str(study / "widths.csv"), str(study / "widths.csv"))
    assert found["MNG is better than none"]["to decide it"] == "gat-sweep run mng --recipe digits"
    assert found["it is a power law of compute"]["from"] == str(study / "widths.csv")
    rows = (study / "widths.csv").read_text().splitlines()
    Path("mixed.csv").write_text(
        "\n".join([*rows[:5], *(r.replace("fd_efficientnet_lite0", "fd_x") for r in rows[5:])])
    )
    for words, message in ((["mixed.csv"], "answers no claim: "), (["--home", "nohome"], "holds no runs")):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(cli, ["claims", *words], catch_exceptions=False)


def test_a_run_without_a_claim_is_named() -> None:
    plant("one", lambda c, _: 100.0)
    plant("mng", lambda c, _: 100.0 if c.mng.schedule == "exp" else 150.0)
    result = CliRunner().invoke(cli, ["claims"], catch_exceptions=False)
    assert "one is not asked: no claim is about sweep 'one'" in result.stderr
    assert "times as much with schedule = none |" in Path("claims/claims.md").read_text()


def test_a_damaged_record_is_named() -> None:
    plant("seeds", lambda c, _: 100.0, seeds=2)
    Path("runs/broken").mkdir()
    Path("runs/broken/run.json").write_text("{")
    with pytest.raises(UserError, match=r"broken/run\.json is damaged"):
        CliRunner().invoke(cli, ["claims"], catch_exceptions=False)


def test_every_claim_names_a_study_that_ships() -> None:
    for claim in CLAIMS:
        assert all(sweep_file(study).is_file() for study in claim.studies)


def test_trials_from_before_a_config_value_came_join_those_from_after() -> None:
    """Rows that lack the value are read as what the code did before; a trial that has another value is another arm."""
    plant("widths", lambda config, step: 100.0)
    files = sorted(Path("runs/widths/table").glob("*.parquet"))
    for file in files[::2]:
        rows = pq.read_table(file).to_pylist()
        for row in rows:
            config = json.loads(row["config"])
            for section, key in ADDED:
                del config[section][key]
            row["config"] = json.dumps(config)
        pq.write_table(pa.Table.from_pylist(rows), file)
    configs = [trial.facts.config for trial in loaded_table(Path("runs/widths/table"), "value").trials]
    assert len(configs) == len(files) > 4
    for (section, key), before in ADDED.items():
        assert {config[f"{section}.{key}"] for config in configs} == {before}


def test_a_study_that_the_recipe_refuses_is_not_recommended() -> None:
    """Two blocks allow two levels of MNG, in which the linear schedule is the exponential one."""
    table = Path(__file__).parents[2] / "docs" / "study" / "mnist-mng.csv"
    found = claims(str(table))
    for name, verdict in (("MNG is better than none", "not decided"), (LINEAR, "not run")):
        row = found[name]
        assert row["verdict"] == verdict and row["to decide it"] is None
        assert "sweep mng does not fit recipe mnist: mng.schedule linear is exp where there are 2 levels" in row["here"]
    assert found["alignment helps"]["to decide it"] == "gat-sweep run alignment --recipe mnist"
