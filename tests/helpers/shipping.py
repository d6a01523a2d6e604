"""Journals as training writes them, a driver that ships them, and the account of what arrived."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from gat_sweep.files.storage import write
from gat_sweep.monitor.tracking import Tracker, behind
from gat_sweep.run.journal import add_record

KEYS = ("loss_g", "loss_d", "images_per_second")


class Writer:
    """Trials' journals as training writes them, with steps done again after a resume; from a thread.

    evaluate: steps between evaluations, each with a distance and a file of samples; 0: none.
    """

    def __init__(self, home: Path, trials: int, run: str = "run", evaluate: int = 0) -> None:
        self.folders = [home / run / "trials" / f"t{i}" for i in range(trials)]
        for number, folder in enumerate(self.folders):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"seed": number, "train": {"steps": 1000}}))
        self.step, self.longest, self.evaluate = [0] * trials, 0.0, evaluate
        self.random = random.Random(0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def line(self, trial: int) -> None:
        began = time.monotonic()
        self.step[trial] += 1
        step, folder = self.step[trial], self.folders[trial]
        add_record(folder, {"step": step, "metrics": {key: step / 7 for key in KEYS}})
        if self.random.random() < 0.02:  # a resume from a checkpoint: the steps since are done again, at other times
            back = max(1, step - self.random.randrange(10))
            line = {"step": back, "status": "running", "gpus": 0, "previous": {"step": step, "time": time.time()}}
            add_record(folder, line)
            for again in range(back, step + 1):
                add_record(folder, {"step": again, "metrics": {key: again / 7 for key in KEYS}})
        if self.evaluate and step % self.evaluate == 0:
            add_record(folder, {"step": step, "metrics": {"fd_x": 1e3 / step, "flops": step * 3e9}})
            write(folder / "samples" / f"step_{step:08d}.png", self.random.randbytes(20_000))
        self.longest = max(self.longest, time.monotonic() - began)

    def end(self) -> None:
        """The last line of each trial."""
        for step, folder in zip(self.step, self.folders, strict=True):
            add_record(folder, {"step": step, "status": "done", "reason": ""})

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for trial in range(len(self.folders)):
                self.line(trial)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


class Shipper:
    """Calls ship over and over, as the monitor does, and notes how long a call takes and what it warns of."""

    def __init__(self, tracker: Tracker, folders: list[Path]) -> None:
        self.tracker, self.folders = tracker, folders
        self.longest, self.warnings = 0.0, list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            if warning := self.tracker.ship(self.folders)[1]:
                self.warnings.append(warning)
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> "Shipper":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def ship_the_rest(tracker: Tracker, folders: Sequence[Path]) -> None:
    for _ in range(60):
        if tracker.ship(folders) == (0, "") and not behind(folders):
            return
        time.sleep(0.2)
    raise TimeoutError


def journaled(folder: Path) -> dict[str, dict[int, float]]:
    """The points of a journal by key and step; of a step that was done again, the first."""
    found: dict[str, dict[int, float]] = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        metrics = record.get("metrics", {})
        for key, value in metrics.items():
            found.setdefault(key, {}).setdefault(record["step"], value)
            if key.startswith("fd_"):
                found.setdefault(f"{key}_by_gigaflops", {}).setdefault(int(metrics["flops"] / 1e9), value)
    return found


def runs_of(uri: str, experiment: str, folder: Path) -> list[Run]:
    """A trial's MLflow runs."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    names = {"gat_sweep.trial": folder.name, "gat_sweep.run": folder.parent.parent.name}
    query = " and ".join(f'tags.`{key}` = "{value}"' for key, value in names.items())
    return list(client.search_runs([found.experiment_id], query))


def account(uri: str, folders: Sequence[Path], experiment: str = "sweep") -> dict[str, int]:
    """Of all points that the journals hold: how many the store lacks, and has more than once."""
    client = MlflowClient(uri)
    points = lost = twice = 0
    for folder in folders:
        expected, mine = journaled(folder), runs_of(uri, experiment, folder)
        assert {key for run in mine for key in run.data.metrics} <= expected.keys()
        for key, values in expected.items():
            histories = [client.get_metric_history(run.info.run_id, key) for run in mine if key in run.data.metrics]
            seen = Counter(point.step for history in histories for point in history)
            points += len(values)
            lost += len(values.keys() - seen.keys())
            twice += sum(count - 1 for count in seen.values())
            assert all(point.value == values[point.step] for history in histories for point in history)
    return {"points": points, "lost": lost, "twice": twice}
