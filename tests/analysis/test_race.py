"""Decisions of a race: against Tukey's test, wrong drops, compute saved; what the analyses make of a raced table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis import compare, race_bias, rates
from analysis.law import fit_laws
from analysis.race import ALPHA, Decision, Group, Race, decide, dropped, look_steps, read_race, spent
from analysis.race_bias import adjust
from analysis.race_rates import extrapolate
from analysis.table import Cell, Facts, Protocol, Row, Table, Trial

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
    logs = random.normal(size=(3, 4)) + np.array([[0.0], [0.5], [2.0]])
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
    logs, shift = random.normal(size=(4, 3)), np.array([5, -3, 2])
    plain = decide({str(i): dict(enumerate(row.tolist())) for i, row in enumerate(logs)}, 1, 0.05)
    moved = decide({str(i): dict(enumerate((row + shift).tolist())) for i, row in enumerate(logs)}, 1, 0.05)
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


# ---------------------------------------------------------------- analyses of a raced table

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
WIDTHS = {"S": 384, "B": 768, "L": 1024}


def rate_table(random: np.random.Generator, drops: dict[tuple[str, float], int], fall: float = 0.8) -> Table:
    """Rate grids of G: the best rate goes as 1 / width. Trials end at step 80 and fall by so much per ln step.

    drops: by size and factor, the step at which a race dropped the arm.
    """
    trials = []
    for size, width in WIDTHS.items():
        for factor in FACTORS:
            for seed in (0, 1, 2):
                steps, rows = (10, 20, 40, 80), list[Row]()
                noise, dropped_at = random.normal(0, 0.03), drops.get((size, factor), 99)
                for step in [step for step in steps if step <= dropped_at]:
                    log = 0.3 * math.log(factor) ** 2 - fall * math.log(step / 80) + noise + random.normal(0, 0.01)
                    status = "raced" if step == dropped_at else "done" if step == 80 else "running"
                    name = f"{size}-{factor}-{seed}"
                    rows.append(
                        Row(
                            name, Cell(size, size, 2), seed, step, 80, 1e12 * step * width, 1e9 * width,
                            20 * math.exp(log), FID, status, "dropped at look 1" if status == "raced" else "",
                        )
                    )  # fmt: skip
                lr = 1 / width
                config = {"train.rate_g": factor, "seed": seed}
                trials.append(Trial(name, tuple(rows), Facts(config, {}, lr * factor, lr, width, width)))
    return Table(Path("runs"), tuple(trials))


DROPS = {("S", 4.0): 10, ("S", 0.25): 10, ("B", 4.0): 20, ("L", 0.25): 10, ("L", 4.0): 20}


def test_rates_takes_dropped_arms_extrapolated() -> None:
    """All arms are in the fit, the planted fall and slope are found, and the interval is wider than of all values."""
    whole = rates.analyse(rate_table(np.random.default_rng(0), {}))
    raced = rates.analyse(rate_table(np.random.default_rng(0), DROPS))
    assert len(raced.extrapolated) == 15 and not raced.excluded and not whole.extrapolated
    assert all(0.75 < one.exponent < 0.85 for one in raced.extrapolated)
    of = {grid.size: grid for grid in raced.grids}
    assert [seeds.rate * WIDTHS["S"] for seeds in of["S/2"].rates] == pytest.approx(FACTORS)
    for one in raced.extrapolated:
        planted = 20 * math.exp(0.3 * math.log(float(one.trial.split("-")[1])) ** 2)
        assert abs(math.log(one.value / planted)) < 0.12
    a, b = whole.fits["G"].slope, raced.fits["G"].slope
    assert a.low and a.high and b.low and b.high and b.low <= -1 <= b.high
    assert b.high - b.low > a.high - a.low and "20 draws" in str(b.method)
    text = rates.summary(raced.to_json())
    assert "extrapolated: S-4.0-0 (S/2), dropped by a race at step 10:" in text and "of ln value, 9 trials" in text


def test_an_arm_without_references_is_left_out() -> None:
    """Two trials that have both values say too little about the spread of a third."""
    full = rate_table(np.random.default_rng(0), DROPS)
    kept = tuple(t for t in full.trials if t.cell.generator_size == "S" and (not t.complete or t.name[-5:] == "1.0-0"))
    table, moved, _ = extrapolate(replace(full, trials=kept))
    assert moved == [] and {one.reason for one in table.excluded()} == {"dropped at look 1"}


def test_the_law_refuses_survivors() -> None:
    table = rate_table(np.random.default_rng(0), {("S", 4.0): 10})
    with pytest.raises(ValueError, match=r"3 of 45 trials; the survivors were chosen by their values.*fit-law --raced"):
        fit_laws(table)
    at_one = replace(
        table, trials=tuple(t for t in table.trials if t.facts.config["train.rate_g"] == 1 or t in table.raced())
    )
    assert fit_laws(at_one, raced=True).laws[0].curve.sizes == 3


def test_compare_shows_survivors_naive_and_adjusted() -> None:
    table = rate_table(np.random.default_rng(0), {("S", 4.0): 10, ("S", 0.25): 10})
    trials = tuple(t for t in table.trials if t.cell.generator_size == "S")
    arms = {f"rate_g={f}": {s: f"S-{f}-{s}" for s in (0, 1, 2)} for f in FACTORS}
    values = {t.name: {row.step: math.log(row.value) for row in t.rows} for t in trials}
    group, decisions = Group("S/2", (10, 20, 40), arms), list[Decision]()
    for look, step in enumerate(group.looks):
        at = {label: {s: values[name][step] for s, name in arms[label].items()} for label in group.racing}
        if look == 0:
            decisions.append(decide(at, step, spent()[look]))
            group = replace(group, decisions=tuple(decisions))
    found = compare.analyse(replace(table, trials=trials, race=Race((group,))))
    report = found.to_json()
    text = compare.summary(report)
    assert "survivors of the race, geometric mean over seeds" in text
    by_arm = {one["arm"]: one for one in report["survivors"]}
    assert "rate_g=4.0" not in by_arm and by_arm["rate_g=1.0"]["naive"] == pytest.approx(20, rel=0.1)
    assert by_arm["rate_g=1.0"]["adjusted"] == pytest.approx(by_arm["rate_g=1.0"]["naive"], rel=0.02)
    assert compare.analyse(replace(table, trials=trials)).survivors == ()
