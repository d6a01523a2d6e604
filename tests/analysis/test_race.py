"""Decisions of a race: against Tukey's test, wrong drops over planted nulls, compute saved, and what survivors' values say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from analysis import race_bias
from analysis.race import ALPHA, Group, Race, decide, dropped, look_steps, read_race, spent
from analysis.race_bias import adjust
from analysis.table import Protocol

FID = Protocol("fid", 50_000, "r", "p")
AT = np.array([1 / 8, 1 / 4, 1 / 2, 1.0])  # of the steps: the looks, and the end


@dataclass(frozen=True)
class Planted:
    """Arms whose noise is correlated over the looks."""

    means: Sequence[float]  # of ln value, by arm
    seeds: int = 3
    noise: float = 0.1
    correlation: float = 0.7  # from one look to the next
    shared: float = 0.0  # standard deviation of what a seed does to all arms
    tails: int | None = None  # degrees of freedom of Student's t
    noisier: float = 1.0  # factor on the noise of the first arm
    growth: float = 1.0  # of the noise from one look to the next

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """ln value [looks and the end, arms, seeds]."""

        def errors(*shape: int) -> np.ndarray:
            if self.tails is None:
                return random.normal(size=shape)
            return random.standard_t(self.tails, shape) / math.sqrt(self.tails / (self.tails - 2))

        arms = len(self.means)
        found = errors(4, arms, self.seeds)
        for i in range(1, 4):
            found[i] = self.correlation * found[i - 1] + math.sqrt(1 - self.correlation**2) * found[i]
        found *= self.noise * self.growth ** np.arange(4)[:, None, None]
        found[:, 0] *= self.noisier
        return found + self.shared * errors(4, 1, self.seeds) + np.array(self.means)[:, None]


def race(logs: np.ndarray) -> np.ndarray:
    """The look that drops each arm [arms]; 3: none."""
    alive, found = np.arange(logs.shape[1]), np.full(logs.shape[1], 3)
    for look, alpha in enumerate(spent()):
        if len(alive) > 1:
            drop = dropped(logs[look, alive], alpha)
            found[alive[drop]] = look
            alive = alive[~drop]
    return found


def wrong_drops(planted: Planted, races: int = 1000) -> float:
    """Share of races that drop an arm which is as good as the best one."""
    random, best = np.random.default_rng(0), np.array(planted.means) == min(planted.means)
    return float(np.mean([(race(planted.draw(random))[best] < 3).any() for _ in range(races)]))


def saved(planted: Planted, races: int = 300) -> float:
    """Share of the compute of all arms that a race saves."""
    random = np.random.default_rng(0)
    return float(np.mean([1 - AT[race(planted.draw(random))].mean() for _ in range(races)]))


# ---------------------------------------------------------------- one look


def test_the_test_is_tukeys() -> None:
    """Three arms without what their seeds share: p of the pairs with the leader, from scipy's test of all pairs."""
    random = np.random.default_rng(1)
    logs = random.normal(size=(3, 4)) + [[0.0], [0.5], [2.0]]
    logs -= logs.mean(axis=0)  # a two-way layout without seed effects has as many residuals, but fewer degrees
    found = decide({str(i): dict(enumerate(row.tolist())) for i, row in enumerate(logs)}, 10, 0.05)
    leader = int(logs.mean(axis=1).argmin())
    assert (found.leader, found.degrees_of_freedom) == (str(leader), 6)
    for i, mean in enumerate(logs.mean(axis=1)):
        standing, q = found.arms[str(i)], (mean - logs.mean(axis=1).min()) / (found.noise / 2)
        assert standing.log_ratio == pytest.approx(mean - logs.mean(axis=1).min())
        assert standing.p == pytest.approx(stats.studentized_range.sf(q, 3, 6) if q else 1.0, abs=1e-9)
        assert standing.dropped == (standing.p < 0.05)
    assert found.dropped == [label for label in "012" if found.arms[label].p < 0.05] and found.dropped


def test_seeds_pair_the_arms() -> None:
    """What a seed does to all arms changes neither ratios nor noise; neither does the unit of the metric."""
    random = np.random.default_rng(2)
    logs = random.normal(size=(4, 3))
    plain = decide({str(i): dict(enumerate(row.tolist())) for i, row in enumerate(logs)}, 1, 0.05)
    moved = decide({str(i): dict(enumerate((row + [5, -3, 2]).tolist())) for i, row in enumerate(logs)}, 1, 0.05)
    assert moved.noise == pytest.approx(plain.noise)
    for label, arm in plain.arms.items():
        assert (moved.arms[label].log_ratio, moved.arms[label].p) == pytest.approx((arm.log_ratio, arm.p))


def test_arms_without_noise() -> None:
    """Equal arms stay, others are dropped: no number is divided by 0. One arm alone is never dropped."""
    found = decide({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 1: 2.0}, "c": {0: 1.5, 1: 2.5}}, 1, 0.01)
    assert found.dropped == ["c"] and found.noise == 0 and found.arms["c"].p == 0 and found.arms["b"].p == 1
    assert decide({"a": {0: 1.0, 1: 2.0}}, 1, 0.01).left == ["a"] and decide({}, 1, 0.01).left == []


