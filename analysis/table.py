"""Tables of results: trials, each with a row for every evaluation. reading.py reads them from files.

FLOP count 2 per multiply-add everywhere in a table.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.race import Race
from analysis.statistics import CONFIDENCE

STATUSES = ("running", "done", "diverged", "failed", "raced")  # raced: dropped by a race, with its last value
RACED = "raced"
BROKEN = ("diverged", "failed")  # ended early; the last row may have no value
G_ITEMS = ("g_forward", "g_backward")  # prefixes of the items of an iteration that are G's own
EVALUATED = "train.eval_at"  # the config value on which no step of training depends
RATES = ("lr_g", "lr_d", "g_width", "d_width")  # settings that a table without a config may have
SAME_COMPUTE = 0.01  # trials of one size whose compute differs by more than this share are different points
# How the names of metrics begin for which a lower, or a higher, value is better.
DIRECTIONS = {
    "lower": ("fd_", "fid", "kid", "kernel_distance", "sfid", "mmd", "loss", "lpips"),
    "higher": ("inception_score", "precision", "recall", "density", "coverage", "clip_score"),
}


class Cell(NamedTuple):
    """Sizes of G and of D with a patch size: what the law counts as one size."""

    generator_size: str
    discriminator_size: str
    patch: int

    @property
    def label(self) -> str:
        """`B/2` as in the paper; both networks are named when they differ."""
        if self.generator_size == self.discriminator_size:
            return f"{self.generator_size}/{self.patch}"
        return f"G {self.generator_size}, D {self.discriminator_size}, /{self.patch}"


class Protocol(NamedTuple):
    """How a value was measured; values of different protocols are never compared."""

    metric: str
    n: int | None  # generated images
    reference: str
    protocol: str


@dataclass(frozen=True)
class Row:
    """One evaluation, checked. `value` is NaN if the trial broke, or did not measure the column asked for."""

    trial: str
    cell: Cell
    seed: int
    step: int
    steps: int | None  # planned; None in a CSV without that column
    flops: float  # training FLOP so far
    g_forward_flops: float | None  # FLOP of one generator forward of one sample; None in a CSV without that column
    value: float
    measured: Protocol
    status: str
    reason: str
    flags: str = ""  # problems of a trial that continued nevertheless
    images: int | None = None  # real images seen; None in a table without that column
    split_half: float | None = None  # the same distance between two random halves of the real pictures
    where: str = field(default="", compare=False)  # file and number of the row, for messages


@dataclass(frozen=True)
class Facts:
    """Values that are equal on all rows of a trial, except its size; None or empty if the table lacks them."""

    config: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value, such as train.rate_g
    items: Mapping[str, float] = field(default_factory=dict)  # FLOP per image of an iteration, item by item
    lr_g: float | None = None
    lr_d: float | None = None
    g_width: int | None = None
    d_width: int | None = None
    d_forward_flops: float | None = None  # of one sample
    data_images: int | None = None  # images of the data set


@dataclass(frozen=True)
class Trial:
    """One run of one configuration: its rows by rising step (in file order where steps are equal)."""

    name: str
    rows: tuple[Row, ...]
    facts: Facts = Facts()

    @property
    def last(self) -> Row:
        return self.rows[-1]

    @property
    def cell(self) -> Cell:
        return self.last.cell

    @property
    def steps(self) -> int:
        """Planned steps; the last step if the table has no plan."""
        return self.last.step if self.last.steps is None else self.last.steps

    @property
    def complete(self) -> bool:
        last = self.last
        return last.status == "done" and last.step == self.steps and math.isfinite(last.value)

    def final_rows(self) -> list[Row]:
        """All rows with a value at the last step: more than one when several metrics were computed."""
        return [row for row in self.rows if row.step == self.last.step and math.isfinite(row.value)]

    def trajectory(self, measured: Protocol) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (flops, value), each [evaluations], of the finite rows measured this way."""
        rows = [r for r in self.rows if r.measured == measured and r.flops > 0 and math.isfinite(r.value)]
        return np.array([r.flops for r in rows]), np.array([r.value for r in rows])


@dataclass(frozen=True)
class Excluded:
    """A trial that an analysis leaves out, with the reason."""

    trial: str
    cell: Cell
    status: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "trial": self.trial, "size": self.cell.label, **self.cell._asdict(),
            "status": self.status, "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The trials of a run table, in order of first appearance."""

    path: Path
    trials: tuple[Trial, ...]
    column: str = "value"  # from which the rows' values were read
    race: Race | None = None  # of the run, if it was one

    def raced(self) -> list[Trial]:
        """The trials that a race dropped."""
        return [trial for trial in self.trials if trial.last.status == RACED]

    def complete(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.complete]

    def excluded(self) -> list[Excluded]:
        return [
            Excluded(trial.name, trial.cell, trial.last.status, _why_excluded(trial, self.column))
            for trial in self.trials
            if not trial.complete
        ]


def protocol_differences(examples: Mapping[Protocol, str]) -> str:
    """Describe in one line how protocols differ.

    examples: by protocol, the name of a trial measured with it.
    Keys of JSON protocols are compared one by one, because the strings are too long to compare by eye.
    """
    described = [(_keys(measured), name) for measured, name in examples.items()]
    differences = []
    for key in dict.fromkeys(key for keys, _ in described for key in keys):
        names: dict[str, str] = {}
        for keys, name in described:
            names.setdefault(repr(keys.get(key)), name)
        if len(names) > 1:
            differences.append(f"{key} is {' or '.join(f'{value} (as in {name})' for value, name in names.items())}")
    return "; ".join(differences)


