"""A design in words: `gat-sweep design` prints them."""

import math
from collections.abc import Iterator
from typing import Any

from analysis.statistics import CONFIDENCE

WHAT = {
    "exponent": "the exponent at {size}",
    "predict": "the value of {size} before it begins",
    "allocate": "the best size at {gflops:.3g} GFLOPs, what {size} costs",
    "rates": "the best rate of {size}",
}


def summary(report: dict[str, Any]) -> str:
    """The design, its error by law, the designs with fewer or more sizes, and what to run."""
    goal, best, unit = report["goal"], report["best"], report["price"]
    what = WHAT[goal["name"]].format(**goal)
    seeds = f"{best['seeds']} seed{'s' if best['seeds'] > 1 else ''}"
    lines = [
        f"For {what}: {best['sizes']} sizes, {seeds}, {_number(best['price'])} of {_number(report['budget'])} {unit}; "
        f"expected error {_error(best['error'], goal)}",
        *(_cell(cell, unit) for cell in best["cells"]),
        *_beside(report),
        *_laws(report),
        *_power(report),
        *_plain(report),
        *_budgets(report),
        *_known(report),
    ]
    return "\n".join([*lines, *(f"then: {command}" for command in report["run"])])


def _cell(cell: dict[str, Any], unit: str) -> str:
    rates = (
        f", rates x{cell['rates'][0]:g} to x{cell['rates'][-1]:g} of Eq. 4's for each network"
        if "rates" in cell
        else ""
    )
    return f"  {cell['size']}: {cell['steps']:,} steps{rates}, {_number(cell['price'])} {unit}"


def _beside(report: dict[str, Any]) -> Iterator[str]:
    """What the price does not hold, and why a budget is not spent."""
    goal, best, unit = report["goal"], report["best"], report["price"]
    if report["held_price"]:
        yield f"  {goal['size']}, to score the prediction: {_number(report['held_price'])} {unit} more"
    if best["seeds"] == report["most_seeds"] and best["price"] < 0.9 * report["budget"]:
        yield f"  the rest of the budget is left: more than {best['seeds']} seeds of a size are not tried"


def _laws(report: dict[str, Any]) -> Iterator[str]:
    goal, errors = report["goal"], report["best"]["errors"]
    yield "error by law: " + ", ".join(f"{law} {_error(error, goal)}" for law, error in errors.items())
    if out := [row for row in report["laws"] if not row["kept"]]:
        yield "rejected by the data: " + ", ".join(f"{row['law']} (AIC +{row['aic_above_least']:.1f})" for row in out)


def _power(report: dict[str, Any]) -> Iterator[str]:
    goal, law = report["goal"], next(iter(report["best"]["errors"]))
    asked = _error(report["asked_half_width"], goal)
    yield f"new sizes  seeds  error  median half-width  chance of at most {asked}"
    for row in report["by_sizes"]:
        half = "no end" if row["half_width"] is None else _error(row["half_width"], goal)
        mark = "  <-" if row["sizes"] == report["best"]["sizes"] else ""
        error = _error(row["error"], goal)
        yield f"{row['sizes']:9}  {row['seeds']:5}  {error:>5}  {half:>17}  {row['power']:>17.0%}{mark}"
    yield f"(half-widths: {CONFIDENCE:.0%}, under the law '{law}'; few sizes have few degrees of freedom)"


def _plain(report: dict[str, Any]) -> Iterator[str]:
    if (plain := report["plain"]) is not None:
        seeds = f"{plain['seeds']} seed{'s' if plain['seeds'] > 1 else ''}"
        yield (
            f"all sizes alike, {seeds}: expected error {_error(plain['error'], report['goal'])} for "
            f"{_number(plain['price'])} {report['price']}"
        )


def _budgets(report: dict[str, Any]) -> Iterator[str]:
    rows = [f"{_number(row['budget'])}: {_error(row['error'], report['goal'])}" for row in report["curve"]]
    yield f"expected error of the best design by budget in {report['price']}: " + ", ".join(rows)


def _known(report: dict[str, Any]) -> Iterator[str]:
    noise, known = report["noise"], report["known"]
    if noise["of"] == "prior":
        low, high = noise["seeds"]
        yield f"noise as taken before any data: seeds spread by {low:g} to {high:g} in ln value, sizes as much"
    else:
        texts = [
            f"{what} {noise[what]:.2g}{' (not told by the data)' if what in noise['assumed'] else ''}"
            for what in ("seeds", "sizes", "checkpoints")
        ]
        yield f"spread in ln value: {', '.join(texts)}"
    if known:
        counting = known["runs_that_count"]
        text = f"{known['runs']} runs of {', '.join(known['sizes'])} tell the laws and the noise; "
        if counting:
            alone = _error(report["before"], report["goal"])
            yield f"{text}{counting} of them count beside the new ones, and alone have an error of {alone}"
        else:
            yield f"{text}none of them counts beside the new ones"


def _error(error: float, goal: dict[str, Any]) -> str:
    """An error of an exponent as it is; one of a logarithm as a factor."""
    if goal["name"] == "exponent":
        return f"{error:.2g}"
    return f"x{math.exp(error):.3g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= value < 1e6 else f"{value:.3g}"
