"""Sends the trials' files to MLflow; only this file and models.py import mlflow.

Training writes `config.json`, `journal.jsonl` and `samples/*.png` below its trial directory and knows nothing
of MLflow. One process, the driver, follows these files and sends what is new in batches. So an outage of MLflow
only delays the points, and the sqlite store has a single writer.
"""

import fcntl
import json
import logging
import math
import os
import re
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read while mlflow is imported, the others at each use

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils import validation as limits
from requests import exceptions as requests_errors

from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_no_credentials, without_credentials
from gat_sweep.files.storage import NO_LOCKS, Place, children, size_of, write
from gat_sweep.run.journal import FILE, read_records

for _name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(_name, None)  # an outer run's values would override ours
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # two lines for each trial that ends, into the live table
# With the defaults (7 retries, 120 s) a server that is down blocks for minutes; our retry is the next pass.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a trial, over the live table
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it also prints what it raises
logging.getLogger("alembic").setLevel(logging.WARNING)

PLACE = "mlflow.json"  # of a run: where MLflow has it
PATIENCE_S = 10.0  # after this long a pass ends with its current request, and the next pass continues there
OUTAGE = (MlflowException, OSError)  # of MLflow, of requests, of the disk or bucket where the trials lie
END = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED", "raced": "KILLED"}


@dataclass
class Child:
    """The MLflow run of a trial, and how far the trial's files have been shipped (`shipped.json`)."""

    run_id: str
    offset: int  # bytes of the journal
    highest: dict[str, int]  # metric key -> the last step in the store
    samples: set[str]
    unchecked: list[str]  # keys in the store when we opened the run; the store may be ahead of `highest`


def create_store(uri: str, home: Place) -> None:
    """Create the database behind a sqlite `uri`; does nothing if it exists or if `uri` is a server.

    Raises MlflowException if the database cannot be opened or was written by another version of MLflow, and UserError
    on a file system without locks.
    """
    if not uri.startswith("sqlite:"):
        return
    folder = _beside(uri, home)
    folder.mkdir(parents=True, exist_ok=True)
    # Two processes that open a fresh database at once corrupt its migration.
    with (folder / "mlflow.db.lock").open("w") as lock, warnings.catch_warnings():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise UserError(
                f"the file system of {folder} has no locks, which MLflow's database needs; give a --home elsewhere, or "
                "the --tracking-uri of a server"
            ) from None
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)  # mlflow's
        MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)


def _beside(uri: str, home: Place) -> Path:
    """Folder of the lock and the artifacts of a sqlite store."""
    return Path(home) if isinstance(home, Path) else Path(uri.removeprefix("sqlite:///")).parent


def behind(trial_dirs: Iterable[Place]) -> list[Place]:
    """Trials whose journals hold records that have not reached the store."""
    return [path for path in trial_dirs if size_of(path / FILE) > shipped(path).get("offset", 0)]


def unsent(trial_dirs: Iterable[Place]) -> int:
    """Points of trials' journals that have not reached the store."""
    count = 0
    for path in behind(trial_dirs):
        found = shipped(path)
        highest = dict(found.get("highest", {}))
        for _, record in read_records(path, found.get("offset", 0)):
            count += len(new_points(record, highest)) if "metrics" in record else 0
    return count


