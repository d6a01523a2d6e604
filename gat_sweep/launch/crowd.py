"""Who works and who waits for machines: asked by the queue of packs, and written down for people who watch.

Elastic trials are told here to go on with more workers or with fewer.
"""

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from gat_sweep.cluster import Cluster, Machine, look
from gat_sweep.config import Workers
from gat_sweep.files.storage import Place, write
from gat_sweep.launch.demand import Demand
from gat_sweep.launch.packs import Group, Queue
from gat_sweep.launch.places import fits, grown, largest, may_begin, placed, shrunk
from gat_sweep.run.crowd import FILE
from gat_sweep.run.workers import ask_workers, asked_workers

LOOK = 5.0  # seconds between two looks at the cluster
SETTLE = 30.0  # seconds for which places have to be free before a trial that trains takes them
REST = 600.0  # seconds between two changes of a trial that only make it faster: each costs it a start of its workers


class Crowd:
    """The packs of a launch on the machines of a cluster, from the beginning of a `with` block to its end.

    It looks at the machines every LOOK seconds, as they come and go, and on a running cluster it writes
    <run>/crowd.json. A Ray of this command alone stays as it is, and is looked at for elastic trials only.
    """

    def __init__(self, run: Place, there: Cluster, queue: Queue):
        self.run, self.there, self.queue = run, there, queue
        self._demand = Demand()
        self._free_since: float | None = None  # since when elastic trials could take more
        self._looks = bool(there.address) or any(workers.elastic for workers, _ in queue.workers()[1])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="crowd", daemon=True)

    def __enter__(self) -> "Crowd":
        if self._looks:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._looks:
            self._thread.join()
        if self.there.address:
            with suppress(OSError):  # never written, or the storage is gone; an old line is not shown anyway
                (self.run / FILE).unlink()

    def begin(self, new: Workers, others: list[Workers], waiting: list[Workers]) -> Workers | None:
        """Workers with which one more group may ask for machines, or None while it has to wait (launch/places.py).

        An elastic one leaves room for the least workers of those that wait.
        """
        if not may_begin(new, others, self.there):
            return None
        if not new.elastic:
            return new
        count = largest(new, [*others, *waiting], self.there.machines)
        # What other launches use. Groups that began a moment ago may not have their places yet, hence both.
        return new.of(min(count, largest(new, [], self.there.free)) if self.there.free is not None else count)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            self.there = look(self.there.address)
            with suppress(OSError):  # full or unreachable storage costs one look
                self._resize()
            if not self.there.address:
                continue
            under_way, waiting = self.queue.workers()
            text = line(under_way, waiting, self.there)
            with suppress(OSError):
                write(self.run / FILE, json.dumps({"time": time.time(), "line": text}).encode())

    def _resize(self) -> None:
        """Tells elastic trials to make room for those that wait, else to take what is free."""
        groups = list(self.queue.under_way.values())
        elastic = [group for group in groups if group.pack[0].config.workers.elastic]
        for group in elastic:  # their driver may have changed it, when machines were lost
            group.workers = group.workers.of(asked_workers(group.pack[0]))
        present = [(group.pack[0].config.workers, group.workers.least) for group in groups]
        able = [pair for pair in present if pair[0].elastic]
        waiting, left = self.queue.ready(), placed([group.workers for group in groups], self.there.machines)
        if waiting or left is None:  # a group under way may have lost its machines
            # Machines that an autoscaler adds for those that wait cost no restart.
            machines = self.there.machines if self.there.most is None else self.there.most
            if elastic and (self.there.most is not None or not self.there.grows):
                for group, count in zip(groups, shrunk(present, waiting, machines), strict=True):
                    self._tell(group, count)
            self._free_since = None
            self._demand.ask([])
            return
        held = self._demand.held()
        # What other launches use is not free; what a group that began a moment ago will use is not left.
        free = [*(self.there.free or ()), *(Machine(workers.cpus, workers.gpus) for workers in held)]
        possible = [min(pair) for pair in zip(grown(able, free), grown(able, left), strict=True)]
        missing = self._missing(groups, able, possible)
        if possible == [count for _, count in able]:
            self._free_since = None
            self._demand.ask(missing)
            return
        now = time.monotonic()
        self._free_since = self._free_since or now
        rested = [now - group.since >= REST for group in elastic]
        if now - self._free_since < SETTLE or not any(rested):
            self._demand.ask([*held, *missing])
            return
        self._demand.ask([])  # the places that were held are for those that are told now
        for group, count, may in zip(elastic, possible, rested, strict=True):
            if may:
                self._tell(group, count)

    def _missing(self, groups: list[Group], able: list[tuple[Workers, int]], possible: list[int]) -> list[Workers]:
        """The workers that elastic groups could have beyond the machines that are up, one for one."""
        if not self.there.grows:
            return []
        if self.there.most is None:  # one trial at a time asks for more than there is
            asked = [workers.most for workers, _ in able[:1]] + possible[1:]
        else:
            left = placed([group.workers for group in groups], self.there.most)
            asked = grown(able, left or ())
        return [
            workers.of(1)
            for (workers, _), most, have in zip(able, asked, possible, strict=True)
            for _ in range(most - have)
        ]

    def _tell(self, group: Group, count: int) -> None:
        if count != group.workers.least:
            ask_workers(group.pack[0].folder, count)
            group.workers, group.since = group.workers.of(count), time.monotonic()


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
        asked = first.least * (first.gpus if by_gpu else first.cpus)
        text += f", {trials} {'waits' if trials == 1 else 'wait'} for {asked:g} {unit}" + " each" * (trials > 1)
    limit = f" of at most {amount(there.most):g}" if there.most is not None else ""
    count = len(there.machines)
    return f"{text}; the cluster has {amount(there.machines):g}{limit} {unit} on {count} machine{'s' * (count != 1)}"
