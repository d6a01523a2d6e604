"""Requests to stop trials of a run: the file stop.json, which the workers read every few seconds."""

import json
import time
from typing import Any

from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place, write

FILE = "stop.json"
EXIT_STOPPED = 75  # EX_TEMPFAIL: saved and ended on request; the same command continues


def request_stop(run: Place, reason: str, trials: tuple[str, ...] = ()) -> None:
    """Asks these trials of a run (default: all) to save and end; earlier requests stay."""
    before = _asked(run)
    if before:  # an empty list stands for all
        trials = tuple(dict.fromkeys([*before["trials"], *trials])) if before["trials"] and trials else ()
    values = {"reason": reason, "trials": list(trials), "time": time.time()}
    write(run / FILE, json.dumps(values).encode())


def stop_reason(run: Place, trial: str) -> str:
    """The reason why a trial should stop; "" when nobody asked."""
    asked = _asked(run)
    return str(asked["reason"]) if asked and trial in (asked["trials"] or [trial]) else ""


def _asked(run: Place) -> dict[str, Any] | None:
    def checked(value: Any) -> dict[str, Any]:
        return {"reason": str(value["reason"]), "trials": [str(trial) for trial in value["trials"]]}

    try:
        return read_json(run / FILE, checked, "remove it, and ask again with gat-sweep stop")
    except FileNotFoundError:
        return None


def clear_stop(run: Place) -> None:
    """Removes all requests, so that the run can continue."""
    if (run / FILE).exists():
        (run / FILE).unlink()