def flat_params(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested config -> {"a.b.c": value}; everything but strings is written as JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flat_params(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def new_points(record: dict[str, Any], highest: dict[str, int]) -> list[Metric]:
    """The points of a journal record beyond the steps in `highest` (key -> step); updates `highest`.

    MLflow's only axis is an integer step, so evaluations go in twice: over steps, and over gigaFLOPs spent.
    """
    points = []
    flops = record["metrics"].get("flops", math.nan)
    for key, value in record["metrics"].items():
        axes = {key: int(record["step"])}
        if key.startswith(("fd_", "fid")) and math.isfinite(flops):
            axes[f"{key}_by_gigaflops"] = int(flops / 1e9)
        for name, step in axes.items():
            if step > highest.get(name, -1):
                highest[name] = step
                points.append(Metric(name, float(value), int(record["time"] * 1000), step))
    return points


def _read_json(path: Place) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing or only half written."""
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def shipped(trial_dir: Place) -> dict[str, Any]:
    """The values that _write_shipped wrote; empty if some are missing."""
    found = _read_json(trial_dir / "shipped.json")
    return found if {"run_id", "offset", "highest", "samples"} <= found.keys() else {}


def _write_shipped(trial_dir: Place, child: Child) -> None:
    write(trial_dir / "shipped.json", json.dumps({**vars(child), "samples": sorted(child.samples)}).encode())


class Tracker:
    """One launch in MLflow: experiment = sweep, parent run = launch, child run = trial. Use it from one thread."""

    def __init__(
        self,
        uri: str,
        home: Place,
        experiment: str,
        launch_name: str,
        tags: dict[str, str],
        trial_tags: Mapping[str, dict[str, str]] | None = None,
        launch: str = "",
    ) -> None:
        """`tags` (commit, config hash, data digest, protocol) go on the parent and on every child.

        trial_tags: more of them, by trial. launch: id of an earlier launch to go on with; default: a new one.
        Opens nothing yet, so that a sweep can start while the server is down.
        Raises UserError when `uri` holds a password.
        """
        check_no_credentials(uri, "--tracking-uri")
        self.uri, self.home, self.experiment, self.launch_name = uri, home, experiment, launch_name
        self._launch = launch or uuid.uuid4().hex
        self.tags = {key: str(value)[: limits.MAX_TAG_VAL_LENGTH] for key, value in tags.items()}
        self.trial_tags = trial_tags or {}
        self._start_ms = int(time.time() * 1000)
        self._client: MlflowClient | None = None
        self._experiment_id = self.parent_id = ""  # parent_id: of the launch's run, once the store was reached
        self._children: dict[Place, Child] = {}
        self._places: list[Place] = []
        self._next: Place | None = None  # where the next pass begins
        self._pass_began, self._patience = 0.0, PATIENCE_S
        self.cut = False  # whether the last pass ended before everything was sent
        self._sent = 0

    def ship(self, trial_dirs: Iterable[Place]) -> tuple[int, str]:
        """Send what is new below the trial directories `<home>/<run>/trials/<trial>`.

        Returns the number of points that reached the store, and one line on what failed ("" if nothing did). An
        outage raises nothing: the next pass continues where the store stands.
        """
        self._sent, failures, self.cut, self._pass_began = 0, [], False, time.monotonic()
        places = [path.absolute() if isinstance(path, Path) else path for path in trial_dirs]
        first = places.index(self._next) if self._next in places else 0
        self._places, self._next = places, None
        if outage := self._attempt(self._connect):
            return 0, outage
        for trial_dir in places[first:] + places[:first]:
            if self._over():
                self._next = trial_dir
                break
            if warning := self._attempt(partial(self._ship_trial, trial_dir)):
                failures.append(f"{trial_dir.name}: {warning}")
                self._children.pop(trial_dir, None)  # the batch may have arrived nevertheless: ask the store
                self._patience = PATIENCE_S  # the others might time out one by one
        more = f" (and {len(failures) - 1} more trials)" if len(failures) > 1 else ""
        return self._sent, failures[0] + more if failures else ""

    def note(self, run: Place) -> None:
        """Writes into a run where MLflow has it; the result commands read it."""
        write(run / PLACE, json.dumps({"uri": self.uri, "run_id": self.parent_id}).encode())

    def finish(self, status: str) -> str:
        """Send the rest of a backlog and end the parent run as "done", "failed" or "stopped"; a warning or ""."""
        warning = ""
        if self.cut:
            self._patience = math.inf
            warning = self.ship(self._places)[1]
        return self._attempt(lambda: self._connect().set_terminated(self.parent_id, END[status])) or warning

    def _over(self) -> bool:
        """Whether the pass has lasted long enough: a backlog must not delay the live view of the trials."""
        self.cut = time.monotonic() - self._pass_began > self._patience
        return self.cut

    def _attempt(self, action: Callable[[], object]) -> str:
        try:
            action()
        except OUTAGE as error:
            return line_of(self.uri, error)
        return ""

    def _connect(self) -> MlflowClient:
        if self._client is not None:
            return self._client
        create_store(self.uri, self.home)
        client = MlflowClient(self.uri, registry_uri=self.uri)
        # A server has its own place for artifacts.
        beside = _beside(self.uri, self.home).absolute()
        root = (beside / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
        old = client.get_experiment_by_name(self.experiment)
        self._experiment_id = old.experiment_id if old else client.create_experiment(self.experiment, root)
        # An earlier attempt may have created the run, and only its answer was lost.
        launch = {"gat_sweep.launch": self._launch}
        found = client.search_runs([self._experiment_id], _with_tags(launch), max_results=1)
        parent = found[0] if found else None
        if parent is None:
            tags = {**self.tags, **launch}
            parent = client.create_run(self._experiment_id, self._start_ms, tags, self.launch_name)
        self.parent_id, self._client = parent.info.run_id, client
        return client

    def _ship_trial(self, trial_dir: Place) -> None:
        client = self._connect()
        if trial_dir not in self._children:
            if not (config := _read_json(trial_dir / "config.json")):
                return  # not started yet
            self._children[trial_dir] = self._open_child(client, trial_dir, flat_params(config))
        child = self._children[trial_dir]
        self._ship_journal(client, trial_dir, child)
        for png in children(trial_dir / "samples"):
            if self._over():
                return
            if re.fullmatch(r"step_\d+\.png", png.name) and png.name not in child.samples:
                _log_artifact(client, child.run_id, png, "samples")
                child.samples.add(png.name)
                _write_shipped(trial_dir, child)

    def _open_child(self, client: MlflowClient, trial_dir: Place, config: dict[str, str]) -> Child:
        """Finds the trial's run by our tags, or creates it; puts it below this launch and adds its params."""
        names = {"gat_sweep.trial": trial_dir.name, "gat_sweep.run": trial_dir.parent.parent.name}
        tags = {**self.tags, **self.trial_tags.get(trial_dir.name, {}), **names, "mlflow.parentRunId": self.parent_id}
        state = shipped(trial_dir)
        if found := client.search_runs([self._experiment_id], _with_tags(names), max_results=100):
            # A slow server may create a run long after we asked for it. Ours is the one that has the points.
            run = next((run for run in found if run.info.run_id == state.get("run_id")), found[0])
            client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in tags.items()], synchronous=True)
        else:
            run = client.create_run(self._experiment_id, tags=tags, run_name=trial_dir.name)
        run_id, known = run.info.run_id, run.data.params
        # Params are write-once: a second value is an error.
        params = [Param(k, v[: limits.MAX_PARAM_VAL_LENGTH]) for k, v in config.items() if k not in known]
        while params:
            client.log_batch(run_id, params=params[: limits.MAX_PARAMS_TAGS_PER_BATCH], synchronous=True)
            del params[: limits.MAX_PARAMS_TAGS_PER_BATCH]
        if state.get("run_id") != run_id:  # written for another store, or the run was deleted since
            state = {"offset": 0, "highest": {}, "samples": []}
        unchecked = sorted(run.data.metrics)
        return Child(run_id, state["offset"], state["highest"], set(state["samples"]), unchecked)

    def _ship_journal(self, client: MlflowClient, trial_dir: Place, child: Child) -> None:
        size = size_of(trial_dir / FILE)
        if size == child.offset:
            return
        if size < child.offset:
            child.offset = 0  # the trial began anew
        # A crash between a batch and shipped.json leaves the store ahead of the file. The steps of a key only
        # rise and are sent in order, so the highest one in the store is enough. Once per trial and process.
        while child.unchecked:
            if self._over():
                return
            key = child.unchecked[-1]
            child.highest[key] = max(point.step for point in client.get_metric_history(child.run_id, key))
            child.unchecked.pop()
        end, highest, batch = child.offset, dict(child.highest), list[Metric]()

        def flush() -> None:
            while part := batch[: limits.MAX_METRICS_PER_BATCH]:  # a record of many workers may have more than that
                client.log_batch(child.run_id, metrics=part, synchronous=True)
                self._sent += len(part)
                del batch[: len(part)]
            child.offset, child.highest = end, dict(highest)
            _write_shipped(trial_dir, child)

        for record_end, record in read_records(trial_dir, child.offset):
            if self._over():
                break
            if "status" in record:
                flush()
                _set_status(client, child.run_id, record)  # may be sent twice, which does no harm
            elif "metrics" in record:
                if len(batch) + 2 * len(record["metrics"]) > limits.MAX_METRICS_PER_BATCH:  # 2 axes
                    flush()
                batch += new_points(record, highest)
            end = record_end
        flush()


