"""Where the workers of a sweep fit: arithmetic over the machines of a cluster, without Ray."""

from collections.abc import Iterable, Sequence

from gat_sweep.cluster import Cluster, Machine
from gat_sweep.config import Workers

TINY = 1e-6  # ten workers of a tenth of a GPU fit on one


def fits(groups: Iterable[Workers], machines: Sequence[Machine]) -> bool:
    """Whether the workers of all groups have places at the same time; the largest workers choose first."""
    left = [[machine.cpus, machine.gpus] for machine in machines]
    for workers in sorted(groups, key=lambda w: (w.gpus, w.cpus), reverse=True):
        for _ in range(workers.count):
            place = next((p for p in left if p[0] > workers.cpus - TINY and p[1] > workers.gpus - TINY), None)
            if place is None:
                return False
            place[0] -= workers.cpus
            place[1] -= workers.gpus
    return True


def places(workers: Workers, machines: Sequence[Machine]) -> int:
    """Number of trials with such workers that run at once."""
    slots = 0
    for machine in machines:
        by_cpu = (machine.cpus + TINY) // workers.cpus
        slots += int(min(by_cpu, (machine.gpus + TINY) // workers.gpus) if workers.gpus else by_cpu)
    return slots // workers.count


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
