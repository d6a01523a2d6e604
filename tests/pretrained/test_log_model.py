"""Trained networks as MLflow models: the pictures of `gat-sweep sample`, the best of a run, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from helpers.postgres import TeamMlflow
from helpers.trials import CPU, TINY
from mlflow import MlflowClient

from gat_sweep.errors import UserError
from gat_sweep.files.storage import children
from gat_sweep.monitor.models import shipped_run
from gat_sweep.monitor.send import send_command
from gat_sweep.monitor.ui import default_uri
from gat_sweep.pretrained.folder import from_trial, save_pretrained
from gat_sweep.pretrained.log_model import best_trial, log_model_command
from gat_sweep.pretrained.pyfunc import Sampler
from gat_sweep.pretrained.sample import Request, sample_command
from gat_sweep.run.record import open_run
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep
from gat_sweep.train.loop import train
from gat_sweep.train.recorder import trial_constants

SWEEP = f"about: two\nset: {json.dumps(TINY)}\nzip: {{model.generator: [S, B], model.discriminator: [S, B]}}\n"


def said(text: str) -> None:
    pass


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow writes its current store and experiment into the environment, which other tests and commands read."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.setenv(name, "")  # is taken back after the test, whatever MLflow has made of it
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def two(home_with_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    """Two trained trials, sent to the sqlite store of their home."""
    home = tmp_path_factory.mktemp("two")
    shutil.copytree(home_with_reference / "cache", home / "cache")
    (home / "two.yaml").write_text(SWEEP)
    sweep = load_sweep(home / "two.yaml", "digits")
    open_run(home, "two", sweep)
    trials = [Trial(name, "two", "two", config, home) for name, config in sweep.trials.items()]
    for trial in trials:
        assert train(trial, CPU).status == "done"
    send_command((), home, default_uri(home), said)
    return trials


def log(trials: list[Trial], trial: str | None = None, alias: str | None = None) -> str:
    uri = log_model_command(trials[0].home, "two", trial, alias, None, {}, said)
    mlflow.set_tracking_uri(json.loads((trials[0].run_folder / "mlflow.json").read_text())["uri"])  # to load it
    return uri


def sampled(trial: Trial, out: Path, **request: Any) -> np.ndarray:
    sample_command(trial.folder / "checkpoints" / "step_00000004", out, Request(**request), {}, None, CPU)
    return np.load(out / "samples.npz")["arr_0"]


def test_a_logged_model_gives_the_pictures_of_sample(two: list[Trial], tmp_path: Path) -> None:
    uri = log(two, two[0].id)
    model = mlflow.pyfunc.load_model(uri)
    plain = model.predict({"classes": [1, 7]})
    assert plain.dtype == np.uint8 and plain.shape[3] == 3
    assert np.array_equal(plain, sampled(two[0], tmp_path / "a", count=2, classes=(1, 7)))
    params = {"seed": 5, "psi": 0.7, "guidance": 1.5}
    other = model.predict({"classes": [3, 3, 0]}, params=params)
    assert np.array_equal(other, sampled(two[0], tmp_path / "b", count=3, classes=(3, 3, 0), **params))
    assert not np.array_equal(plain[0], other[0])
    inputs, outputs = model.metadata.get_input_schema(), model.metadata.get_output_schema()
    assert inputs.input_names() == ["classes"] and outputs.inputs[0].shape == (-1, *plain.shape[1:])
    with pytest.raises(UserError, match=r"--classes 10: give 0 to 9"):
        model.predict({"classes": [1, 10]})


def test_it_holds_no_pickle_and_is_in_the_run_of_its_trial(two: list[Trial], tmp_path: Path) -> None:
    uri, store = log(two, two[0].id), default_uri(two[0].home)
    assert log(two, two[0].id) == uri  # it is there
    client, run_id = MlflowClient(store), shipped_run(store, two[0].folder)
    model = client.get_logged_model(uri.removeprefix("models:/"))
    assert model.source_run_id == run_id and [one.step for one in client.get_run(run_id).outputs.model_outputs] == [4]
    history = client.get_metric_history(run_id, "loss_d")
    assert sorted(point.step for point in history) == [1, 2, 3, 4]  # logging a model adds no point
    files = [path for path in Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path))).rglob("*.*")]
    assert {path.suffix for path in files if path.is_file()} <= {".json", ".md", ".safetensors", ".yaml", ".txt", ""}


def test_the_best_is_registered_and_the_alias_moves(two: list[Trial]) -> None:
    client, store = MlflowClient(default_uri(two[0].home)), default_uri(two[0].home)
    best = best_trial(two)
    assert log(two, alias="best") == "models:/two@best" and log(two, alias="best") == "models:/two@best"
    (version,) = client.search_model_versions("name = 'two'")
    assert version.run_id == shipped_run(store, best.folder)
    assert client.get_model_version_by_alias("two", "best").version == version.version
    other = next(trial for trial in two if trial is not best)
    table = RunTable(other.table, trial_constants("two", "two", other.id, other.config))
    kept, better = table.rows[-1], dict(table.rows[-1], value=table.rows[-1]["value"] / 1e3)
    try:
        table.put(**{key: better[key] for key in better})
        assert log(two, alias="best") == "models:/two@best"
    finally:
        table.put(**kept)
    versions = {int(one.version): one for one in client.search_model_versions("name = 'two'")}
    assert [versions[n].run_id for n in (1, 2)] == [version.run_id, shipped_run(store, other.folder)]
    assert int(client.get_model_version_by_alias("two", "best").version) == 2


def test_networks_without_classes_take_a_count(tmp_path: Path, home: Path) -> None:
    from helpers.trials import checkpoint_of, tiny_trial

    trial = tiny_trial(home, data__classes=0)
    found = from_trial(checkpoint_of(trial), {})
    save_pretrained(tmp_path / "folder", found.generator, found.about)
    pictures = Sampler(tmp_path / "folder", {}).predict({"count": [3]}, {"seed": 2, "psi": 0.5})
    assert np.array_equal(pictures, sampled(trial, tmp_path / "out", count=3, seed=2, psi=0.5))
    with pytest.raises(UserError, match="guidance needs classes"):
        Sampler(tmp_path / "folder", {}).predict({"count": [3]}, {"guidance": 2.0})


def test_ties_and_several_protocols_are_refused(sizes: list[Trial]) -> None:
    one = next(trial for trial in sizes if trial.status() == "done")
    row = RunTable(one.table, {}).rows[-1]
    other = next(trial for trial in sizes if trial.status() == "done" and trial is not one)
    table = RunTable(other.table, trial_constants("sizes", "sizes", other.id, other.config))
    last = dict(table.rows[-1])
    table.put(**{**last, "value": -1.0})
    third = next(t for t in sizes if t.status() == "done" and t not in (one, other))
    more = RunTable(third.table, trial_constants("sizes", "sizes", third.id, third.config))
    more.put(**{**more.rows[-1], "value": -1.0})
    with pytest.raises(UserError, match=f"{other.id} and {third.id} have the same value -1"):
        best_trial(sizes)
    table.put(**{**last, "protocol": '{"resize": 299}'})
    with pytest.raises(UserError, match="the values are of 2 kinds"):
        best_trial(sizes)
    assert row["status"] == "done"


def test_what_is_refused(two: list[Trial], tmp_path: Path, gat: Callable[..., tuple[int, str, str]]) -> None:
    home = two[0].home
    assert gat("log-model", "two", "--home", home) == (
        2, "", "gat-sweep: give a TRIAL, or --best for the best one of the run\n",
    )  # fmt: skip
    assert "--alias needs --best" in gat("log-model", "two", two[0].id, "--alias", "x", "--home", home)[2]
    assert "no trial 'nope'" in gat("log-model", "two", "nope", "--home", home)[2]
    elsewhere = f"sqlite:///{tmp_path / 'other.db'}"
    code, _, error = gat("log-model", "two", two[0].id, "--home", home, "--tracking-uri", elsewhere)
    assert code == 2 and f"first: gat-sweep send two --tracking-uri {elsewhere}" in error
    code, _, error = gat("log-model", "two", two[0].id, "--home", home, "--tracking-uri", "http://127.0.0.1:9")
    assert code == 2 and error.splitlines()[1:] == ["gat-sweep: MLflow at http://127.0.0.1:9: it does not answer"]
    assert not children(tmp_path / "mlruns")


@pytest.mark.slow
def test_on_a_server_with_a_bucket(two: list[Trial], team_mlflow: TeamMlflow, tmp_path: Path) -> None:
    """Logged, registered and loaded through the server; the files are in the bucket."""
    shutil.copytree(two[0].home, tmp_path / "home")
    trials = [replace(trial, home=tmp_path / "home") for trial in two]
    uri = team_mlflow.server.uri
    send_command((), tmp_path / "home", uri, said)
    assert log(trials, alias="best") == log(trials, alias="best") == "models:/two@best"
    best, client = best_trial(trials), MlflowClient(uri, registry_uri=uri)
    (version,) = client.search_model_versions("name = 'two'")
    assert version.run_id == shipped_run(uri, best.folder)
    assert client.get_model_version_by_alias("two", "best").version == version.version
    place = client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    networks = team_mlflow.artifacts / place.removeprefix("mlflow-artifacts:/").strip("/") / "data" / "networks"
    assert [file.name for file in children(networks)] == [
        "README.md", "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    pictures = mlflow.pyfunc.load_model("models:/two@best").predict({"classes": [1, 7]})
    assert np.array_equal(pictures, sampled(best, tmp_path / "out", count=2, classes=(1, 7)))
