"""A thread beside the training loop: it shows that the worker lives and its load, detects hangs, reads stop requests.

Every worker writes its position to `<trial>/alive/rank-000.json` (one file per rank). When one worker hangs, all
workers of the trial wait for it. After workers.hang_minutes without progress, the files show which one hangs.
A worker can outlive its launch, for example when only the network of its machine failed. It then sees that another
worker has taken over, and ends.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from gat_sweep.files.storage import Place, write
from gat_sweep.run.alive import BEAT, owner_of, signs
from gat_sweep.train.load import EVERY, Load, metrics

EXIT_HUNG = 70  # exit code of every worker of a trial in which one hangs
EXIT_REPLACED = 71  # exit code of a worker whose trial another one has taken over
PHASES = ("start", "agree", "log", "save", "evaluate", "data", "step")  # of an iteration, in their order


class Watch:
    """The watch of one worker, from `with` to the end of training.

    trial: the trial's folder; owner: the result of take_over on rank 0, "" on the others; hang: seconds without
    progress that count as a hang; report: writes a line for people who watch the trial; asked: returns why the trial
    should stop, or ""; load: reads the load of this worker, None: it is not recorded.
    """

    def __init__(
        self,
        trial: Place,
        owner: str,
        rank: int,
        world: int,
        hang: float,
        report: Callable[[str], None],
        asked: Callable[[], str],
        load: Load | None = None,
    ):
        self.folder, self.rank, self.world, self.hang, self.report = trial / "alive", rank, world, hang, report
        self.owner, self.asked, self.stop_reason = owner, asked, ""
        self.load, self.loads, self._load_read = load, dict[str, float](), time.monotonic()
        self._own_load: dict[str, float] = {}
        self.beat = min(BEAT, hang / 4)
        self._main = threading.get_ident()  # Ray's workers train in a thread that is not the main one
        self._done = threading.Event()
        self._count = 0
        self.at(0, "start")
        self._thread = threading.Thread(target=self._run, name=f"watch-{rank}", daemon=True)

    def __enter__(self) -> "Watch":
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError):  # must not hide what ended the loop, such as a full disk
            self._beat(ended=True)

    def at(self, step: int, phase: str) -> None:
        """Records that the worker has reached a phase of a step."""
        self.position, self.moved = (step, phase), time.monotonic()

    def move(self) -> None:
        """Records progress within the same phase."""
        self.moved = time.monotonic()

    def take_loads(self) -> dict[str, float]:
        """The loads of all workers as MLflow's metrics, on rank 0; empty until there are new ones."""
        taken, self.loads = self.loads, {}
        return taken

    def _run(self) -> None:
        while not self._done.wait(self.beat):
            # Full or unreachable storage costs one sign of life. The loop reports the error when it cannot save.
            with suppress(OSError):
                if self.owner and self.owner != owner_of(self.folder):
                    os._exit(EXIT_REPLACED)  # at once: two workers must not write the same files
                self._beat()
                self.stop_reason = self.stop_reason or self.asked()
                self._read_load()
            # Before the first step the reference may be measured, which can take an hour.
            if self.position[1] != "start" and time.monotonic() - self.moved > self.hang:
                self._give_up()

    def _read_load(self) -> None:
        """Reads this worker's load, which its next sign carries; rank 0 then collects those of all signs."""
        if self.load is None or time.monotonic() - self._load_read < EVERY:
            return
        self._load_read, self._own_load = time.monotonic(), self.load.read()
        if self.rank == 0:
            others = signs(self.folder) if self.world > 1 else {}
            loads = {rank: sign.get("load", {}) for rank, sign in others.items() if rank < self.world}
            self.loads = metrics({**loads, 0: self._own_load}, self.world)

    def _beat(self, ended: bool = False) -> None:
        self._count += 1
        step, phase = self.position
        sign = {
            "rank": self.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": step,
            "phase": phase,
            "still_for": round(time.monotonic() - self.moved, 1),
            "where": _where(sys._current_frames().get(self._main)),
            "load": self._own_load,
            "count": self._count,
            "time": time.time(),
            "ended": ended,
        }
        write(self.folder / f"rank-{self.rank:03d}.json", json.dumps(sign).encode())

    def _give_up(self) -> None:
        """Names the worker that hangs, once for all workers, and ends this process: its loop hangs and cannot."""
        before = signs(self.folder)
        for _ in range(3):
            if self._done.wait(self.beat):
                return
            self._beat()
        after = signs(self.folder)
        if time.monotonic() - self.moved <= self.hang:
            return
        silent, culprits = blame(before, after, self.world, self.rank)
        if self.rank == min(rank for rank in range(self.world) if rank not in silent):
            named = "; ".join(_named(rank, after.get(rank), rank in silent) for rank in culprits)
            text = f"no progress for {self.hang:.0f} s: {named}"
            self.report(text)
            print(text, file=sys.stderr, flush=True)
        else:
            time.sleep(3 * self.beat)  # all workers fail when one ends, so the report has to come first
        os._exit(EXIT_HUNG)


def blame(
    before: dict[int, dict[str, Any]], after: dict[int, dict[str, Any]], world: int, me: int
) -> tuple[list[int], list[int]]:
    """(ranks without a new sign of life, ranks that hold up the others), from two readings of all signs.

    A worker whose watch is silent has stopped or is gone. If none is silent, the worker that is furthest behind holds
    up the others.
    """
    silent = [rank for rank in range(world) if rank != me and before.get(rank) == after.get(rank)]
    last = min(_position(sign) for sign in after.values())
    return silent, silent or [rank for rank, sign in after.items() if _position(sign) == last]


def _position(sign: dict[str, Any]) -> tuple[int, int]:
    return sign["step"], PHASES.index(sign["phase"])


def _named(rank: int, sign: dict[str, Any] | None, silent: bool) -> str:
    if sign is None:
        return f"rank {rank} never started"
    how = "gives no sign of life" if silent else f"is at '{sign['phase']}' ({sign['where']})"
    return f"rank {rank} on {sign['host']} (pid {sign['pid']}) {how}, step {sign['step']}"


def _where(frame: FrameType | None) -> str:
    """The innermost line of gat_sweep's code, and the function that it called."""
    called = frame.f_code.co_name if frame else ""
    while frame and "gat_sweep" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return called
    place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
    return place if called == frame.f_code.co_name else f"{place}, in {called}"
