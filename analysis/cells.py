"""Cells of a split: a size of G with a size of D, and the training compute of each network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.table import G_ITEMS, Cell, Excluded, Trial, gflops, replicates

Array = NDArray[np.float64]
MIN_CELLS = 4
LINE = 0.05  # cells are on one line if they spread across it less than this share of their spread along it
FORWARDS = {"G": 3, "D": 15}  # in an iteration, if the table has no items of it
CONVENTIONS = (
    "C_G and C_D are training compute in GFLOPs (multiply-adds / 1e9; the run table's flops count 2 per multiply-add), "
    "C = C_G + C_D. C_G is G's own forward and backward (items g_forward*, g_backward*); C_D is everything else: D's "
    "step, D's passes in G's step, the teacher's passes. Without items, an iteration is 3 forwards of G and 15 of D. A "
    "point is a cell: the mean over its trials of ln value at the last evaluation."
)


@dataclass(frozen=True)
class CellMean:
    """A size of G with a size of D: its complete trials, which are replicates, and their mean training GFLOPs."""

    cell: Cell
    gflops_g: float
    gflops_d: float
    trials: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def gflops(self) -> float:
        return self.gflops_g + self.gflops_d

    @property
    def log_value(self) -> float:
        """Mean of ln value over trials."""
        return float(np.log(self.values).mean())

    @property
    def name(self) -> str:
        return f"G {self.cell.generator_size}, D {self.cell.discriminator_size}"

    def to_json(self) -> dict[str, Any]:
        share, value = self.gflops_g / self.gflops, math.exp(self.log_value)
        more = {"gflops": self.gflops, "g_share": share, "value": value}
        return self.cell._asdict() | {key: item for key, item in vars(self).items() if key != "cell"} | more


def cells_of(trials: list[Trial], excluded: Sequence[Excluded]) -> tuple[tuple[CellMean, ...], str]:
    """Return the cells of complete trials, by size of G, then of D, cheapest first; and what split their compute.

    Raises ValueError, in one line, for trials of a cell that are not replicates or differ in compute, several patches,
    fewer than four cells off one line in (ln C_G, ln C_D), or a table that does not say how compute splits.
    """
    if len(patches := sorted({trial.cell.patch for trial in trials})) > 1:
        raise ValueError(
            f"a split needs one patch size, this table has {', '.join(map(str, patches))}; fit them separately"
        )
    shares, counted = shares_of(trials)
    cells = _cell_means(trials, shares)
    points = np.log([[mean.gflops_g, mean.gflops_d] for mean in cells]).reshape(-1, 2)
    if len(cells) < MIN_CELLS or _on_one_line(points):
        found = "; ".join(mean.name for mean in cells) or "none"
        left_out = "; ".join(f"{e.trial}: {e.reason}" for e in excluded) or "none"
        raise ValueError(
            f"a split needs at least {MIN_CELLS} complete cells that are not on one line in (ln C_G, ln C_D), this "
            f"table has: {found}; train sizes of G with other sizes of D; left out: {left_out}"
        )
    return cells, counted


def shares_of(trials: list[Trial]) -> tuple[Array, str]:
    """Return G's share of each trial's compute [n], and the columns that give it, the same for all trials."""
    facts = [trial.facts for trial in trials]
    if all(f.items for f in facts):
        counted = "flops_per_image"
        g = [sum(flops for item, flops in f.items.items() if item.startswith(G_ITEMS)) for f in facts]
        d = [sum(f.items.values()) - own for f, own in zip(facts, g, strict=True)]
    else:
        counted = "g_forward_flops and d_forward_flops"
        for trial in trials:
            there = {"g_forward_flops": trial.last.g_forward_flops, "d_forward_flops": trial.facts.d_forward_flops}
            if missing := [column for column, flops in there.items() if flops is None]:
                raise ValueError(
                    f"compute cannot be split between G and D: {trial.name} lacks {' and '.join(missing)}, and not all "
                    "trials have flops_per_image; add these columns, FLOP of one forward of one sample"
                )
        g = [FORWARDS["G"] * (trial.last.g_forward_flops or 0.0) for trial in trials]
        d = [FORWARDS["D"] * (f.d_forward_flops or 0.0) for f in facts]
    for trial, *both in zip(trials, g, d, strict=True):
        if not (min(both) > 0 and math.isfinite(sum(both))):
            raise ValueError(
                f"compute cannot be split between G and D: {trial.name}'s {counted} must be positive for both networks"
            )
    return np.array(g) / (np.array(g) + np.array(d)), counted


def _cell_means(trials: list[Trial], shares: Array) -> tuple[CellMean, ...]:
    share = dict(zip((trial.name for trial in trials), shares.tolist(), strict=True))
    cells: dict[Cell, CellMean] = {}
    for members in replicates(trials):
        cell, names = members[0].cell, tuple(trial.name for trial in members)
        if cell in cells:
            raise ValueError(
                f"trials of one cell differ in training compute ({', '.join(cells[cell].trials + names)}); "
                "give a table with one length for each cell"
            )
        compute = [gflops(trial.last.flops) for trial in members]
        g = fmean(share[name] * c for name, c in zip(names, compute, strict=True))
        cells[cell] = CellMean(cell, g, fmean(compute) - g, names, tuple(trial.last.value for trial in members))
    sizes_g, sizes_d = sizes_of(list(cells.values()))
    return tuple(
        sorted(
            cells.values(),
            key=lambda mean: (sizes_g.index(mean.cell.generator_size), sizes_d.index(mean.cell.discriminator_size)),
        )
    )


def sizes_of(cells: Sequence[CellMean]) -> tuple[list[str], list[str]]:
    """Return the sizes of G and the sizes of D, each cheapest first."""
    g = {mean.cell.generator_size: mean.gflops_g for mean in cells}
    d = {mean.cell.discriminator_size: mean.gflops_d for mean in cells}
    return sorted(g, key=lambda size: g[size]), sorted(d, key=lambda size: d[size])


def _on_one_line(points: Array) -> bool:
    along, aside = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(aside <= LINE * along)
