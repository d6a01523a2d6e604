"""Who works and who waits for machines: asked by the queue of packs, and written down for people who watch."""

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from gat_sweep.cluster import Cluster, Machine, look
from gat_sweep.config import Workers
from gat_sweep.files.storage import Place, write
from gat_sweep.launch.packs import Queue
from gat_sweep.launch.places import fits, may_begin
from gat_sweep.run.crowd import FILE

LOOK = 5.0  # seconds between two looks at the cluster


class Crowd:
    """The packs of a launch on the machines of a cluster, from the beginning of a `with` block to its end.

    On a running cluster it looks at the machines every LOOK seconds, as they come and go, and writes
    <run>/crowd.json. A Ray of this command alone stays as it is.
    """

    def __init__(self, run: Place, there: Cluster, queue: Queue):
        self.run, self.there, self.queue = run, there, queue
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="crowd", daemon=True)

    def __enter__(self) -> "Crowd":
        if self.there.address:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self.there.address:
            self._thread.join()
            with suppress(OSError):  # never written, or the storage is gone; an old line is not shown anyway
                (self.run / FILE).unlink()

    def may_begin(self, new: Workers, others: list[Workers]) -> bool:
        """Whether one more group of workers may ask for machines (launch/places.py)."""
        return may_begin(new, others, self.there)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            self.there = look(self.there.address)
            under_way, waiting = self.queue.workers()
            text = line(under_way, waiting, self.there)
            with suppress(OSError):  # full or unreachable storage costs one line
                write(self.run / FILE, json.dumps({"time": time.time(), "line": text}).encode())


def line(under_way: Sequence[tuple[Workers, int]], waiting: Sequence[tuple[Workers, int]], there: Cluster) -> str:
    """For example: 3 at work, 9 wait for 8 GPUs each; the cluster has 24 of at most 64 GPUs on 3 machines.

    under_way, waiting: workers and number of trials of each pack, in their order. A pack under way is at work if its
    workers fit beside those before it.
    """
    working: list[Workers] = []
    left = [*under_way, *waiting]
    for pack in under_way:
        if fits([*working, pack[0]], there.machines):
            working.append(pack[0])
            left.remove(pack)
    by_gpu = any(workers.gpus for workers, _ in [*under_way, *waiting])
    unit = "GPUs" if by_gpu else "CPUs"

    def amount(machines: Sequence[Machine]) -> float:
        return sum(machine.gpus if by_gpu else machine.cpus for machine in machines)

    text = f"{len(working)} at work"
    if left:
        first, trials = left[0][0], sum(count for _, count in left)
        asked = first.count * (first.gpus if by_gpu else first.cpus)
        text += f", {trials} {'waits' if trials == 1 else 'wait'} for {asked:g} {unit}" + " each" * (trials > 1)
    limit = f" of at most {amount(there.most):g}" if there.most is not None else ""
    count = len(there.machines)
    return f"{text}; the cluster has {amount(there.machines):g}{limit} {unit} on {count} machine{'s' * (count != 1)}"
