"""Points of a law: a size at one training compute, the geometric mean over its seeds."""

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from analysis.table import Cell, Excluded, Protocol, Table, Trial, gflops, one_protocol, replicates

MIN_SIZES = 3  # two sizes leave no degree of freedom
UNPAIRED = "its networks differ in size, and the table has both in several sizes; `split` is for such trials"


@dataclass(frozen=True)
class Point:
    """One size at one training compute: means over its complete trials, which differ in the seed alone."""

    cell: Cell
    gflops: float  # training compute C, multiply-adds / 1e9
    g_forward_gflops: float | None  # one generator forward of one sample, multiply-adds / 1e9
    value: float  # geometric mean, because laws are fitted to logarithms
    trials: tuple[str, ...]
    values: tuple[float, ...]  # of each trial, for the spread between training seeds

    def to_json(self) -> dict[str, Any]:
        return {**self.cell._asdict(), **{key: item for key, item in vars(self).items() if key != "cell"}}


@dataclass(frozen=True)
class Points:
    """The points of a table by patch size, each by rising C, and the trials that are in none of them."""

    measured: Protocol
    by_patch: dict[int, tuple[Point, ...]]  # rising patch size
    excluded: tuple[Excluded, ...]


def find_points(table: Table) -> Points:
    """Group a table's complete trials into points.

    Trials of one size whose training compute differs by more than 1 % are different points. Where both networks were
    trained in several sizes, a size is one with G and D alike, and the other trials are left out.
    Raises ValueError, in one line, if final evaluations were made in different ways (metric, number of images,
    reference, protocol), if trials of a point differ in more than the seed or have the same seed, or without a
    complete trial.
    """
    trials, excluded = table.complete(), table.excluded()
    measured = one_protocol(trials)
    if measured is None:
        listed = "; ".join(f"{e.trial} ({e.cell.label}): {e.reason}" for e in excluded)
        raise ValueError(f"no trial is complete; left out: {listed}")
    if is_grid([trial.cell for trial in trials]):
        unpaired = [trial for trial in trials if trial.cell.generator_size != trial.cell.discriminator_size]
        excluded += [Excluded(trial.name, trial.cell, trial.last.status, UNPAIRED) for trial in unpaired]
        trials = [trial for trial in trials if trial not in unpaired]
    by_patch: dict[int, list[Point]] = defaultdict(list)
    for members in replicates(trials):
        by_patch[members[0].cell.patch].append(point(members))
    ordered = {
        patch: tuple(sorted(by_patch[patch], key=lambda point: (point.gflops, point.cell)))
        for patch in sorted(by_patch)
    }
    return Points(measured, ordered, tuple(excluded))


def is_grid(cells: list[Cell]) -> bool:
    """Whether a size of one network was trained with several sizes of the other, at one patch size."""
    partners: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for cell in cells:
        partners["G", cell.generator_size, cell.patch].add(cell.discriminator_size)
        partners["D", cell.discriminator_size, cell.patch].add(cell.generator_size)
    return any(len(sizes) > 1 for sizes in partners.values())


def point(trials: list[Trial]) -> Point:
    """Return the point of complete trials that are replicates."""
    values = tuple(trial.last.value for trial in trials)
    forwards = [trial.last.g_forward_flops for trial in trials if trial.last.g_forward_flops is not None]
    return Point(
        cell=trials[0].cell,
        gflops=gflops(fmean(trial.last.flops for trial in trials)),
        g_forward_gflops=gflops(fmean(forwards)) if len(forwards) == len(trials) else None,
        value=math.exp(fmean(map(math.log, values))),
        trials=tuple(trial.name for trial in trials),
        values=values,
    )
