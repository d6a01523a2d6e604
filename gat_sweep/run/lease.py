"""A launch's lease on a run: launch.json. Two launches of one run would take its workers from each other."""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gat_sweep.errors import UserError
from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place, write
from gat_sweep.run.alive import BEAT, is_gone

FILE = "launch.json"
LOST = signal.SIGUSR1  # raises KeyboardInterrupt here; a shell's background jobs ignore SIGINT
SILENT = 4 * BEAT  # seconds; a launch on another machine that shows no sign of life for as long has ended


@contextmanager
def lease(run: Place, say: Callable[[str], None], beat: float = BEAT) -> Iterator[None]:
    """Context in which this process is the only one that launches the run; it writes a sign of life every `beat` s.
    To be entered in the main thread.

    Takes over from a launch that has ended without a word, and says so. A launch that loses its lease, because its
    machine slept for longer than others wait, is interrupted as by Ctrl-C.
    Raises UserError, with machine and process, while another launch lives.
    """
    path, silent = run / FILE, SILENT / BEAT * beat
    if before := _read(path):
        who = f"{before['host']} (pid {before['pid']})"
        if not is_gone(before):
            say(f"run '{run.name}' was launched on {who} before; waiting up to {silent:.0f} s for a sign of life")
            _check_silent(path, before, silent, f"run '{run.name}' is being run by a launch on {who}")
        say(f"taking over from a launch on {who} that ended without a word")
    mine = {"launch": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    _beat(path, mine, 0)
    ended = threading.Event()
    before_lost = signal.signal(LOST, signal.default_int_handler)
    thread = threading.Thread(target=_keep, args=(path, mine, beat, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        signal.signal(LOST, before_lost)
        if _is_mine(path, mine):
            path.unlink()


def _check_silent(path: Place, before: dict[str, Any], silent: float, says: str) -> None:
    """Waits until a launch was silent for long enough; raises UserError when it lives."""
    deadline = time.monotonic() + silent
    while time.monotonic() < deadline and not is_gone(before):
        now = _read(path)
        if now is None:
            return
        if now != before:
            raise UserError(f"{says}; wait for its end, or stop it there (Ctrl-C, or gat-sweep stop)")
        time.sleep(min(1.0, silent / 20))


def _keep(path: Place, mine: dict[str, Any], beat: float, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(beat):
        with suppress(OSError):  # a full disk, or storage that does not answer: the next beat tries again
            if not _is_mine(path, mine):
                os.kill(os.getpid(), LOST)
                return
            count += 1
            _beat(path, mine, count)


def _beat(path: Place, mine: dict[str, Any], count: int) -> None:
    write(path, json.dumps({**mine, "count": count}).encode())


def _is_mine(path: Place, mine: dict[str, Any]) -> bool:
    try:
        now = _read(path)
    except UserError:
        return True  # damaged, and not taken over: that would have written a whole file
    return now is not None and now["launch"] == mine["launch"]


def _read(path: Place) -> dict[str, Any] | None:
    def checked(value: Any) -> dict[str, Any]:
        return {name: value[name] for name in ("launch", "host", "count")} | {"pid": int(value["pid"])}

    try:
        return read_json(path, checked, "if no other launch of this run is alive, remove it")
    except FileNotFoundError:
        return None
