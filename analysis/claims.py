"""The claims of the paper, and what a table says of each: confirmed, contradicted or not decided, at 95 %.

A claim names the study that tests it. Its rule turns that study's table into an estimate, its interval and a verdict.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from analysis import compare, correlate, rates, split
from analysis.compare import Arm, Comparison
from analysis.fits.dunnett import standard_error
from analysis.law import fit_laws
from analysis.scrutiny import scrutinise
from analysis.statistics import CONFIDENCE
from analysis.table import Table

CONFIRMED, CONTRADICTED, NOT_DECIDED, NOT_RUN = "confirmed", "contradicted", "not decided", "not run"
LITTLE = 1.25  # ratio below which a loss is called small; the paper's is 17.7 / 15.6 = 1.13
PAPER_SPREAD = 0.035  # of ln FID between seeds (A.17: 30.1, 31.2, 28.9, 31.1)
SHARP = 4.0  # ratio of the ends of a spread's interval above which it decides nothing
NEAR = 0.5  # of the slope -1, that counts as -1
PAPER_R = -0.95  # Fig. 3c
MOST_SEEDS = 64  # more are not asked for


@dataclass(frozen=True)
class Finding:
    """What a table says of a claim."""

    here: str  # the estimate with its interval, in words
    verdict: str
    seeds: int | None = None  # about how many of each arm would decide it; None if more seeds are not what it needs


@dataclass(frozen=True)
class Claim:
    """A claim of the paper."""

    name: str
    paper: str  # its number, and where it is
    studies: tuple[str, ...]  # sweep files that test it; the first one is the paper's
    rule: Callable[[Table], Finding]  # raises ValueError, in one line, if the table is not that study


def sign(ends: Sequence[tuple[float | None, float | None]]) -> str:
    """Return the verdict of "all of these are above 0" from their intervals."""
    if any(high is not None and high < 0 for _, high in ends):
        return CONTRADICTED
    return CONFIRMED if all(low is not None and low > 0 for low, _ in ends) else NOT_DECIDED


# ---------------------------------------------------------------- sizes


def falls(table: Table) -> Finding:
    """Every larger size is significantly better than the smallest one, and the means fall strictly."""
    found = compare.analyse(table)
    arms = _sizes(found)
    logs = [_mean_log(arm) for arm in arms]
    intervals = [_difference(found, arms[0], arm, len(arms) - 1) for arm in arms[1:]]
    strictly = all(_difference(found, *pair, 1)[0] > 0 for pair in itertools.pairwise(arms))
    verdict = sign([(low, high) for _, low, high in intervals])
    if verdict == CONFIRMED and not strictly:
        verdict = NOT_DECIDED
    ratio = _ratio(*intervals[-1])
    order = ", ".join(f"{arm.cell.generator_size} {math.exp(log):.4g}" for arm, log in zip(arms, logs, strict=True))
    return Finding(f"{order}; the smallest over the largest {ratio}", verdict, _seeds(arms, intervals, verdict))


def power_law(table: Table) -> Finding:
    """The exponent is above 0. Sizes stray from the law as little as seeds do. A floor is not found."""
    _sizes(compare.analyse(table))
    law = fit_laws(table).laws[0]
    curve = law.curve
    lack = scrutinise(table, law)["lack_of_fit"]
    p = lack.get("p")
    fit = f"lack of fit p = {p:.2g}" if p is not None else "lack of fit not testable"
    floor = ", with a floor" if curve.test.found else ""
    text = f"b = {curve.b:.2f} {_ends(curve.b_low, curve.b_high)}{floor}; {fit}; {curve.sizes} sizes"
    if curve.test.found or (p is not None and p < 1 - CONFIDENCE) or (curve.b_high is not None and curve.b_high < 0):
        return Finding(text, CONTRADICTED)
    sure = p is not None and curve.b_low is not None and curve.b_low > 0
    return Finding(text, CONFIRMED if sure else NOT_DECIDED)


def correlates(table: Table) -> Finding:
    """Pearson's r of the metric with G's GFLOPs is below 0."""
    _sizes(compare.analyse(table))
    found = correlate.analyse(table).pearson
    if found.r is None:
        return Finding("all values are equal", NOT_DECIDED)
    if found.low is None or found.high is None:
        return Finding(f"r = {found.r:.2f}, no interval", NOT_DECIDED)
    verdict = sign([(-found.high, -found.low)])
    return Finding(f"r = {found.r:.2f} [{found.low:.2f}, {found.high:.2f}]", verdict)


def d_pays_more(table: Table) -> Finding:
    """The exponent of D's compute is above that of G's."""
    first = split.analyse(table).to_json()["first_order"]
    d, g, gap = first["b_d"], first["b_g"], first["difference"]
    ends = _ends(gap["low"], gap["high"])
    text = f"D {d['estimate']:.2f}, G {g['estimate']:.2f}, difference {gap['estimate']:.2f} {ends}"
    return Finding(text, sign([(gap["low"], gap["high"])]))


# ---------------------------------------------------------------- rates


def slope_of(network: str) -> Callable[[Table], Finding]:
    """The best rate of a network falls as 1 / width: the slope's interval lies within -1 +- 0.5.

    An interval that only holds -1 would confirm slopes of -0.5 and -1.6 as well, if it is wide.
    """

    def rule(table: Table) -> Finding:
        fit = rates.analyse(table).fits.get(network)
        if fit is None:
            raise ValueError(f"no grid of {network}'s rates")
        slope = fit.slope
        if slope.slope is None or slope.low is None or slope.high is None:
            return Finding("the slope has no interval", NOT_DECIDED)
        text = f"slope {slope.slope:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
        if not slope.low <= -1 <= slope.high:
            return Finding(text, CONTRADICTED)
        return Finding(text, CONFIRMED if max(slope.high + 1, -1 - slope.low) <= NEAR else NOT_DECIDED)

    return rule


def own_rate(table: Table) -> Finding:
    """Each size is better at its own adapted rate than at the other's (Table 4)."""
    rows = [row for row in rates.analyse(table).cross_check if row.ratios]
    if not rows:
        raise ValueError("no cross-check of rates")
    ratios = [(row.size, ratio) for row in rows for ratio in row.ratios]
    text = ", ".join(f"{size} at {r.rate}'s rate {_ratio(r.log_ratio, r.low, r.high)}" for size, r in ratios)
    return Finding(text, sign([(r.low, r.high) for _, r in ratios]))


