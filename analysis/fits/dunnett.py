"""Differences between arms and their references, with intervals that hold all together (Dunnett 1955).

An arm is the logarithms of its values, by seed. Noise is pooled over all arms, because three seeds of an arm or a pair
say little about it. Arms need not have the same seeds. Two tests decide where the pooled noise does not apply:
- If seeds move all arms of a family together, differences are taken seed by seed (two-way analysis of variance).
- If an arm is noisier than the other arms, it is compared by its own noise (Welch's test, or a paired t test).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from analysis.statistics import CONFIDENCE

Array = NDArray[np.float64]
Arm = Mapping[int, float]  # ln value by seed
Family = Sequence[int]  # indices of arms; the reference of the others comes first
Counts = tuple[tuple[int, ...], ...]  # seeds of each family's arms, the reference's first
# Both choices look at the data before the test, which costs coverage. Simulated, for two arms of three seeds: 95.1 %
# without a choice, 93.0 % if differences were taken seed by seed from p < .05 on, 93.8 % from p < .02 on. The other
# choice is worth it: four arms of three seeds, the noise .15 in one and .03 in three, have 87 % without, 94 % with it.
BY_SEED = 0.02  # differences are taken seed by seed if the seeds' effect has a smaller p
NOISIER = 0.05  # an arm is compared by its own noise if that is larger than the others' with a smaller p
EQUAL = 1e-12  # logarithms that differ by less are equal
# Methods: with the pooled noise and with an arm's own, each without and with differences taken seed by seed.
POOLED = ("Dunnett", "Dunnett, seed by seed")
OWN = ("Welch", "paired t")
NODES = 128  # of each integral in Dunnett's distribution; 64 change p by less than 2e-5


@dataclass(frozen=True)
class FTest:
    """Ratio of two variances, its degrees of freedom, and the p of a ratio as large as that."""

    f: float
    degrees_of_freedom: tuple[float, float]
    p: float


@dataclass(frozen=True)
class PooledNoise:
    """Spread of ln value between the seeds of an arm, pooled over all arms."""

    std: float
    degrees_of_freedom: int
    by_seed: bool  # differences are taken seed by seed, and `std` is without what the arms of a seed share
    seeds: FTest | None  # of what they share; None if the arms of a family have different seeds
    noisier: Mapping[int, FTest]  # arms that are noisier than the others


@dataclass(frozen=True)
class Contrast:
    """Mean ln value of an arm less that of its reference; all but the estimate is None if no arm has two seeds."""

    arm: int
    reference: int
    estimate: float
    error: float | None = None  # standard error
    degrees_of_freedom: float | None = None
    method: str | None = None
    low: float | None = None  # of the interval: 95 % of all tables have the truth in all their intervals
    high: float | None = None

    @property
    def t(self) -> float | None:
        if self.error is None:
            return None
        return abs(self.estimate) / self.error if self.error > 0 else math.inf if self.estimate else 0.0


@dataclass(frozen=True)
class Differences:
    """A difference for each arm that is not a reference, and the noise that they are judged by."""

    noise: PooledNoise | None  # None if no arm has two seeds
    differences: tuple[Contrast, ...]
    counts: Counts

    def p(self, one: Contrast) -> float | None:
        """Return the two-sided p of a difference, were it the only one."""
        if one.t is None or one.degrees_of_freedom is None:
            return None
        return 2 * float(special.stdtr(one.degrees_of_freedom, -one.t))

    def p_together(self, one: Contrast) -> float | None:
        """Return the p adjusted for all differences: Dunnett's, or by Sidak's inequality for one by its own noise."""
        p = self.p(one)
        if p is None or one.t is None or self.noise is None:
            return None
        if one.method in POOLED:
            return largest_t_p(one.t, self.counts, self.noise.degrees_of_freedom)
        return 1 - (1 - p) ** len(self.differences)


def compare_arms(arms: Sequence[Arm], families: Sequence[Family]) -> Differences:
    """Compare each arm with the reference of its family; each arm is in one family."""
    noise = measure_noise(arms, families)
    counts = tuple(tuple(len(arms[i]) for i in family) for family in families if len(family) > 1)
    pairs = [(arm, family[0]) for family in families for arm in family[1:]]
    found = []
    for arm, reference in pairs:
        ours, theirs = arms[arm], arms[reference]
        estimate = float(_rounded(np.asarray(_values(ours).mean() - _values(theirs).mean())))
        if noise is None:
            found.append(Contrast(arm, reference, estimate))
            continue
        own = bool(noise.noisier.keys() & {arm, reference})
        error, dof = standard_error(ours, theirs, noise, own)
        if own:
            method = OWN[noise.by_seed]
            quantile = float(special.stdtrit(dof, (1 + CONFIDENCE ** (1 / len(pairs))) / 2))
        else:
            method = POOLED[noise.by_seed]
            quantile = largest_t_quantile(counts, noise.degrees_of_freedom)
        half = quantile * error
        found.append(Contrast(arm, reference, estimate, error, dof, method, estimate - half, estimate + half))
    return Differences(noise, tuple(found), counts)


def standard_error(ours: Arm, theirs: Arm, noise: PooledNoise, own: bool) -> tuple[float, float]:
    """Standard error of the difference of two arms' means, and its degrees of freedom.

    own: by the noise of these two arms, because one of them is noisier than the others.
    """
    if own:
        return _paired(ours, theirs) if noise.by_seed else _welch(ours, theirs, noise)
    return noise.std * math.sqrt(1 / len(ours) + 1 / len(theirs)), noise.degrees_of_freedom


def measure_noise(arms: Sequence[Arm], families: Sequence[Family]) -> PooledNoise | None:
    """Return the noise of arms with two seeds or more; None without any, and where all seeds have equal values.

    Equal values are copies of one row, or of runs that their seed does not change. They are not a noise of zero.
    """
    residuals = [_rounded(_values(arm) - _values(arm).mean()) for arm in arms]
    squares, dofs = np.array([r @ r for r in residuals]), np.array([len(r) - 1.0 for r in residuals])
    compared = [family for family in families if len(family) > 1]
    seeds, by_seed = None, False
    if compared and all(_replicated(arms, family) for family in compared):
        left, left_dofs, seeds = _without_seeds(arms, compared)
        if by_seed := seeds.p < BY_SEED:
            squares, dofs = left, left_dofs
    total, dof = float(squares.sum()), round(dofs.sum())
    if not dof or not any(residual.any() for residual in residuals):
        return None
    tests = {
        i: _f_test(squares[i], dofs[i], total - squares[i], dof - dofs[i])
        for i in range(len(arms))
        if 0 < dofs[i] < dof
    }
    # A noisy arm stays in the pool: to leave it out after such a test makes the other intervals too narrow.
    noisier = {i: test for i, test in tests.items() if test.p < NOISIER}
    return PooledNoise(math.sqrt(total / dof), dof, by_seed, seeds, noisier)


def _replicated(arms: Sequence[Arm], family: Family) -> bool:
    """Whether all arms of a family have the same seeds, two or more."""
    seeds = arms[family[0]].keys()
    return len(seeds) > 1 and all(arms[i].keys() == seeds for i in family)


def _without_seeds(arms: Sequence[Arm], families: Sequence[Family]) -> tuple[Array, Array, FTest]:
    """Remove each seed's effect on its family; return squares and degrees of freedom left [arms], and its test."""
    left, dofs = np.zeros(len(arms)), np.zeros(len(arms))
    shared = shared_dof = 0.0
    for family in families:
        table = np.array([[arms[i][seed] for seed in arms[family[0]]] for i in family])  # [arms, seeds]
        table -= table.mean(axis=1, keepdims=True)
        effect = _rounded(table.mean(axis=0))
        left[family] = (_rounded(table - effect) ** 2).sum(axis=1)
        dofs[family] = (len(effect) - 1) * (1 - 1 / len(family))
        shared, shared_dof = shared + len(family) * float(effect @ effect), shared_dof + len(effect) - 1
    return left, dofs, _f_test(shared, shared_dof, float(left.sum()), round(dofs.sum()))


