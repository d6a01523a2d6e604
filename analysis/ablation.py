"""Arms of a study compared seed by seed: means, spreads, paired differences with intervals (Fig. 5a, 5c, A.17).

An arm is all trials that differ in the seed alone. Arms of one size are compared with the cheapest of that size, in
logarithms: a seed that is good for one arm may be good for the other, which pairing takes out. Never the best of many.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy import stats

from analysis.law import CONFIDENCE, gflops, one_protocol
from analysis.table import Cell, Excluded, Protocol, Table, Trial

# What a cell or a replicate names already; a trial that goes on from another is told by that alone.
NAMED = (
    "seed",
    "recipe",
    "model.generator",
    "model.discriminator",
    "model.patch",
    "start",
    "start.trial",
    "start.step",
)


@dataclass(frozen=True)
class Arm:
    """Trials that differ in the seed alone; at the last evaluation of each."""

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
    curve: tuple[tuple[int, float, float, float], ...]  # (step, mean, least, most) where all its seeds were evaluated


@dataclass(frozen=True)
class Difference:
    """An arm against the reference of its size, over the seeds that both have."""

    arm: str
    reference: str
    seeds: tuple[int, ...]
    ratio: float  # geometric mean of arm / reference; below 1: the arm's distance is smaller
    ratio_low: float | None  # None for one seed
    ratio_high: float | None
    difference: float  # in the metric, mean
    low: float | None
    high: float | None
    p: float | None  # of no difference in logarithms
    p_adjusted: float | None  # Holm, over all differences of the study
    verdict: str
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Ablation:
    """What a study's arms came to."""

    measured: Protocol
    arms: tuple[Arm, ...]  # by rising compute
    differences: tuple[Difference, ...]
    excluded: tuple[Excluded, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.measured.metric,
            "metric_n": self.measured.n,
            "reference": self.measured.reference,
            "protocol": self.measured.protocol,
            "confidence": CONFIDENCE,
            "arms": [
                {
                    **{
                        k: v
                        for k, v in asdict(arm).items()
                        if k not in ("cell", "curve", "values", "settings", "trials")
                    },
                    "size": arm.cell.label,
                    "seeds": list(arm.values),
                    "values": list(arm.values.values()),
                    "trials": list(arm.trials),
                    "curve": [list(point) for point in arm.curve],
                }
                for arm in self.arms
            ],
            "differences": [
                {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(d).items()} for d in self.differences
            ],
            "excluded": [{"trial": e.trial, "size": e.cell.label, "reason": e.reason} for e in self.excluded],
        }


