"""Which runs to train for a goal, before a GPU hour is spent: the sizes, lengths and seeds with the smallest error.

The error of a goal is its expected squared error, averaged over the laws that the data do not reject and over draws of
their parameters and of the noise (Bayesian optimal design: Chaloner and Verdinelli 1995). Each law is taken as linear
about a draw. Under a floor or a break small sizes say nothing of large ones, so cheap sizes alone never win.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.design_scenarios import Candidate, Goal, Known, Scenario, scenarios
from analysis.fits.descent import Array, Index
from analysis.statistics import CONFIDENCE
from analysis.table import UNIT, strict_json

LEAST = {"exponent": 3, "predict": 3, "allocate": 5, "rates": 3}  # sizes that the analysis of a goal needs
LOST = {"exponent": 2, "predict": 2, "allocate": 1}  # degrees of freedom: sizes less these
HALF_WIDTH = {"exponent": 0.08, "predict": math.log(1.5), "allocate": math.log(2), "rates": math.log(2)}
SEEDS = 8  # the most seeds that are tried
FEW = 10  # sizes up to which every choice of them is tried, if they train for one length
NEAR = 3  # numbers of sizes that are searched at other budgets: about that of the best design
BEGINS = 3  # designs from which the search goes on
TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)  # budgets of the curve, in units of the one that was asked
AS_GOOD = 1.02  # times the least score: designs that are about as good
UNBOUNDED = 50.0  # a half-width above it means that the runs do not tell the goal
CHANCES = np.linspace(0.005, 0.995, 100)  # quantiles of a variance estimated from few sizes
CONVENTIONS = (
    "The error is the root of the expected squared error: of an exponent as it is, of a value, a size or a rate as a "
    "natural logarithm. The exponent is -d ln value / d ln c at the size and length of the goal. A half-width is that "
    "of a 95 % interval by Student's t with sizes less 2 (a law of sizes) or less 1 (a frontier) degrees of freedom, "
    "under the simplest law that the data do not reject; fit-law also allows for a floor, so its intervals are wider."
)


@dataclass(frozen=True)
class Choice:
    """A design: the option of each candidate size, 0 where it is not trained, and what it is worth."""

    options: tuple[int, ...]
    seeds: int
    price: float
    error: float  # root of the expected squared error, over all laws
    errors: dict[str, float]  # by law
    degrees: int  # of freedom of the goal's interval
    half_width: float  # the median; infinite if it has none
    power: float  # share of studies with a half-width at most that asked

    @property
    def sizes(self) -> int:
        return sum(option > 0 for option in self.options)

    @property
    def score(self) -> float:
        """The error, in units of a normal interval's half-width: few sizes have a wide interval for the same error."""
        return self.error * t_quantile(self.degrees) / float(stats.norm.ppf((1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Design:
    """The best design for a goal and a budget, and those that it was chosen from."""

    goal: Goal
    candidates: tuple[Candidate, ...]
    budget: float
    best: Choice
    by_sizes: tuple[Choice, ...]  # the best one with each number of sizes
    plain: Choice | None  # all sizes alike, as the sweep file that ships has them; None if the budget is too small
    curve: tuple[tuple[float, float], ...]  # budgets, and the error of the best design there
    laws: tuple[dict[str, Any], ...]  # those averaged over, and those rejected
    noise: dict[str, Any]
    known: Known | None  # what is there already
    before: float | None  # the error with the runs that are there alone; None without any that count

    def cells(self, choice: Choice) -> list[dict[str, Any]]:
        """Return the runs of a design, one row per size."""
        return [
            {
                "size": candidate.label, "width": candidate.width, "cost": candidate.cost,
                **candidate.options[option - 1].to_json(), "seeds": choice.seeds,
                "price": candidate.options[option - 1].price * choice.seeds,
            }
            for candidate, option in zip(self.candidates, choice.options, strict=True)
            if option
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return strictly valid JSON: what is not finite is null."""

        def row(choice: Choice | None) -> dict[str, Any] | None:
            if choice is None:
                return None
            return {
                "sizes": choice.sizes, "seeds": choice.seeds, "price": choice.price, "error": choice.error,
                "errors": choice.errors, "half_width": choice.half_width, "power": choice.power,
                "cells": self.cells(choice),
            }  # fmt: skip

        return strict_json(
            {
                "goal": self.goal.to_json(),
                "unit": UNIT,
                "conventions": CONVENTIONS,
                "budget": self.budget,
                "asked_half_width": self.goal.half_width,
                "most_seeds": SEEDS,
                "best": row(self.best),
                "by_sizes": [row(choice) for choice in self.by_sizes],
                "plain": row(self.plain),
                "curve": [{"budget": budget, "error": error} for budget, error in self.curve],
                "laws": list(self.laws),
                "noise": self.noise,
                "before": self.before,
                "known": self.known and self.known.to_json(self.goal),
            }
        )


def choose(
    goal: Goal,
    candidates: Sequence[Candidate],
    budget: float,
    known: Known | None = None,
    searched: Callable[[int, int], None] = lambda done, total: None,
) -> Design:
    """Find the design with the smallest error at a goal for a budget, in the unit of the options' prices.

    known: what data say already; default: nothing. searched: gets how many searches are done, of how many.
    Raises ValueError, in one line, if the budget does not pay for the fewest sizes with one seed.
    """
    found = scenarios(goal, candidates, known)
    trained = {i for i, c in enumerate(candidates) if known is not None and known.counts(goal, c.label)}
    search = _Search(goal, candidates, found.scenarios, frozenset(trained))
    counts, by_sizes = search.counts(), list[Choice]()
    total = len(counts) + NEAR * (len(TIMES) - 1)
    for done, count in enumerate(counts):
        by_sizes += [choice] if (choice := search.best(budget, count)) is not None else []
        searched(done + 1, total)
    if not by_sizes:
        raise ValueError(
            f"the budget of {budget:.5g} is too small: {LEAST[goal.name]} sizes with one seed cost "
            f"{rounded_up(search.cheapest()):.5g}; give at least that"
        )
    best = _simplest(by_sizes)
    nothing = np.zeros((1, len(candidates)), dtype=np.intp)
    before = float(np.sqrt(np.mean([s.squared_error(nothing, 1)[0] for s in found.scenarios]))) if trained else None
    near = [count for count in counts if abs(count - best.sizes) <= NEAR // 2]
    curve = []
    for number, times in enumerate(TIMES):
        there = [best] if times == 1 else [c for count in near if (c := search.best(times * budget, count))]
        curve += [(times * budget, _simplest(there).error)] if there else []
        searched(min(len(counts) + NEAR * (number + 1), total), total)
    return Design(
        goal, tuple(candidates), budget, best, tuple(by_sizes), search.plain(budget), tuple(curve), found.laws,
        found.noise, known, before,
    )  # fmt: skip


def _simplest(choices: Sequence[Choice]) -> Choice:
    """Return the design with the fewest sizes, which come first, among those that are about as good as the best."""
    least = min(choice.score for choice in choices)
    return next(choice for choice in choices if choice.score <= AS_GOOD * least)


@dataclass(frozen=True)
class _Search:
    """Designs of one problem, as rows of option numbers [q, sizes] for a number of seeds."""

    goal: Goal
    candidates: Sequence[Candidate]
    scenarios: Sequence[Scenario]
    trained: frozenset[int]  # candidates of which there are runs already

    @property
    def prices(self) -> list[Array]:
        """Price of a run by option of each size; 0 for none."""
        return [np.array([0.0, *(option.price for option in c.options)]) for c in self.candidates]

    def counts(self) -> range:
        """Numbers of sizes to train anew."""
        most = sum(bool(c.options) for c in self.candidates)
        return range(max(1, LEAST[self.goal.name] - len(self.trained)), most + 1)

    def cheapest(self) -> float:
        prices = sorted(min(option.price for option in c.options) for c in self.candidates if c.options)
        return sum(prices[: self.counts().start])

    def best(self, budget: float, count: int) -> Choice | None:
        """Return the best design with `count` sizes; None if the budget does not pay for one."""
        found = []
        for seeds in range(1, SEEDS + 1):
            designs = self._begin(budget / seeds, count)
            if not len(designs):
                break
            error = self._error(seeds)
            designs = designs[np.argsort(error(designs), kind="stable")[:BEGINS]]
            found += [(*self._improved(design, budget / seeds, error), seeds) for design in designs]
        if not found:
            return None
        _, design, seeds = min(found, key=lambda one: one[0])
        return self.choice(design, seeds)

    def plain(self, budget: float) -> Choice | None:
        """Return the best design whose sizes are all trained alike: for as long, or for the same compute."""
        found = []
        for seeds in range(1, SEEDS + 1):
            design = self._equal([i for i, c in enumerate(self.candidates) if c.options], budget / seeds)
            if design is not None:
                found.append(self.choice(design, seeds))
        return min(found, key=lambda choice: choice.error, default=None)

    def choice(self, design: Index, seeds: int) -> Choice:
        price = seeds * sum(float(p[option]) for p, option in zip(self.prices, design, strict=True))
        errors = {s.law: float(np.sqrt(s.squared_error(design[None], seeds)[0])) for s in self.scenarios}
        error = math.sqrt(sum(e**2 for e in errors.values()) / len(errors))
        used = {i for i, option in enumerate(design) if option} | self.trained
        degrees = self._degrees(design, seeds, used)
        median, power = half_widths(self.scenarios[0], design, seeds, degrees, self.goal.half_width)
        return Choice(tuple(int(option) for option in design), seeds, price, error, errors, degrees, median, power)

    def _degrees(self, design: Index, seeds: int, used: set[int]) -> int:
        if self.goal.name in LOST:
            return len(used) - LOST[self.goal.name]
        trials = sum(self.candidates[i].options[o - 1].trials for i, o in enumerate(design) if o) * seeds
        return trials - self.scenarios[0].unknown(design)

    def _error(self, seeds: int) -> Callable[[Index], Array]:
        def error(designs: Index) -> Array:
            return np.mean([s.squared_error(designs, seeds) for s in self.scenarios], axis=0)

        return error

    def _begin(self, limit: float, count: int) -> Index:
        """Return designs [q, sizes] of `count` sizes within a price for one seed, to start from."""
        sizes = len(self.candidates)
        every = all(len(c.options) <= 1 for c in self.candidates) and sizes <= FEW
        chosen = itertools.combinations(range(sizes), count) if every else _spread(sizes, count)
        equal = [self._equal(which, limit) for which in chosen]
        return np.array([d for d in equal if d is not None], dtype=np.intp).reshape(-1, len(self.candidates))

    def _equal(self, chosen: Sequence[int], limit: float) -> Index | None:
        """Return the design in which each chosen size has the dearest option within an equal part of a price."""
        design, left = np.zeros(len(self.candidates), dtype=np.intp), limit
        rest = sorted((i for i in chosen if self.candidates[i].options), key=lambda i: self.prices[i][1:].min())
        if len(rest) < len(chosen):
            return None
        least = [self.prices[i][1:].min() for i in rest]
        if sum(least) > limit * (1 + 1e-9):
            return None
        # The cheapest first, so that what it does not need goes to the others; each leaves them their least.
        for k, i in enumerate(rest):
            prices = self.prices[i][1:]
            most = max(min(left / (len(rest) - k), left - sum(least[k + 1 :])), least[k]) * (1 + 1e-9)
            design[i] = 1 + np.where(prices <= most, prices, -1.0).argmax()
            left -= prices[design[i] - 1]
        return design

    def _improved(self, design: Index, limit: float, error: Callable[[Index], Array]) -> tuple[float, Index]:
        """Change one size, or two against each other, as long as that makes the error smaller."""
        least = float(error(design[None])[0])
        while True:
            near = np.array([*self._neighbours(design, limit)], dtype=np.intp)
            if not len(near):
                return least, design
            errors = error(near)
            i = int(errors.argmin())
            if errors[i] >= least * (1 - 1e-9):
                return least, design
            least, design = float(errors[i]), near[i]

    def _neighbours(self, design: Index, limit: float) -> Iterator[Index]:
        """Yield designs with as many sizes: one or two options changed, or a size in place of another."""
        prices = self.prices
        spent = sum(float(p[o]) for p, o in zip(prices, design, strict=True))
        for i in range(len(design)):
            for j in range(len(design)):
                moves = design[i] and not design[j]  # from size i to size j
                for option in range(1, len(prices[i])) if design[i] and design[j] else ():
                    new = design.copy()
                    new[i] = option
                    left = limit - (spent - prices[i][design[i]] + prices[i][option])
                    if i != j:
                        left += prices[j][design[j]]
                        fits = np.flatnonzero((prices[j] <= left * (1 + 1e-9)) & (prices[j] > 0))
                        if not len(fits):
                            continue
                        new[j] = fits[prices[j][fits].argmax()]
                    elif left < -1e-9 * limit:
                        continue
                    yield new
                if moves:
                    left = limit - spent + prices[i][design[i]]
                    for option in np.flatnonzero((prices[j] <= left * (1 + 1e-9)) & (prices[j] > 0)).tolist():
                        new = design.copy()
                        new[i], new[j] = 0, option
                        yield new


def _spread(sizes: int, count: int) -> Iterator[Sequence[int]]:
    """Yield choices of `count` sizes that are next to each other or about evenly apart."""
    for first in range(sizes):
        for last in range(first + count - 1, sizes if count > 1 else first + 1):
            yield np.linspace(first, last, count).round().astype(int).tolist()


def t_quantile(degrees: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) if degrees > 0 else math.inf


def half_widths(scenario: Scenario, design: Index, seeds: int, degrees: int, asked: float) -> tuple[float, float]:
    """Return the median half-width of the goal's interval, and the chance that it is at most the one asked."""
    if degrees < 1:
        return math.inf, 0.0
    error = np.sqrt(scenario.squared_error(design[None], seeds, prior=False, each=True)[0])  # [m]
    ratio = np.sqrt(stats.chi2.ppf(CHANCES, degrees) / degrees)  # of the estimated standard deviation to the true one
    widths = t_quantile(degrees) * error[:, None] * ratio
    median = float(np.median(widths))
    return (median if median < UNBOUNDED else math.inf), float((widths <= asked).mean())


def rounded_up(value: float) -> float:
    """Return a value with five digits, not below the given one."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 4)
    return math.ceil(value / unit - 1e-9) * unit
