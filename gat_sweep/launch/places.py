"""Where the workers of a sweep fit: arithmetic over the machines of a cluster, without Ray."""

from collections.abc import Iterable, Sequence

from gat_sweep.cluster import Cluster, Machine
from gat_sweep.config import Workers

TINY = 1e-6  # ten workers of a tenth of a GPU fit on one


class Room:
    """What is left of some machines as workers take their places, each on the first machine that can hold it."""

    def __init__(self, machines: Sequence[Machine]):
        self._left = [[machine.cpus, machine.gpus] for machine in machines]

    def take(self, workers: Workers) -> bool:
        """Takes a place for one worker; False when there is none."""
        place = next((p for p in self._left if p[0] > workers.cpus - TINY and p[1] > workers.gpus - TINY), None)
        if place is not None:
            place[0] -= workers.cpus
            place[1] -= workers.gpus
        return place is not None

    @property
    def left(self) -> list[Machine]:
        return [Machine(cpus, gpus) for cpus, gpus in self._left]


def fits(groups: Iterable[Workers], machines: Sequence[Machine]) -> bool:
    """Whether the workers of all groups have places at the same time; the largest workers choose first.

    Of an elastic group, its least workers.
    """
    return placed(groups, machines) is not None


def placed(groups: Iterable[Workers], machines: Sequence[Machine]) -> list[Machine] | None:
    """What is left of the machines when the workers of all groups have their places; None when they do not fit."""
    room = Room(machines)
    ordered = sorted(groups, key=lambda w: (w.gpus, w.cpus), reverse=True)
    everybody = all(room.take(workers) for workers in ordered for _ in range(workers.least))
    return room.left if everybody else None


def places(workers: Workers, machines: Sequence[Machine]) -> int:
    """Number of trials with such workers that run at once."""
    slots = 0
    for machine in machines:
        by_cpu = (machine.cpus + TINY) // workers.cpus
        slots += int(min(by_cpu, (machine.gpus + TINY) // workers.gpus) if workers.gpus else by_cpu)
    return slots // workers.least


def may_begin(new: Workers, others: Sequence[Workers], there: Cluster) -> bool:
    """Whether one more group of workers may ask for machines, beside the others that have asked.

    A group asks when it fits, or when the cluster can grow for it; its request is what the autoscaler sees. Where the
    autoscaler's limits are not known, one group at a time asks for more than there is.
    """
    if not others:
        return True
    together = [*others, new]
    if there.most is not None:
        return fits(together, there.most)
    return fits(others if there.grows else together, there.machines)


def largest(workers: Workers, beside: Sequence[Workers], machines: Sequence[Machine]) -> int:
    """Number of workers that an elastic group begins with: as many as fit beside the others, but at least its least."""
    sizes = range(workers.most, workers.least, -1)
    return next((n for n in sizes if fits([*beside, workers.of(n)], machines)), workers.least)


def grown(present: Sequence[tuple[Workers, int]], free: Sequence[Machine]) -> list[int]:
    """Numbers of workers of elastic groups after each has taken of the free places what it may, one worker in turn.

    present: groups with their numbers of workers now.
    """
    room, counts = Room(free), [count for _, count in present]
    open_ = [i for i, (workers, count) in enumerate(present) if count < workers.most]
    while open_:
        open_ = [i for i in open_ if room.take(present[i][0])]
        for i in open_:
            counts[i] += 1
        open_ = [i for i in open_ if counts[i] < present[i][0].most]
    return counts


def shrunk(
    present: Sequence[tuple[Workers, int]], waiting: Sequence[Workers], machines: Sequence[Machine]
) -> list[int]:
    """Numbers of workers of the groups under way after they have made room: for each other, then for those that wait.

    Whoever has most beyond its least gives first. Nobody gives for a group that would not fit all the same.
    present: groups with their numbers of workers now; those that are not elastic keep theirs.
    """
    groups, counts = [workers for workers, _ in present], [count for _, count in present]
    for served in range(len(waiting) + 1):
        trying = list(counts)
        while not fits([*map(Workers.of, groups, trying), *waiting[:served]], machines):
            spare = [n - w.least if w.elastic else 0 for w, n in zip(groups, trying, strict=True)]
            if max(spare, default=0) == 0:
                return counts
            trying[spare.index(max(spare))] -= 1
        counts = trying
    return counts
