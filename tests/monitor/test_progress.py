"""What a person sees of a trial, as its journal tells it."""

import errno
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.trials import tiny_trial
from rich.console import Console

from gat_sweep.monitor import progress
from gat_sweep.monitor.progress import Monitor
from gat_sweep.run.journal import add_record


def test_a_journal_line_by_line(tmp_path: Path) -> None:
    """Only the evaluation's own metric is the distance; a note shows until the next numbers."""
    trial = tiny_trial(tmp_path)
    trial.folder.mkdir(parents=True)
    monitor = Monitor([trial], Console(), lambda folders: "")
    (view,) = monitor.views

    def write(**record: Any) -> bool:
        with open(trial.folder / "journal.jsonl", "a") as journal:
            journal.write(json.dumps({**record, "time": 0.0}) + "\n")
        return view.read()

    assert write(step=0, status="running")
    assert not write(step=2, metrics={"loss_d": 1.0, "images_per_second": 4.0})
    assert (view.status, view.step, view.seconds_left) == ("running", 2, 4.0)  # 2 steps of 8 images
    assert write(step=2, note="samples: 64 of 1797, 0:20 left")
    assert monitor.line(view).endswith("ETA 0:04  4 images/s  samples: 64 of 1797, 0:20 left")
    metric = "fd_efficientnet_lite0"
    assert write(step=2, metrics={metric: 300.0, f"{metric}_infinity": 200.0, "precision_efficientnet_lite0": 0.5})
    assert view.distances == [300.0] and view.note == ""
    assert write(step=4, status="done")
    assert monitor.line(view) == f"trial  done  step 4/4  {metric} 300.0 (best 300.0)"


def test_storage_that_does_not_answer_costs_looks_and_not_the_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so once, and shows and ships what was written meanwhile."""
    trial, shipped, out = tiny_trial(tmp_path), list[int](), io.StringIO()
    away = [OSError(errno.ETIMEDOUT, "no answer")] * 3
    monkeypatch.setattr(progress, "INTERVAL", 0.01)

    def ship(folders: list[Path]) -> str:
        if away:
            raise away.pop()
        shipped.append(len(folders))
        return ""

    add_record(trial.folder, {"step": 0, "status": "running"})
    with Monitor([trial], Console(file=out, width=200), ship):
        deadline = time.monotonic() + 30
        while not shipped and time.monotonic() < deadline:
            time.sleep(0.01)
        add_record(trial.folder, {"step": 4, "status": "done"})
    assert away == [] and shipped and out.getvalue().count("no answer; trying again") == 1
    assert "trial  done  step 4/4" in out.getvalue()
