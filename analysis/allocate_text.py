"""The best size and length in words: `allocate` prints them, the report shows them."""

import math
from collections.abc import Iterator
from typing import Any

from analysis.law_text import prediction_line

LISTED = 3  # checkpoints and trials left out that the text names
MILLION = 1e6


def verdict(report: dict[str, Any]) -> str:
    """The answer in one line, such as `At 1e6 GFLOPs: width 24 [16, 40] for 9 [5, 15] million images, 41 [33, 52]`."""
    best, metric = report["budget"], report["metric"]
    size = f"c = {_number(best['cost'])} {_ends(best, 'cost_low', 'cost_high')} GFLOPs per image"
    if best["width"] is not None:
        size = f"width {best['width']:.0f} {_ends(best, 'width_low', 'width_high', '.0f')}"
    below, above = best["between"]
    if below is None and above is None:
        where = ""
    elif below == above:
        where = f" ({below})"
    elif below and above:
        where = f" (between {below} and {above})"
    else:
        where = f" (beyond {below or above}, which is a guess)"
    unit = report["unit_of_length"]
    scale, word = (MILLION, "million ") if best["images"] >= MILLION else (1.0, "")
    length = f"{_number(best['images'] / scale)} {_ends(best, 'images_low', 'images_high', scale=scale)} {word}{unit}"
    value = f"{metric} {best['value']:.4g} {_ends(best, form='.4g')}"
    share = ""
    if "g_share" in best:
        share = f", {best['g_share']:.0%} {_ends(best, 'g_share_low', 'g_share_high', '.0%')} of it for G"
    return f"At {best['gflops']:.3g} GFLOPs: {size}{where}{share} for {length}, {value}"


def summary(report: dict[str, Any]) -> str:
    """The answer, the sizes beside it, the law, how far other ways are from it, and what was left out."""
    lines = [
        verdict(report),
        *_sizes(report),
        *_law(report),
        *_approaches(report),
        *_repeats(report),
        *_left_out(report),
    ]
    lines += [
        prediction_line(row | {"size": f"{row['size']} for {row['steps']:,} steps"})
        for row in report.get("predictions", [])
    ]
    if command := report.get("command"):
        lines.append(f"to train it: {command}")
    return "\n".join(lines)


def _sizes(report: dict[str, Any]) -> Iterator[str]:
    """Sizes of the table at the same compute: those on both sides of the best one, the best of them, the largest."""
    longest = max(size["images_to"] for size in report["sizes"])
    if (ratio := report["budget"]["images"] / longest) > 1.01:
        yield f"no run of the table is that long: the best length is {ratio:.1f} times the longest"
    rows, best = report["at_budget"], report["budget"]
    chosen = {*best["between"], report["recommended"], rows[-1]["size"]}
    for row in rows:
        if row["size"] not in chosen:
            continue
        steps = (
            f"{round(row['steps']):,} steps" if row["steps"] else f"{_number(row['images'])} {report['unit_of_length']}"
        )
        yield (
            f"{row['size']} for {steps} costs the same: a run is predicted at {row['predicted']:.4g} "
            f"{_ends(row, form='.4g')}"
        )


def _law(report: dict[str, Any]) -> Iterator[str]:
    law = report["law"]
    floor = law["E"]
    exponents = [name for name in law if name.startswith(("alpha", "beta"))]
    parts = [f"E = {floor['estimate']:.4g} {_ends(floor, form='.4g')}"]
    parts += [
        f"{name} = {law[name]['estimate']:.3f} {_ends(law[name], form='.3f')}"
        + (" (at its bound)" if law[name]["at_bound"] else "")
        for name in exponents
    ]
    yield f"joint law: {law['law']}, {', '.join(parts)}"
    yield (
        f"  {law['checkpoints']} checkpoints of {law['runs']} runs of {len(report['sizes'])} sizes, 95 %; "
        f"c in GFLOPs per image, D in {report['unit_of_length']}"
    )
    if not law["converged"]:
        yield "  the fit of this law did NOT CONVERGE; do not use it"
    if growth := law["size_exponent"]:
        yield f"  the best c grows as C^{growth['estimate']:.3f} {_ends(growth, form='.3f')}, the best D as the rest"
    spreads = [
        ("sizes", "spread_between_sizes"),
        ("runs", "spread_between_runs"),
        ("checkpoints", "spread_of_checkpoints"),
    ]
    told = [f"{name} {law[key]:.3g}" for name, key in spreads if law[key] is not None]
    yield f"  standard deviation of ln value: {', '.join(told)}"


def _approaches(report: dict[str, Any]) -> Iterator[str]:
    rows = report["approaches"]
    if not rows:
        return
    parts = [f"joint law {_cost(report['budget'])}"]
    for row in rows:
        power = "" if row["exponent"] is None else f", as C^{row['exponent']:.2f}"
        parts.append(
            f"{row['name']} {_cost(row)}{power}" if row["cost"] is not None else f"{row['name']}: {row['remark']}"
        )
    apart = f"; apart by a factor of {report['apart']:.2g} in c" if report["apart"] else ""
    yield f"other ways to the best size: {'; '.join(parts)}{apart}"


def _cost(row: dict[str, Any]) -> str:
    return f"c = {_number(row['cost'])}" + (f" (width {row['width']:.0f})" if row["width"] is not None else "")


def _repeats(report: dict[str, Any]) -> Iterator[str]:
    law, best = report["law"], report["budget"]
    if law["epochs"] is None:
        yield "the table does not say how many images the data set has, so images seen again count as new ones"
        return
    yield f"epochs: {best['epochs']:.3g} at the best length, {law['epochs']:.3g} at most in the table"
    if not law["repeats"]:
        yield "  no image is seen often enough to lose worth"
    else:
        worth = law["epochs_worth"]
        low, high = (("no loss" if end is None else _number(end)) for end in (worth["low"], worth["high"]))
        estimate = _number(worth["estimate"]) if math.isfinite(worth["estimate"] or math.inf) else "no loss"
        yield f"  worth of images seen again: R = {estimate} [{low}, {high}] epochs (Muennighoff et al. 2023)"


def _left_out(report: dict[str, Any]) -> Iterator[str]:
    if report["averaged"] is None:
        yield "the table does not say how weights are averaged (train.ema_decay), so no checkpoint counts as too young"
    elif report["young"]:
        before = f"{report['young']} checkpoints before step {report['averaged']}"
        yield f"left out: {before}, because the running average still holds the beginning"
    for name, rows in (("checkpoint", report["law"]["left_out"]), ("trial", report["excluded"])):
        for row in rows[:LISTED]:
            reason = row.get("reason") or f"{row['over_law']:.2f} times the law of the others"
            where = f" at step {row['step']}" if "step" in row else ""
            yield f"left out: {row['trial']}{where} ({row['size']}): {reason}"
        if len(rows) > LISTED:
            yield f"left out: {len(rows) - LISTED} more, in the JSON ({name}s)"


def _number(value: float) -> str:
    """A number with three digits, plain up to a million."""
    if not math.isfinite(value):
        return str(value)
    return f"{float(f'{value:.3g}'):,.10g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"


def _ends(row: dict[str, Any], low: str = "low", high: str = "high", form: str = ".3g", scale: float = 1.0) -> str:
    """An interval as text; `open` for an end that lies beyond what was tried."""
    ends = (
        "open" if row[end] is None else format(row[end] / scale, form) if form != ".3g" else _number(row[end] / scale)
        for end in (low, high)
    )
    return "[{}, {}]".format(*ends)
