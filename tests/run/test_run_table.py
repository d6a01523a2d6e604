"""The rows of a trial as its attempts come and go (run/table.py)."""

from pathlib import Path

from helpers.trials import rows, tiny_trial

from gat_sweep.run.table import RunTable
from gat_sweep.train.recorder import record_failure, trial_constants


def test_an_attempt_that_is_killed_before_its_first_row_leaves_no_earlier_end(tmp_path: Path) -> None:
    """A failed trial that is retried is running, or waiting if nothing was measured; it needs no second --retry."""
    measured, failed_at_once = tiny_trial(tmp_path), tiny_trial(tmp_path, "other")
    constants = trial_constants(measured.run, measured.sweep, measured.id, measured.config)
    table = RunTable(measured.table, constants)
    table.put(2, status="running", reason="", value=3.0)
    record_failure(measured, "the disk was full")
    record_failure(failed_at_once, "the disk was full")
    assert (measured.status(), failed_at_once.status()) == ("failed", "failed")
    RunTable(measured.table, constants).truncate(2)
    RunTable(failed_at_once.table, constants).truncate(0)
    assert (measured.status(), failed_at_once.status()) == ("running", "waiting")
    (row,) = rows(measured)
    assert (row["step"], row["value"], row["reason"]) == (2, 3.0, "")