def _f_test(above: float, above_dof: float, below: float, below_dof: float) -> FTest:
    """Test sums of squares; 0 / 0, without any spread, is not evidence of a difference."""
    f = above / above_dof / (below / below_dof) if below > 0 else math.inf if above > 0 else 0.0
    return FTest(float(f), (above_dof, below_dof), float(special.fdtrc(above_dof, below_dof, f)))


def _welch(ours: Arm, theirs: Arm, noise: PooledNoise) -> tuple[float, float]:
    """Standard error and degrees of freedom from the noise of both arms; an arm with one seed has the pooled noise."""
    parts, dofs = [], []
    for arm in (ours, theirs):
        variance = _values(arm).var(ddof=1) if len(arm) > 1 else noise.std**2
        parts.append(float(variance) / len(arm))
        dofs.append(len(arm) - 1 or noise.degrees_of_freedom)
    return math.sqrt(sum(parts)), sum(parts) ** 2 / sum(part**2 / dof for part, dof in zip(parts, dofs, strict=True))


def _paired(ours: Arm, theirs: Arm) -> tuple[float, float]:
    differences = np.array([ours[seed] - theirs[seed] for seed in ours])
    return float(_rounded(differences.std(ddof=1))) / math.sqrt(len(ours)), len(ours) - 1


