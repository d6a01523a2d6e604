"""What a design is judged by: a goal, the runs that could be trained, and what each law could learn from them.

A scenario is one law with draws of its parameters and of the noise, from the prior or from data. It holds, for every
run that could be trained, what that run would tell of the parameters (fits/information.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.fits.descent import Array, Index
from analysis.fits.information import Noise, Sums, no_runs, of_run, variance_of
from analysis.fits.joint import Checkpoints
from analysis.fits.planned_laws import (
    LEAST,
    OF_FRONTIERS,
    OF_SIZES,
    PARAMETERS,
    STEP,
    Fitted,
    PlannedLaw,
    Prior,
    Spread,
    fit_all,
    kept,
)

DRAWS = 32
PRIOR_DEGREES = 4  # degrees of freedom that the spread of sizes before any data counts as
SEED_SPREADS = (0.04, 0.14)  # of ln value between seeds: about the paper's FID (A.17: 0.035), and this project's digits
OF_SIZE, OF_CHECKPOINT = 1.0, 0.5  # spreads of sizes and of checkpoints, in units of that of seeds, without data
SAME_LENGTH = 0.05  # difference of ln D below which two lengths are one
# Rates: ln value = level + k (x - v)^2 / 2 + g (x - v)^3 / 6, with x = ln(rate / Eq. 4's), v = a + s z + q z^2, and
# z = ln(width / that of the goal). Means and standard deviations before any data; digits have k of .1 to .3.
RATES = {"k": (0.25, 0.1), "g": (0.0, 0.1), "a": (0.0, 0.5), "s": (0.0, 0.5), "q": (0.0, 0.15)}
RATE_LAWS = {
    "optima on a line": ("k", "a", "s"),
    "steeper on one side": ("k", "g", "a", "s"),
    "optima on a bent line": ("k", "a", "s", "q"),
}
LEAST_CURVATURE = 0.05
UNKNOWN_LEVEL = 1e3  # standard deviation of a size's level, which rates do not assume to be known
TRIES = 10  # draws for each that is taken
BEYOND = 3.0  # times the smallest or the largest size: laws whose best size at the goal is farther are not drawn


@dataclass(frozen=True)
class Goal:
    """What is to be found out: an exponent, a value, or a best size, at a size and a length; or its best rate."""

    name: str  # exponent, predict, allocate or rates
    size: str
    cost: float  # GFLOPs per image
    images: float
    width: int
    half_width: float

    @property
    def gflops(self) -> float:
        return self.cost * self.images

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "size": self.size, "cost": self.cost, "images": self.images, "gflops": self.gflops,
        }  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A way to train a size with one seed: a run for so long, or a grid of rates."""

    price: float
    images: float
    steps: int
    checkpoints: tuple[float, ...] = ()  # images, the last one included
    rates: tuple[float, ...] = ()  # in units of Eq. 4's

    @property
    def trials(self) -> int:
        return len(self.rates) or 1

    def to_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "images": self.images} | ({"rates": list(self.rates)} if self.rates else {})


@dataclass(frozen=True)
class Candidate:
    """A size that could be trained."""

    label: str
    cost: float  # GFLOPs per image
    width: int
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Known:
    """Checkpoints of runs that are there already. They tell the laws and the noise."""

    data: Checkpoints
    labels: tuple[str, ...]  # of the sizes in `data`
    joined: bool = True  # the analysis of the goal will have these runs beside the new ones

    def counts(self, goal: Goal, label: str) -> bool:
        """Whether the analysis of the goal uses runs of a size that are there."""
        return label in self.labels and bool(self._used(goal)[self.data.size == self.labels.index(label)].any())

    def used(self, goal: Goal) -> Checkpoints:
        """Return the checkpoints that the analysis of the goal uses: those of the goal's length, or all of them."""
        return self.data.some(self._used(goal))

    def _used(self, goal: Goal) -> Any:
        if not self.joined:
            return np.zeros(len(self.data.images), dtype=bool)
        if goal.name == "allocate":
            return np.ones(len(self.data.images), dtype=bool)
        return np.abs(np.log(self.data.images / goal.images)) < SAME_LENGTH

    def to_json(self, goal: Goal) -> dict[str, Any]:
        return {
            "sizes": list(self.labels), "runs": len(np.unique(self.data.run)), "checkpoints": len(self.data.run),
            "runs_that_count": len(np.unique(self.used(goal).run)),
        }  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """A law, with draws of its parameters and of the noise [m]."""

    law: str
    precision: Array  # [k, k], before the design; without that of `before`
    gradient: Array  # [m, k], of the goal
    noise: Noise
    before: tuple[Sums, ...]  # of each candidate size, of runs that are there
    others: Array  # [m, k, k]: information of sizes that are not candidates
    options: tuple[tuple[Sums, ...], ...]  # [size][option], of one run
    new: bool  # the goal is a value that is measured with new effects, so these count
    levels: bool = False  # every size has a level of its own to tell
    tables: dict[int, list[Array]] = field(default_factory=dict)  # information by option [o, m, k, k] of each size

    def squared_error(self, designs: Index, seeds: int, prior: bool = True, each: bool = False) -> Array:
        """Return the squared error of designs [q, sizes], as the mean over draws [q] or for each [q, m].

        prior: whether the prior counts, or the runs alone.
        """
        if seeds not in self.tables:
            self.tables[seeds] = [
                np.array(
                    [before.information(self.noise)]
                    + [(before + option.times(seeds)).information(self.noise) for option in options]
                )
                for before, options in zip(self.before, self.options, strict=True)
            ]
        total = self.others + (self.precision if prior else 0.0)
        total = np.broadcast_to(total, (len(designs), *self.others.shape)).copy()
        for table, option in zip(self.tables[seeds], designs.T, strict=True):
            total += table[option]
        found = variance_of(total, self.gradient)
        if self.new:
            found = found + self.noise.size**2 + (self.noise.run**2 + self.noise.rest**2) / seeds
        return found if each else np.asarray(found.mean(axis=1))

    def unknown(self, design: Index) -> int:
        """Return how many parameters the runs of a design have to tell."""
        return len(self.precision) + (int((design > 0).sum()) if self.levels else 0)


