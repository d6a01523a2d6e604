"""Asking the trials of a run to stop: a file beside them, which their workers look at every few seconds."""

import json
import time
from typing import Any

from gat_sweep.files.storage import Place, write

FILE = "stop.json"
EXIT_STOPPED = 75  # EX_TEMPFAIL: saved and ended on request; the same command continues


def request_stop(run: Place, reason: str, trials: tuple[str, ...] = ()) -> None:
    """Asks these trials of a run, or all of them, to save and end; who was asked before stays asked."""
    before = _asked(run)
    if before:  # an empty list stands for all
        trials = tuple(dict.fromkeys([*before["trials"], *trials])) if before["trials"] and trials else ()
    values = {"reason": reason, "trials": list(trials), "time": time.time()}
    write(run / FILE, json.dumps(values).encode())


def stop_reason(run: Place, trial: str) -> str:
    """Why a trial is to stop; "" when it is not."""
    asked = _asked(run)
    return str(asked["reason"]) if asked and trial in (asked["trials"] or [trial]) else ""


def _asked(run: Place) -> dict[str, Any] | None:
    try:
        asked: dict[str, Any] = json.loads((run / FILE).read_bytes())
    except FileNotFoundError:
        return None
    return asked


def clear_stop(run: Place) -> None:
    """Before a run goes on."""
    if (run / FILE).exists():
        (run / FILE).unlink()
