"""The joint law of size and length: planted laws, its optimum against a search, intervals against their definition."""

import numpy as np
import pytest
from scipy import optimize

from analysis.fits.joint import Checkpoints, JointLaw
from analysis.fits.joint_fit import fit_joint
from analysis.fits.reml import covariance, effects_of

COSTS = np.geomspace(1, 40, 7)
MOST = 1e5  # compute to which every size is trained


def designed(costs: np.ndarray = COSTS, seeds: int = 2, each: int = 7) -> tuple[np.ndarray, ...]:
    """Costs, images, size and run of checkpoints even in log images."""
    rows = [
        (cost, MOST / cost / 1.6**k, i, i * seeds + seed)
        for i, cost in enumerate(costs)
        for seed in range(seeds)
        for k in range(each)
    ]
    cost, images, size, run = np.array(rows).T
    return cost, images, size.astype(int), run.astype(int)


def planted(
    floor: float = 20,
    alpha: float = 0.4,
    beta: float = 0.5,
    noise: tuple[float, float, float] = (0, 0, 0),
    seed: int = 0,
) -> Checkpoints:
    """Checkpoints on a law; noise: standard deviations of sizes, of runs, and of checkpoints."""
    cost, images, size, run = designed()
    random = np.random.default_rng(seed)
    value = floor + 200 * cost**-alpha + 3e3 * images**-beta
    strays = random.normal(0, noise[0], 7)[size] + random.normal(0, noise[1], 14)[run]
    return Checkpoints(cost[None], images, np.log(value) + strays + random.normal(0, noise[2], len(value)), size, run)


def test_a_law_without_noise_is_found() -> None:
    law, kept = fit_joint(planted())
    found = law.coefficients()
    assert kept.all() and law.converged and law.agreeing >= 3
    assert [found[k] for k in ("floor", "a", "alpha", "b", "beta")] == pytest.approx([20, 200, 0.4, 3e3, 0.5], rel=1e-4)
    assert law.size_exponent()[0] == pytest.approx(0.5 / 0.9, rel=1e-4)


def test_the_optimum_is_the_closed_form_of_hoffmann() -> None:
    law, _ = fit_joint(planted())
    compute = np.array([1e3, 1e5, 1e7])
    # Eq. 4 of Hoffmann et al. (2022) with 6 N D = c D.
    closed = (0.4 * 200 / (0.5 * 3e3)) ** (1 / 0.9) * compute ** (0.5 / 0.9)
    assert law.optimum(compute)[0] == pytest.approx(closed, rel=1e-3)


def lossy(worth: float = 15.0) -> Checkpoints:
    """A law in which images of a data set of 2,000 are seen up to 50 times, and lose worth."""
    cost, images, size, run = designed()
    unique = 2_000.0
    again = np.maximum(images / unique - 1, 0)
    effective = np.where(again > 0, unique * (1 + worth * (1 - np.exp(-again / worth))), images)
    value = 5 + 200 * cost**-0.4 + 3e3 * effective**-0.5
    return Checkpoints(cost[None], images, np.log(value), size, run, unique)


def test_the_worth_of_images_seen_again_is_found_and_makes_the_best_size_larger() -> None:
    law, _ = fit_joint(lossy())
    assert law.repeats and law.coefficients()["epochs_worth"] == pytest.approx(15, rel=0.01)
    compute = 3e6
    (cost,) = law.optimum([compute])[0]
    closed = (0.4 * 200 / (0.5 * 3e3)) ** (1 / 0.9) * compute ** (0.5 / 0.9)
    assert cost > 1.2 * closed

    def value(log_cost: float) -> float:
        return float(law.predict([[np.exp(log_cost)]], [compute / np.exp(log_cost)])[0])

    searched = optimize.minimize_scalar(value, bounds=(-3, 8), method="bounded", options={"xatol": 1e-9})
    assert np.log(cost) == pytest.approx(searched.x, abs=1e-4)


def grid() -> JointLaw:
    rows = [
        (g, d, MOST / 1.6**k / (g + d), i)
        for i, (g, d) in enumerate((g, d) for g in (1, 3, 9) for d in (4, 12, 36))
        for k in range(4)
    ]
    g, d, images, size = np.array(rows).T
    value = 10 + 100 * g**-0.6 + 300 * d**-0.4 + 3e3 * images**-0.5
    label = size.astype(int)
    return fit_joint(Checkpoints(np.stack([g, d]), images, np.log(value), label, label))[0]


