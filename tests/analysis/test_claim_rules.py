"""The rules of claims on planted tables that mislead a pooled noise, or are about another kind of metric."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers.frontier import write_rows

from analysis import compare
from analysis.claims import CONFIRMED, CONTRADICTED, NOT_DECIDED, beats, correlates, falls, power_law, seeds_agree
from analysis.law import fit_laws
from analysis.reading import load_table
from analysis.table import Table

ARMS = {"exp": (10.0, 10.1, 9.9, 10.0), "linear": (10.1, 10.0, 10.2, 10.1)}
COMMON = np.array([-0.5, 0.4, -0.2, 0.3])  # of each seed, in all sizes
MNG = beats("mng.schedule", "exp", "none")


def arms(folder: Path, none: Iterable[float]) -> Table:
    rows = [
        {"trial": f"S-{arm}-{seed}", "generator_size": "S", "seed": seed, "step": 10, "flops": 1e14, "metric": "fid"}
        | {"value": value, "mng.schedule": arm}
        for arm, values in {**ARMS, "none": none}.items()
        for seed, value in enumerate(values)
    ]
    return load_table(write_rows(folder / "arms.csv", rows))


def sizes(folder: Path, value: np.ndarray, metric: str = "fid", **columns: list[float]) -> Table:
    """value [sizes, seeds]; columns: one value for each seed."""
    rows = [
        {"trial": f"t{i}-{seed}", "generator_size": f"S{i}", "seed": seed, "step": 10, "flops": 1e13 * 4**i}
        | {"g_forward_flops": 1e6 * 4**i, "metric": metric, "value": v}
        | {name: values[seed] for name, values in columns.items()}
        for i, row in enumerate(value)
        for seed, v in enumerate(row)
    ]
    return load_table(write_rows(folder / "sizes.csv", rows))


def power(b: float, seeds: int = 3, noise: float = 0.02) -> np.ndarray:
    law = 50 * 4.0 ** (-b * np.arange(6))
    return law[:, None] * np.exp(np.random.default_rng(0).normal(0, noise, (6, seeds)))


def test_a_noisy_arm_decides_by_its_own_noise(tmp_path: Path) -> None:
    """`compare` finds the same; the pooled noise would confirm the claim."""
    table = arms(tmp_path, (15.5, 9.4, 20.0, 12.0))
    found = compare.analyse(table)
    assert found.noise is not None and len(found.noise.noisier) == 1
    assert MNG(table).verdict == NOT_DECIDED
    assert MNG(arms(tmp_path, (15.5, 15.2, 15.3, 15.6))).verdict == CONFIRMED


def test_seeds_that_are_equal_to_the_last_digit_give_no_interval(tmp_path: Path) -> None:
    """They are copies, or runs that their seed does not change; they are not certain."""
    value = np.repeat(power(0.4, seeds=1, noise=0.0), 3, axis=1)
    table = sizes(tmp_path, value)
    found = compare.analyse(table)
    assert found.noise is None and {d.verdict for d in found.differences} == {"no interval"}
    assert falls(table).verdict == NOT_DECIDED and "(no interval)" in falls(table).here
    with pytest.raises(ValueError, match="no arm has two seeds that differ"):
        seeds_agree(table)


def test_what_seeds_share_is_a_part_of_their_spread(tmp_path: Path) -> None:
    """Seeds that move all sizes by .4 do not agree, however well the sizes agree about each seed."""
    apart = power(0.4, seeds=4) * np.exp(COMMON)
    table = sizes(tmp_path, apart)
    noise = compare.analyse(table).noise
    assert noise is not None and noise.by_seed and noise.std < 0.035
    found = seeds_agree(table)
    of_sizes = math.sqrt(np.log(apart).var(axis=1, ddof=1).mean())
    assert found.verdict == CONTRADICTED and found.here.startswith(f"{of_sizes:.3f} [")
    assert seeds_agree(sizes(tmp_path, power(0.4, seeds=4, noise=0.035))).verdict == CONFIRMED


def test_equal_values_decide_nothing(tmp_path: Path) -> None:
    table = sizes(tmp_path, np.full((6, 3), 50.0))
    assert {rule(table).verdict for rule in (falls, power_law, correlates)} == {NOT_DECIDED}


@pytest.mark.parametrize("rule", [falls, power_law, correlates])
def test_claims_about_a_distance_are_not_asked_of_a_score(tmp_path: Path, rule: object) -> None:
    table = sizes(tmp_path, power(-0.2), metric="inception_score")
    with pytest.raises(ValueError, match="of inception_score a higher value is better"):
        assert callable(rule) and rule(table)


def test_trials_with_other_rates_are_not_seeds_of_one_size(tmp_path: Path) -> None:
    for name in ("lr_g", "g_width"):
        with pytest.raises(ValueError, match=f"differ in more than the seed \\({name}, as"):
            fit_laws(sizes(tmp_path, power(0.4), **{name: [1.0, 2.0, 8.0]}))
    fit_laws(sizes(tmp_path, power(0.4), lr_g=[1.0, 1.0, 1.0]))
