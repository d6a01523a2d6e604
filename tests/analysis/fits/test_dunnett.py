"""Differences that hold together: Dunnett's distribution against scipy, and the choice of the noise against models."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS

from analysis.fits.dunnett import compare_arms, largest_t_p, largest_t_quantile, measure_noise
from analysis.selftest.case import Case
from analysis.selftest.compare import cases


def test_one_difference_has_students_distribution() -> None:
    assert largest_t_quantile(((3, 5),), 6) == pytest.approx(stats.t.ppf(0.975, 6))
    assert largest_t_p(2.5, ((3, 5),), 6) == pytest.approx(2 * stats.t.sf(2.5, 6))


def test_probabilities_are_scipys() -> None:
    """Families of unequal arms; differences from different references are uncorrelated but share the variance."""
    counts, dof = ((3, 5, 2), (1, 6), (8, 8, 1)), 7
    blocks = []
    for reference, *others in counts:
        share = [math.sqrt(n / (n + reference)) for n in others]
        blocks.append(np.outer(share, share) + np.diag([1 - s * s for s in share]))
    shape = np.zeros((5, 5))
    for block, at in zip(blocks, (0, 2, 3), strict=True):
        shape[at : at + len(block), at : at + len(block)] = block
    for t in (0.5, 2.0, 3.5):
        inside = stats.multivariate_t.cdf(
            np.full(5, t), shape=shape, df=dof, lower_limit=np.full(5, -t), maxpts=10**5, random_state=0
        )
        assert largest_t_p(t, counts, dof) == pytest.approx(1 - inside, abs=2e-4)
    assert largest_t_p(largest_t_quantile(counts, dof), counts, dof) == pytest.approx(0.05)
    alone = 2 * stats.t.sf(40, dof)
    assert alone <= largest_t_p(40.0, counts, dof) <= 5 * alone
    assert largest_t_p(math.inf, counts, dof) == 0 and largest_t_p(0.0, counts, dof) == 1


def test_the_effect_of_seeds_is_that_of_a_two_way_model() -> None:
    """Two families whose seeds differ: the model has a level for each seed of each family."""
    random = np.random.default_rng(3)
    families, seeds = [[0, 1, 2], [3, 4]], {0: (0, 1, 2), 1: (4, 5, 6, 7)}
    arms: list[dict[int, float]] = [{} for _ in range(5)]
    y, arm, block = [], [], []
    for f, family in enumerate(families):
        for i, seed in itertools.product(family, seeds[f]):
            arms[i][seed] = 0.5 * seed + float(random.normal(0, 0.1))
            y.append(arms[i][seed])
            arm.append(np.eye(5)[i])
            block.append(np.eye(8)[seed, [1, 2, 5, 6, 7]])  # of each family's seeds, all but the first
    one_way = OLS(y, np.array(arm)).fit()
    model = OLS(y, np.hstack([arm, np.array(block)])).fit()
    noise = measure_noise(arms, families)
    assert noise is not None and noise.seeds is not None and noise.by_seed
    assert noise.degrees_of_freedom == model.df_resid == 2 * 2 + 3
    assert noise.std == pytest.approx(math.sqrt(model.mse_resid))
    assert (noise.seeds.f, noise.seeds.p) == pytest.approx(model.compare_f_test(one_way)[:2])
    (first, *_) = compare_arms(arms, families).differences
    test = model.t_test(np.eye(10)[1] - np.eye(10)[0])
    assert (first.estimate, first.error) == pytest.approx((test.effect.item(), test.sd.item()))


def test_arms_without_any_spread() -> None:
    """Rounding is not noise: a difference of 0 is not evidence, and one that is equal at all seeds is certain."""
    arms = [{s: math.log(factor * (10 + s)) for s in range(3)} for factor in (1, 1, 2)]
    found = compare_arms(arms, [[0, 1, 2]])
    same, twice = found.differences
    assert (same.estimate, same.low, same.high, found.p(same), found.p_together(same)) == (0, 0, 0, 1, 1)
    assert twice.low == twice.high == pytest.approx(math.log(2)) and found.p_together(twice) == 0


def test_a_noisy_arm_with_a_partner_of_one_seed_takes_the_pooled_noise_for_that() -> None:
    arms = [{0: 0.0}, {0: 0.0, 1: 3.0, 2: -3.0}, *({0: 0.0, 1: 0.1 * i, 2: -0.1} for i in range(3))]
    found = compare_arms(arms, [[0, 1, 2, 3, 4]])
    assert found.noise is not None and list(found.noise.noisier) == [1]
    noisy = found.differences[0]
    assert noisy.error == pytest.approx(math.sqrt(9 / 3 + found.noise.std**2))
    assert [one.method for one in found.differences] == ["Welch", *["Dunnett"] * 3]


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case.interval}, {case.planted}")
def test_intervals_hold_the_planted_ratios_together(case: Case) -> None:
    random, draws = np.random.default_rng(1), 400
    held = sum(case.draw(random).truth for _ in range(draws))
    test = stats.binomtest(held, draws)
    interval = test.proportion_ci(confidence_level=0.999)
    assert interval.low <= 0.97 and interval.high >= 0.93
