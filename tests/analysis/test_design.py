"""design: planted laws, where the best designs are known, and what each number of a design stands for."""

import itertools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from analysis.design import Choice, Design, _Search, choose, half_widths, rounded_up, t_quantile
from analysis.design_scenarios import Candidate, Goal, Known, Option, Scenario, scenarios
from analysis.fits.information import Noise, no_runs, of_run
from analysis.fits.joint import Checkpoints

IMAGES = 1e5


def ladder(decades: float, count: int) -> list[tuple[str, float]]:
    """Sizes of one training length, their costs rising to 1."""
    return [(f"c{k}", 10 ** (decades * (k / (count - 1) - 1))) for k in range(count)]


def candidates(sizes: list[tuple[str, float]], without: str = "") -> list[Candidate]:
    return [
        Candidate(label, cost, 8, () if label == without else (Option(cost * IMAGES, IMAGES, 1000, (IMAGES,)),))
        for label, cost in sizes
    ]


def goal(name: str = "exponent", half_width: float = 0.08) -> Goal:
    return Goal(name, "largest", 1.0, IMAGES, 8, half_width)


def planted(law: Callable[[float], float], sizes: list[tuple[str, float]], spread: float = 0.05) -> Known:
    """Two runs of each size with values about a law, one checkpoint each."""
    random = np.random.default_rng(1)
    rows = [(cost, i, 2 * i + seed) for i, (_, cost) in enumerate(sizes) for seed in range(2)]
    cost, size, run = np.array(rows).T
    strays = spread * (random.normal(size=len(sizes))[size.astype(int)] + random.normal(size=len(rows)))
    logs = np.log([law(c) for c in cost]) + strays
    data = Checkpoints(
        cost[None], np.full(len(cost), IMAGES), logs, size.astype(int), run.astype(int)
    )  # fmt: skip
    return Known(data, tuple(label for label, _ in sizes))


def small_study(sizes: int, factor: float, spread: float, half_width: float) -> float:
    """Return the chance that the exponent of so many sizes, evenly apart over a factor of C, has an interval as narrow.

    spread: standard deviation of ln value of a size about a power law. By Student's t.
    """
    x = np.linspace(0, math.log(factor), sizes)
    error = spread / math.sqrt(float(((x - x.mean()) ** 2).sum()))
    degrees = sizes - 2
    return float(stats.chi2.cdf(degrees * (half_width / t_quantile(degrees) / error) ** 2, degrees))


def used(found: Design, choice: Choice | None = None) -> list[float]:
    return [cell["cost"] for cell in found.cells(choice or found.best)]


# ---------------------------------------------------------------- large sizes are worth their price


@pytest.mark.parametrize(
    "law",
    [
        None,
        lambda c: 10 + 3 * c**-0.4,
        lambda c: 10 * c**-0.1 if c > 1e-2 else 10 * 100**0.1 * (c / 1e-2) ** -0.5,
    ],
    ids=["no data", "floor", "break"],
)
def test_small_sizes_do_not_crowd_out_large_ones(law: Callable[[float], float] | None) -> None:
    """With four decades of cheap sizes below, the design still pays for the largest, at most of the budget."""
    sizes = ladder(4, 9)
    known = None if law is None else planted(law, sizes[2:6])
    found = choose(goal(), candidates(sizes), 2.5 * IMAGES, known)
    assert max(used(found)) == 1.0
    small = choose(goal(), candidates(sizes[:-3]), 2.5 * IMAGES, known)
    assert small.best.error > 1.5 * found.best.error


def test_data_reject_the_pure_law_where_there_is_a_floor() -> None:
    sizes = ladder(4, 9)
    laws = {
        row["law"]: row for row in choose(goal(), candidates(sizes), 1e5, planted(lambda c: 10 + c**-0.5, sizes)).laws
    }
    assert not laws["pure"]["kept"]
    assert laws["floor"]["kept"]
    assert laws["floor"]["parameters"]["floor"] == pytest.approx(10 / 11, abs=0.05)