@dataclass(frozen=True)
class Scenarios:
    scenarios: tuple[Scenario, ...]
    laws: tuple[dict[str, Any], ...]
    noise: dict[str, Any]


def scenarios(goal: Goal, candidates: Sequence[Candidate], known: Known | None = None) -> Scenarios:
    """Return the scenarios of a goal: one for each law that the data do not reject, or for each without data."""
    random = np.random.default_rng(0)
    if goal.name == "rates":
        noise, told = _noise(_fits(OF_SIZES, goal, candidates, known, random)[1] if known else None, random)
        return Scenarios(
            tuple(_of_rates(name, names, goal, candidates, noise, random) for name, names in RATE_LAWS.items()),
            tuple({"law": name, "kept": True} for name in RATE_LAWS),
            told,
        )
    forms = OF_FRONTIERS if goal.name == "allocate" else OF_SIZES
    u = np.log([c.cost for c in candidates] + [goal.cost]) - np.log(goal.cost)
    if known is None:
        noise, told = _noise(None, random)
        prior = Prior.of(u)
        laws = [(law, _drawn(law, prior, prior.mean, prior.covariance(law), goal, u, random)) for law in forms]
        rows: list[dict[str, Any]] = [{"law": law.name, "kept": True} for law in forms]
    else:
        fits, spread, prior = _fits(forms, goal, candidates, known, random)
        least = min(fit.aic for fit in fits)
        rows = [
            {
                "law": fit.law.name, "kept": bool(ok), "aic_above_least": fit.aic - least,
                "parameters": {PARAMETERS[i]: float(fit.parameters[i]) for i in fit.law.own},
            }
            for fit, ok in zip(fits, kept(fits), strict=True)
        ]  # fmt: skip
        noise, told = _noise(spread, random)
        laws = [
            (fit.law, _drawn(fit.law, prior, fit.parameters, fit.covariance, goal, u, random))
            for fit, ok in zip(fits, kept(fits), strict=True)
            if ok
        ]
    made = tuple(_of_sizes(law, p, goal, candidates, noise, prior, known) for law, p in laws)
    return Scenarios(made, tuple(rows), told)


def _fits(
    forms: Sequence[PlannedLaw], goal: Goal, candidates: Sequence[Candidate], known: Known, random: np.random.Generator
) -> tuple[list[Fitted], Spread, Prior]:
    """Return every law fitted to what is known, the noise about them, and their prior."""
    data = known.data
    at = np.log(data.costs.sum(axis=0) / goal.cost), np.log(data.images / goal.images)
    sizes = np.concatenate([np.log([c.cost for c in candidates]) - np.log(goal.cost), at[0], [0.0]])
    prior = Prior.of(sizes, float(data.log_value[np.argmax(at[0] + at[1])]))
    return *fit_all(forms, prior, data, at, random), prior


def _drawn(
    law: PlannedLaw, prior: Prior, centre: Array, covariance: Array, goal: Goal, u: Array, random: np.random.Generator
) -> Array:
    """Return laws [DRAWS, 7]; of a frontier, those that have their best size near the candidates, at u.

    `allocate` gives no answer far from the sizes tried. If hardly any law has its best size there, all are taken.
    """
    p = prior.around(law, centre, covariance, TRIES * DRAWS, random)
    if goal.name == "allocate":
        best, far = law.log_best_cost(p), np.log(BEYOND)
        near = (best >= u.min() - far) & (best <= u.max() + far)
        p = p[near] if near.sum() >= DRAWS else p
    return p[:DRAWS]


