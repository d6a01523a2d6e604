"""Laws of a design: their optimum, derivatives, limits and fits."""

import numpy as np
import pytest

from analysis.fits.joint import Checkpoints
from analysis.fits.planned_laws import (
    ALPHA,
    BEND,
    BETA,
    FLOOR,
    JOINT,
    KNEE,
    NONE,
    OF_FRONTIERS,
    OF_SIZES,
    SHARE,
    Prior,
    fit_all,
    kept,
)

BREAK = OF_SIZES[3]


def laws(**values: float) -> np.ndarray:
    p = NONE[None].copy()
    for name, value in values.items():
        p[0, ["level", "alpha", "beta", "floor", "share", "bend", "knee"].index(name)] = value
    return p


def test_best_cost_of_the_joint_law_is_its_closed_form() -> None:
    """alpha share e^(-alpha u) = beta (1 - share) e^(beta u), whatever the floor is."""
    random = np.random.default_rng(0)
    p = np.repeat(NONE[None], 20, axis=0)
    p[:, ALPHA], p[:, BETA] = random.uniform(0.2, 1, (2, 20))
    p[:, SHARE], p[:, FLOOR] = random.uniform(0.2, 0.8, 20), random.uniform(0, 0.9, 20)
    wanted = np.log(p[:, ALPHA] * p[:, SHARE] / (p[:, BETA] * (1 - p[:, SHARE]))) / (p[:, ALPHA] + p[:, BETA])
    assert JOINT.log_best_cost(p) == pytest.approx(wanted, abs=1e-6)


def test_best_cost_with_a_break_is_the_least_value_on_a_fine_grid() -> None:
    p = laws(alpha=0.2, beta=0.5, share=0.6, bend=0.5, knee=-1.0)
    u = np.linspace(-5, 5, 200_001)
    values = OF_FRONTIERS[2].log_values(p, u, -u)[0]
    assert OF_FRONTIERS[2].log_best_cost(p)[0] == pytest.approx(u[values.argmin()], abs=1e-3)


def test_break_has_its_exponents_on_either_side() -> None:
    p = laws(alpha=0.2, bend=0.3, knee=-3.0)
    u = np.array([-9.0, -8.0, -1.0, 0.0])
    low, lower, high, higher = BREAK.log_values(p, u, np.zeros(4))[0]
    assert (low - lower, high - higher) == pytest.approx((0.5, 0.2), abs=1e-3)
    assert BREAK.exponent(p)[0] == pytest.approx(0.2, abs=1e-4)


def test_exponent_with_a_floor_is_the_share_that_falls() -> None:
    assert OF_SIZES[1].exponent(laws(alpha=0.4, floor=0.75))[0] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_fits_find_planted_parameters_and_reject_simpler_laws(seed: int) -> None:
    """Six sizes, four lengths, two seeds about a joint law with a floor."""
    random = np.random.default_rng(seed)
    u, w = (a.ravel() for a in np.meshgrid(np.linspace(-4, 0, 6), np.linspace(-3, 0, 4), indexing="ij"))
    size, one = np.repeat(np.arange(6), 4), np.zeros(24, dtype=int)
    u, w, size, run = np.tile(u, 2), np.tile(w, 2), np.tile(size, 2), np.concatenate([one, one + 6]) + np.tile(size, 2)
    p = laws(level=3.0, alpha=0.5, beta=0.5, floor=0.2, share=0.5)
    logs = OF_SIZES[2].log_values(p, u, w)[0] + random.normal(0, 0.01, 48) + random.normal(0, 0.02, 12)[run]
    data = Checkpoints(np.exp(u)[None], np.exp(w), logs, size, run)
    fits, spread = fit_all(OF_SIZES, Prior.of(u, 3.0), data, (u, w), random)
    assert kept(fits).tolist() == [False, False, True, False]
    assert fits[2].parameters[[ALPHA, BETA]] == pytest.approx([0.5, 0.5], abs=0.12)
    assert spread.run == pytest.approx(0.02, abs=0.012)
    assert spread.checkpoint == pytest.approx(0.01, abs=0.005)


def test_prior_keeps_the_knee_within_the_sizes() -> None:
    u = np.linspace(-4, 0, 5)
    drawn = Prior.of(u).around(BREAK, Prior.of(u).mean, Prior.of(u).covariance(BREAK), 200, np.random.default_rng(0))
    assert drawn[:, KNEE].min() >= -4
    assert drawn[:, KNEE].max() <= 0
    assert drawn[:, BEND].std() > 0.2
    assert (drawn[:, FLOOR] == 0).all()