def test_data_of_a_pure_law_keep_it() -> None:
    sizes = ladder(3, 8)
    found = choose(goal(), candidates(sizes), 1e5, planted(lambda c: 10 * c**-0.3, sizes))
    assert next(row for row in found.laws if row["law"] == "pure")["kept"]
    assert found.noise["sizes"] == pytest.approx(0.05, abs=0.05)


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize("name", ["exponent", "predict"])
def test_search_finds_what_trying_every_design_finds(name: str) -> None:
    sizes, budget = ladder(2, 5), 2.2 * IMAGES
    offered = candidates(sizes, without="c4" if name == "predict" else "")
    found = choose(goal(name), offered, budget)
    for row in found.by_sizes:
        same = [
            choose_exactly(offered, goal(name), chosen, seeds)
            for chosen in itertools.combinations([c.label for c in offered if c.options], row.sizes)
            for seeds in range(1, 9)
            if seeds * sum(c.options[0].price for c in offered if c.label in chosen) <= budget
        ]
        assert row.error == pytest.approx(min(same), rel=1e-6)


def choose_exactly(offered: list[Candidate], asked: Goal, chosen: tuple[str, ...], seeds: int) -> float:
    """The error of one design: that of a search which has no choice."""
    search = _Search(asked, offered, scenarios(asked, offered).scenarios, frozenset())
    return search.choice(np.array([int(c.label in chosen) for c in offered]), seeds).error


def test_a_design_costs_at_most_its_budget_and_more_budget_never_hurts() -> None:
    found = choose(goal(), candidates(ladder(2, 7)), 1.7 * IMAGES)
    assert all(row.price <= 1.7 * IMAGES * (1 + 1e-9) for row in found.by_sizes)
    errors = [error for _, error in found.curve]
    assert all(later <= before * 1.03 for before, later in itertools.pairwise(errors))


def test_a_budget_below_three_sizes_is_refused_with_what_they_cost() -> None:
    with pytest.raises(ValueError, match=r"3 sizes with one seed cost 7796\.1; give at least that"):
        choose(goal(), candidates(ladder(2, 7)), 10.0)


# ---------------------------------------------------------------- errors and half-widths


def test_power_of_the_issue() -> None:
    """Four sizes over a factor of 12 with digits' spreads, nine over 136 with seeds alone: 2 % and 77 %."""
    assert small_study(4, 12, math.hypot(0.21, 0.14 / math.sqrt(3)), 0.08) == pytest.approx(0.02, abs=0.005)
    assert small_study(9, 136, 0.14, 0.08) == pytest.approx(0.77, abs=0.01)


def test_power_is_that_of_simulated_studies() -> None:
    random, x = np.random.default_rng(0), np.linspace(0, math.log(30), 6)
    narrow = 0
    for _ in range(4000):
        fit = stats.linregress(x, -0.3 * x + random.normal(0, 0.1, 6))
        narrow += stats.t.ppf(0.975, 4) * fit.stderr <= 0.08
    assert narrow / 4000 == pytest.approx(small_study(6, 30, 0.1, 0.08), abs=0.025)


def test_error_of_a_pure_law_is_that_of_a_regression() -> None:
    """A scenario without a prior gives the standard error of a slope, and the same power as small_study."""
    x, spread = np.linspace(-math.log(12), 0, 4), 0.2
    noise = Noise(*(np.full(1, spread / math.sqrt(3)) for _ in range(3)))
    options = tuple((of_run(np.array([[[1.0, -at]]]), noise),) for at in x)
    scenario = Scenario(
        "pure", np.eye(2), np.array([[0.0, 1.0]]), noise, (no_runs(1, 2),) * 4, np.zeros((1, 2, 2)), options, False
    )
    every = np.ones((1, 4), dtype=np.intp)
    error = float(np.sqrt(scenario.squared_error(every, 1, prior=False)[0]))
    assert error == pytest.approx(spread / math.sqrt(float(((x - x.mean()) ** 2).sum())), rel=1e-6)
    _, power = half_widths(scenario, every[0], 1, 2, 0.3)
    assert power == pytest.approx(small_study(4, 12, spread, 0.3), abs=0.01)
    # The prior stands for one more observation with the precision that it says.
    held = float(scenario.squared_error(every, 1)[0])
    assert held < error**2