# ---------------------------------------------------------------- arms


def beats(key: str, better: Any, worse: Any, **others: Any) -> Callable[[Table], Finding]:
    """The arm with key = better is better than that with key = worse, at every size. others: settings of both."""

    def rule(table: Table) -> Finding:
        found = compare.analyse(table)
        pairs = _pairs(found, key, better, worse, others)
        intervals = [_difference(found, bad, good, len(pairs)) for bad, good in pairs]
        text = ", ".join(f"{bad.cell.label} {_ratio(*i)}" for (bad, _), i in zip(pairs, intervals, strict=True))
        verdict = sign([(low, high) for _, low, high in intervals])
        seeds = _seeds([arm for pair in pairs for arm in pair], intervals, verdict)
        return Finding(f"{text} times as much with {key.rpartition('.')[2]} = {worse}", verdict, seeds)

    return rule


def removed_loses_little(table: Table) -> Finding:
    """A trial that goes on without alignment loses less than a quarter against one that keeps it (A.18)."""
    found = compare.analyse(table)
    pairs = _pairs(found, "objective.align_weight", 1.0, 0.0, {"after": "another"})
    intervals = [_difference(found, bad, good, len(pairs)) for bad, good in pairs]
    text = ", ".join(f"{bad.cell.label} {_ratio(*i)}" for (bad, _), i in zip(pairs, intervals, strict=True))
    small = math.log(LITTLE)
    below = [
        (None if high is None else small - high, None if low is None else small - low) for _, low, high in intervals
    ]
    return Finding(f"{text} times as much", sign(below))


