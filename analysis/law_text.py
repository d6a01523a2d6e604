"""The laws of a table in words: `fit-law` prints them, the report shows them."""

import math
from collections.abc import Iterator
from typing import Any

from analysis.statistics import CONFIDENCE
from analysis.table import UNIT

LISTED = 3  # trials left out that the short text names


def summary(report: dict[str, Any], verbose: bool = False) -> str:
    """The laws, what was tested and found, the prediction of the largest size, the correlation.

    verbose: everything else that law.json holds as well; without it, only what does not agree with the law.
    """
    lines = []
    for law in report["laws"]:
        prefix = f"patch {law['patch']}: " if len(report["laws"]) > 1 else ""
        lines += [prefix + line for line in _law(report["metric"], law)]
        lines += [prefix + line for line in (_everything(law) if verbose else _disagreements(law))]
    lines += _patches(report)
    lines += [prediction_line(row) for row in report.get("predictions", [])]
    lines += [f"b = {b:.4f} with C counted as {how}" for how, b in report.get("counts", {}).items() if verbose]
    excluded = report["excluded"]
    shown = excluded if verbose else excluded[:LISTED]
    lines += [f"left out: {e['trial']}: {e['reason']}" for e in shown]
    if len(excluded) > len(shown):
        lines.append(f"left out: {len(excluded) - len(shown)} more, --verbose lists them")
    if at_50k := report.get("pearson_at_50k"):
        ends = f"[{at_50k['low']:.3f}, {at_50k['high']:.3f}]"
        lines.append(f"the same sizes at 50k iterations each (Fig. 3c): Pearson {at_50k['r']:.3f} {ends}")
    if "remark" in report:
        lines.append(report["remark"])
    return "\n".join(lines)


def verdict(report: dict[str, Any]) -> str:
    """The laws in one line."""
    return "; ".join(
        (f"patch {law['patch']}: " if len(report["laws"]) > 1 else "")
        + f"{law_text(report['metric'], law)}, b {interval(law, 'b_low', 'b_high')}"
        + (f", {len(law['flagged'])} of its trials flagged" if law["flagged"] else "")
        for law in report["laws"]
    )


def law_text(metric: str, law: dict[str, Any]) -> str:
    """The law as a formula, such as `fid = 3.82 + 2904 C^-0.437`."""
    floor = f"{law['floor']:.4g} + " if law["floor"] else ""
    whole = math.floor(law["log10_a"])  # a itself may be too large for a float
    a = f"{10 ** law['log10_a']:.4g}" if -300 < whole < 300 else f"{10 ** (law['log10_a'] - whole):.4g}e{whole:+d}"
    return f"{metric} = {floor}{a} C^{round(-law['b'], 9) + 0.0:.4g}"


def interval(row: dict[str, Any], low: str = "low", high: str = "high") -> str:
    """An interval as text; an end that does not exist is named."""
    ends = "-inf" if row[low] is None else f"{row[low]:.4g}", "inf" if row[high] is None else f"{row[high]:.4g}"
    return f"[{ends[0]}, {ends[1]}]"


def test_text(f: float, degrees: list[int], p: float) -> str:
    return f"F({degrees[0]}, {degrees[1]}) = {f:.3g}, p = {p:.2g}"


def _law(metric: str, law: dict[str, Any]) -> Iterator[str]:
    count = len(law["points"])
    of = f"{law['sizes']} sizes" if count == law["sizes"] else f"{count} points of {law['sizes']} sizes"
    rises = f": {metric} rises with compute" if law["b_high"] is not None and law["b_high"] < 0 else ""
    floor = f", E = {law['floor']:.4g} {interval(law, 'floor_low', 'floor_high')}" if law["floor_test"]["found"] else ""
    yield (
        f"{law_text(metric, law)}, b = {law['b']:.4f} {interval(law, 'b_low', 'b_high')}{floor}{rises} "
        f"({of}, 95 %, C in {UNIT})"
    )
    if not law["converged"]:
        yield "the fit of this law did NOT CONVERGE; do not use it"
    yield f"floor: {_floor(law)}"
    equal = "; all sizes are taken as equally noisy" if law["noise"]["not_possible"] else ""
    yield f"lack of fit: {_lack_of_fit(law['lack_of_fit'])}{equal}"
    yield _prediction(law["largest_size"])
    yield _correlation(metric, law["correlation"])


