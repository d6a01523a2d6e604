"""Signs of life of a trial's workers, and the trial's owner: alive/rank-*.json, alive/owner.json."""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place, children, write

BEAT = 5.0  # seconds between two signs of life, at most


OWNER = "owner.json"


def take_over(trial: Place, say: Callable[[str], None]) -> str:
    """Makes this process the only one that trains the trial; returns the owner's id, for Watch.

    If a worker of an earlier launch still runs, waits until it has noticed and ended.
    """
    folder, owner = trial / "alive", uuid.uuid4().hex
    write(folder / OWNER, json.dumps({"owner": owner}).encode())
    before = signs(folder).get(0)
    while before and not before["ended"] and not is_gone(before):
        say(f"waiting for an earlier worker on {before['host']} (pid {before['pid']}) to end")
        time.sleep(2 * BEAT)
        now = signs(folder).get(0)
        if now is None or now["count"] == before["count"]:
            break
        before = now
    return owner


def owner_of(folder: Place) -> str:
    return read_json(folder / OWNER, lambda value: str(value["owner"]), "run the trial again, which writes it anew")


def is_gone(sign: dict[str, Any]) -> bool:
    """Whether the process that wrote a sign has certainly ended; False on another machine, as nobody can tell."""
    if sign["host"] != socket.gethostname():
        return False
    if sign["pid"] == os.getpid():
        return True
    try:
        os.kill(sign["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def signs(folder: Place) -> dict[int, dict[str, Any]]:
    """The last sign of life of every worker of a trial, by rank."""
    files = [file for file in children(folder) if file.name.startswith("rank-")]
    found = (read_json(file, _sign, "remove it; a living worker writes it anew") for file in files)
    return {sign["rank"]: sign for sign in found}


def _sign(value: Any) -> dict[str, Any]:
    kinds: dict[str, Callable[[Any], Any]] = {"host": str, "phase": str, "ended": bool, "time": float}
    kinds |= dict.fromkeys(["rank", "pid", "step", "count"], int)
    return {**value, **{name: kind(value[name]) for name, kind in kinds.items()}}
