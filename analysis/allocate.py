"""The compute-optimal frontier: which size, for how many images, has the least value at a training compute.

GAT trains at a constant rate with an average of its weights, so every checkpoint of a run is nearly what a run of that
length would have been: one run of a size gives all of its lengths. The joint law of size and length (fits/joint.py) is
fitted to all checkpoints and heads the answer. The lower envelope and isoFLOP parabolas (isoflop.py) stand beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.allocate_text import summary as summary
from analysis.allocate_text import verdict as verdict
from analysis.checkpoints import Size, Trajectories, epochs_of, find_checkpoints
from analysis.fits.joint import Ends, JointLaw
from analysis.fits.joint_fit import EXACT, fit_joint
from analysis.isoflop import Approach, Parabola, envelope, parabolas, vertices
from analysis.table import UNIT, Table, json_head
from analysis.table import better as best_direction

Array = NDArray[np.float64]
FAR = 10.0  # times the largest compute of the table: the farthest answer without `far`
CURVE = 8  # computes at which the frontier is given
CONVENTIONS = (
    "c is the training compute of an image and C that of a run, in GFLOPs (multiply-adds / 1e9; the run table's flops "
    "count 2 per multiply-add); D is the images seen (steps, if the table does not say how many images a step has), so "
    "C = c D exactly. Intervals are profiles of the joint law at Student's t with one degree of freedom less than "
    "sizes, widened where leaving out one size at a time varies more. The band of a value is that of the law; that "
    "of a run holds the mean over the table's number of seeds of a size that is not in it."
)


@dataclass(frozen=True)
class Best:
    """The best size at a compute, with 95 % intervals; an end that is None lies beyond what was searched."""

    gflops: float
    cost: float  # GFLOPs per image
    cost_ends: Ends
    value: float
    value_ends: Ends
    share: float | None  # of G in c; None where both networks have one size
    share_ends: Ends
    within: bool  # the best cost lies within the sizes of the table

    @property
    def images(self) -> float:
        return self.gflops / self.cost

    @property
    def images_ends(self) -> Ends:
        low, high = self.cost_ends
        return high and self.gflops / high, low and self.gflops / low


@dataclass(frozen=True)
class Allocation:
    """The frontier of a table, and the best size at a budget."""

    found: Trajectories
    law: JointLaw
    kept: NDArray[np.bool_]  # checkpoints that the law was fitted to
    runs: int  # seeds of a size: the median over sizes
    budget: Best
    at_budget: tuple[dict[str, Any], ...]  # every size of the table, at the budget
    frontier: tuple[Best, ...]
    approaches: tuple[Approach, ...]  # 1 and 2
    isoflops: tuple[Parabola, ...]

    @property
    def recommended(self) -> dict[str, Any]:
        """Return the size of the table that is predicted the least value at the budget, as a row of `at_budget`."""
        return min(self.at_budget, key=lambda row: float(row["predicted"]))

    def to_json(self) -> dict[str, Any]:
        found, budget = self.found, self.budget
        costs = {"joint law": budget.cost} | {a.name: a.cost(budget.gflops) for a in self.approaches}
        there = [cost for cost in costs.values() if cost is not None]
        return {
            **json_head(found.measured),
            "unit": UNIT,
            "unit_of_length": found.unit,
            "conventions": CONVENTIONS,
            "sizes": [_size_json(size) for size in found.sizes],
            "law": self._law_json(),
            "budget": _best_json(budget, found),
            "recommended": self.recommended["size"],
            "at_budget": list(self.at_budget),
            "frontier": [_best_json(best, found) for best in self.frontier],
            "approaches": [
                {
                    "name": a.name, "exponent": a.exponent, "cost": costs[a.name],
                    "width": width_at(found.sizes, costs[a.name]), "remark": a.remark,
                }
                for a in self.approaches
            ],
            "apart": max(there) / min(there) if len(there) > 1 else None,
            "isoflops": [p.to_json() for p in self.isoflops],
            "young": found.young,
            "averaged": found.averaged,
            "excluded": [trial.to_json() for trial in found.excluded],
        }  # fmt: skip

    def _law_json(self) -> dict[str, Any]:
        law, found = self.law, self.found
        exponents, coefficients = law.exponent_intervals(), law.coefficients()
        floor = law.floor_interval()
        growth = None if found.grid else dict(zip(("estimate", "low", "high"), law.size_exponent(), strict=True))
        worth = None
        if law.repeats:
            ends, estimate = law.worth_interval(), coefficients["epochs_worth"]
            # null, as at the ends of the interval: images seen again lose nothing.
            worth = {"estimate": estimate if math.isfinite(estimate) else None, "low": ends[0], "high": ends[1]}
        over_law = np.exp(found.data.log_value) / law.predict(found.data.costs, found.data.images)
        sizes = "A1 c_G^-alpha1 + A2 c_D^-alpha2" if found.grid else "A c^-alpha"
        return {
            "law": f"{found.measured.metric} = E + {sizes} + B D^-beta",
            **{name.upper(): value for name, value in coefficients.items() if name.rstrip("12") in ("a", "b")},
            "E": {"estimate": coefficients["floor"], "low": floor[0], "high": floor[1]},
            **{
                name: {
                    "estimate": coefficients[name], "low": low, "high": high, "at_bound": bool(law.at_bound[2 + 2 * j])
                }
                for j, (name, (low, high)) in enumerate(exponents.items())
            },
            "size_exponent": growth,
            "epochs_worth": worth,
            "epochs": epochs_of(found, float(found.data.images.max())),
            "repeats": law.repeats,
            "spread_between_sizes": law.size_effect,
            "spread_between_runs": law.run_effect,
            "spread_of_checkpoints": law.rest,
            "checkpoints": int(self.kept.sum()),
            "runs": len(np.unique(found.data.run[self.kept])),
            "starts": law.starts, "agreeing": law.agreeing, "converged": law.converged,
            "left_out": [
                {"trial": row.trial, "size": row.cell.label, "step": row.step, "over_law": float(over_law[i])}
                for i, row in enumerate(found.rows)
                if not self.kept[i]
            ],
        }  # fmt: skip


def analyse(table: Table, budget: float | None = None, far: bool = False, better: str | None = None) -> Allocation:
    """Find the best size and length at a training compute, from all checkpoints of a table.

    budget: GFLOPs; default: the largest compute of the table. far: allow a budget farther than FAR times the largest
    compute, and a best size beyond those of the table. better: `lower`, for a metric whose name does not say it.
    Raises ValueError, in one line, as find_checkpoints does; for a metric of which a higher value is better; if the
    value does not fall with size or with length; and for an answer that is too far, unless `far`.
    """
    found = find_checkpoints(table)
    if best_direction(found.measured.metric, better) > 0:
        raise ValueError(f"the law falls to a floor, and of {found.measured.metric} a higher value is better")
    compute = found.compute
    most = float(compute.max())
    if budget is not None and not far and not compute.min() <= budget <= FAR * most * (1 + 1e-9):
        raise ValueError(
            f"the budget of {budget:.3g} GFLOPs is too far from the table's checkpoints, {compute.min():.3g} to "
            f"{most:.3g} GFLOPs; give one of at most {FAR * most:.3g}, or --far"
        )
    law, kept = fit_joint(found.data)
    _check_falls(law, found)
    if budget is None:
        budget = _largest_within(law, found) if not far else most
    runs = round(float(np.median([size.runs for size in found.sizes])))
    curve = np.geomspace(compute.min(), max(budget, most), CURVE)
    at, *frontier = _best(law, found, [budget, *curve.tolist()])
    if not (at.within or far):
        _refuse_beyond(at, found)
    isoflops = parabolas(found, kept) if not found.grid else ()
    approaches = (envelope(found, kept), vertices(isoflops)) if not found.grid else ()
    return Allocation(
        found, law, kept, runs, at, _at_budget(law, found, budget, runs), tuple(frontier), approaches, isoflops
    )


def _check_falls(law: JointLaw, found: Trajectories) -> None:
    """Raise ValueError if the value hardly falls over the sizes, or over the lengths, of the table."""
    costs, images, least = law.data.costs, law.data.images, float(np.exp(law.data.log_value).min())
    ends = np.array([[images.min(), images.max()], [images.mean(), images.mean()]])
    falls = {
        "images seen": np.ptp(law.predict(np.repeat(costs[:, :1], 2, axis=1), ends[0])),
        "size": np.ptp(law.predict(np.stack([costs.min(axis=1), costs.max(axis=1)], axis=1), ends[1])),
    }
    for what, fall in falls.items():
        if fall < EXACT * least:
            metric = found.measured.metric
            raise ValueError(f"{metric} does not fall with {what} in this table, so no size is the best one")


def _largest_within(law: JointLaw, found: Trajectories) -> float:
    """Return the largest compute of the table at which the best size is one of its sizes, or lies between them."""
    compute = np.geomspace(found.compute.max(), found.compute.min(), 200)
    costs, trained = law.optimum(compute).sum(axis=0), [size.cost for size in found.sizes]
    within = (min(trained) <= costs) & (costs <= max(trained))
    return float(compute[within.argmax()] if within.any() else compute[0])


def _refuse_beyond(at: Best, found: Trajectories) -> None:
    small, large = found.sizes[0], found.sizes[-1]
    end, word, ends = (small, "smaller", "smallest") if at.cost < small.cost else (large, "larger", "largest")
    raise ValueError(
        f"at {at.gflops:.3g} GFLOPs the best size would be {word} than {end.cell.label}, the {ends} of the table "
        f"({at.cost:.3g} GFLOPs per image against {end.cost:.3g}); train a {word} one, give another budget, or --far"
    )


def _best(law: JointLaw, found: Trajectories, budgets: Sequence[float]) -> list[Best]:
    costs = law.optimum(budgets)
    total = costs.sum(axis=0)
    cost_ends, value_ends = law.cost_intervals(budgets), law.value_intervals(budgets)
    share_ends = law.share_intervals(budgets) if found.grid else [(None, None)] * len(budgets)
    values = law.predict(costs, np.asarray(budgets) / total)
    trained = [size.cost for size in found.sizes]
    return [
        Best(
            budget, float(cost), _exp(cost_ends[i]), float(values[i]), _exp(value_ends[i]),
            float(costs[0, i] / cost) if found.grid else None,
            tuple(None if end is None else float(special.expit(end)) for end in share_ends[i]),  # type: ignore[arg-type]
            bool(min(trained) <= cost <= max(trained)),
        )
        for i, (budget, cost) in enumerate(zip(budgets, total, strict=True))
    ]  # fmt: skip


def _at_budget(law: JointLaw, found: Trajectories, budget: float, runs: int) -> tuple[dict[str, Any], ...]:
    """Return every size of the table at the budget: how long it would train, and what a run is predicted to reach."""
    costs = np.array([size.costs for size in found.sizes]).T
    images = budget / costs.sum(axis=0)
    values, ends = law.predict(costs, images), law.point_intervals(costs, images, runs)
    return tuple(
        {
            "size": size.cell.label, "width": size.width, "cost": size.cost, "images": float(images[i]),
            "steps": float(images[i] / (found.batch or 1)),
            "epochs": epochs_of(found, float(images[i])),
            "predicted": float(values[i]), "low": _exp(ends[i])[0], "high": _exp(ends[i])[1],
            "trained": bool(images[i] <= size.images[1] * 1.01),
        }
        for i, size in enumerate(found.sizes)
    )  # fmt: skip


def width_at(sizes: Sequence[Size], cost: float | None) -> float | None:
    """Return the width of a network of this cost, between the sizes of the table; None beyond them, or if unknown."""
    if cost is None or any(size.width is None for size in sizes):
        return None
    known = [(math.log(size.cost), math.log(size.width or 1)) for size in sizes]
    x = math.log(cost)
    if not known[0][0] - 1e-9 <= x <= known[-1][0] + 1e-9:
        return None
    return math.exp(float(np.interp(x, *np.array(known).T)))


def between(sizes: Sequence[Size], cost: float) -> tuple[str | None, str | None]:
    """Return the sizes just below and just above a cost; None beyond the smallest or the largest."""
    below = [size.cell.label for size in sizes if size.cost <= cost]
    above = [size.cell.label for size in sizes if size.cost >= cost]
    return (below[-1] if below else None), (above[0] if above else None)


def _exp(ends: Ends) -> Ends:
    low, high = (None if end is None else math.exp(end) for end in ends)
    return low, high


def _best_json(best: Best, found: Trajectories) -> dict[str, Any]:
    sizes = found.sizes
    row = {
        "gflops": best.gflops,
        "cost": best.cost, "cost_low": best.cost_ends[0], "cost_high": best.cost_ends[1],
        "width": width_at(sizes, best.cost),
        "width_low": width_at(sizes, best.cost_ends[0]), "width_high": width_at(sizes, best.cost_ends[1]),
        "between": [None, None] if found.grid else list(between(sizes, best.cost)), "within": best.within,
        "images": best.images, "images_low": best.images_ends[0], "images_high": best.images_ends[1],
        "steps": best.images / (found.batch or 1), "epochs": epochs_of(found, best.images),
        "value": best.value, "low": best.value_ends[0], "high": best.value_ends[1],
    }  # fmt: skip
    if best.share is not None:
        row |= {"g_share": best.share, "g_share_low": best.share_ends[0], "g_share_high": best.share_ends[1]}
    return row


def _size_json(size: Size) -> dict[str, Any]:
    return {
        "size": size.cell.label, **size.cell._asdict(), "cost": size.cost, "width": size.width, "runs": size.runs,
        "checkpoints": size.checkpoints, "images_from": size.images[0], "images_to": size.images[1],
    }  # fmt: skip
