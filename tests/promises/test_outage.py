"""MLflow away for a while: training goes on, and the points it missed arrive later, each exactly once.

A real `mlflow server` on loopback, killed with its process group and started again on the same database, while a thread
writes journals as training does.
"""

import itertools
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from benchmarks.rehearsal.server import Server
from gat_sweep.monitor import tracking
from gat_sweep.monitor.tracking import PATIENCE_S, Tracker, behind
from gat_sweep.monitor.ui import default_uri
from gat_sweep.run.journal import add_record

pytestmark = pytest.mark.reliability
TIMEOUT_S = 10  # of one request, as tracking sets it
KEYS = ("loss_g", "loss_d", "images_per_second")


def listening(server: Server) -> set[str]:
    """Addresses that any process of the server listens on."""
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    sockets = [one for process in processes for one in process.net_connections("inet")]
    return {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.signal(signal.SIGCONT)
    server.signal(signal.SIGKILL)


class Writer:
    """Trials' journals as training writes them, with steps done again after a resume; from a thread."""

    def __init__(self, home: Path, trials: int) -> None:
        self.folders = [home / "run" / "trials" / f"t{i}" for i in range(trials)]
        for folder in self.folders:
            folder.mkdir(parents=True)
            (folder / "config.json").write_text('{"seed": 0}')
        self.step, self.longest = [0] * trials, 0.0
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
        self.longest = max(self.longest, time.monotonic() - began)

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
    """Calls ship over and over, as the monitor does, and notes how long a call takes."""

    def __init__(self, tracker: Tracker, folders: list[Path]) -> None:
        self.tracker, self.folders = tracker, folders
        self.longest, self.failed = 0.0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            self.failed += bool(self.tracker.ship(self.folders)[1])
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> "Shipper":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def ship_the_rest(tracker: Tracker, folders: list[Path]) -> None:
    for _ in range(30):
        if tracker.ship(folders) == (0, "") and not behind(folders):
            return
        time.sleep(0.2)
    raise TimeoutError


def account(uri: str, writer: Writer) -> dict[str, int]:
    """Of all points that the journals hold: how many the store lacks, and has more than once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    lost = twice = 0
    for folder, last in zip(writer.folders, writer.step, strict=True):
        mine = [run for run in runs if run.data.tags.get("gat_sweep.trial") == folder.name]
        for key in KEYS:
            histories = [client.get_metric_history(run.info.run_id, key) for run in mine if key in run.data.metrics]
            seen = Counter(point.step for history in histories for point in history)
            lost += len(set(range(1, last + 1)) - seen.keys())
            twice += sum(count - 1 for count in seen.values())
            assert set(seen) <= set(range(1, last + 1))
            assert all(point.value == point.step / 7 for history in histories for point in history)
    return {"points": len(KEYS) * sum(writer.step), "lost": lost, "twice": twice}


def tracker(server: Server, home: Path, launch: str = "launch") -> Tracker:
    return Tracker(server.uri, home, "sweep", launch, {"commit": "abc"})


@pytest.mark.slow
def test_points_of_an_outage_arrive_later_and_once(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], figures: Callable[..., None]
) -> None:
    """MLflow killed while it takes a batch, and back seconds later: no point is lost, none is there twice."""
    writer = Writer(tmp_path, 2)
    for _ in range(800):  # a few batches
        for trial in range(2):
            writer.line(trial)
    server.wait()
    assert listening(server) == {"127.0.0.1"}
    with writer, Shipper(tracker(server, tmp_path), writer.folders) as shipper:
        while server.points() == 0:
            time.sleep(0.001)
        server.signal(signal.SIGKILL)
        reached = server.points()
        lines = sum(writer.step)
        server.start()  # which takes some seconds
        server.wait()
        assert sum(writer.step) > lines  # training goes on meanwhile
        while server.points() == reached:
            time.sleep(0.01)
    assert 0 < reached < len(KEYS) * lines and shipper.failed > 0
    ship_the_rest(shipper.tracker, writer.folders)
    found = account(server.uri, writer)
    assert (found["lost"], found["twice"]) == (0, 0)
    add_record(writer.folders[0], {"step": writer.step[0], "status": "done", "reason": ""})
    ship_the_rest(shipper.tracker, writer.folders)
    assert shipper.tracker.finish("done") == "" and capsys.readouterr().out == ""
    assert shipper.longest < PATIENCE_S + TIMEOUT_S and writer.longest < 5
    figures(kills=1, **found, longest_pass_s=round(shipper.longest, 1))


@pytest.mark.slow
def test_points_survive_kills_hangs_a_minute_and_a_new_driver(
    tmp_path: Path, server: Server, figures: Callable[..., None]
) -> None:
    """MLflow killed five times, hung, gone for a minute, the driver started anew: no point lost, none twice."""
    writer, chance = Writer(tmp_path, 3), random.Random(1)
    longest, failed = 0.0, 0
    server.wait()
    with writer:
        for outage in ("kill", "kill", "hang", "kill", "minute", "hang", "kill"):
            # Each time a new driver, which knows only what the files and the store say.
            with Shipper(tracker(server, tmp_path, outage), writer.folders) as shipper:
                time.sleep(1 + 2 * chance.random())
                if outage == "hang":
                    server.signal(signal.SIGSTOP)
                    time.sleep(25)
                    server.signal(signal.SIGCONT)
                else:
                    server.signal(signal.SIGKILL)
                    time.sleep(60 if outage == "minute" else chance.random())
                    server.start()
                server.wait()
                time.sleep(2)
            longest, failed = max(longest, shipper.longest), failed + shipper.failed
    last = tracker(server, tmp_path, "last")
    ship_the_rest(last, writer.folders)
    found = account(server.uri, writer)
    assert (found["lost"], found["twice"]) == (0, 0) and failed > 5
    assert longest < PATIENCE_S + TIMEOUT_S + 2 and writer.longest < 5
    figures(kills=5, hangs=2, drivers=8, down_s=60, **found, longest_pass_s=round(longest, 1))


@pytest.mark.slow
def test_a_long_backlog_does_not_hold_a_pass_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass ends in time and the next goes on, beginning with another trial; the end sends all of the rest."""
    writer = Writer(tmp_path, 3)
    for trial in range(3):
        for _ in range(300):
            writer.line(trial)
    here = Tracker(default_uri(tmp_path), tmp_path, "sweep", "launch", {})
    assert here.ship([]) == (0, "")  # the database is made
    # A clock that moves by one at each look: the machine's own may pass any limit before the first record.
    monkeypatch.setattr(tracking, "time", SimpleNamespace(time=time.time, monotonic=itertools.count().__next__))
    monkeypatch.setattr(here, "_patience", 0)
    shipped = [here.ship(writer.folders) for _ in range(2)]
    assert shipped == [(0, "")] * 2 and here._next is not None
    monkeypatch.setattr(here, "_patience", 100)
    passes = [here.ship(writer.folders)[0] for _ in range(3)]
    assert all(0 < points < len(KEYS) * 100 for points in passes) and behind(writer.folders)
    assert here.finish("done") == "" and behind(writer.folders) == []
    assert account(here.uri, writer) == {"points": len(KEYS) * 900, "lost": 0, "twice": 0}


def test_what_a_launch_could_not_send_is_found_by_the_next(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 2)
    writer.line(0)
    add_record(writer.folders[0], {"step": 1, "note": "looks on"})
    assert behind(writer.folders) == [writer.folders[0]]
    here: Any = Tracker(default_uri(tmp_path), tmp_path, "sweep", "launch", {})
    assert here.ship(writer.folders) == (3, "") and behind(writer.folders) == []
    writer.line(1)
    assert behind(writer.folders) == [writer.folders[1]]
