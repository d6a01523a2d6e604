"""What a command that was killed left behind: processes of the Ray that it had started for itself.

Most of them end with it, but agents and workers may live on for half a minute, and keep memory and processors. The
folder of such a Ray has a file with the process that started it. Its processes are found by their logs there, which
they hold open. Environment and command line do not tell, because Ray writes over both when it names a process.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

FILE = "gat-sweep.json"
ENDING_S = 10.0  # seconds to wait for a killed process


@contextmanager
def signed(session: Path) -> Iterator[None]:
    """Context in which the folder of a Ray session says that this process started it."""
    path = session / FILE
    path.write_text(json.dumps(_me()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def end_leftovers(sessions: Path, say: Callable[[str], None]) -> None:
    """Ends what is left of killed commands' sessions below a folder, and says so. Logs stay."""
    for path in sorted(sessions.glob(f"session_*/{FILE}")):
        with suppress(OSError):  # another user's, or another command is at it
            starter = json.loads(path.read_text())
            if starter["host"] != socket.gethostname() or _lives(starter):
                continue
            left = [process for process in psutil.process_iter() if holds_open(process, path.parent)]
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=ENDING_S)
            if left:
                noun = "process" if len(left) == 1 else "processes"
                say(f"ended {len(left)} {noun} of Ray that a killed command (pid {starter['pid']}) had left")
            path.unlink()


def _me() -> dict[str, Any]:
    """Names this process, also among later ones with its number, and those of a container that shares the folder."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _lives(starter: dict[str, Any]) -> bool:
    try:
        return bool(psutil.Process(starter["pid"]).create_time() == starter["started"])
    except psutil.NoSuchProcess:
        return False


def holds_open(process: psutil.Process, session: Path) -> bool:
    """Whether a process has a file below a session's folder open."""
    try:
        return any(session in Path(file.path).parents for file in process.open_files())
    except psutil.Error:  # ended, or another user's
        return False
