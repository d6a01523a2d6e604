"""What a person sees of a trial, as its journal tells it."""

import json
from pathlib import Path
from typing import Any

from helpers.trials import tiny_trial
from rich.console import Console

from gat_sweep.monitor.progress import Monitor


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
