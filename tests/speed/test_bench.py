"""The benchmark: it refuses to time steps that disagree, and what it prints follows from what it measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers.trials import tiny_config

from gat_sweep.cli import cli
from gat_sweep.gat import flops
from gat_sweep.speed.bench import compare, straightforward_flops
from gat_sweep.speed.straightforward import Straightforward

CPU = torch.device("cpu")


@pytest.mark.slow
def test_bench_prints_what_it_measured(tmp_path: Path) -> None:
    settings = ["--set", "train.batch=4", "--iterations", "3", "--threads", "1", "--json"]
    out = tmp_path / "bench.json"
    result = CliRunner().invoke(cli, ["bench", "--recipe", "digits", "--size", "S", *settings, "--out", str(out)])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert json.loads(out.read_text()) == [found]
    assert 0 < found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert (found["batch"], found["chunk"], found["compiled"]) == (4, 4, False) and found["loss_difference"] < 1e-4
    for name in ["engine", "straightforward"]:
        row = found[name]
        assert 0 < row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"] and row["peak_bytes"] > 0
        assert row["images_per_second"] == pytest.approx(4 / row["seconds_median"])
        assert row["mfu"] == pytest.approx(row["flops_per_second"] / found["ceiling_flops_per_second"])
        assert row["flops_per_second"] == pytest.approx(row["flops_per_image"] * row["images_per_second"])


def test_steps_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Straightforward.step

    def wrong(*args: Any) -> dict[str, torch.Tensor]:
        return {name: loss * 1.001 for name, loss in honest(*args).items()}

    monkeypatch.setattr(Straightforward, "step", wrong)
    with pytest.raises(ValueError, match=r"relative difference of losses is 1\.\de-03"):
        compare(tiny_config(), CPU, 3, lambda text: None)


@pytest.mark.slow
def test_the_straightforward_step_costs_about_its_round_count() -> None:
    """5 G + 20 D, but for what is not in a block (not computed again) and input gradients that nobody needs."""
    config = tiny_config(model__generator="XL", model__discriminator="XL")
    specs = config.generator_spec, config.discriminator_spec
    rounded = flops.round_counts(*specs)["straightforward_5g_20d"]
    assert 0.95 * rounded < straightforward_flops(config) < rounded
    assert sum(flops.iteration(*specs).values()) < 0.65 * rounded