def _set_status(client: MlflowClient, run_id: str, record: dict[str, Any]) -> None:
    status, reason = record["status"], (record.get("reason") or "")[: limits.MAX_TAG_VAL_LENGTH]
    tags = [RunTag("gat_sweep.status", status), RunTag("gat_sweep.reason", reason)]
    client.log_batch(run_id, tags=tags, synchronous=True)
    if status in END:
        client.set_terminated(run_id, END[status], int(record["time"] * 1000))
    else:
        client.update_run(run_id, "RUNNING")  # resumed after a failure


def _with_tags(tags: dict[str, str]) -> str:
    """A search query for runs with these tags."""
    return " and ".join(f'tags.`{key}` = "{value}"' for key, value in tags.items())


def _log_artifact(client: MlflowClient, run_id: str, file: Place, folder: str) -> None:
    if isinstance(file, Path):
        client.log_artifact(run_id, str(file), folder)
        return
    with tempfile.TemporaryDirectory() as here:
        (Path(here) / file.name).write_bytes(file.read_bytes())
        client.log_artifact(run_id, str(Path(here) / file.name), folder)


def log_artifacts(uri: str, run_id: str, paths: Iterable[Place], folder: str) -> str:
    """Puts files into `folder` of a run; returns one line on what went wrong, or "".

    Raises UserError when `uri` holds a password.
    """
    check_no_credentials(uri, "--tracking-uri")
    try:
        client = MlflowClient(uri, registry_uri=uri)
        for path in paths:
            _log_artifact(client, run_id, path, folder)
    except OUTAGE as error:
        return line_of(uri, error)
    return ""


def reachable(uri: str, home: Place) -> str:
    """Asks the store for an experiment, and creates a sqlite store; returns one line on what went wrong, or "".

    Raises UserError when `uri` holds a password.
    """
    check_no_credentials(uri, "--tracking-uri")
    try:
        create_store(uri, home)
        MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)
    except OUTAGE as error:
        return line_of(uri, error)
    return ""


def line_of(uri: str, error: Exception) -> str:
    """What went wrong, in one line without secrets."""
    cause = error.__context__  # MLflow's own words begin with the address and do not fit into a line
    if isinstance(cause, requests_errors.ConnectionError | requests_errors.Timeout):
        return f"MLflow at {uri}: it does not answer"
    if isinstance(cause, requests_errors.RetryError):  # as when its database is away
        return f"MLflow at {uri}: it answers with an error, which its own log explains"
    return f"MLflow at {uri}: {without_credentials(' '.join(str(error).split()))[:200]}"
