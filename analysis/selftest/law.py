"""Self-test of the law: its exponent, the next size, its floor, and the exponent over checkpoints."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from analysis.law import fit_points
from analysis.points import Point
from analysis.scrutiny import fit_clustered
from analysis.selftest.case import Case, Held
from analysis.table import Cell

A, B = 3.5e3, 0.45
NOISE = 0.1  # standard deviation of ln value between sizes, as in the paper's four points
SEEDS = 3

Random = np.random.Generator
Noise = Callable[[Random, np.ndarray], list[np.ndarray]]  # C [sizes] -> deviations of each size's seeds


def cases() -> Iterator[Case]:
    for sizes in (4, 6, 8):
        yield _case(sizes, "exponent", "", one_seed(NOISE))
        yield _case(sizes, "next size", "", one_seed(NOISE))
        yield _case(sizes, "exponent", "a floor of 4", one_seed(0.03), floor=4.0)
        yield _case(sizes, "next size", "a floor of 4", one_seed(0.03), floor=4.0)
    yield _case(6, "floor", "a floor of 4", one_seed(0.03), floor=4.0)
    yield _case(8, "exponent", "a floor of 4, hard to find", one_seed(NOISE), floor=4.0)
    yield _case(8, "next size", "a floor of 4, hard to find", one_seed(NOISE), floor=4.0)
    yield _case(4, "exponent", "a given floor of 4", one_seed(NOISE), floor=4.0, given=True)
    for asked in ("exponent", "next size"):
        yield _case(5, asked, "size effects beyond three seeds", seeds(0.05, effect=NOISE))
        yield _case(5, asked, "heavy tails (t, 3 degrees of freedom)", heavy(0.06))
        yield _case(5, asked, "unequal seeds (1 to 6)", seeds(NOISE, counts=(6, 1, 3, 1, 2, 1)))
        yield _case(5, asked, "noise that grows tenfold, three seeds", growing(0.03, 0.3))
    yield _next_after_break(6)
    yield Case("exponent over checkpoints of 4 sizes", "size effects and run effects", _checkpoints(4, 3))


def one_seed(noise: float) -> Noise:
    return lambda random, c: [random.normal(0, noise, 1) for _ in c]


def heavy(scale: float) -> Noise:
    return lambda random, c: [scale * random.standard_t(3, 1) for _ in c]


def seeds(noise: float, effect: float = 0.0, counts: Sequence[int] = ()) -> Noise:
    """Seeds that deviate by `noise` within sizes that deviate by `effect`."""

    def deviations(random: Random, c: np.ndarray) -> list[np.ndarray]:
        many = counts or [SEEDS] * len(c)
        return [random.normal(0, effect) + random.normal(0, noise, count) for _, count in zip(c, many, strict=False)]

    return deviations


def growing(smallest: float, largest: float) -> Noise:
    """Three seeds whose deviations grow from the smallest to the largest size."""

    def deviations(random: Random, c: np.ndarray) -> list[np.ndarray]:
        return [random.normal(0, std, SEEDS) for std in np.geomspace(smallest, largest, len(c))]

    return deviations


def _case(sizes: int, asked: str, planted: str, noise: Noise, floor: float = 0.0, given: bool = False) -> Case:
    compute = np.geomspace(1e4, 1e7, sizes + 1)

    def draw(random: Random) -> Held:
        values = [
            (floor + A * c**-B) * np.exp(deviations)
            for c, deviations in zip(compute, noise(random, compute), strict=True)
        ]
        points = [point_of(i, c, each) for i, (c, each) in enumerate(zip(compute, values, strict=True))]
        fit = fit_points(points[:-1], floor if given else None)
        if asked == "exponent":
            return _within(B, fit.b_low, fit.b_high)
        if asked == "floor":
            return _within(floor, fit.floor_low, fit.floor_high)
        low, high = fit.new_size([points[-1].gflops], len(points[-1].values))
        return _within(points[-1].value, float(low[0]), float(high[0]))

    return Case(f"{asked}, {sizes} sizes", planted, draw, slow=True)


def point_of(number: int, gflops: float, values: np.ndarray) -> Point:
    name = f"S{number}"
    mean = float(np.exp(np.log(values).mean()))
    return Point(Cell(name, name, 2), float(gflops), None, mean, (), tuple(values.tolist()))


def _within(truth: float, low: float | None, high: float | None) -> Held:
    inside = (low is None or low <= truth) and (high is None or truth <= high)
    return Held(inside, low is not None and high is not None and bool(np.isfinite(high)))


def _checkpoints(sizes: int, runs: int, each: int = 5) -> Callable[[Random], Held]:
    label = np.repeat(np.arange(sizes), runs * each)
    ends = np.repeat(np.geomspace(1e4, 1e6, sizes), runs)
    compute = (ends[:, None] * np.linspace(1 / each, 1, each)).ravel()

    def draw(random: Random) -> Held:
        effects = random.normal(0, NOISE, sizes)[label] + np.repeat(random.normal(0, NOISE / 2, sizes * runs), each)
        value = A * compute**-B * np.exp(effects + random.normal(0, NOISE / 2, len(compute)))
        found = fit_clustered(compute, value, label)
        return _within(B, found.b_low, found.b_high)

    return draw


def _next_after_break(sizes: int) -> Case:
    """The exponent falls to a half in the middle of the sizes, which a floor cannot follow far."""
    compute = np.geomspace(1e4, 1e7, sizes + 1)
    middle = compute[sizes // 2]
    law = A * np.where(compute < middle, compute**-B, middle**-B * (compute / middle) ** (-B / 2))

    def draw(random: Random) -> Held:
        values = law * np.exp(random.normal(0, NOISE, sizes + 1))
        points = [point_of(i, c, np.array([value])) for i, (c, value) in enumerate(zip(compute, values, strict=True))]
        low, high = fit_points(points[:-1]).new_size([points[-1].gflops], 1)
        return _within(points[-1].value, float(low[0]), float(high[0]))

    return Case(f"next size, {sizes} sizes", "a break: half the exponent from the middle on", draw, slow=True)
