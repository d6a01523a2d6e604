"""Arms of a study compared with references: means, spreads, ratios with intervals (Fig. 5a, 5c, A.17).

An arm is all trials that differ in the seed alone. Each arm is compared with a reference: the cheapest arm of its size,
or the arm asked for, never the one with the best result. Differences are in logarithms. dunnett.py says by which noise
they are judged.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from analysis.fits.dunnett import Contrast, Differences, PooledNoise, compare_arms
from analysis.race_bias import Survivor, adjust, survivors_json
from analysis.race_bias import lines as survivor_lines
from analysis.statistics import mean_interval
from analysis.table import (
    EVALUATED,
    RATES,
    SAME_COMPUTE,
    Cell,
    Excluded,
    Protocol,
    Table,
    Trial,
    check_seeds,
    gflops,
    json_head,
    one_protocol,
    strict_json,
)
from analysis.table import better as best_direction

# Keys that do not distinguish arms: the seed, what the cell names, and where a trial starts (`after` has that).
NAMED = (
    "seed", EVALUATED, "recipe", "model.generator", "model.discriminator", "model.patch", "start",
    "start.trial", "start.step",
)  # fmt: skip
NUMBERS = ("mean", "std", "low", "high", "gflops")
LARGEST_LOG = 700  # of a number that a float holds; an interval with one degree of freedom may end above


@dataclass(frozen=True)
class Arm:
    """Trials that differ in the seed alone, at the last evaluation of each."""

    label: str
    cell: Cell
    settings: Mapping[str, Any]  # what varies in the study
    values: Mapping[int, float]  # by seed
    trials: tuple[str, ...]
    gflops: float  # training compute, mean
    mean: float
    std: float | None  # over seeds; None for one
    low: float | None  # of the mean, 95 % Student-t
    high: float | None
    curve: tuple[tuple[int, float, float, float], ...]  # (step, mean, min, max) where all its seeds were evaluated


@dataclass(frozen=True)
class Difference:
    """Difference between an arm and its reference."""

    arm: str
    reference: str
    ratio: float  # geometric mean of the arm / geometric mean of the reference
    ratio_low: float | None  # None if no arm of the study has two seeds
    ratio_high: float | None
    p: float | None  # of the hypothesis that logarithms do not differ, were it the only difference
    p_adjusted: float | None  # over all differences of the study
    degrees_of_freedom: float | None
    method: str | None
    verdict: str
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Arms of a study, and their differences from the references."""

    measured: Protocol
    direction: int | None  # 1 if a higher value is better, -1 if a lower one is; None if that is not known
    arms: tuple[Arm, ...]  # with a complete trial; by rising compute
    noise: PooledNoise | None  # None if no arm has two seeds
    differences: tuple[Difference, ...]
    excluded: tuple[Excluded, ...]
    excluded_from: tuple[str, ...]  # the arm of each excluded trial
    survivors: tuple[Survivor, ...] = ()  # of a race

    @property
    def better(self) -> str | None:
        return None if self.direction is None else "higher" if self.direction > 0 else "lower"

    def to_json(self) -> dict[str, Any]:
        """Return strictly valid JSON. Arms without a complete trial come last, with n = 0 and no numbers."""
        arms = [
            {"label": arm.label, "size": arm.cell.label, "n": len(arm.values)}
            | {key: getattr(arm, key) for key in NUMBERS}
            | {"seeds": list(arm.values), "values": list(arm.values.values()), "trials": list(arm.trials)}
            | {"curve": [list(point) for point in arm.curve]}
            for arm in self.arms
        ]
        lost = list(zip(self.excluded_from, self.excluded, strict=True))
        for label in dict.fromkeys(self.excluded_from):
            if label not in {arm.label for arm in self.arms}:
                trials = [trial for other, trial in lost if other == label]
                arms.append(
                    {"label": label, "size": trials[0].cell.label, "n": 0, **dict.fromkeys(NUMBERS)}
                    | {"seeds": [], "values": [], "trials": [trial.trial for trial in trials], "curve": []}
                )
        return {
            **json_head(self.measured),
            "better": self.better,
            "arms": arms,
            "noise": self._noise(),
            "differences": [strict_json(asdict(difference)) for difference in self.differences],
            "excluded": [{"arm": label, **trial.to_json()} for label, trial in lost],
            "survivors": survivors_json(list(self.survivors)),
        }

    def _noise(self) -> dict[str, Any] | None:
        if self.noise is None:
            return None
        noisier = [{"arm": self.arms[i].label, **asdict(test)} for i, test in self.noise.noisier.items()]
        return strict_json({**asdict(self.noise), "noisier": noisier})


