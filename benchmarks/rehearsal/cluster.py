"""The simulated cluster: nodes, and the groups of workers on them, each a process that trains a pack."""

import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.rehearsal.stand_ins import World, end_with_parent, work
from benchmarks.rehearsal.trials import GPUS
from gat_sweep.cluster import Cluster, Machine
from gat_sweep.config import Workers
from gat_sweep.launch.places import fits
from gat_sweep.run.trial import Trial
from gat_sweep.train.watch import EXIT_HUNG, EXIT_REPLACED

NOTICE_S = 1.0  # real seconds from a notice to the end of a node: its two minutes would be too short for a busy machine
PLACE_S = 2.0  # real seconds that an elastic group waits for places; Ray's are 60
BEGIN_S = 5.0  # real seconds for which the clock stands still for a group that begins, at most
LINGER_S = 1.0  # real seconds that workers outlive their driver, at most
NODE = Machine(96, GPUS)
FORK = multiprocessing.get_context("fork")


@dataclass
class Group:
    """A group of workers: asked for, at work, or outliving its driver."""

    number: int  # of the driver's request
    pack: list[Trial]
    count: int
    launch: int  # which launch asked
    asked: float = field(default_factory=time.monotonic)
    nodes: list[int] = field(default_factory=list)
    process: BaseProcess | None = None
    says: Connection | None = None
    fate: str = ""  # why the cluster ended it; "": it ended itself
    began: float = 0.0
    ends: float | None = None  # when it is ended, if its driver has died

    @property
    def elastic(self) -> bool:
        return self.pack[0].config.workers.elastic


@dataclass
class Counts:
    """What has happened on the cluster."""

    notices: int = 0
    deaths: int = 0
    groups: int = 0
    replaced: int = 0  # workers that saw another one take their trial over
    hung: int = 0
    gpu_hours: float = 0.0  # real hours of GPUs, from the start of a group's process to its end
    idle: float = 0.0  # longest time in real seconds for which the first that waited could have had places
    idle_looks: int = 0  # the most looks of a launch in such a time


