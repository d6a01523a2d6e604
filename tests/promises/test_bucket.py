"""A run whose home is a bucket: the same commands, the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.trials import CPU, TINY, assert_same_state, rows

from gat_sweep.files.storage import Remote, children
from gat_sweep.pretrained.evaluate import evaluate_command
from gat_sweep.run.table import read_rows
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep
from gat_sweep.train.loop import train


def command(*args: str) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "gat_sweep.cli", *args], capture_output=True, text=True, env={**os.environ}, timeout=300
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.slow
def test_a_trial_in_a_bucket_equals_one_in_a_folder(
    trained: Trial,
    bucket: Remote,
) -> None:
    """Stopped and resumed there, and evaluated from there."""
    straight = trained
    there = Trial("trial", "train", "sweep", straight.config, bucket)
    asked = iter([""] * 3 + ["enough"] * 3)
    assert train(there, CPU, lambda: next(asked)).status == "stopped"
    assert train(there, CPU).status == "done"
    assert_same_state(straight, there, 4)
    assert [row["value"] for row in rows(straight)] == [row["value"] for row in read_rows(there.table)]
    samples = [child.name for child in children(there.folder / "samples")]
    assert samples == ["step_00000002.png", "step_00000004.png"]
    local = (straight.folder / "samples" / samples[1]).read_bytes()
    assert (there.folder / "samples" / samples[1]).read_bytes() == local

    found = evaluate_command(there.folder / "checkpoints" / "step_00000004", "digits", {}, bucket, CPU)
    assert found.value == rows(straight)[-1]["value"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_in_a_bucket(bucket: Remote, tmp_path: Path) -> None:
    """Ray's workers write there, MLflow is filled from there, the law is fitted from there."""
    sweep = tmp_path / "three.yaml"
    sizes = "[S, B, L]"
    sweep.write_text(
        f"about: three\nset: {json.dumps(TINY)}\nzip: {{model.generator: {sizes}, model.discriminator: {sizes}}}\n"
    )
    home = str(bucket)
    args = ("run", str(sweep), "--recipe", "digits", "--home", home)
    code, out = command(*args)
    assert code == 2 and "--tracking-uri" in out and len(out.splitlines()) == 1
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code, out = command(*args, "--tracking-uri", store)
    assert code == 0, out
    for name, config in load_sweep(sweep, "digits").trials.items():
        assert read_rows(Trial(name, "three-digits", "three", config, bucket).table)[-1]["status"] == "done"
    code, out = command("status", "three-digits", "--home", home, "--json")
    assert [trial["status"] for trial in json.loads(out)["trials"]] == ["done"] * 3
    code, out = command("fit-law", "three-digits", "--home", home, "--json", "--out", str(tmp_path / "law"))
    assert code == 0 and json.loads(out)["laws"][0]["sizes"] == 3, out

    from mlflow import MlflowClient

    client = MlflowClient(store)
    (experiment,) = [e for e in client.search_experiments() if e.name == "three"]
    runs = client.search_runs([experiment.experiment_id])
    losses = [client.get_metric_history(run.info.run_id, "loss_d") for run in runs]
    assert sorted(len(history) for history in losses) == [0, 4, 4, 4]
