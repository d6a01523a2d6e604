"""When which fault comes, drawn once from a seed."""

import random
from dataclasses import dataclass

HOUR, DAY = 3600.0, 86400.0
NOTICES_A_DAY, DEATHS_A_DAY = 1 / 3, 1 / 14  # of each node


@dataclass(frozen=True, order=True)
class Fault:
    """A fault and its time in virtual seconds."""

    time: float
    kind: str  # notice, death, full, away, well, server down, server up, hang, status
    node: int = -1


def schedule(days: float, nodes: int, chance: random.Random) -> list[Fault]:
    """All faults of a rehearsal in order of time; those of single nodes go on for twice the days."""
    found = []
    for kind, rate in (("notice", NOTICES_A_DAY), ("death", DEATHS_A_DAY)):
        time = 0.0
        while (time := time + chance.expovariate(rate * nodes / DAY)) < 2 * days * DAY:
            found.append(Fault(time, kind, chance.randrange(nodes)))
    end = days * DAY
    for kind, begin, length in (("full", 0.35, 3 * HOUR), ("away", 0.5, 2 * HOUR)):
        found += [Fault(begin * end, kind), Fault(begin * end + min(length, end / 8), "well")]
    found += [Fault(0.15 * end, "server down"), Fault(0.15 * end + end / 14, "server up")]
    found += [Fault(share * end, "hang") for share in ((0.05, 0.65) if days > 1 else (0.05,))]
    found += [Fault(share * end, "status") for share in (0.25, 0.45, 0.7)]
    return sorted(found)