def json_head(measured: Protocol) -> dict[str, Any]:
    """Return what the JSON of every analysis says: how its values were measured, and the confidence of intervals."""
    return {
        "metric": measured.metric, "metric_n": measured.n, "reference": measured.reference,
        "protocol": measured.protocol, "confidence": CONFIDENCE,
    }  # fmt: skip


def strict_json(item: Any) -> Any:
    """Convert a result for JSON: tuples become lists, and a number that is not finite becomes null."""
    if isinstance(item, dict):
        return {key: strict_json(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [strict_json(value) for value in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item


def replicates(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Group trials that are replicates: one cell at one training compute (to 1 %), each with a seed of its own.

    Groups are in order of cell, then of compute. A CSV's other columns are config values if their name has a dot, and
    remarks otherwise.
    Raises ValueError, in one line, if trials of a cell differ in more than the seed and the length, if those of a group
    differ in more than the seed, or if a group has one seed twice.
    """
    by_cell: dict[Cell, list[Trial]] = {}
    for trial in trials:
        by_cell.setdefault(trial.cell, []).append(trial)
    groups = []
    for members in by_cell.values():
        _check_config(members, {"start.trial", "start.step", "train.steps", EVALUATED})
        start = 0
        members = sorted(members, key=lambda trial: trial.last.flops)
        for end in range(1, len(members) + 1):
            if end == len(members) or members[end].last.flops > members[start].last.flops * (1 + SAME_COMPUTE):
                groups.append([trial for trial in by_cell[members[0].cell] if trial in members[start:end]])
                start = end
    for group in groups:
        _check_config(group, {"start.trial", EVALUATED})
        check_seeds(group)
    return groups


def check_seeds(trials: Sequence[Trial]) -> None:
    """Raise ValueError, in one line with both rows, if two of these replicates have one seed."""
    by_seed: dict[Any, Trial] = {}
    for trial in trials:
        # Networks of other cost are other networks, even if a table of published points gives them one name.
        other = by_seed.setdefault((trial.last.seed, trial.last.g_forward_flops), trial)
        if other is not trial:
            raise ValueError(
                f"{other.name} and {trial.name} are both {trial.cell.label} with seed {trial.last.seed}"
                f"{_rows(other, trial)}; delete one of them, or give each its own seed in a column `seed`"
            )


def _check_config(trials: Sequence[Trial], apart: set[str]) -> None:
    """Raise ValueError, in one line, if trials differ in a config value that is not in `apart`."""
    first = trials[0]
    for trial in trials[1:]:
        a, b = first.facts.config, trial.facts.config
        keys = [k for k in {**a, **b} if "." in k and k not in apart and a.get(k) != b.get(k)]
        keys += [k for k in RATES if _differ(getattr(first.facts, k), getattr(trial.facts, k))]
        if keys:
            raise ValueError(
                f"trials of {trial.cell.label} differ in more than the seed ({', '.join(keys[:3])}, as "
                f"{first.name} and {trial.name}) and are not replicates; give a table with one setting per size"
            )


def _differ(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and not math.isclose(a, b)


def _rows(*trials: Trial) -> str:
    places = [trial.last.where for trial in trials if trial.last.where]
    return f" ({'; '.join(places)})" if places else ""


def better(metric: str, asked: str | None = None) -> int:
    """Return -1 if a lower value of the metric is the better one, 1 if a higher one is.

    asked: `lower` or `higher`, for a metric whose name does not say it.
    Raises ValueError, in one line, if neither says it, or if both do and differ.
    """
    last = metric.rpartition(":")[2]  # of `<metric>:<column>`, the column
    named = next((word for word, names in DIRECTIONS.items() if last.lower().startswith(names)), None)
    if named and asked and named != asked:
        raise ValueError(f"of {metric}, a {named} value is better, but --better {asked} was given; leave it out")
    if not (named or asked):
        raise ValueError(
            f"the name {metric} does not say whether a lower or a higher value is better; "
            "give --better lower or --better higher"
        )
    return -1 if (named or asked) == "lower" else 1


def _keys(measured: Protocol) -> dict[str, Any]:
    """Return the fields of a protocol; if its `protocol` is JSON, the keys of that replace it."""
    try:
        inner = json.loads(measured.protocol)
    except ValueError:
        inner = None
    fields = measured._asdict()
    if isinstance(inner, dict):
        del fields["protocol"]
        return fields | {f"protocol.{key}": value for key, value in inner.items() if key not in fields}
    return fields


def _why_excluded(trial: Trial, column: str) -> str:
    last = trial.last
    if last.status in (*BROKEN, RACED):
        return last.reason or f"{last.status} at step {last.step} of {trial.steps}"
    if last.status == "done" and last.step == trial.steps:
        return f"{column} was not measured at its last evaluation"
    progress = f"unfinished: step {last.step} of {trial.steps}"
    return f"{progress}, status {last.status}" if last.step == trial.steps else progress


UNIT = "GFLOPs (1e9 multiply-adds)"


def gflops(flops: float) -> float:
    """FLOP (2 per multiply-add) -> GFLOPs in the paper's convention (multiply-adds / 1e9)."""
    return flops / 2 / 1e9


def one_protocol(trials: list[Trial]) -> Protocol | None:
    """Return how the final values were measured; None without trials.

    The bias of a Frechet distance depends on the number of images, the reference and the features, so a law
    through a mixture has no meaning.
    Raises ValueError, in one line, if trials were measured in different ways.
    """
    example: dict[Protocol, str] = {}  # and the first trial measured with it
    for trial in trials:
        for row in trial.final_rows():
            example.setdefault(row.measured, trial.name)
    if len(example) <= 1:
        return next(iter(example), None)
    raise ValueError(f"final evaluations mix protocols, fit them separately: {protocol_differences(example)}")