def test_information_is_that_of_the_whole_covariance() -> None:
    """Two runs with three checkpoints each, an effect of the size and one of each run."""
    random = np.random.default_rng(0)
    slopes = random.normal(size=(2, 3, 4))
    size, run, rest = 0.3, 0.2, 0.1
    noise = Noise(*(np.full(1, one) for one in (size, run, rest)))
    found = (of_run(slopes[:1], noise) + of_run(slopes[1:], noise)).information(noise)[0]
    blocks = np.kron(np.eye(2), np.ones((3, 3)))
    whole = size**2 * np.ones((6, 6)) + run**2 * blocks + rest**2 * np.eye(6)
    design = slopes.reshape(6, 4)
    assert found == pytest.approx(design.T @ np.linalg.inv(whole) @ design, rel=1e-9)


# ---------------------------------------------------------------- runs that are there


def test_runs_that_are_there_count_and_a_files_do_not() -> None:
    sizes = ladder(2, 6)
    known = planted(lambda c: 10 * c**-0.3, sizes)
    joined = choose(goal(), candidates(sizes), 2 * IMAGES, known)
    apart = choose(goal(), candidates(sizes), 2 * IMAGES, Known(known.data, known.labels, joined=False))
    assert joined.best.error < apart.best.error
    assert (known.to_json(goal())["runs_that_count"], joined.by_sizes[0].sizes) == (12, 1)
    assert Known(known.data, known.labels, joined=False).to_json(goal())["runs_that_count"] == 0


@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0])
def test_the_least_budget_that_is_named_is_enough(budget: float) -> None:
    """Several lengths of each size, the shortest of which cost as much as the least that a refusal names."""
    offered = [
        Candidate(
            label, cost, 8,
            tuple(Option(cost * IMAGES * 2**k, IMAGES * 2**k, 1000 * 2**k, (IMAGES, IMAGES * 2**k)) for k in range(6)),
        )
        for label, cost in ladder(2, 6)
    ]  # fmt: skip
    least = budget * rounded_up(sum(c.options[0].price for c in offered[:5]))
    assert choose(goal("allocate", 1.0), offered, least).best.price <= least * (1 + 1e-9)
    with pytest.raises(ValueError, match="too small") as error:
        choose(goal("allocate", 1.0), offered, least * 0.99 / budget)
    said = float(re.findall(r"cost ([\d.e+]+);", str(error.value))[0])
    assert choose(goal("allocate", 1.0), offered, said).best.sizes == 5


def test_local_search_is_about_as_good_as_trying_every_length() -> None:
    """Five sizes with three lengths each: 243 designs for each number of seeds."""
    offered = [
        Candidate(
            label, cost, 8,
            tuple(
                Option(cost * IMAGES * 2**k, IMAGES * 2**k, 1000 * 2**k, tuple(IMAGES * 2**j for j in range(-2, k + 1)))
                for k in range(3)
            ),
        )
        for label, cost in ladder(1.5, 5)
    ]  # fmt: skip
    asked, budget = goal("allocate", 1.0), 4 * IMAGES
    search = _Search(asked, offered, scenarios(asked, offered).scenarios, frozenset())
    every = np.array(list(itertools.product((1, 2, 3), repeat=5)), dtype=np.intp)
    prices = sum(np.array([o.price for o in c.options])[every[:, i] - 1] for i, c in enumerate(offered))
    least = min(
        float(
            np.mean([s.squared_error(every[prices * seeds <= budget], seeds) for s in search.scenarios], axis=0).min()
        )
        for seeds in range(1, 9)
        if (prices * seeds <= budget).any()
    )
    assert choose(asked, offered, budget).best.error == pytest.approx(math.sqrt(least), rel=0.02)