def finer_patch(table: Table) -> Finding:
    """Patch 2 is better than patch 4 at every size."""
    found = compare.analyse(table)
    sizes = dict.fromkeys(arm.cell.generator_size for arm in found.arms)
    by = {(arm.cell.generator_size, arm.cell.patch): arm for arm in found.arms}
    patches = sorted({arm.cell.patch for arm in found.arms})
    pairs = [
        (by[size, patches[1]], by[size, patches[0]]) for size in sizes if len(patches) == 2 and (size, patches[1]) in by
    ]
    if not pairs or len(by) != len(found.arms):
        raise ValueError("not two patch sizes of one setting")
    intervals = [_difference(found, bad, good, len(pairs)) for bad, good in pairs]
    text = ", ".join(f"{bad.cell.generator_size} {_ratio(*i)}" for (bad, _), i in zip(pairs, intervals, strict=True))
    verdict = sign([(low, high) for _, low, high in intervals])
    seeds = _seeds([arm for pair in pairs for arm in pair], intervals, verdict)
    return Finding(f"{text} times as much at patch {patches[1]}", verdict, seeds)


def seeds_agree(table: Table) -> Finding:
    """Seeds spread by about as much as the paper's: the interval of the standard deviation of ln value holds 0.035."""
    noise = compare.analyse(table).noise
    if noise is None:
        raise ValueError("no arm has two seeds that differ")
    std, df = noise.std, float(noise.degrees_of_freedom)
    if noise.by_seed and noise.seeds is not None:
        # What all arms of a seed share is part of the spread, with degrees of freedom of its own (Satterthwaite 1946).
        shared, rest = noise.seeds.f * std**2, std**2
        of_shared, of_rest = noise.seeds.degrees_of_freedom
        variance = (shared * of_shared + rest * of_rest) / (of_shared + of_rest)
        df = (shared * of_shared + rest * of_rest) ** 2 / (shared**2 * of_shared + rest**2 * of_rest)
        std = math.sqrt(variance)
    tail = (1 - CONFIDENCE) / 2
    low, high = (std * math.sqrt(df / float(stats.chi2.ppf(q, df))) for q in (1 - tail, tail))
    text = f"{std:.3f} [{low:.3f}, {high:.3f}] ({df:.3g} degrees of freedom)"
    if not low <= PAPER_SPREAD <= high:
        return Finding(text, CONTRADICTED)
    return Finding(text, CONFIRMED if high / low <= SHARP else NOT_DECIDED)


# ---------------------------------------------------------------- parts of the rules


def _sizes(found: Comparison) -> list[Arm]:
    """Return one arm per size of both networks, by rising compute."""
    if found.direction is not None and found.direction > 0:
        raise ValueError(f"of {found.measured.metric} a higher value is better, and the claim is about a distance")
    cells = [arm.cell for arm in found.arms]
    alike = all(cell.generator_size == cell.discriminator_size for cell in cells)
    if len({cell.generator_size for cell in cells}) != len(cells) or not alike or len(cells) < 3:
        raise ValueError("not three or more sizes of one setting")
    if found.arms[-1].gflops <= found.arms[0].gflops * 1.05:
        raise ValueError("all sizes have one compute; that is the question of allocate")
    return list(found.arms)


def _pairs(found: Comparison, key: str, better: Any, worse: Any, others: dict[str, Any]) -> list[tuple[Arm, Arm]]:
    """Return (the arm with `worse`, the arm with `better`) for each size that has both, equal in all else."""
    pairs = []
    for bad in found.arms:
        if _same(bad.settings.get(key), worse) and all(bad.settings.get(k, v) == v for k, v in others.items()):
            wanted = {k: v for k, v in bad.settings.items() if k != key}
            for good in found.arms:
                rest = {k: v for k, v in good.settings.items() if k != key}
                if good.cell == bad.cell and _same(good.settings.get(key), better) and rest == wanted:
                    pairs.append((bad, good))
    if not pairs:
        raise ValueError(f"no size has arms with {key} = {better} and {worse}")
    return pairs


def _same(found: Any, asked: Any) -> bool:
    return found == asked if isinstance(asked, str) or found is None else float(found) == float(asked)


def _mean_log(arm: Arm) -> float:
    return float(np.log(list(arm.values.values())).mean())


