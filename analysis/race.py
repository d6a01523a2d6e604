"""Race of arms: which arms of a group a look drops, and the record of a race (race.json of a run).

A group is all trials of one size. An arm is trials of a group that differ in the seed alone. Groups race by synchronous
successive halving at equal images (Jamieson and Talwalkar 2016; Li et al. 2020): they are looked at after an eighth, a
quarter and half of their steps. But a look does not drop a fixed share of the arms. It drops an arm only if its paired
log ratio to the leader, the arm with the best mean, is significantly worse.

The test. Seeds pair the arms, so the noise is what a two-way layout, arm x seed, leaves. If k arms are equal, the
largest of their ratios to the best of them is a studentized range of k means (Tukey 1953). Its distribution therefore
allows both for the number of arms and for the leader having been chosen by its values; Dunnett's does not allow for the
choice. It also covers races with worse arms: of arms equal to the best one, none is farther from the leader than the
range of the noise of all arms.
The noise is that of the look and of the arms that still race. To add that of arms dropped earlier would save 2 to 5
points more of the compute, but drops equal arms wrongly in 16 to 32 % of races where the noise grows by half or twofold
from look to look.

The looks. Each look spends a share of ALPHA (Lan and DeMets 1983), so the shares add up whatever the correlation of the
looks. The spending is Pocock-like, with the number of looks as the fraction of information: it spends most at the first
look, where a drop saves most, while O'Brien and Fleming's spends almost nothing there. A value at a later look replaces
the earlier one and does not add to it, so each look counts alike.

Values are of a metric of which less is better, as all Frechet distances are.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

# Wrong drops, over all looks of a group. Below 5 %, because one arm that is noisier than the others costs more.
ALPHA = 0.03
PARTS = (8, 4, 2)  # a look is after 1 / part of the steps
EQUAL = 1e-12  # logarithms that differ by less are equal
MIN_SEEDS = 2  # one seed leaves no estimate of the noise


def look_steps(steps: int) -> tuple[int, ...]:
    """Steps of the looks of trials with so many steps."""
    return tuple(steps // part for part in PARTS)


def spent(looks: int = len(PARTS), alpha: float = ALPHA) -> tuple[float, ...]:
    """Return the share of alpha that each look spends: steps of alpha ln(1 + (e - 1) t) at t = 1 / looks, ..., 1."""
    cumulative = alpha * np.log1p((math.e - 1) * np.arange(looks + 1) / looks)
    return tuple(np.diff(cumulative).tolist())


# ---------------------------------------------------------------- one look


@dataclass(frozen=True)
class Standing:
    """One arm at a look."""

    log_ratio: float  # mean over seeds of ln(value / value of the leader)
    p: float  # of a ratio as large as that to the best of so many equal arms
    dropped: bool


@dataclass(frozen=True)
class Decision:
    """What a look decided."""

    step: int
    alpha: float  # spent at this look
    leader: str
    noise: float  # standard deviation of ln value, without what the arms of a seed share
    degrees_of_freedom: int
    arms: Mapping[str, Standing]  # those that raced up to this look, the leader included

    @property
    def dropped(self) -> list[str]:
        return [label for label, arm in self.arms.items() if arm.dropped]

    @property
    def left(self) -> list[str]:
        """The arms that race on."""
        return [label for label, arm in self.arms.items() if not arm.dropped]


def decide(values: Mapping[str, Mapping[int, float]], step: int, alpha: float) -> Decision:
    """Compare arms with their leader at a look.

    values: ln value by arm and seed; all arms have the same seeds, two or more. One arm alone, or none, is not dropped.
    """
    labels = list(values)
    if len(labels) < 2:
        return Decision(step, alpha, "".join(labels), 0.0, 0, {label: Standing(0.0, 1.0, False) for label in labels})
    seeds = sorted(values[labels[0]])
    assert len(seeds) >= MIN_SEEDS and all(sorted(values[label]) == seeds for label in labels)
    logs = np.array([[values[label][seed] for seed in seeds] for label in labels])
    behind, noise = _behind(logs)
    dof = (len(labels) - 1) * (len(seeds) - 1)
    q = _studentized(behind, noise, len(seeds))
    drop = q > critical(len(labels), dof, alpha)
    arms = {
        label: Standing(float(behind[i]), _p(float(q[i]), len(labels), dof), bool(drop[i]))
        for i, label in enumerate(labels)
    }
    return Decision(step, alpha, labels[int(behind.argmin())], noise, dof, arms)


def dropped(logs: Array, alpha: float) -> NDArray[np.bool_]:
    """Return which arms a look drops; logs: ln value [arms, seeds]."""
    behind, noise = _behind(logs)
    arms, seeds = logs.shape
    return np.asarray(_studentized(behind, noise, seeds) > critical(arms, (arms - 1) * (seeds - 1), alpha))


@lru_cache(maxsize=256)
def critical(arms: int, dof: int, alpha: float) -> float:
    """Return the studentized range of so many equal arms that is exceeded with probability alpha."""
    return float(stats.studentized_range.ppf(1 - alpha, arms, dof))


def _p(q: float, arms: int, dof: int) -> float:
    """Return the probability of a studentized range above q; scipy's integral needs a finite q above 0."""
    if q == 0 or math.isinf(q):
        return float(q == 0)
    return float(np.clip(stats.studentized_range.sf(q, arms, dof), 0, 1))