def _floor(law: dict[str, Any]) -> str:
    test, given, known = law["floor_test"], law["given_floor"], law["known_floors"]
    beside = f"; halves of the real pictures: {known['split_half']:.4g}" if "split_half" in known else ""
    if given:
        ends = interval(given, "floor_low", "floor_high")
        word = "allow it" if given["agrees"] else "DO NOT ALLOW IT"
        return f"given, {law['floor']:.4g}; the points alone {word}: {ends}{beside}"
    if test["not_possible"]:
        return f"no test is possible: {test['not_possible']}{beside}"
    words = test_text(test["f"], [1, test["degrees_of_freedom"]], test["p"])
    if test["found"]:
        return f"found, {words} (one-sided); a bend of another kind, as of one length, looks the same{beside}"
    high = "any floor below the smallest value" if law["floor_high"] is None else f"one up to {law['floor_high']:.3g}"
    return f"none found, {words} (one-sided); {high} would fit as well, and the interval of b allows for it{beside}"


def _lack_of_fit(found: dict[str, Any]) -> str:
    if "not_possible" in found:
        return f"no test is possible: {found['not_possible']}"
    word = "sizes stray from the law by more than their seeds do" if found["found"] else "none"
    return f"{word}, {test_text(found['f'], found['degrees_of_freedom'], found['p'])}"


def _prediction(row: dict[str, Any]) -> str:
    if "not_possible" in row:
        return f"{row['size']} from the other sizes: not possible: {row['not_possible']}"
    where = "inside" if row["inside"] else "OUTSIDE"
    predicted = f"{row['predicted']:.4g} {interval(row)}"
    return f"{row['size']} from the other sizes: {predicted}, measured {row['value']:.4g}: {where}"


def _correlation(metric: str, found: dict[str, Any]) -> str:
    if "not_possible" in found:
        return f"correlation: not possible: {found['not_possible']}"
    parts = []
    for name in ("pearson", "spearman"):
        row = found[name]
        if row["r"] is None:
            parts.append(f"{name.capitalize()} undefined")
        else:
            ends = "no interval" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
            parts.append(f"{name.capitalize()} {row['r']:.3f} {ends}")
    return f"{metric} and the GFLOPs of G's forward pass: {', '.join(parts)}"


def _patches(report: dict[str, Any]) -> Iterator[str]:
    for row in report["without_law"]:
        yield f"patch {row['patch']}: no law, {row['reason']}"
    one = report["one_exponent"]
    if one is None:
        return
    if "not_possible" in one:
        yield f"one exponent for all patch sizes: no test is possible: {one['not_possible']}"
    else:
        word = "rejected" if one["differ"] else "not rejected"
        test = test_text(one["f"], one["degrees_of_freedom"], one["p"])
        b = f"{one['b']:.4f} {interval(one, 'b_low', 'b_high')}"
        yield f"one exponent for all patch sizes: {word}, {test}; it would be {b}"


def _outside(law: dict[str, Any], b: float) -> bool:
    return (law["b_low"] is not None and b < law["b_low"]) or (law["b_high"] is not None and b > law["b_high"])


def _disagreements(law: dict[str, Any]) -> Iterator[str]:
    for row in law["itemisations"]:
        if _outside(law, row["b"]):
            yield f"b = {row['b']:.4f}, OUTSIDE its interval, with C counted as {row['counted']}"
    for row in law["without_run"]:
        if row["b"] is not None and _outside(law, row["b"]):
            yield f"b = {row['b']:.4f}, OUTSIDE its interval, without {row['trial']}"
    yield from _other_laws(law)
    yield from _common_seeds(law["common_seeds"])
    if law["noise"]["p"] is not None and law["noise"]["p"] < 1 - CONFIDENCE:
        yield _noise(law["noise"])
    yield from _flags(law)


