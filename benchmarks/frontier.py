"""How often the intervals of `allocate` hold a planted frontier.

    python -m benchmarks.frontier --draws 300

Prints the table of docs/results.md, a row as soon as it is known. Two hours on one core.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analysis.fits.joint import Checkpoints
from analysis.fits.joint_fit import fit_joint

MOST = 1e5  # compute to which every size is trained, in units of the smallest size's cost
SPAN = 30.0  # of costs
BUDGETS = (1.0, 4.0)  # times MOST
UNIQUE, WORTH = 20_000.0, 15.0  # images of the data set and epochs that they are worth, where images lose worth


@dataclass(frozen=True)
class Planted:
    """A law, a design, and how checkpoints stray from it, as standard deviations of ln value."""

    name: str
    floor: float = 20.0
    alpha: float = 0.4
    beta: float = 0.4
    lossy: bool = False
    sizes: int = 7
    seeds: int = 2
    each: int = 7  # checkpoints of a run, each 1.5 times as far as the one before
    of_size: float = 0.08
    of_run: float = 0.1
    of_checkpoint: float = 0.04
    of_slope: float = 0.0  # of a size, for each e-fold of images
    correlated: float = 0.0  # of a checkpoint with the next one

    def design(self) -> tuple[np.ndarray, ...]:
        rows = [
            (cost, MOST / cost / 1.5**k, i, i * self.seeds + seed)
            for i, cost in enumerate(np.geomspace(1, SPAN, self.sizes))
            for seed in range(self.seeds)
            for k in range(self.each)
        ]
        cost, images, size, run = np.array(rows).T
        return cost, images, size.astype(int), run.astype(int)

    def value(self, cost: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Both terms are 100 in the middle of the design."""
        again = np.maximum(images / UNIQUE - 1, 0) if self.lossy else np.zeros_like(images)
        worth = np.where(again > 0, UNIQUE * (1 + WORTH * (1 - np.exp(-again / WORTH))), images)
        middle = math.sqrt(SPAN)
        return self.floor + 100 * (cost / middle) ** -self.alpha + 100 * (worth / (MOST / middle / 4)) ** -self.beta

    def best(self, compute: float) -> tuple[float, float]:
        """Return ln of the best cost, and ln of the least value."""
        log_costs = np.linspace(-4, math.log(SPAN) + 4, 20_001)
        values = self.value(np.exp(log_costs), compute / np.exp(log_costs))
        return float(log_costs[values.argmin()]), float(np.log(values.min()))

    def draw(self, random: np.random.Generator) -> Checkpoints:
        cost, images, size, run = self.design()
        runs = self.sizes * self.seeds
        noise = random.normal(size=(runs, self.each))
        for k in range(1, self.each):
            noise[:, k] = self.correlated * noise[:, k - 1] + math.sqrt(1 - self.correlated**2) * noise[:, k]
        middle = np.array([np.log(images[size == i]).mean() for i in range(self.sizes)])
        strays = self.of_size * random.normal(size=self.sizes)[size] + self.of_run * random.normal(size=runs)[run]
        strays += self.of_slope * random.normal(size=self.sizes)[size] * (np.log(images) - middle[size])
        logs = np.log(self.value(cost, images)) + strays + self.of_checkpoint * noise.ravel()
        return Checkpoints(cost[None], images, logs, size, run, UNIQUE if self.lossy else None)


def cases() -> Iterator[Planted]:
    equal = Planted("alpha = beta")
    laws = [
        equal,
        Planted("alpha < beta", alpha=0.3, beta=0.6),
        Planted("E = 0", floor=0.0),
        Planted("E large", floor=100.0, alpha=0.45, beta=0.5),
        Planted("images lose worth", lossy=True),
    ]
    yield from laws
    for sizes in (5, 9):
        yield replace(equal, name=f"alpha = beta, {sizes} sizes", sizes=sizes)
        yield replace(laws[3], name=f"E large, {sizes} sizes", sizes=sizes)
    yield replace(equal, name="alpha = beta, one seed", seeds=1)
    yield replace(equal, name="sizes stray in slope by .04", of_slope=0.04)
    yield replace(equal, name="checkpoints correlated by .8", correlated=0.8, of_checkpoint=0.08)


def measured(case: Planted, draws: int, random: np.random.Generator) -> dict[str, tuple[float, int]]:
    """Return, for each quantity, how often its interval held the truth, and how often it had no end."""
    truth: dict[str, float] = {"size exponent": case.beta / (case.alpha + case.beta)}
    for times in BUDGETS:
        truth[f"best size, {times:g} C"], truth[f"least value, {times:g} C"] = case.best(times * MOST)
    held, open_ended = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for _ in range(draws):
        law, _ = fit_joint(case.draw(random))
        compute = [times * MOST for times in BUDGETS]
        found = {"size exponent": law.size_exponent()[1:]}
        for name, ends in (("best size", law.cost_intervals(compute)), ("least value", law.value_intervals(compute))):
            found |= {f"{name}, {times:g} C": end for times, end in zip(BUDGETS, ends, strict=True)}
        for name, (low, high) in found.items():
            held[name] += (low is None or low <= truth[name]) and (high is None or truth[name] <= high)
            open_ended[name] += low is None or high is None
    return {name: (held[name] / draws, open_ended[name]) for name in truth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=300)
    draws = parser.parse_args().draws
    half = float(stats.norm.ppf(0.975)) * math.sqrt(0.95 * 0.05 / draws)
    low, high = 95 - 100 * half, 95 + 100 * half
    print(f"coverage of 95 % intervals, {draws} draws: one of 95 % lies within {low:.1f} to {high:.1f} %")
    for number, case in enumerate(cases()):
        found = measured(case, draws, np.random.default_rng(number))
        texts = [f"{name} {share:.1%}" + (f" ({n} open)" if n else "") for name, (share, n) in found.items()]
        print(f"{case.name}: {', '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