def compare(table: Table) -> Ablation:
    """The arms of a table's complete trials, and each against the cheapest of its size (of all, where arms are sizes).

    Raises ValueError, in one line, for mixed protocols, no complete trial, or two trials of an arm with one seed.
    """
    trials = table.complete()
    measured = one_protocol(trials)
    if measured is None:
        raise ValueError("no trial is complete; nothing can be compared")
    keys = _varied(trials)
    groups: dict[tuple[Any, ...], list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[(trial.cell, *(repr(value) for value in _settings(trial, keys).values()))].append(trial)
    cells = list(dict.fromkeys(trial.cell for trial in trials))
    arms = [_arm(members, _settings(members[0], keys), len(cells) > 1, measured) for members in groups.values()]
    arms.sort(key=lambda arm: (arm.gflops, arm.label))
    alone = all(sum(arm.cell == cell for arm in arms) == 1 for cell in cells)
    pairs = []
    for cell in [None] if alone else cells:
        reference, *others = [arm for arm in arms if cell in (None, arm.cell)]
        pairs += [(arm, reference) for arm in others]
    return Ablation(measured, tuple(arms), _differences(pairs), tuple(table.excluded()))


def _varied(trials: list[Trial]) -> list[str]:
    """Config keys in which not all trials agree."""
    keys = dict.fromkeys(key for trial in trials for key in trial.facts.config)
    return [
        key for key in keys if key not in NAMED and len({repr(trial.facts.config.get(key)) for trial in trials}) > 1
    ]


def _settings(trial: Trial, keys: list[str]) -> dict[str, Any]:
    after = {"after": "another"} if trial.facts.config.get("start.trial") else {}
    return {key: trial.facts.config.get(key) for key in keys} | after


def _arm(trials: list[Trial], settings: dict[str, Any], sized: bool, measured: Protocol) -> Arm:
    trials = sorted(trials, key=lambda trial: trial.last.seed)
    values = {trial.last.seed: trial.last.value for trial in trials}
    if len(values) < len(trials):
        names = ", ".join(trial.name for trial in trials)
        raise ValueError(f"two trials have one seed and nothing else that tells them apart: {names}; name what varies")
    said = [f"{key.rpartition('.')[2]}={'-' if value is None else value}" for key, value in settings.items()]
    label = ", ".join([*([trials[0].cell.label] if sized or not said else []), *said])
    mean, std = fmean(values.values()), stdev(values.values()) if len(values) > 1 else None
    half = None if std is None else _t(len(values)) * std / math.sqrt(len(values))
    return Arm(
        label,
        trials[0].cell,
        settings,
        values,
        tuple(trial.name for trial in trials),
        gflops(fmean(trial.last.flops for trial in trials)),
        mean,
        std,
        None if half is None else mean - half,
        None if half is None else mean + half,
        _curve(trials, measured),
    )


def _curve(trials: list[Trial], measured: Protocol) -> tuple[tuple[int, float, float, float], ...]:
    found = [{row.step: row.value for row in t.rows if row.measured == measured and row.value > 0} for t in trials]
    steps = sorted(set.intersection(*(set(rows) for rows in found)))
    at = [[rows[step] for rows in found] for step in steps]
    return tuple((step, fmean(v), min(v), max(v)) for step, v in zip(steps, at, strict=True))


def _differences(pairs: list[tuple[Arm, Arm]]) -> tuple[Difference, ...]:
    """Paired t tests of the logarithms, adjusted together."""
    tested = [_paired(arm, reference) for arm, reference in pairs]
    adjusted = holm([found["p"] for found in tested])
    differences = []
    for (arm, reference), found, p in zip(pairs, tested, adjusted, strict=True):
        verdict = "no seed in common" if not found["seeds"] else "one seed: no interval"
        if p is not None:
            verdict = "not told apart" if p > 1 - CONFIDENCE else ("better" if found["ratio"] < 1 else "worse")
        differences.append(
            Difference(
                arm=arm.label,
                reference=reference.label,
                p_adjusted=p,
                verdict=verdict,
                trials=(*arm.trials, *reference.trials),
                **found,
            )
        )
    return tuple(differences)


def _paired(arm: Arm, reference: Arm) -> dict[str, Any]:
    seeds = tuple(seed for seed in arm.values if seed in reference.values)
    ours, theirs = (np.array([side.values[seed] for seed in seeds]) for side in (arm, reference))
    if not seeds:  # means are all that can be compared
        ours, theirs = np.array([arm.mean]), np.array([reference.mean])
    logs, plain = np.log(ours / theirs), ours - theirs
    found: dict[str, Any] = {
        "seeds": seeds,
        "ratio": math.exp(logs.mean()),
        "difference": float(plain.mean()),
        **dict.fromkeys(("ratio_low", "ratio_high", "low", "high", "p")),
    }
    n = len(seeds)
    if n > 1:
        errors = [float(values.std(ddof=1)) / math.sqrt(n) for values in (logs, plain)]
        half, half_plain = (_t(n) * error for error in errors)
        found |= {"ratio_low": math.exp(logs.mean() - half), "ratio_high": math.exp(logs.mean() + half)}
        found |= {"low": float(plain.mean()) - half_plain, "high": float(plain.mean()) + half_plain}
        t = abs(float(logs.mean())) / errors[0] if errors[0] else math.inf
        found["p"] = float(2 * stats.t.sf(t, n - 1)) if logs.any() else 1.0
    return found


def holm(p: list[float | None]) -> list[float | None]:
    """Holm's adjustment for several tests; None stays None."""
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, (value, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * value))
        adjusted[i] = highest
    return adjusted


def _t(n: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))


def summary(report: dict[str, Any]) -> str:
    """The arms and their differences in words, for a terminal."""
    lines = [f"{report['metric']}, mean over seeds [95 %]"]
    for arm in report["arms"]:
        spread = "one seed" if arm["std"] is None else f"[{arm['low']:.4g}, {arm['high']:.4g}], std {arm['std']:.3g}"
        lines.append(f"  {arm['label']}: {arm['mean']:.4g} {spread}, n = {len(arm['seeds'])}")
    for row in report["differences"]:
        interval = "" if row["ratio_low"] is None else f" [{row['ratio_low']:.3g}, {row['ratio_high']:.3g}]"
        p = "" if row["p_adjusted"] is None else f", p = {row['p_adjusted']:.2g} (Holm)"
        lines.append(f"{row['arm']} / {row['reference']}: {row['ratio']:.3g}{interval}, {row['verdict']}{p}")
    lines += [f"left out: {e['trial']} ({e['size']}): {e['reason']}" for e in report["excluded"]]
    return "\n".join(lines)
