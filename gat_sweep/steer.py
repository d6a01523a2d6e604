"""Asking the trials of a run to stop: a file beside them, which their workers look at every few seconds."""

import json
import time
from typing import Any

from gat_sweep.storage import Place, write

FILE = "stop.json"
EXIT_STOPPED = 75  # EX_TEMPFAIL: saved and ended on request; the same command continues


def request_stop(run: Place, reason: str, trials: tuple[str, ...] = ()) -> None:
    """Asks these trials of a run, or all of them, to save and end."""
    values = {"reason": reason, "trials": list(trials), "time": time.time()}
    write(run / FILE, json.dumps(values).encode())


def stop_reason(run: Place, trial: str) -> str:
    """Why a trial is to stop; "" when it is not."""
    try:
        asked: dict[str, Any] = json.loads((run / FILE).read_bytes())
    except FileNotFoundError:
        return ""
    return str(asked["reason"]) if trial in (asked["trials"] or [trial]) else ""


def clear_stop(run: Place) -> None:
    """Before a run goes on."""
    if (run / FILE).exists():
        (run / FILE).unlink()
