"""Choice of the trials that share a worker, and of their order: arithmetic, without Ray."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gat_sweep.compute import step_flops
from gat_sweep.config import TrialConfig, Workers
from gat_sweep.run.trial import Trial

# Launching small operations dominates a step of a small network: on one CPU core, width 8 has a twelfth of the FLOPs
# of width 32 but takes half of its time. With this many extra FLOPs per step, cost is proportional to time.
STEP_FLOPS = 1.5e9


# Workers with which a group may begin beside those under way, while others wait behind it; None while it has to wait.
Begin = Callable[[Workers, list[Workers], list[Workers]], Workers | None]

# Trials cheaper than this (about ten minutes on one core) share workers, because starting a worker takes half a
# minute. Longer trials wait for a worker of their own.
SHARE_BELOW = 2e13


def packs(trials: list[Trial], slots: int, most: float = math.inf) -> list[list[Trial]]:
    """Divides trials into packs, one for each worker group; the costliest pack comes first.

    Small trials that need one worker of the same kind share up to `slots` workers, so that each worker starts once.
    They share more workers where a pack would cost more than `most`, so that machines that join find something to do.
    Every other trial is a pack of its own. The trials of a pack keep the order of the sweep.
    """
    order = {trial.id: i for i, trial in enumerate(trials)}
    cost = {trial.id: _cost(trial.config) for trial in trials}

    def total(pack: list[Trial]) -> float:
        return sum(cost[trial.id] for trial in pack)

    result: list[list[Trial]] = []
    sharing: dict[Workers, list[Trial]] = {}
    for trial in trials:
        if trial.config.workers.most == 1 and cost[trial.id] < SHARE_BELOW:
            sharing.setdefault(trial.config.workers, []).append(trial)
        else:
            result.append([trial])
    for small in sharing.values():
        enough = math.ceil(total(small) / most) if most < math.inf else 0
        shared: list[list[Trial]] = [[] for _ in range(min(max(slots, enough), len(small)))]
        for trial in sorted(small, key=lambda t: cost[t.id], reverse=True):
            min(shared, key=total).append(trial)
        result += [sorted(pack, key=lambda t: order[t.id]) for pack in shared]
    return sorted(result, key=total, reverse=True)  # a long pack that starts last would delay the end of the sweep


def generations(trials: list[Trial]) -> list[list[Trial]]:
    """Groups of trials: those that start from nothing, then those that start from one of them, and so on."""
    found: list[list[Trial]] = []
    of: dict[str, int] = {}
    for trial in trials:  # a sweep lists a trial after the one that it starts from
        start = trial.config.start
        of[trial.id] = of.get(start.trial, -1) + 1 if start else 0
        if of[trial.id] == len(found):
            found.append([])
        found[of[trial.id]].append(trial)
    return found


@dataclass
class Group:
    """A pack under way with its workers; their number changes if the trial is elastic."""

    pack: list[Trial]
    workers: Workers
    since: float = field(default_factory=time.monotonic)  # the last change of their number


def at_once(new: Workers, others: list[Workers], waiting: list[Workers]) -> Workers:
    """Lets every group begin, with its least workers."""
    return new.of(new.least)


class Queue:
    """Queue of packs. A pack is ready when no trial that its own trials start from is waiting or running."""

    def __init__(self, trials: list[Trial], slots: int, most: float = math.inf):
        # A pack holds trials of one generation; otherwise two packs could wait for each other.
        self.waiting = [pack for generation in generations(trials) for pack in packs(generation, slots, most)]
        self.under_way: dict[str, Group] = {}

    def take(self, name: str, begin: Begin = at_once) -> Group | None:
        """Takes the first ready pack, which runs under this name from now on; None when none is ready, or it may not.

        begin: its workers, or None, given those under way and those that are ready behind it. Nobody overtakes the
        first pack, as a stream of small ones could keep a large one waiting for ever.
        """
        ready = self._ready()
        if not ready:
            return None
        new, *behind = (pack[0].config.workers for pack in ready)
        workers = begin(new, [group.workers for group in self.under_way.values()], behind)
        if workers is None:
            return None
        self.waiting.remove(ready[0])
        self.under_way[name] = Group(ready[0], workers)
        return self.under_way[name]

    def ready(self) -> list[Workers]:
        """Workers of the packs that wait for nothing but machines, in their order."""
        return [pack[0].config.workers for pack in self._ready()]

    def workers(self) -> tuple[list[tuple[Workers, int]], list[tuple[Workers, int]]]:
        """Workers and number of trials of the packs under way, and of those that wait."""
        under_way = [(group.workers, len(group.pack)) for group in list(self.under_way.values())]
        return under_way, [(pack[0].config.workers, len(pack)) for pack in list(self.waiting)]

    def ended(self, name: str) -> None:
        """Marks a pack as ended, even if it failed: trials that start from it check its status at their turn."""
        self.under_way.pop(name, None)

    def _ready(self) -> list[list[Trial]]:
        under_way, waiting = list(self.under_way.values()), list(self.waiting)
        ahead = {trial.id for pack in [*waiting, *(group.pack for group in under_way)] for trial in pack}
        return [pack for pack in waiting if not any(t.config.start and t.config.start.trial in ahead for t in pack)]


def one_per_reference(trials: list[Trial]) -> list[Trial]:
    """The first trial for each combination of data and evaluation settings."""
    seen = {json.dumps([t.config.data.model_dump(), t.config.eval.model_dump()]): t for t in reversed(trials)}
    return list(reversed(seen.values()))


def _cost(config: TrialConfig) -> float:
    """Training time in FLOPs: those of the networks, plus STEP_FLOPS per step."""
    return config.train.steps * (step_flops(config) + STEP_FLOPS)
