"""Checkpoints of a table's trials, for the joint law of size and length: what is taken, left out, and refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.cells import shares_of
from analysis.fits.joint import Checkpoints
from analysis.points import is_grid
from analysis.table import BROKEN, SAME_COMPUTE, Cell, Excluded, Protocol, Row, Table, Trial, gflops, one_protocol

Array = NDArray[np.float64]
MIN_SIZES, MIN_EACH, MIN_LENGTHS = 5, 3, 3  # sizes of both networks alike, of each network in a grid, and lengths
ON_A_LINE = 0.95  # correlation of ln c and ln D above which their effects cannot be separated
TIME_CONSTANTS = 5  # of the running average, after which less than 1 % of it is from the beginning
# Config values in which the trials may differ: how long they train, how they are watched, which size and seed.
APART = {
    "seed", "model.generator", "model.discriminator",
    "train.steps", "train.eval_at", "train.eval_every", "train.log_every",
}  # fmt: skip
YOUNG = "the running average still holds the beginning of training (before step {})"


@dataclass(frozen=True)
class Size:
    """A size of the table: the mean GFLOPs per image of each network, its widths, and how far it was trained."""

    cell: Cell
    costs: tuple[float, ...]  # of both networks together, or of G and of D
    width: int | None  # where both networks have the same
    runs: int
    checkpoints: int
    images: tuple[float, float]  # fewest and most

    @property
    def cost(self) -> float:
        return sum(self.costs)


@dataclass(frozen=True)
class Trajectories:
    """The checkpoints of a table, as arrays for a fit, and what they are."""

    measured: Protocol
    data: Checkpoints
    rows: tuple[Row, ...]  # of each checkpoint
    sizes: tuple[Size, ...]  # rising cost; their order is that of the labels in `data`
    unit: str  # of D: images, or steps if the table does not say how many images a step has
    batch: float | None  # images of a step
    young: int  # checkpoints left out
    averaged: int | None  # steps before which a checkpoint is young; None if the table does not say
    excluded: tuple[Excluded, ...]

    @property
    def compute(self) -> Array:
        """Return C of each checkpoint in GFLOPs [n]."""
        return np.asarray(self.data.costs.sum(axis=0) * self.data.images)

    @property
    def grid(self) -> bool:
        return len(self.data.costs) > 1


def find_checkpoints(table: Table) -> Trajectories:
    """Return the checkpoints of a table, if they can show what size and length do.

    Raises ValueError, in one line, as read_checkpoints does, and for too few sizes or lengths, and lengths that follow
    from the sizes.
    """
    found = read_checkpoints(table)
    _check_spread(found)
    return found


def read_checkpoints(table: Table) -> Trajectories:
    """Return the checkpoints of a table whose trials differ in size, seed and length alone.

    A trial that is still running, or was stopped, counts as far as it came. One that diverged or failed does not.
    Raises ValueError, in one line, for trials that differ in more or continue others, several protocols or patch
    sizes, a checkpoint that occurs twice, and if there is none.
    """
    excluded = [
        Excluded(t.name, t.cell, t.last.status, t.last.reason or t.last.status)
        for t in table.trials
        if t.last.status in BROKEN
    ]
    out = {e.trial for e in excluded}
    trials = [t for t in table.trials if t.name not in out and any(np.isfinite(row.value) for row in t.rows)]
    if not trials:
        raise ValueError("no trial has a checkpoint with a value that did not diverge or fail")
    measured = one_protocol(trials)
    assert measured is not None
    _check_alike(trials)
    averaged = _averaged(trials)
    kept, young = [], 0
    for trial in trials:
        rows = [row for row in trial.rows if np.isfinite(row.value) and row.flops > 0 and row.measured == measured]
        old = [row for row in rows if averaged is None or row.step >= averaged]
        young += len(rows) - len(old)
        kept += [(trial, row) for row in old]
        if not old:
            excluded.append(Excluded(trial.name, trial.cell, trial.last.status, YOUNG.format(averaged)))
    _check_once(kept)
    return _gathered(kept, measured, young, averaged, excluded)


def _gathered(
    kept: Sequence[tuple[Trial, Row]], measured: Protocol, young: int, averaged: int | None, excluded: list[Excluded]
) -> Trajectories:
    if not kept:
        raise ValueError(f"all checkpoints are too young: {YOUNG.format(averaged)}; train for longer")
    trials = list(dict.fromkeys(trial.name for trial, _ in kept))
    by_name = {trial.name: trial for trial, _ in kept}
    batch = _batch(list(by_name.values()))
    images = np.array([_images(trial, row, batch) for trial, row in kept])
    cost = np.array([gflops(row.flops) for _, row in kept]) / images
    if is_grid([trial.cell for trial in by_name.values()]):
        share = dict(zip(trials, shares_of([by_name[name] for name in trials])[0], strict=True))
        of_g = np.array([share[trial.name] for trial, _ in kept])
        costs = np.stack([cost * of_g, cost * (1 - of_g)])
    else:
        costs = cost[None]
    cells = sorted(
        {row.cell for _, row in kept},
        key=lambda c: np.mean([x for x, (_, r) in zip(cost, kept, strict=True) if r.cell == c]),
    )
    size = np.array([cells.index(row.cell) for _, row in kept])
    run = np.array([trials.index(trial.name) for trial, _ in kept])
    known = {trial.facts.data_images for trial in by_name.values()}
    if len(known) > 1:
        raise ValueError(f"the trials were trained on data sets of several sizes ({', '.join(map(str, known))} images)")
    data = Checkpoints(costs, images, np.log([row.value for _, row in kept]), size, run, known.pop() if batch else None)
    sizes = tuple(
        Size(
            cell, tuple(costs[:, size == i].mean(axis=1).tolist()), _width(by_name, kept, cell),
            len(set(run[size == i].tolist())), int((size == i).sum()),
            (float(images[size == i].min()), float(images[size == i].max())),
        )
        for i, cell in enumerate(cells)
    )  # fmt: skip
    return Trajectories(
        measured, data, tuple(row for _, row in kept), sizes, "steps" if batch is None else "images", batch, young,
        averaged, tuple(excluded),
    )  # fmt: skip


def _check_alike(trials: Sequence[Trial]) -> None:
    if len(patches := sorted({trial.cell.patch for trial in trials})) > 1:
        raise ValueError(f"one patch size is needed, and this table has {', '.join(map(str, patches))}; split it")
    first = trials[0].facts.config
    for trial in trials:
        config = trial.facts.config
        if begun := next((k for k in ("start.trial", "start.step") if config.get(k) not in (None, "")), None):
            raise ValueError(
                f"{trial.name} continues another trial ({begun} = {config[begun]}), with what changed there; "
                "a checkpoint stands for a run of its length only if nothing changed on the way"
            )
        keys = [k for k in {**first, **config} if "." in k and k not in APART and first.get(k) != config.get(k)]
        if keys := [k for k in keys if not k.startswith("start")]:
            raise ValueError(
                f"trials differ in more than size, seed and length ({', '.join(keys[:3])}, as {trials[0].name} and "
                f"{trial.name}); give a table with one setting"
            )


def _averaged(trials: Sequence[Trial]) -> int | None:
    """Return the steps before which a checkpoint is young, of trials with equal configs."""
    decay = trials[0].facts.config.get("train.ema_decay")
    return None if decay is None else int(np.ceil(TIME_CONSTANTS / (1 - float(decay)) - 1e-9))


def _batch(trials: Sequence[Trial]) -> float | None:
    """Return the images of a step; None if the table does not say."""
    if all(row.images for trial in trials for row in trial.rows if row.step > 0 and row.flops > 0):
        row = trials[0].last
        assert row.images is not None
        return row.images / row.step
    batch = trials[0].facts.config.get("train.batch")
    return None if batch is None else float(batch)


def _images(trial: Trial, row: Row, batch: float | None) -> float:
    if row.images and batch is not None:
        return float(row.images)
    return row.step * (batch or 1.0)


def _width(by_name: dict[str, Trial], kept: Sequence[tuple[Trial, Row]], cell: Cell) -> int | None:
    facts = next(trial.facts for trial, row in kept if row.cell == cell)
    return facts.g_width if facts.g_width == facts.d_width else None


def _check_once(kept: Sequence[tuple[Trial, Row]]) -> None:
    seen: dict[Any, Row] = {}
    for _, row in kept:
        other = seen.setdefault((row.cell, row.seed, row.step, row.g_forward_flops), row)
        if other is not row:
            raise ValueError(
                f"{other.trial} and {row.trial} are both {row.cell.label} with seed {row.seed} at step {row.step} "
                f"({other.where}; {row.where}); delete one of them, or give each its own seed"
            )


def _check_spread(found: Trajectories) -> None:
    data, sizes = found.data, found.sizes
    if found.grid:
        for network, names in (
            ("G", {s.cell.generator_size for s in sizes}),
            ("D", {s.cell.discriminator_size for s in sizes}),
        ):
            if len(names) < MIN_EACH:
                raise ValueError(f"at least {MIN_EACH} sizes of {network} are needed, this table has {len(names)}")
    elif len(sizes) < MIN_SIZES:
        there = ", ".join(size.cell.label for size in sizes)
        left_out = "; ".join(f"{e.trial}: {e.reason}" for e in found.excluded)
        raise ValueError(
            f"at least {MIN_SIZES} sizes are needed, this table has {len(sizes)} ({there})"
            + (f"; left out: {left_out}" if left_out else "")
        )
    lengths = np.sort(data.images)
    count = 1 + int((np.diff(np.log(lengths)) > SAME_COMPUTE).sum())
    if count < MIN_LENGTHS:
        raise ValueError(
            f"at least {MIN_LENGTHS} lengths of training are needed, and the checkpoints have {count}; "
            "evaluate on the way (train.eval_at)"
        )
    costs = [*data.costs, data.costs.sum(axis=0)] if found.grid else [*data.costs]
    for cost in costs:
        if abs(r := float(np.corrcoef(np.log(cost), np.log(data.images))[0, 1])) > ON_A_LINE:
            which = "larger sizes were trained for longer" if r > 0 else "larger sizes were trained for less"
            raise ValueError(
                f"{which} throughout (correlation of ln c and ln D {r:.2f}), so their effects cannot be separated; "
                "train the small ones longer, and evaluate all on the way"
            )


def epochs_of(found: Trajectories, images: float) -> float | None:
    """Return how often the data set was gone through after so many images; None if the table does not say."""
    return images / found.data.data_images if found.data.data_images and found.unit == "images" else None