def analyse(table: Table, reference: str | None = None, better: str | None = None) -> Comparison:
    """Compare each arm of a table's complete trials with a reference (Fig. 5a, 5c; one arm alone is A.17).

    reference: label of an arm; other sizes use their arm with the same settings. Without it, and at sizes that lack
    such an arm, the reference is the cheapest arm of the size. If every size has one arm only, it is the cheapest of
    all sizes.
    better: `lower` or `higher`, for a metric whose name does not say it. Without either, verdicts are `lower` and
    `higher` in place of `better` and `worse`.
    Raises ValueError, in one line, for mixed protocols, no complete trial, an unknown reference, two trials of an arm
    with one seed, trials of an arm that end at different steps, or a direction that contradicts the metric's name.
    """
    trials = table.complete()
    measured = one_protocol(trials)
    if measured is None:
        raise ValueError("no trial is complete; nothing can be compared")
    settings = _settings(table.trials)
    labels = _labels(table.trials, settings)
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[labels[trial.name]].append(trial)
    arms = [_arm(label, members, settings[members[0].name], measured) for label, members in groups.items()]
    arms.sort(key=lambda arm: (arm.gflops, arm.label))
    asked = next((arm for arm in arms if arm.label == reference), None)
    if reference is not None and asked is None:
        raise ValueError(f"no arm is called {reference!r}; use one of: {'; '.join(arm.label for arm in arms)}")
    cells = list(dict.fromkeys(trial.cell for trial in trials))
    alone = len(arms) == len(cells)
    families = []  # indices of arms, the reference first
    for cell in [None] if alone else cells:
        among = [arm for arm in arms if cell in (None, arm.cell)]
        like = [arm for arm in among if asked and arm.settings == asked.settings]
        base = asked if asked in among else [*like, *among][0]
        families.append([arms.index(arm) for arm in (base, *(arm for arm in among if arm is not base))])
    logs = [{seed: math.log(value) for seed, value in arm.values.items()} for arm in arms]
    found = compare_arms(logs, families)
    direction = _direction(measured.metric, better)
    differences = tuple(_difference(arms, found, one, direction) for one in found.differences)
    excluded = tuple(table.excluded())
    excluded_from = tuple(labels[e.trial] for e in excluded)
    survivors = _survivors(table, measured)
    return Comparison(measured, direction, tuple(arms), found.noise, differences, excluded, excluded_from, survivors)


def _survivors(table: Table, measured: Protocol) -> tuple[Survivor, ...]:
    """Adjust the survivors of groups that lost arms in a race; looks have values in the column `value` alone."""
    if table.race is None or table.column != "value":
        return ()
    values = {t.name: {row.step: row.value for row in t.rows if row.measured == measured} for t in table.trials}
    chosen = [group for group in table.race.groups if any(decision.dropped for decision in group.decisions)]
    return tuple(one for group in chosen for one in adjust(group, values))


def _direction(metric: str, asked: str | None) -> int | None:
    """Return the better direction; None if neither the metric's name nor the user says it, since ratios need none."""
    try:
        return best_direction(metric, asked)
    except ValueError:
        if asked is not None:
            raise
        return None