def _difference(found: Comparison, one: Arm, other: Arm, family: int) -> tuple[float, float | None, float | None]:
    """Return how much worse one arm is than another, as a log ratio with its interval, which holds for the family.

    The noise is pooled over all arms, or that of these two where one is noisier (dunnett.py; Bonferroni).
    """
    if found.direction is None:
        raise ValueError("it is not known which value of the metric is better; give a metric whose name says it")
    noisier = found.noise is not None and bool(
        {found.arms.index(one), found.arms.index(other)} & found.noise.noisier.keys()
    )
    if found.noise is not None and found.noise.by_seed:  # seeds move all arms together, so only common ones count
        one, other = (
            replace(arm, values={s: v for s, v in arm.values.items() if s in both.values})
            for arm, both in ((one, other), (other, one))
        )
    gap = -found.direction * (_mean_log(one) - _mean_log(other))
    if found.noise is None:
        return gap, None, None
    ours, theirs = ({seed: math.log(value) for seed, value in arm.values.items()} for arm in (one, other))
    error, degrees = standard_error(ours, theirs, found.noise, own=noisier)
    reach = float(stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / family, degrees)) * error
    return gap, gap - reach, gap + reach


def _seeds(
    arms: Sequence[Arm], intervals: Sequence[tuple[float, float | None, float | None]], verdict: str
) -> int | None:
    """Return about how many seeds of each arm would decide, if the differences stay as they are; None if too many."""
    if verdict != NOT_DECIDED:
        return None
    now = min(len(arm.values) for arm in arms)
    if any(low is None for _, low, _ in intervals):
        return max(3, now + 1)
    needed = [now * ((gap - low) / gap) ** 2 if gap > 0 else math.inf for gap, low, _ in intervals if low is not None]
    most = max(needed)
    return None if most > MOST_SEEDS else max(now + 1, math.ceil(most))


def _ratio(log: float, low: float | None, high: float | None) -> str:
    ends = "" if low is None or high is None else f" [{math.exp(low):.3g}, {math.exp(high):.3g}]"
    return f"{math.exp(log):.3g}{ends or ' (no interval)'}"


def _ends(low: float | None, high: float | None) -> str:
    return f"[{'no end' if low is None else f'{low:.2f}'}, {'no end' if high is None else f'{high:.2f}'}]"


CLAIMS = (
    Claim("the metric falls with size", "15.2, 9.5, 4.6, 4.0 (Fig. 3a, Table 3)", ("widths", "ladder"), falls),
    Claim("it is a power law of compute", "b = 0.456 (Fig. 21)", ("widths", "ladder"), power_law),
    Claim("it correlates with G's GFLOPs", f"r = {PAPER_R} (Fig. 3c)", ("widths", "ladder"), correlates),
    Claim("patch 2 is better than patch 4", "at every size (Fig. 3b)", ("patch_sizes",), finer_patch),
    Claim("D pays more than G", "a figure without numbers (Fig. 6a)", ("decoupled",), d_pays_more),
    Claim("G's best rate falls as 1 / width", "slope -1 (Eq. 4, Fig. 5b)", ("lr_transfer",), slope_of("G")),
    Claim("D's best rate falls as 1 / width", "slope -1 (Eq. 4, Fig. 5b)", ("lr_transfer",), slope_of("D")),
    Claim("each size is better at its own rate", "S 1.20, B 3.63 (Table 4)", ("lr_transfer",), own_rate),
    Claim("MNG is better than none", "Fig. 5a", ("mng",), beats("mng.schedule", "exp", "none")),
    Claim("the exponential schedule beats the linear one", "Fig. 5a", ("mng",), beats("mng.schedule", "exp", "linear")),
    Claim("noise is better than resizing (MSG-GAN)", "Fig. 5a", ("mng",), beats("mng.schedule", "exp", "msg")),
    Claim(
        "alignment helps", "S 1.71, B 1.55 (Table 10)", ("alignment",),
        beats("objective.align_weight", 1.0, 0.0, after="nothing"),
    ),
    Claim("alignment removed at the end loses little", "1.13 (A.18)", ("alignment",), removed_loses_little),
    Claim("seeds agree", f"{PAPER_SPREAD} in ln FID (A.17)", ("seeds", "widths", "ladder"), seeds_agree),
)  # fmt: skip