def _values(arm: Arm) -> Array:
    return np.array(list(arm.values()))


def _rounded(logs: Array) -> Array:
    return np.where(np.abs(logs) < EQUAL, 0.0, logs)


# ---------------------------------------------------------------- Dunnett's distribution


def largest_t_p(t: float, counts: Counts, dof: int) -> float:
    """Return the probability that the largest |t| of all differences exceeds t, if no arm differs from its reference.

    dof: degrees of freedom of the variance that all differences share. Given that variance and the mean of a reference,
    the arms of a family are independent (Dunnett 1955), so two integrals are enough for any number of arms. (scipy's
    multivariate t integrates over every arm, by random numbers: 5 s for 80 of them.)
    """
    z, weight = np.polynomial.hermite_e.hermegauss(NODES)
    u, share = np.polynomial.legendre.leggauss(NODES)
    ratio = np.sqrt(stats.chi2.ppf((1 + u) / 2, dof) / dof)  # of the estimated standard deviation to the true one
    inside = np.ones(NODES)
    for reference, *others in counts:
        family = np.ones((NODES, NODES))  # [ratio, mean of the reference]
        for seeds, arms in Counter(others).items():
            common = seeds / (seeds + reference)  # of a difference's variance, due to the reference
            shift, width = math.sqrt(common) * z, math.sqrt(1 - common)
            edge = t * ratio[:, None]
            family *= (special.ndtr((edge - shift) / width) - special.ndtr((-edge - shift) / width)) ** arms
        inside *= family @ weight / math.sqrt(2 * math.pi)
    alone = float(2 * stats.t.sf(t, dof))
    # Rounding aside, it lies between the p of one difference and Bonferroni's.
    return float(np.clip(1 - inside @ share / 2, alone, min(1.0, _differences(counts) * alone)))


@lru_cache(maxsize=256)
def largest_t_quantile(counts: Counts, dof: int) -> float:
    """Return the t that the largest |t| exceeds with probability 1 - CONFIDENCE; arguments as in largest_t_p."""
    low, high = (float(stats.t.isf((1 - CONFIDENCE) / 2 / n, dof)) for n in (1, _differences(counts)))
    if low == high:
        return low
    return float(optimize.brentq(lambda t: largest_t_p(t, counts, dof) - (1 - CONFIDENCE), low, high))


def _differences(counts: Counts) -> int:
    return sum(len(family) - 1 for family in counts)
