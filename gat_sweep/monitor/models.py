"""Trained networks in MLflow: logged to the run of their trial, and registered under an alias.

The model is a folder of networks (pretrained/folder.py) and the name of the module that loads it: it holds no pickle.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gat_sweep.monitor.tracking import OUTAGE, line_of, shipped  # isort: skip - sets MLflow's environment first

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_no_credentials
from gat_sweep.files.storage import Place

with warnings.catch_warnings():  # MLflow dislikes a type hint of its own
    warnings.filterwarnings("ignore", ".*Any type hint is inferred", UserWarning)
    import mlflow.pyfunc

NAME = "generator"  # of the logged model, in its run
WEIGHTS = "gat_sweep.weights"  # tag with the digest of the weights
PACKAGES = ("gat-sweep", "mlflow", "torch", "diffusers", "numpy", "safetensors")


@dataclass(frozen=True)
class Networks:
    """An exported folder, and what MLflow has to know about it.

    step: of the checkpoint. weights: their digest. example: what predict takes, {"classes": [0]}, {"count": [1]}
        or {"captions": ["a picture"]}.
    picture: (height, width) in pixels. params, settings: what predict and load_model may set, with their defaults.
    """

    folder: Path
    loader: str
    step: int
    weights: str
    example: dict[str, list[Any]]
    picture: tuple[int, int]
    params: Mapping[str, int | float]
    settings: Mapping[str, str]


def log_model(uri: str, trial: Place, networks: Networks) -> str:
    """Logs networks to the run of a trial, unless they are there; returns the model's URI.

    Raises UserError when MLflow does not answer, or has no run of the trial.
    """
    try:
        run_id = shipped_run(uri, trial)
        client = MlflowClient(uri, registry_uri=uri)
        found = _logged(client, run_id, networks.weights)
        return f"models:/{found.model_id if found else _log(uri, run_id, networks)}"
    except OUTAGE as error:
        raise UserError(line_of(uri, error)) from None


def register(uri: str, model: str, name: str, alias: str) -> int:
    """Moves an alias of a registered model to a logged model; returns the version, a new one where it has none.

    Raises UserError when MLflow does not answer or refuses the name.
    """
    try:
        client = MlflowClient(uri, registry_uri=uri)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        number = next((one.version for one in versions if one.source == model), None)
        if number is None:
            model_id = model.removeprefix("models:/")
            run_id = client.get_logged_model(model_id).source_run_id
            number = client.create_model_version(name, model, run_id, model_id=model_id).version
        client.set_registered_model_alias(name, alias, str(number))
        return int(number)
    except OUTAGE as error:
        raise UserError(line_of(uri, error)) from None


def shipped_run(uri: str, trial_dir: Place) -> str:
    """The id of a trial's run in the store. Raises UserError when the store lacks it, OUTAGE when it is away."""
    check_no_credentials(uri, "--tracking-uri")
    run_id = shipped(trial_dir).get("run_id", "")
    try:
        if run_id:
            MlflowClient(uri, registry_uri=uri).get_run(run_id)
            return str(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    run = trial_dir.parent.parent.name
    raise UserError(
        f"MLflow at {uri} has no run of trial {trial_dir.name}; first: gat-sweep send {run} --tracking-uri {uri}"
    )


def _logged(client: MlflowClient, run_id: str, weights: str) -> LoggedModel | None:
    """The model of these weights that a run has already, whole."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND tags.`{WEIGHTS}` = '{weights}'")
    return next((model for model in found if model.status == LoggedModelStatus.READY), None)


def _log(uri: str, run_id: str, networks: Networks) -> str:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # Without it the model and its files would go to MLflow's default experiment, and not to where the run is.
    mlflow.set_experiment(experiment_id=MlflowClient(uri, registry_uri=uri).get_run(run_id).info.experiment_id)
    height, width = networks.picture
    params = [ParamSpec(name, _kind(value), value) for name, value in networks.params.items()]
    signature = ModelSignature(
        inputs=Schema([ColSpec(_type(values), name) for name, values in networks.example.items()]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, 3))]),
        params=ParamSchema(params),
    )
    model_id = Model.log(
        artifact_path=None,
        name=NAME,
        flavor=mlflow.pyfunc,
        run_id=run_id,
        step=networks.step,
        tags={WEIGHTS: networks.weights},
        loader_module=networks.loader,
        data_path=str(networks.folder),
        signature=signature,
        input_example=networks.example,
        model_config=dict(networks.settings),
        pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
    ).model_id
    assert model_id is not None
    return str(model_id)


def _kind(value: int | float) -> DataType:
    return DataType.long if isinstance(value, int) else DataType.double


def _type(values: list[Any]) -> DataType:
    return DataType.string if isinstance(values[0], str) else DataType.long