def test_the_looks_spend_alpha_and_no_more() -> None:
    assert sum(spent()) == pytest.approx(ALPHA) and spent()[0] > spent()[1] > spent()[2] > 0
    assert look_steps(2000) == (250, 500, 1000)


def test_the_record_is_read_as_it_was_written() -> None:
    decision = decide({"a": {0: 1.0, 3: 2.0}, "b": {0: 4.1, 3: 5.0}}, 10, 0.04)
    race = Race((Group("S/2", (10, 20, 40), {"a": {0: "x", 3: "y"}, "b": {0: "z", 3: "w"}}, (decision,)),), ("z",))
    assert read_race(race.to_json()) == race


# ---------------------------------------------------------------- planted races


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("arms", [2, 4, 8])
def test_equal_arms_are_rarely_dropped(arms: int, seeds: int) -> None:
    assert wrong_drops(Planted([0.0] * arms, seeds)) <= 0.05


HARDER = {
    "seeds move all arms by .2": Planted([0.0] * 4, shared=0.2),
    "tails of t with 3 degrees of freedom": Planted([0.0] * 4, tails=3),
    "independent looks": Planted([0.0] * 4, correlation=0.0),
    "two equal arms beside six worse ones": Planted([0.0] * 2 + [1.0] * 6),
    "the same, noise doubles from look to look": Planted([0.0] * 2 + [1.0] * 6, growth=2.0),
}


@pytest.mark.parametrize("planted", HARDER.values(), ids=HARDER)
def test_equal_arms_are_rarely_dropped_in_harder_races(planted: Planted) -> None:
    assert wrong_drops(planted) <= 0.05


CLEAR = [0.0, *np.log([1.5, 2.0, 3.0])]


def test_a_race_of_four_arms_saves_half() -> None:
    assert saved(Planted(CLEAR)) >= 0.5


@pytest.mark.slow
def test_figures_of_the_documents() -> None:
    """What docs/results.md says, over 4,000 races each."""
    figures = {
        "null": [wrong_drops(Planted([0.0] * arms, seeds), 4000) for seeds in (2, 3) for arms in (2, 4, 8)],
        "harder": [wrong_drops(planted, 4000) for planted in HARDER.values()],
        "noisier": [wrong_drops(Planted([0.0] * 4, seeds, noisier=3), 4000) for seeds in (2, 3)],
        "saved": [saved(Planted(means, seeds), 4000) for means in (CLEAR, np.log([1, 2, 2.5, 3])) for seeds in (2, 3)],
    }
    print(figures)
    assert max(figures["null"] + figures["harder"]) <= 0.04
    assert figures["noisier"] == pytest.approx([0.049, 0.059], abs=0.012)
    assert min(figures["saved"][1], *figures["saved"][2:]) >= 0.5


# ---------------------------------------------------------------- values of survivors


def group_of(logs: np.ndarray) -> tuple[Group, dict[str, dict[int, float]]]:
    """The record of a race of planted arms, and the values by trial and step (looks 1, 2, 4, end 8)."""
    arms = {f"a{i}": {seed: f"a{i}-{seed}" for seed in range(logs.shape[2])} for i in range(logs.shape[1])}
    group = Group("S/2", (1, 2, 4), arms)
    values: dict[str, dict[int, float]] = {trial: {} for trial in group.trials}
    for look, step in enumerate((1, 2, 4, 8)):
        if step < 8 and group.next_look != step:
            continue
        racing = {label: {s: float(logs[look, int(label[1:]), s]) for s in arms[label]} for label in group.racing}
        for label, found in racing.items():
            values |= {arms[label][s]: values[arms[label][s]] | {step: math.exp(log)} for s, log in found.items()}
        if step < 8:
            group = replace(group, decisions=(*group.decisions, decide(racing, step, spent()[look])))
    return group, values


def test_a_clear_survivor_is_hardly_adjusted() -> None:
    group, values = group_of(np.tile(np.array([[0.0, 0.05, -0.05], [2.0, 1.95, 2.1], [2.5, 2.6, 2.55]]), (4, 1, 1)))
    (best,) = adjust(group, values)
    assert best.arm == "a0" and best.naive == pytest.approx(1.0) and best.adjusted == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_the_adjustment_takes_away_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm 1.4 times as bad as the best: where it survives its value is too low, and adjusted less so."""
    monkeypatch.setattr(race_bias, "RACES", 300)
    random, errors = np.random.default_rng(0), []
    planted = Planted([0.0, math.log(1.4), math.log(1.4), math.log(3)], correlation=0.9)
    for _ in range(400):
        group, values = group_of(planted.draw(random))
        for one in adjust(group, values):
            if one.arm in ("a1", "a2") and one.adjusted is not None:
                errors.append([math.log(one.naive / 1.4), math.log(one.adjusted / 1.4)])
    naive, adjusted = np.mean(errors, axis=0)
    print(len(errors), naive, adjusted)
    assert naive < -0.01 and naive < adjusted and abs(adjusted) < 0.8 * abs(naive)