def residuals(logs: Array) -> Array:
    """Return what the two-way layout leaves of ln value [arms, seeds]: without the means of arms and of seeds."""
    return logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0) + logs.mean()


def _behind(logs: Array) -> tuple[Array, float]:
    """Return the mean log ratio of each arm to the best one [arms], and the noise of ln value."""
    arms, seeds = logs.shape
    left = residuals(logs)
    left = np.where(np.abs(left) < EQUAL, 0.0, left)
    mean = logs.mean(axis=1)
    return mean - mean.min(), math.sqrt(float((left**2).sum()) / ((arms - 1) * (seeds - 1)))


def _studentized(behind: Array, noise: float, seeds: int) -> Array:
    """Return ratios in standard errors of a mean; without any noise, a ratio is infinitely many or none."""
    if noise == 0:
        return np.where(behind > EQUAL, math.inf, 0.0)
    return behind / (noise / math.sqrt(seeds))


# ---------------------------------------------------------------- the record


@dataclass(frozen=True)
class Group:
    """Trials that race with each other, and what was decided about them."""

    size: str
    looks: tuple[int, ...]  # steps
    arms: Mapping[str, Mapping[int, str]]  # label -> seed -> trial
    decisions: tuple[Decision, ...] = ()  # by rising step

    @property
    def racing(self) -> list[str]:
        """The arms that still race; an arm that lost a trial is not one of them after the next look."""
        return self.decisions[-1].left if self.decisions else list(self.arms)

    @property
    def next_look(self) -> int | None:
        """The step of the next look; None if there is none, or fewer than two arms still race."""
        later = [step for step in self.looks if not self.decisions or step > self.decisions[-1].step]
        return later[0] if later and len(self.racing) > 1 else None

    @property
    def trials(self) -> list[str]:
        return [trial for trials in self.arms.values() for trial in trials.values()]

    def arm_of(self, trial: str) -> str:
        return next(label for label, trials in self.arms.items() if trial in trials.values())


@dataclass(frozen=True)
class Race:
    """The race of a run: its groups, and the dropped trials that went on nevertheless (`--retry raced`)."""

    groups: tuple[Group, ...]
    retried: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {"alpha": ALPHA, "spending": "Pocock-like over the looks", **asdict(self)}


def read_race(record: Mapping[str, Any]) -> Race:
    """The race of a record that Race.to_json made."""
    return Race(tuple(_read_group(group) for group in record["groups"]), tuple(record["retried"]))


def _read_group(group: Mapping[str, Any]) -> Group:
    arms = {label: {int(seed): trial for seed, trial in trials.items()} for label, trials in group["arms"].items()}
    return Group(group["size"], tuple(group["looks"]), arms, tuple(_read_decision(one) for one in group["decisions"]))


def _read_decision(one: Mapping[str, Any]) -> Decision:
    return Decision(**{**one, "arms": {label: Standing(**arm) for label, arm in one["arms"].items()}})


def in_words(group: Group, decision: Decision, arm: str) -> str:
    """Why an arm was dropped, in one line."""
    standing, number = decision.arms[arm], group.looks.index(decision.step) + 1
    p = "p < 0.0001" if standing.p < 1e-4 else f"p = {standing.p:.2g}"
    return (
        f"dropped at look {number} of {len(group.looks)}, step {decision.step}: "
        f"{math.exp(standing.log_ratio):.3g} times the value of {decision.leader}, {p}"
    )