def _other_laws(law: dict[str, Any]) -> Iterator[str]:
    """The trials that alone decide whether a floor is found."""
    found = law["floor_test"]["found"]
    alone = [r["trial"] for r in law["without_run"] if r["b"] is not None and (r["law"] == "found") != found]
    if alone and not law["given_floor"]:
        more = f" and {len(alone) - LISTED} more" if len(alone) > LISTED else ""
        yield f"a floor is {'not ' if found else ''}found without {' or without '.join(alone[:LISTED])}{more}"


def _common_seeds(found: dict[str, Any]) -> Iterator[str]:
    """A seed that moves all sizes bends the law of a table whose sizes have different seeds."""
    if not (found["unequal"] and found.get("found")):
        return
    test = test_text(found["f"], found["degrees_of_freedom"], found["p"])
    b = ""
    if shared := ", ".join(map(str, found["shared"])):
        b = f"; over the seeds of all sizes, {shared}, b = {found['b']:.4f} {interval(found, 'b_low', 'b_high')}"
    yield (
        f"SEEDS MOVE ALL SIZES TOGETHER ({test}), and sizes have different seeds: the law is bent, and the interval "
        f"of b does not know it{b}; give all sizes the same seeds"
    )


def _flags(law: dict[str, Any]) -> Iterator[str]:
    for row in law["flagged"]:
        yield f"flagged: {row['trial']} ({row['size']}): {row['flags']}"


def _noise(noise: dict[str, Any]) -> str:
    if noise["not_possible"]:
        return f"noise is taken as equal at all sizes: {noise['not_possible']}"
    return (
        f"the variance between seeds goes as C^{noise['slope']:.2g} (p = {noise['p']:.2g}), which all intervals use; "
        f"sizes stray by {noise['effect']:.3g} in ln value"
    )


def _everything(law: dict[str, Any]) -> Iterator[str]:
    yield _noise(law["noise"])
    for row in (law["given_floor"] or {}).get("others", []):
        yield f"with a floor of {row['floor']:.4g}: b = {row['b']:.4f} {interval(row, 'b_low', 'b_high')}"
    for row in law["leave_one_size_out"]:
        yield f"left out, {_prediction(row)}"
    for row in law["roll_forward"]:
        yield f"from cheaper ones, {_prediction(row)}"
    for row in law["without_run"]:
        b = "not possible" if row["b"] is None else f"{row['b']:.4f} {interval(row, 'b_low', 'b_high')}"
        yield f"b without {row['trial']}: {b}"
    over = law["checkpoints"]
    if "not_possible" in over:
        yield f"b through all checkpoints: not possible: {over['not_possible']}"
    else:
        ends = f"{over['b']:.4f} {interval(over, 'b_low', 'b_high')}"
        yield f"b through all {over['checkpoints']} checkpoints: {ends} (over {over['sizes']} sizes)"
    for row in law["itemisations"]:
        yield f"b with C counted as {row['counted']}: {row['b']:.4f} {interval(row, 'b_low', 'b_high')}"
    yield from _flags(law)


def prediction_line(row: dict[str, Any]) -> str:
    """A prediction that was written before, and its score, in one line."""
    line = f"prediction of {row['size']} written {row['written']}: {row['predicted']:.4g} {interval(row)}"
    if not row["intact"]:
        return f"{line}: ALTERED, its digest does not match; not scored"
    if row["value"] is None:
        return f"{line}: {row['size']} is not complete yet"
    when = "before" if row["before"] else "AFTER"
    where = "inside" if row["inside"] else "outside"
    line += f": {where}, measured {row['value']:.4g}; written {when} its first step"
    if row["inside_seeds"] is not None:
        where = "inside" if row["inside_seeds"] else "outside"
        line += f"; {where} [{row['seeds_low']:.4g}, {row['seeds_high']:.4g}], if sizes lay on the law exactly"
    return line
