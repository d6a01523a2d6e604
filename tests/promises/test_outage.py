"""MLflow away for a while: training goes on, and the points it missed arrive later, each exactly once.

A real `mlflow server` on loopback, killed with its process group and started again on the same database, while a thread
writes journals as training does.
"""

import itertools
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.shipping import KEYS, Shipper, Writer, account, ship_the_rest

from benchmarks.mlflow_server import Server
from gat_sweep.monitor import tracking
from gat_sweep.monitor.tracking import PATIENCE_S, Tracker, behind, create_store
from gat_sweep.monitor.ui import default_uri
from gat_sweep.run.journal import add_record

pytestmark = pytest.mark.reliability
TIMEOUT_S = 10  # of one request, as tracking sets it


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    create_store(default_uri(tmp_path), tmp_path)
    server = Server(default_uri(tmp_path), str(tmp_path / "mlartifacts"))
    server.start()
    yield server
    server.end()


def points(home: Path) -> int:
    """Points in the server's database."""
    with sqlite3.connect(f"file:{home / 'mlflow.db'}?mode=ro", uri=True, timeout=10) as database:
        (count,) = database.execute("select count(*) from metrics").fetchone()
    return int(count)


def tracker(server: Server, home: Path, launch: str = "launch") -> Tracker:
    return Tracker(server.uri, home, "sweep", launch, {"commit": "abc"})


@pytest.mark.slow
def test_points_of_an_outage_arrive_later_and_once(
    tmp_path: Path, server: Server, figures: Callable[..., None]
) -> None:
    """MLflow killed while it takes a batch, and back seconds later: no point is lost, none is there twice."""
    writer = Writer(tmp_path, 2)
    for _ in range(800):  # a few batches
        for trial in range(2):
            writer.line(trial)
    server.wait()
    assert server.listening() == {"127.0.0.1"}
    with writer, Shipper(tracker(server, tmp_path), writer.folders) as shipper:
        while points(tmp_path) == 0:
            time.sleep(0.001)
        server.signal(signal.SIGKILL)
        reached = points(tmp_path)
        lines = sum(writer.step)
        server.start()  # which takes some seconds
        server.wait()
        assert sum(writer.step) > lines  # training goes on meanwhile
        while points(tmp_path) == reached:
            time.sleep(0.01)
    assert 0 < reached < len(KEYS) * lines and shipper.warnings
    ship_the_rest(shipper.tracker, writer.folders)
    found = account(server.uri, writer.folders)
    assert (found["lost"], found["twice"]) == (0, 0)
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
            longest, failed = max(longest, shipper.longest), failed + len(shipper.warnings)
    last = tracker(server, tmp_path, "last")
    ship_the_rest(last, writer.folders)
    found = account(server.uri, writer.folders)
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
    assert account(here.uri, writer.folders) == {"points": len(KEYS) * 900, "lost": 0, "twice": 0}


def test_what_a_launch_could_not_send_is_found_by_the_next(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 2)
    writer.line(0)
    add_record(writer.folders[0], {"step": 1, "note": "looks on"})
    assert behind(writer.folders) == [writer.folders[0]]
    here: Any = Tracker(default_uri(tmp_path), tmp_path, "sweep", "launch", {})
    assert here.ship(writer.folders) == (3, "") and behind(writer.folders) == []
    writer.line(1)
    assert behind(writer.folders) == [writer.folders[1]]
