"""Which trials share a worker, and in which order they run: arithmetic, without Ray."""

import json

from gat_sweep.config import TrialConfig, Workers
from gat_sweep.plan import iteration_flops
from gat_sweep.run.trial import Trial

# A step of a small network is launches of small operations: on one CPU core, width 8 has a twelfth of the FLOPs
# of width 32 and takes half of its time. This many FLOPs per step on top bring cost in line with time.
STEP_FLOPS = 1.5e9


# Trials below share a worker: ten minutes of one CPU core. To a longer one start-up hardly matters; it does better
# in a place of its own once one is free than dealt beforehand, on a guess at its time, to a place with others.
SHARE_BELOW = 2e13


def packs(trials: list[Trial], slots: int) -> list[list[Trial]]:
    """Deals trials out to worker groups, which work through theirs in the order of the sweep; costliest pack first.

    Small trials that ask for the same single worker share `slots` workers, so that each starts once; any other
    trial has its workers to itself.
    """
    order = {trial.id: i for i, trial in enumerate(trials)}
    cost = {trial.id: _cost(trial.config) for trial in trials}

    def total(pack: list[Trial]) -> float:
        return sum(cost[trial.id] for trial in pack)

    result: list[list[Trial]] = []
    sharing: dict[Workers, list[Trial]] = {}
    for trial in trials:
        if trial.config.workers.count == 1 and cost[trial.id] < SHARE_BELOW:
            sharing.setdefault(trial.config.workers, []).append(trial)
        else:
            result.append([trial])
    for small in sharing.values():
        shared: list[list[Trial]] = [[] for _ in range(min(slots, len(small)))]
        for trial in sorted(small, key=lambda t: cost[t.id], reverse=True):
            min(shared, key=total).append(trial)
        result += [sorted(pack, key=lambda t: order[t.id]) for pack in shared]
    return sorted(result, key=total, reverse=True)  # a long one that starts last is the end of a sweep


def generations(trials: list[Trial]) -> list[list[Trial]]:
    """Trials that start from nothing, then those that start from one of them, and so on; in the order of the sweep."""
    found: list[list[Trial]] = []
    of: dict[str, int] = {}
    for trial in trials:  # behind the one that it starts from
        start = trial.config.start
        of[trial.id] = of.get(start.trial, -1) + 1 if start else 0
        if of[trial.id] == len(found):
            found.append([])
        found[of[trial.id]].append(trial)
    return found


class Queue:
    """Packs, costliest first; one is ready when nothing that its trials start from is queued or under way."""

    def __init__(self, trials: list[Trial], slots: int):
        # A pack holds one generation: in a circle of packs each would wait for the other.
        self.waiting = [pack for generation in generations(trials) for pack in packs(generation, slots)]
        self.under_way: dict[str, list[Trial]] = {}

    def take(self, name: str) -> list[Trial] | None:
        """The first pack that is ready, now under way under that name; None when none is."""
        ahead = {trial.id for pack in [*self.waiting, *self.under_way.values()] for trial in pack}
        for pack in self.waiting:
            if not any(trial.config.start and trial.config.start.trial in ahead for trial in pack):
                self.waiting.remove(pack)
                self.under_way[name] = pack
                return pack
        return None

    def ended(self, name: str) -> None:
        """Well or not: whether a trial can start from another is asked when it is its turn."""
        self.under_way.pop(name, None)


def one_per_reference(trials: list[Trial]) -> list[Trial]:
    """The first trial for every set of real pictures and way of looking at them."""
    seen = {json.dumps([t.config.data.model_dump(), t.config.eval.model_dump()]): t for t in reversed(trials)}
    return list(reversed(seen.values()))


def _cost(config: TrialConfig) -> float:
    """Training time in FLOPs: those of the networks and the price of a step."""
    per_image = sum(iteration_flops(config).values())
    return config.train.steps * (per_image * config.train.batch + STEP_FLOPS)
