"""MLflow as a team runs it: a real server on a real PostgreSQL, with artifacts in a bucket (moto's).

Trials' journals are written as fast as trials would, while one or several launches ship them; server and database are
killed meanwhile.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.postgres import PASSWORD, TeamMlflow
from helpers.shipping import Shipper, Writer, account, runs_of, ship_the_rest

from gat_sweep.files.storage import children
from gat_sweep.monitor.tracking import PATIENCE_S, Tracker

pytestmark = [pytest.mark.reliability, pytest.mark.slow]
TIMEOUT_S = 10  # of one request, as tracking sets it
TAGS = {"gat_sweep.commit": "abc", "gat_sweep.reference": "digits"}


def tracker(team: TeamMlflow, home: Path, experiment: str) -> Tracker:
    return Tracker(team.server.uri, home, experiment, "launch", TAGS)


def check_runs(team: TeamMlflow, folders: list[Path], experiment: str) -> int:
    """One finished run for each trial, with its params, tags and samples; returns how many files of samples."""
    count = 0
    for number, folder in enumerate(folders):
        (run,) = runs_of(team.server.uri, experiment, folder)
        assert run.data.params == {"seed": str(number), "train.steps": "1000"}
        assert TAGS.items() <= run.data.tags.items() and run.data.tags["gat_sweep.status"] == "done"
        assert run.info.status == "FINISHED" and run.info.run_name == folder.name
        there = team.artifacts / run.info.experiment_id / run.info.run_id / "artifacts" / "samples"
        ours = sorted((folder / "samples").iterdir())
        assert [file.name for file in children(there)] == [file.name for file in ours]
        assert all((there / file.name).read_bytes() == file.read_bytes() for file in ours)
        count += len(ours)
    return count


def test_32_trials_at_once(team_mlflow: TeamMlflow, tmp_path: Path, figures: Callable[..., None]) -> None:
    """32 trials at once, to MLflow on PostgreSQL with a bucket: every point once, every file of samples whole."""
    assert team_mlflow.server.listening() == team_mlflow.postgres.listening() == {"127.0.0.1"}
    writer = Writer(tmp_path, 32, evaluate=25)
    shipper = Shipper(tracker(team_mlflow, tmp_path, "at-once"), writer.folders)
    with writer, shipper:
        while min(writer.step) < 100:
            time.sleep(0.1)
    writer.end()
    ship_the_rest(shipper.tracker, writer.folders)
    found = account(team_mlflow.server.uri, writer.folders, "at-once")
    samples = check_runs(team_mlflow, writer.folders, "at-once")
    assert (found["lost"], found["twice"]) == (0, 0) and shipper.warnings == []
    assert found["points"] > 32 * 300 and samples >= 32 * 4
    assert shipper.longest < PATIENCE_S + TIMEOUT_S and writer.longest < 5
    figures(trials=32, **found, samples=samples, longest_pass_s=round(shipper.longest, 1))


LAUNCH = """
import sys, time
from pathlib import Path
from gat_sweep.monitor.tracking import Tracker, behind
uri, run = sys.argv[1], Path(sys.argv[2])
folders = sorted((run / "trials").iterdir())
tracker = Tracker(uri, run.parent, "launches", run.name, {"gat_sweep.commit": "abc", "gat_sweep.reference": "digits"})
for _ in range(120):
    if tracker.ship(folders) == (0, "") and not behind(folders):
        sys.exit(tracker.finish("done") or 0)
    time.sleep(0.2)
sys.exit("not sent")
"""


def test_launches_at_once(team_mlflow: TeamMlflow, tmp_path: Path, figures: Callable[..., None]) -> None:
    """Four launches of one sweep at once, each in a process of its own: one experiment, and every point once."""
    writers = [Writer(tmp_path, 4, run=f"run{number}", evaluate=25) for number in range(4)]
    for writer in writers:
        for _ in range(50):
            for trial in range(4):
                writer.line(trial)
        writer.end()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    launches = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", LAUNCH, team_mlflow.server.uri, str(tmp_path / f"run{number}")],
            stderr=subprocess.PIPE, env=environment, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    assert [(launch.communicate(timeout=300)[1], launch.returncode) for launch in launches] == [("", 0)] * 4
    points = 0
    for writer in writers:
        found = account(team_mlflow.server.uri, writer.folders, "launches")
        assert (found["lost"], found["twice"]) == (0, 0)
        check_runs(team_mlflow, writer.folders, "launches")
        points += found["points"]
    (count,) = team_mlflow.postgres.query("select count(*) from experiments where name = 'launches'")
    assert count == (1,)
    figures(launches=4, trials=16, points=points, lost=0, twice=0)


@pytest.mark.parametrize("what", ["server", "database"])
def test_a_kill_of_either(team_mlflow: TeamMlflow, tmp_path: Path, figures: Callable[..., None], what: str) -> None:
    """The server, or all of PostgreSQL, killed while points arrive, and back later: no point lost, none twice."""
    server, postgres = team_mlflow.server, team_mlflow.postgres
    writer = Writer(tmp_path, 8, evaluate=25)
    for _ in range(100):  # a few batches
        for trial in range(8):
            writer.line(trial)
    with writer, Shipper(tracker(team_mlflow, tmp_path, what), writer.folders) as shipper:
        while not any((folder / "shipped.json").exists() for folder in writer.folders):
            time.sleep(0.001)
        if what == "server":
            server.signal(signal.SIGKILL)
        else:
            postgres.kill()
        lines = sum(writer.step)
        time.sleep(5)
        if what == "server":
            server.start()
            server.wait()
        else:
            postgres.start()
        assert sum(writer.step) > lines  # training goes on meanwhile
        time.sleep(5)
    writer.end()
    ship_the_rest(shipper.tracker, writer.folders)
    found = account(server.uri, writer.folders, what)
    samples = check_runs(team_mlflow, writer.folders, what)
    assert (found["lost"], found["twice"]) == (0, 0)
    assert shipper.warnings and writer.longest < 5 and shipper.longest < PATIENCE_S + TIMEOUT_S + 2
    print(*sorted(set(shipper.warnings)), sep="\n")
    for warning in shipper.warnings:
        assert f"MLflow at {server.uri}: " in warning and PASSWORD not in warning and "\n" not in warning
    said = {"server": "it does not answer", "database": "it answers with an error, which its own log explains"}
    assert any(said[what] in warning for warning in shipper.warnings)
    if what == "database":
        assert "recovery" in (postgres.folder / "log").read_text()
    figures(kills=1, **found, samples=samples, longest_pass_s=round(shipper.longest, 1))