def _distinguishing(trial: Trial) -> dict[str, Any]:
    """Return all that may distinguish a trial's arm from others; what follows from the rest comes last."""
    config = {key: value for key, value in trial.facts.config.items() if key not in NAMED}
    steps = config.pop("train.steps", None)  # a trial that starts from another has more of them
    after = "another" if trial.facts.config.get("start.trial") else "nothing"
    columns = {name: getattr(trial.facts, name) for name in RATES}
    return config | {"after": after, "train.steps": steps} | columns


def _settings(trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Return by trial the settings that vary in the study, without those that follow from the size and from others."""
    everything = [_distinguishing(trial) for trial in trials]
    parts: list[tuple[Any, ...]] = [(trial.cell,) for trial in trials]
    kept: list[str] = []
    for key in dict.fromkeys(key for one in everything for key in one):
        finer = [(*part, repr(one.get(key))) for part, one in zip(parts, everything, strict=True)]
        if len(set(finer)) > len(set(parts)):
            parts, kept = finer, [*kept, key]
    return {trial.name: {key: one.get(key) for key in kept} for trial, one in zip(trials, everything, strict=True)}


def _labels(trials: Sequence[Trial], settings: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return by trial the name of its arm; a value that most arms share is not named."""
    arms = {(trial.cell, repr(settings[trial.name])): settings[trial.name] for trial in trials}
    keys = list(next(iter(settings.values())))
    usual: dict[str, str] = {}
    for key in keys:
        value, count = Counter(repr(setting[key]) for setting in arms.values()).most_common(1)[0]
        usual[key] = value if 2 * count > len(arms) else ""
    usual["after"] = repr("nothing")
    short = Counter(key.rpartition(".")[2] for key in keys)
    names = {key: last if short[last := key.rpartition(".")[2]] == 1 else key for key in keys}
    sized = len({trial.cell for trial in trials}) > 1
    labels = {}
    for trial in trials:
        unusual = [f"{names[k]}={_setting_text(v)}" for k, v in settings[trial.name].items() if repr(v) != usual[k]]
        labels[trial.name] = ", ".join([*([trial.cell.label] if sized or not unusual else []), *unusual])
    return labels


def _setting_text(value: Any) -> str:
    """A setting as text; whole numbers lose the `.0` that a CSV gives them."""
    return "-" if value is None else str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _arm(label: str, trials: list[Trial], settings: dict[str, Any], measured: Protocol) -> Arm:
    trials = sorted(trials, key=lambda trial: trial.last.seed)
    values = {trial.last.seed: trial.last.value for trial in trials}
    check_seeds(trials)
    names, ends = ", ".join(trial.name for trial in trials), sorted({trial.steps for trial in trials})
    if len(ends) > 1:
        raise ValueError(
            f"trials of {label} end at different steps ({', '.join(map(str, ends))}) and are not replicates: {names}; "
            "add a column with what varies, such as train.steps"
        )
    costs = [trial.last.flops for trial in trials]
    if max(costs) > min(costs) * (1 + SAME_COMPUTE):
        raise ValueError(
            f"trials of {label} differ in training compute and are not replicates: {names}; "
            "add a column with what varies"
        )
    found = mean_interval(list(values.values()))
    return Arm(
        label=label,
        cell=trials[0].cell,
        settings=settings,
        values=values,
        trials=tuple(trial.name for trial in trials),
        gflops=gflops(fmean(trial.last.flops for trial in trials)),
        mean=found.mean,
        std=stdev(values.values()) if len(values) > 1 else None,
        low=found.low,
        high=found.high,
        curve=_curve(trials, measured),
    )


def _curve(trials: list[Trial], measured: Protocol) -> tuple[tuple[int, float, float, float], ...]:
    found = [{row.step: row.value for row in t.rows if row.measured == measured and row.value > 0} for t in trials]
    steps = sorted(set.intersection(*(set(rows) for rows in found)))
    at = [[rows[step] for rows in found] for step in steps]
    return tuple((step, fmean(v), min(v), max(v)) for step, v in zip(steps, at, strict=True))


def _difference(arms: list[Arm], found: Differences, one: Contrast, direction: int | None) -> Difference:
    arm, reference = arms[one.arm], arms[one.reference]
    return Difference(
        arm=arm.label,
        reference=reference.label,
        ratio=math.exp(one.estimate),
        ratio_low=_exp(one.low),
        ratio_high=_exp(one.high),
        p=found.p(one),
        p_adjusted=found.p_together(one),
        degrees_of_freedom=one.degrees_of_freedom,
        method=one.method,
        verdict=_verdict(one, direction),
        trials=(*arm.trials, *reference.trials),
    )


def _verdict(one: Contrast, direction: int | None) -> str:
    if one.low is None or one.high is None:
        return "no interval"
    if one.low <= 0 <= one.high:
        return "not significantly different"
    if direction is None:
        return "higher" if one.estimate > 0 else "lower"
    return "better" if one.estimate * direction > 0 else "worse"


def _exp(log: float | None) -> float | None:
    return None if log is None else math.exp(log) if log < LARGEST_LOG else math.inf


def verdict(report: dict[str, Any]) -> str:
    """The answer in one line."""
    by_word: dict[str, list[str]] = defaultdict(list)
    for row in report["differences"]:
        by_word[row["verdict"]].append(f"{row['arm']} / {row['reference']}")
    return "; ".join(f"{word}: {', '.join(pairs)}" for word, pairs in by_word.items()) or "there is one arm alone"


def summary(report: dict[str, Any]) -> str:
    """The arms and their differences in words, for a terminal."""
    known = f"{report['better']} is better" if report["better"] else "give --better lower or --better higher"
    lines = [f"{report['metric']} ({known}), mean over seeds [95 %]"]
    for arm in report["arms"]:
        spread = "one seed" if arm["std"] is None else f"[{arm['low']:.4g}, {arm['high']:.4g}], std {arm['std']:.3g}"
        mean = f"{arm['mean']:.4g} {spread}" if arm["n"] else "no complete trial"
        lines.append(f"  {arm['label']}: {mean}, n = {arm['n']}")
    if report["differences"]:
        judged = (
            "[95 %, all intervals together]"
            if report["noise"]
            else "(no intervals: seeds do not differ, or every arm has one)"
        )
        lines.append(f"ratio {judged}")
    for row in report["differences"]:
        line = f"  {row['arm']} / {row['reference']}: {row['ratio']:.3g}"
        if report["noise"]:
            high = math.inf if row["ratio_high"] is None else row["ratio_high"]
            line += f" [{row['ratio_low']:.3g}, {high:.3g}], {row['verdict']}, p {_p_text(row['p_adjusted'])}"
        lines.append(line)
    if report["differences"] and report["noise"]:
        lines += _noise_lines(report["noise"])
    lines += survivor_lines(report["survivors"]) if report["survivors"] else []
    lines += [f"left out: {e['trial']} ({e['size']}): {e['reason']}" for e in report["excluded"]]
    return "\n".join(lines)


def _noise_lines(noise: dict[str, Any]) -> list[str]:
    """How differences were taken, and why."""
    lines = [
        f"noise of ln value: {noise['std']:.2g}, pooled over all arms, {noise['degrees_of_freedom']} degrees of freedom"
    ]
    if noise["seeds"] is None:
        lines.append("differences are not taken seed by seed: arms have different seeds")
    else:
        how = "" if noise["by_seed"] else "not "
        lines.append(f"differences are {how}taken seed by seed: a common effect of seeds has {_f_text(noise['seeds'])}")
    for one in noise["noisier"]:
        lines.append(f"{one['arm']} is noisier than the other arms: compared by its own noise ({_f_text(one)})")
    return lines


def _f_text(test: dict[str, Any]) -> str:
    degrees = ", ".join(f"{dof:.3g}" for dof in test["degrees_of_freedom"])
    f = "infinite" if test["f"] is None else f"{test['f']:.3g}"  # without any noise
    return f"F({degrees}) = {f}, p {_p_text(test['p'])}"


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