class Nodes:
    """Nodes that are told to go, die and come back, and the groups on them."""

    def __init__(self, world: World, trials: dict[str, Trial], count: int, chance: random.Random):
        self.world, self.trials, self.chance, self.counts = world, trials, chance, Counts()
        self.up = [True] * count
        self.back: dict[int, float] = {}  # node -> virtual time at which it is there again
        self.goes: dict[int, float] = {}  # node -> real time at which its notice is over
        self.groups: list[Group] = []
        self._could_begin: tuple[float, int] | None = None  # since when the first that waits could: time, looks
        self._looks = 0

    # ---------------------------------------------------------------- nodes

    def notify(self, node: int) -> None:
        """A spot notice: the groups on the node are told, and it goes soon."""
        if self.up[node] and node not in self.goes:
            self.counts.notices += 1
            self.world.draining[node], self.goes[node] = 1, time.monotonic() + NOTICE_S

    def die(self, node: int) -> None:
        """A death without notice."""
        if self.up[node]:
            self.counts.deaths += 1
            self._down(node)

    def _down(self, node: int) -> None:
        self.up[node] = False
        self.goes.pop(node, None)
        self.world.draining[node] = 0
        self.back[node] = self.world.clock + 3600 * self.chance.uniform(1, 6)
        for group in self.groups:
            if node in group.nodes:
                self._end(group, "WorkerHealthCheckFailedError: the node of a worker has died")

    def _end(self, group: Group, fate: str) -> None:
        if group.process and not group.fate:
            group.fate = fate
            group.process.kill()

    def free(self) -> list[int]:
        """Nodes without workers that may have some."""
        taken = {node for group in self.groups for node in group.nodes}
        return [n for n, up in enumerate(self.up) if up and n not in taken and not self.world.draining[n]]

    def look(self) -> Cluster:
        """The cluster as `look` of the product sees it: nodes with a notice are still there."""
        self._looks += 1
        taken = {node for group in self.groups for node in group.nodes}
        up = [node for node, here in enumerate(self.up) if here]
        free = tuple(Machine(NODE.cpus, 0) if node in taken else NODE for node in up)
        return Cluster((NODE,) * len(up), "rehearsal:1", free=free)

    # ---------------------------------------------------------------- groups

    def ask(self, number: int, pack: list[str], count: int, launch: int) -> None:
        self.groups.append(Group(number, [self.trials[trial] for trial in pack], count, launch))

    def orphan(self) -> None:
        """The driver has died: what waits is gone, and workers end a moment later."""
        self.groups = [group for group in self.groups if group.process]
        for group in self.groups:
            group.ends = group.ends or time.monotonic() + self.chance.uniform(0, LINGER_S)

    def tick(self, answer: Callable[[int, int, tuple[str, str]], None]) -> None:
        """Moves everything on. answer: (launch, request, (how a group ended, its error))."""
        now = time.monotonic()
        for node in [node for node, when in self.goes.items() if now >= when]:
            self._down(node)
        for node in [node for node, when in self.back.items() if self.world.clock >= when]:
            del self.back[node]
            self.up[node] = True
        for group in list(self.groups):
            if group.ends and now >= group.ends:
                self._end(group, "its driver has died")
            if group.process and group.process.exitcode is not None:
                self._close(group, answer)
            elif not group.process and group.elastic and now - group.asked > PLACE_S:
                self.groups.remove(group)
                answer(group.launch, group.number, ("no place", ""))
        for group in self.groups:
            if not group.process:
                free = self.free()
                if len(free) >= group.count:
                    self._begin(group, free[: group.count])

    def _begin(self, group: Group, nodes: list[int]) -> None:
        group.nodes, self.counts.groups = nodes, self.counts.groups + 1
        group.says, says = FORK.Pipe(duplex=False)
        group.began = time.monotonic()
        for trial in group.pack:
            self.world.begun[self.world.number[trial.id]] = 0
        group.process = FORK.Process(target=_worker, args=(self.world, group.pack, nodes, says), daemon=True)
        group.process.start()
        says.close()

    def _close(self, group: Group, answer: Callable[[int, int, tuple[str, str]], None]) -> None:
        self.groups.remove(group)
        assert group.process and group.says
        code, text = group.process.exitcode, group.fate
        if not text and code == 1 and group.says.poll():
            text = group.says.recv()
        group.says.close()
        group.process.close()
        self.counts.replaced += code == EXIT_REPLACED
        self.counts.hung += code == EXIT_HUNG
        self.counts.gpu_hours += (time.monotonic() - group.began) * group.count * GPUS / 3600
        kind = "ended" if code == 0 else "failed"
        answer(group.launch, group.number, (kind, text or f"the worker ended with exit code {code}"))

    def beginning(self) -> bool:
        """Whether a group has not come to its first step yet, and may be expected to."""
        now = time.monotonic()
        return any(
            group.process
            and not group.ends
            and now - group.began < BEGIN_S
            and not any(self.world.begun[self.world.number[trial.id]] for trial in group.pack)
            for group in self.groups
        )

    def look_for_idle(self, waits: list[Workers], under_way: list[tuple[str, Workers]]) -> None:
        """Notes for how long the first that waits, of those in the driver's queue, could have had places.

        under_way: first trial and workers of each of the driver's packs. One that is on its way to ask for a group
        has a claim on free places.
        """
        asked = {trial.id for group in self.groups for trial in group.pack}
        coming = [workers for trial, workers in under_way if trial not in asked]
        pending = any(not group.process for group in self.groups)
        could = bool(waits) and not pending and fits([*coming, *waits], [NODE] * len(self.free()))
        if not could:
            self._could_begin = None
            return
        since, looks = self._could_begin = self._could_begin or (time.monotonic(), self._looks)
        self.counts.idle = max(self.counts.idle, time.monotonic() - since)
        self.counts.idle_looks = max(self.counts.idle_looks, self._looks - looks)


def _worker(world: World, pack: list[Trial], nodes: list[int], says: Connection) -> None:
    end_with_parent()
    work(world, pack, nodes, says)
