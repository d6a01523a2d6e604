"""What a command that was killed left behind: processes of the Ray that it had started for itself.

Most of them end with it, but agents and workers may live on for half a minute, and keep memory and processors. The
folder of such a Ray has a file that its command keeps locked. The system frees the lock when the command ends, however
it does. The processes are found by their logs in that folder, which they hold open. Environment and command line do
not tell, because Ray writes over both when it names a process.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

FILE = "gat-sweep.pid"
ENDING_S = 10.0  # seconds to wait for a killed process


@contextmanager
def signed(session: Path) -> Iterator[None]:
    """Context in which the folder of a Ray session belongs to this process."""
    new = session / f"{FILE}.new"
    with new.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        print(os.getpid(), file=file, flush=True)
        path = new.rename(session / FILE)  # it is never there without the lock
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def end_leftovers(sessions: Path, say: Callable[[str], None]) -> None:
    """Ends what is left of killed commands' sessions below a folder, and says so. Logs stay."""
    for path in sorted(sessions.glob(f"session_*/{FILE}")):
        try:
            file = path.open()
        except (FileNotFoundError, PermissionError):  # another command was faster, or it is another user's
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its command lives
                continue
            left = [process for process in psutil.process_iter() if holds_open(process, path.parent)]
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=ENDING_S)
            if left:
                noun = "process" if len(left) == 1 else "processes"
                say(f"ended {len(left)} {noun} of Ray that a killed command (pid {file.read().strip()}) had left")
            path.unlink(missing_ok=True)


def holds_open(process: psutil.Process, session: Path) -> bool:
    """Whether another process has a file below a session's folder open."""
    try:
        return process.pid != os.getpid() and any(session in Path(f.path).parents for f in process.open_files())
    except psutil.Error:  # ended, or another user's
        return False
