"""The command line as a user meets it: what it prints, and what a mistake costs."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from helpers.processes import Gat
from helpers.trials import REFERENCE, altered_reference

from gat_sweep.cli import cli
from gat_sweep.commands.options import console, seed_numbers
from gat_sweep.commands.status import _ago

WIDTHS = Path(__file__).parents[2] / "sweeps" / "widths.yaml"


BAD = [
    (["plan", WIDTHS, "--recipe", "digit"], "did you mean 'digits'"),
    (["plan", WIDTHS, "--set", "train.step=3"], "did you mean 'train.steps'"),
    (["plan", WIDTHS, "--set", "train.steps"], "KEY=VALUE"),
    (["plan", WIDTHS, "--recipe", "digits", "--recipe", "mnist"], "--recipe is given 2 times; keep one"),
    (["plan", WIDTHS, "--set", "train.steps=1", "--set", "train.steps=2"], "--set train.steps is given twice"),
    (["plan", "nowhere.yaml"], "nowhere.yaml"),
    (["plan", WIDTHS, "--preset", "offical"], "official"),
    (["plan", WIDTHS, "--recipe", "digits", "--set", "data.side=9"], "patch 2 does not divide"),
    (["run", WIDTHS, "--recipe", "digits", "--set", "ladder.S.heads=3"], "width 8 is not divisible by heads 3"),
    (["run", WIDTHS], "data.path is not set; write a data set with `gat-sweep encode`"),
    (["run", WIDTHS, "--set", "data.path=nowhere"], "nowhere has no manifest.json"),
    (["encode", "--out", "out", "--tokenizer", "pixels"], "give --images or --latents"),
    (["encode", "--images", "nowhere", "--out", "out", "--tokenizer", "pixels"], "nowhere"),
    (["encode", "--images", ".", "--out", "out", "--tokenizer", "/nowhere"], "tokenizer '/nowhere' is not a folder"),
    (["evaluate", "step_00000004"], "is not a checkpoint; give one of"),
    (["evaluate", "nowhere.npz", "--recipe", "digits"], "nowhere.npz"),
    (["evaluate", "step_1", "--set", "train.steps=3"], "allows only data.path, data.tokenizer, text.folder and eval"),
    (["inspect", "step_00000004"], "is not a checkpoint; give one of"),
    (["latency", "--size", "S", "--tokenizer", "/nowhere"], "/nowhere"),
    (["run", WIDTHS, "--recipe", "digits", "--set", "workers.count=64"], "asks for 64 CPUs"),
    (["run", WIDTHS, "--recipe", "digits", "--set", "workers.gpus=8"], "asks for 8 GPUs (1 workers), the cluster has"),
    (["run", WIDTHS, "--recipe", "digits", "--name", "../x"], "--name"),
    (["run", WIDTHS, "--recipe", "digits", "--name", "n" * 300], "--name: 300 letters are too many; use at most 100"),
    (
        ["run", WIDTHS, "--recipe", "digits", "--tracking-uri", "./mlruns"],
        "is a folder, in which MLflow 3 keeps nothing",
    ),
    (["run", WIDTHS, "--recipe", "digits", "--seeds", "a"], "--seeds"),
    (["run", WIDTHS, "--recipe", "digits", "--seeds", "0,"], "--seeds 0,: expected whole numbers"),
    (["plan", WIDTHS, "--recipe", "digits", "--seeds", "0-1-2"], "expected whole numbers and ranges"),
    (["plan", WIDTHS, "--recipe", "digits", "--seeds", "0,5-3"], "the range 5-3 is empty"),
    (["plan", WIDTHS, "--recipe", "digits", "--seeds", "0-99999999999"], "at most 1000 seeds"),
    (["train", "--recipe", "digits", "--set", "eval.extractor=inception_v3"], "set eval.resize=299"),
    (["train", "--recipe", "digits", "--device", "tpu9"], "device"),
    (["fit-law", "nothing"], "no run 'nothing'"),
    (["fit-law", "nothing.csv"], "nothing.csv"),
    (["fit-law"], "--paper"),
    (["fit-law", "x", "--paper"], "--paper"),
    (["parity", "no.safetensors"], "no such file"),
    (["model-info", "--size", "XXL"], "no size 'XXL'"),
    (["model-info", "--patch", "3"], "patch 3 does not divide"),
    (["ui"], "no MLflow store"),
    (["frobnicate"], "frobnicate"),
]


@pytest.mark.parametrize(("args", "words"), BAD, ids=[" ".join(map(str, a)).replace(str(WIDTHS), "w") for a, _ in BAD])
def test_a_mistake_costs_one_line_and_writes_nothing(gat: Gat, args: list[object], words: str, tmp_path: Path) -> None:
    code, out, err = gat(*args)
    assert code == 2 and words in err, err
    assert out == "" and len(err.splitlines()) == 1 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_table_at_fault_names_the_row(gat: Gat, tmp_path: Path) -> None:
    header = "trial,generator_size,step,flops,g_forward_flops,metric,value\n"
    (tmp_path / "t.csv").write_text(header + "a,S,10,1e12,1e9,fid,20\nb,B,10,4e12,4e9,fid,-3\n")
    code, _, err = gat("fit-law", "t.csv")
    assert code == 2 and "t.csv" in err and "3" in err and "-3" in err
    (tmp_path / "u.csv").write_text("trial,step\na,1\n")
    code, _, err = gat("fit-law", "u.csv")
    assert code == 2 and "generator_size" in err and len(err.splitlines()) == 1
    (tmp_path / "v.csv").write_text(header + "a,S,10,1e12,1e9,fid,20\nb,B,10,4e12,4e9,fid,3\n")
    code, _, err = gat("fit-law", "v.csv")
    assert code == 2 and "at least 3" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "u.csv", "v.csv"]


def test_plan_and_model_info_agree_with_table_2(gat: Gat) -> None:
    code, out, _ = gat("plan", WIDTHS, "--json")
    trials = list(json.loads(out)["trials"].values())
    assert code == 0 and [round(t["g_params_paper"] / 1e6, 2) for t in trials] == [29.36, 116.75, 408.75, 602.25]
    assert [t["lr_g"] for t in trials] == pytest.approx([4e-4, 2e-4, 1.5e-4, 1.333e-4], rel=1e-3)
    code, out, _ = gat("model-info", "--size", "S", "--patch", "2", "--json")
    info = json.loads(out)
    assert code == 0 and round(info["d_params_paper"] / 1e6, 2) == 39.21
    assert info["g_forward_flops"] / 1e9 == pytest.approx(12.11, abs=0.005)
    assert sum(info["iteration_flops"].values()) == info["iteration_flops_total"]
    code, out, _ = gat("plan", WIDTHS, "--recipe", "digits")
    assert code == 0 and len(re.findall(r"p2-s0-", out)) == 4


def test_parity_exit_code_follows_the_limits(gat: Gat, tmp_path: Path) -> None:
    code, out, _ = gat("parity", REFERENCE, "--json")
    assert code == 0 and set(json.loads(out)) == {"max_abs_output", "max_rel_loss", "max_rel_grad"}

    code, out, _ = gat("parity", altered_reference(tmp_path, "G.levels", 1.01))
    assert code == 1 and "max_abs_output" in out


def test_the_papers_law(gat: Gat, tmp_path: Path) -> None:
    code, out, _ = gat("fit-law", "--paper", "--json", "--out", tmp_path / "law")
    law = json.loads(out)
    (found,) = law["laws"]
    assert code == 0 and 0.479 <= found["b"] <= 0.481 + 5e-4
    assert found["b"] - found["b_low"] == pytest.approx(0.129, abs=1e-3)
    assert found["b_low"] < 0.456 < found["b_high"] and law["pearson_at_50k"]["r"] == pytest.approx(-0.918, abs=5e-4)
    assert sorted(p.name for p in (tmp_path / "law").iterdir()) == ["law.json", "law.png", "law.svg", "table3.csv"]
    assert json.loads((tmp_path / "law" / "law.json").read_text()) == law


def test_train_without_ray_twice_and_from_elsewhere(gat: Gat, tmp_path: Path, home_with_reference: Path) -> None:
    """Trains; the same command again has nothing to do."""
    tiny = ["train.steps=2", "train.batch=8", "train.eval_every=1", "train.log_every=1", "eval.samples=64"]
    command = ["train", "--recipe", "digits", "--home", "here"]
    command += [f"--set={s}" for s in [*tiny, "eval.resize=32"]]
    shutil.copytree(home_with_reference / "cache", tmp_path / "here" / "cache")
    code, out, err = gat(*command)
    assert code == 0 and "done" in out and err == "", err
    table = next((tmp_path / "here" / "train" / "table").iterdir())
    before = table.read_bytes()
    code, out, _ = gat(*command)
    assert code == 0 and "done" in out and table.read_bytes() == before


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400"])
def test_no_option_takes_a_number_that_is_not_finite(text: str) -> None:
    """NaN passes every comparison, so a range alone lets it through."""
    floats = [
        (command.name, option)
        for command in cli.commands.values()
        for option in command.params
        if isinstance(option.type, click.types.FloatParamType)
    ]
    assert len(floats) > 10
    for _, option in floats:
        with pytest.raises(click.BadParameter, match=r"not a number of at most 1e\+30|not in the range"):
            option.type.convert(text, option, None)


@pytest.mark.parametrize(
    ("columns", "width"), [(None, 200), ("", 200), ("0", 200), ("-5", 200), ("wide", 200), ("40", 80), ("133", 133)]
)
def test_tables_are_as_wide_as_can_be_read(columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert console().width == width


def test_another_analysis_on_the_path_costs_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from gat_sweep.entry import main; main()", "--version"]
    for name, status in (("analysis", 2), ("other", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        found = subprocess.run(
            command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, cwd=tmp_path.parent
        )
        assert found.returncode == status, found.stderr
        if status:
            assert found.stderr.startswith(f"gat-sweep: 'analysis' is {tmp_path}/analysis/__init__.py, not gat-sweep's")
            assert len(found.stderr.splitlines()) == 1
            shutil.rmtree(tmp_path / name)


def test_a_sign_of_life_from_the_future_is_no_age() -> None:
    assert (_ago(12.3), _ago(-2.0)) == ("0:12 ago", "0:00 ago")
    assert _ago(-90.0) == "(its clock is 1:30 ahead of this one's, so whether it lives is not known)"


def test_seeds_may_be_ranges() -> None:
    assert seed_numbers("0-3") == [0, 1, 2, 3] and seed_numbers("7, 0-1,5-5") == [7, 0, 1, 5]


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_figure(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: JSON fits, and a figure does not."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    table = Path(__file__).parents[2] / "docs" / "study" / "widths.csv"
    command = [sys.executable, "-m", "gat_sweep.cli", "fit-law", str(table), "--out", str(tmp_path)]
    environment = {**os.environ, "MPLCONFIGDIR": str(Path.home() / ".cache" / "matplotlib")}  # its cache is large
    run = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=small_files)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1] == "gat-sweep: File too large; free some and run the same command again"
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json"}