def _noise(known: Spread | None, random: np.random.Generator) -> tuple[Noise, dict[str, Any]]:
    """Return draws of the noise, and what it is: of the data where they tell it, else as it is taken before any."""
    run = np.exp(random.uniform(math.log(SEED_SPREADS[0]), math.log(SEED_SPREADS[1]), DRAWS))
    if known is None:
        return Noise(OF_SIZE * run, run, OF_CHECKPOINT * run), {"of": "prior", "seeds": list(SEED_SPREADS)}
    one = np.ones(DRAWS)
    if known.run is not None:
        run = max(known.run, LEAST) * one
        if known.checkpoint is None:  # the spread of the only checkpoint of a run is that of both
            run = run / math.sqrt(1 + OF_CHECKPOINT**2)
    # A variance from few sizes may well be 0 by chance, so what is taken before any data counts beside it.
    variance = PRIOR_DEGREES * (OF_SIZE * run) ** 2 + known.degrees * (known.size or 0.0) ** 2
    size = np.sqrt(variance / (PRIOR_DEGREES + known.degrees))
    rest = OF_CHECKPOINT * run if known.checkpoint is None else max(known.checkpoint, LEAST) * one
    found = {"seeds": known.run, "sizes": known.size, "checkpoints": known.checkpoint}
    used = {"seeds": run, "sizes": size, "checkpoints": rest}
    told = {what: math.sqrt(float((spread**2).mean())) for what, spread in used.items()}
    assumed = [what for what, spread in found.items() if spread is None]
    return Noise(size, run, rest), {"of": "data", **told, "assumed": assumed}


def _of_sizes(
    law: PlannedLaw,
    p: Array,
    goal: Goal,
    candidates: Sequence[Candidate],
    noise: Noise,
    prior: Prior,
    known: Known | None,
) -> Scenario:
    def sums(cost: float, images: Sequence[float]) -> Sums:
        lengths = np.asarray(images if goal.name == "allocate" else images[-1:])
        w = np.log(lengths / goal.images)
        return of_run(law.slopes(p, np.full(len(w), np.log(cost / goal.cost)), w), noise)

    empty = no_runs(len(p), len(law.own))
    there: dict[str, Sums] = {}
    if known is not None:
        data = known.used(goal)
        for run in np.unique(data.run):
            rows = np.flatnonzero(data.run == run)
            rows = rows[np.argsort(data.images[rows])]
            label, cost = known.labels[data.size[rows[0]]], float(data.costs[:, rows].sum(axis=0).mean())
            there[label] = there.get(label, empty) + sums(cost, data.images[rows].tolist())
    labels = [c.label for c in candidates]
    others = np.zeros((len(p), len(law.own), len(law.own)))
    for label, one in there.items():
        if label not in labels:
            others = others + one.information(noise)
    return Scenario(
        law.name, prior.precision(law), _gradient(law, p, goal.name), noise,
        tuple(there.get(label, empty) for label in labels), others,
        tuple(tuple(sums(c.cost, option.checkpoints) for option in c.options) for c in candidates),
        goal.name == "predict",
    )  # fmt: skip


def _gradient(law: PlannedLaw, p: Array, goal: str) -> Array:
    """Return the derivatives of the goal by the own parameters [m, k]."""
    if goal == "predict":
        return law.slopes(p, np.zeros(1), np.zeros(1))[:, 0]
    of = law.exponent if goal == "exponent" else law.log_best_cost
    return np.stack([(of(high) - of(low)) / (2 * STEP) for high, low in law.moved(p)], axis=1)


def _of_rates(
    name: str,
    names: Sequence[str],
    goal: Goal,
    candidates: Sequence[Candidate],
    noise: Noise,
    random: np.random.Generator,
) -> Scenario:
    drawn = {key: random.normal(*RATES[key], DRAWS) if key in names else np.zeros(DRAWS) for key in RATES}
    drawn["k"] = np.maximum(drawn["k"], LEAST_CURVATURE)
    own_level = Noise(np.full(DRAWS, UNKNOWN_LEVEL), noise.run, noise.rest)

    def sums(width: int, rates: Sequence[float]) -> Sums:
        z = np.log(width / goal.width)
        total = no_runs(DRAWS, len(names))
        for x in np.log(rates):
            away = x - (drawn["a"] + drawn["s"] * z + drawn["q"] * z**2)
            pull = -(drawn["k"] * away + drawn["g"] * away**2 / 2)
            by = {"k": away**2 / 2, "g": away**3 / 6, "a": pull, "s": pull * z, "q": pull * z**2}
            total = total + of_run(np.stack([by[key] for key in names], axis=1)[:, None], own_level)
        return total

    gradient = np.repeat([[float(key == "a") for key in names]], DRAWS, axis=0)
    precision = np.diag([RATES[key][1] ** -2.0 for key in names])
    return Scenario(
        name, precision, gradient, own_level, (no_runs(DRAWS, len(names)),) * len(candidates),
        np.zeros((DRAWS, *precision.shape)),
        tuple(tuple(sums(c.width, option.rates) for option in c.options) for c in candidates), False, True,
    )  # fmt: skip