def test_two_networks_have_a_best_split_that_a_search_finds_too() -> None:
    law = grid()
    found = law.coefficients()
    assert [found[k] for k in ("alpha1", "alpha2", "beta")] == pytest.approx([0.6, 0.4, 0.5], rel=1e-3)
    g, d = law.optimum([1e5])[:, 0]

    def value(logs: np.ndarray) -> float:
        costs = np.exp(logs)
        return float(law.predict(costs[:, None], [1e5 / costs.sum()])[0])

    searched = optimize.minimize(value, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    assert np.log([g, d]) == pytest.approx(searched.x, abs=1e-4)


@pytest.mark.parametrize("networks", [1, 2])
def test_derivatives_of_the_optimum_are_those_of_the_optimum(networks: int) -> None:
    law = grid() if networks == 2 else fit_joint(lossy())[0]
    p, log_compute = law.parameters[None], np.log([3e4])
    moves = law._optimum_moves(p, law._optimum(p, log_compute), log_compute)
    for i in range(p.shape[1]):
        if law.bounds[1][i] == law.bounds[0][i]:
            continue
        step = 1e-4 * max(abs(p[0, i]), 1e-2) * np.eye(p.shape[1])[[i]]
        difference = (law._optimum(p + step, log_compute) - law._optimum(p - step, log_compute)) / (2 * step[0, i])
        assert moves[:, 0, i] == pytest.approx(difference[:, 0], rel=2e-3, abs=1e-6)


def test_the_end_of_an_interval_is_where_no_law_fits_well_enough() -> None:
    """By another optimiser: with the least value at a compute held at an end, the best residual sum is the limit."""
    law, _ = fit_joint(planted(noise=(0.03, 0.05, 0.03)))
    log_compute = np.log([3e5])
    ((low, high),) = law.value_intervals([3e5])
    assert low is not None and high is not None

    def errors(free: np.ndarray, end: float) -> np.ndarray:
        p = np.append(free, 0.0)[None]  # no image loses worth here
        v = law._optimum(p, log_compute)
        best = law._curve(p, v[:, :, None], (log_compute - v[0])[:, None])[0][0, 0]
        return np.append(law.errors(p)[0][0], 1e3 * (np.log(best) - end))

    (floor, ceiling), start = law.bounds, law.parameters[:-1]
    sums = []
    for end in (low, high):
        fits = [
            optimize.least_squares(
                errors, np.clip(start * by, 1e-3, None), bounds=(floor[:-1], ceiling[:-1]), args=(end,)
            )
            for by in (0.9, 1.0, 1.1)
        ]
        sums.append(2 * min(fit.cost for fit in fits))
    assert sums[0] == pytest.approx(sums[1], rel=0.01)
    assert min(sums) > 0.99 * (law.rss + law.quantile**2)  # more where sizes vary more than the law says


def test_a_checkpoint_far_from_the_law_is_left_out() -> None:
    data = planted(noise=(0.02, 0.02, 0.02))
    data.log_value[10] += 1.0
    law, kept = fit_joint(data)
    assert np.flatnonzero(~kept).tolist() == [10]
    assert law.coefficients()["beta"] == pytest.approx(0.5, abs=0.15)


def test_effects_of_sizes_and_runs_are_estimated() -> None:
    found = np.array([fit_joint(planted(noise=(0.1, 0.05, 0.02), seed=seed))[0].effects for seed in range(12)])
    assert np.sqrt((found**2).mean(axis=0)) == pytest.approx([0.1, 0.05], rel=0.4)


def test_reml_equals_the_analysis_of_variance_of_a_balanced_design() -> None:
    """Where the between-group mean square is larger than that within, both estimates are the same (Searle 1992)."""
    random, groups, each = np.random.default_rng(0), 30, 4
    label = np.repeat(np.arange(groups), each)
    y = random.normal(0, 0.3, groups)[label] + random.normal(0, 0.1, groups * each)
    (effect,), rest = effects_of(y, np.ones((len(y), 1)), [label])
    means = y.reshape(groups, each).mean(axis=1)
    within = float(((y - means[label]) ** 2).sum()) / (groups * (each - 1))
    between = each * float(((means - means.mean()) ** 2).sum()) / (groups - 1)
    assert rest == pytest.approx(np.sqrt(within), rel=0.01)
    assert effect == pytest.approx(np.sqrt((between - within) / each), rel=0.01)
    assert covariance(2, [2.0], [np.array([0, 0])], 1.0).tolist() == [[5.0, 4.0], [4.0, 5.0]]


def test_too_few_checkpoints_are_refused() -> None:
    data = planted()
    with pytest.raises(ValueError, match="7 checkpoints"):
        fit_joint(data.some(np.arange(len(data.images)) < 6))
