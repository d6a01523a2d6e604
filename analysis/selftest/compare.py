"""Self-test of the comparison of arms: whether all intervals of a table hold the planted ratios together."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from analysis.fits.dunnett import compare_arms
from analysis.selftest.case import Case, Held
from analysis.statistics import mean_interval

NOISE = 0.15  # standard deviation of ln value between seeds; digits of 8x8 pixels have 0.11 to 0.17
QUIET = 0.03
EFFECT = -0.3  # of each arm on ln value; the reference has none

Draw = Callable[[np.random.Generator], Held]


def cases() -> Iterator[Case]:
    two, four, eight, sizes = [[3] * 2], [[3] * 4], [[3] * 8], [[3] * 3, [3] * 3]
    yield Case("mean of an arm, 4 seeds (Student t)", "", _mean(4))
    yield Case("ratio of 2 arms, 3 seeds (Student t)", "", _ratios(two))
    yield Case("ratios of 4 arms, 3 seeds (Dunnett)", "", _ratios(four))
    yield Case("ratios of 2 sizes with 3 arms, 3 seeds (Dunnett)", "", _ratios(sizes))
    yield Case("ratios of 4 arms, 2 to 5 seeds (Dunnett)", "", _ratios([[3, 5, 4, 2]], shared=False))
    yield Case("ratios of 4 arms, 1 or 4 seeds (Dunnett)", "", _ratios([[4, 4, 1, 1]], shared=False))
    for effect in (NOISE / 2, NOISE, 2 * NOISE):
        planted = f"seeds move all arms by {effect:.2g}"
        yield Case("ratio of 2 arms, 3 seeds", planted, _ratios(two, seeds=effect))
        yield Case("ratios of 4 arms, 3 seeds", planted, _ratios(four, seeds=effect))
    for arms, design, tails in (("ratio of 2", two, 3), ("ratios of 4", four, 3), ("ratios of 8", eight, 5)):
        yield Case(f"{arms} arms, 3 seeds", f"tails of t with {tails} degrees of freedom", _ratios(design, tails=tails))
    n, q = NOISE, QUIET
    for noise, words in (
        ([q, n], "one arm"),
        ([q, n, q, q], "one arm"),
        ([n, q, q, q], "the reference"),
        ([q, q, n, n], "two arms"),
    ):
        planted = f"noise {n} in {words}, {q} elsewhere"
        yield Case(f"ratios of {len(noise)} arms, 4 seeds", planted, _ratios([[4] * len(noise)], noise))
    planted = "noise 0.17 in one size, 0.11 in the other, as in digits"
    yield Case("ratios of 2 sizes with 3 arms, 3 seeds", planted, _ratios(sizes, [0.17] * 3 + [0.11] * 3))


def _mean(seeds: int) -> Draw:
    def draw(random: np.random.Generator) -> Held:
        found = mean_interval(20 * np.exp(random.normal(0, NOISE, seeds)))
        assert found.low is not None and found.high is not None
        return Held(found.low <= 20 * math.exp(NOISE**2 / 2) <= found.high)

    return draw


def _ratios(
    design: Sequence[Sequence[int]],
    noise: Sequence[float] | None = None,
    seeds: float = 0.0,
    tails: int | None = None,
    shared: bool = True,
) -> Draw:
    """Draw a table and compare its arms.

    design: for each size, the number of seeds of each of its arms. noise: of each arm. seeds: standard deviation of
    what a seed does to all arms of a size. tails: degrees of freedom of a Student t. shared: arms have the same seeds.
    """
    counts = [count for size in design for count in size]
    ends = np.cumsum([len(size) for size in design])
    families = [list(range(end - len(size), end)) for size, end in zip(design, ends, strict=True)]
    truth = [0.0 if i == family[0] else EFFECT for family in families for i in family]
    scale = noise or [NOISE] * len(counts)

    def error(random: np.random.Generator, n: int) -> np.ndarray:
        return random.normal(size=n) if tails is None else random.standard_t(tails, n) / math.sqrt(tails / (tails - 2))

    def draw(random: np.random.Generator) -> Held:
        arms = []
        for family in families:
            common = seeds * error(random, max(counts))
            for i in family:
                values = truth[i] + common[: counts[i]] + scale[i] * error(random, counts[i])
                first = 0 if shared else 10 * i
                arms.append(dict(enumerate(values.tolist(), first)))
        found = compare_arms(arms, families).differences
        return Held(
            all(one.low is not None and one.high is not None and one.low <= EFFECT <= one.high for one in found)
        )

    return draw
