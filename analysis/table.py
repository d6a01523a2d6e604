"""Reads run tables: one row per evaluation of a trial, as parquet (the sweep's) or CSV (a user's own).

Floating-point operations in the table count 2 per multiply-add, everywhere.
"""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

# What a user's CSV must have, and what has a default when absent or blank.
CSV_REQUIRED = ("trial", "generator_size", "step", "flops", "g_forward_flops", "metric", "value")
CSV_OPTIONAL = (
    "discriminator_size", "patch", "seed", "steps", "n", "reference", "protocol", "status", "reason",
)  # fmt: skip
# A parquet table was written by the sweep: a missing `status` or `steps` there is damage, and the default
# "done" would turn an interrupted trial into a point of the law.
PARQUET_REQUIRED = CSV_REQUIRED + CSV_OPTIONAL

# What is the same on all rows of a trial; all of it may be absent. A CSV's other columns are taken for config values.
CONSTANTS = ("lr_g", "lr_d", "g_width", "d_width", "d_forward_flops", "flops_per_image", "config")

# What can be analysed in the place of `value`; measured at a trial's end only.
VALUES = ("value", "fd_infinity", "kernel_distance")

STATUSES = ("running", "done", "diverged", "failed")
BROKEN = ("diverged", "failed")  # ended early; the last row may have no value


class Cell(NamedTuple):
    """What the law calls a size."""

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
    """One evaluation, checked. `value` is NaN where the trial broke, or did not measure the column asked for."""

    trial: str
    cell: Cell
    seed: int
    step: int
    steps: int | None  # planned; None in a CSV without it
    flops: float  # training FLOP so far
    g_forward_flops: float  # FLOP of one generator forward of one sample
    value: float
    measured: Protocol
    status: str
    reason: str
    flags: str = ""  # what was wrong with a trial that went on all the same


@dataclass(frozen=True)
class Facts:
    """What is the same on all rows of a trial, beside its size; None or empty where the table does not say."""

    config: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value, such as train.rate_g
    items: Mapping[str, float] = field(default_factory=dict)  # FLOP per image of an iteration, item by item
    lr_g: float | None = None
    lr_d: float | None = None
    g_width: int | None = None
    d_width: int | None = None
    d_forward_flops: float | None = None  # of one sample


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
        """Planned steps; without a plan the last step is taken for it."""
        return self.last.step if self.last.steps is None else self.last.steps

    @property
    def complete(self) -> bool:
        last = self.last
        return last.status == "done" and last.step == self.steps and math.isfinite(last.value)

    def final_rows(self) -> list[Row]:
        """All rows with a value at the last step: more than one when several metrics were computed."""
        return [row for row in self.rows if row.step == self.last.step and math.isfinite(row.value)]

    def trajectory(self, measured: Protocol) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(flops, value), each [evaluations], of the rows measured this way and finite."""
        rows = [r for r in self.rows if r.measured == measured and r.flops > 0 and math.isfinite(r.value)]
        return np.array([r.flops for r in rows]), np.array([r.value for r in rows])


@dataclass(frozen=True)
class Excluded:
    """A trial that is no point of the law."""

    trial: str
    cell: Cell
    status: str
    reason: str


@dataclass(frozen=True)
class Table:
    """The trials of a run table, in order of first appearance."""

    path: Path
    trials: tuple[Trial, ...]
    column: str = "value"  # that the rows' values were read from

    def complete(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.complete]

    def excluded(self) -> list[Excluded]:
        return [
            Excluded(trial.name, trial.cell, trial.last.status, _why_excluded(trial, self.column))
            for trial in self.trials
            if not trial.complete
        ]


def load_table(path: Path, column: str = "value") -> Table:
    """Read a directory of .parquet files (one per trial), one .parquet or one .csv.

    column: one of VALUES, that rows take their value from; the metric is then named `<metric>:<column>`.
    Raises ValueError, in one line, naming the file and, where one is to blame, the row, column and value.
    Rows are counted as the user sees them: lines of a CSV (the header is line 1), from 1 in parquet.
    """
    path = Path(path)
    if column not in VALUES:
        raise ValueError(f"no such measure: {column!r}; use {', '.join(VALUES)}")
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise ValueError(f"{path}: no .parquet files in this directory")
    elif path.is_file() and path.suffix in (".parquet", ".csv"):
        files = [path]
    else:
        problem = "not a run table" if path.exists() else "no such file or directory"
        raise ValueError(f"{path}: {problem}; give a directory of .parquet files, a .parquet or a .csv")

    by_trial: dict[str, list[Row]] = defaultdict(list)
    facts: dict[str, Facts] = {}
    for file in files:
        for row, said in _read_csv(file, column) if file.suffix == ".csv" else _read_parquet(file, column):
            by_trial[row.trial].append(row)
            facts[row.trial] = said  # of the last row: an extended trial's own
    if not by_trial:
        raise ValueError(f"{path}: the table has no rows")
    for name, rows in by_trial.items():
        cells = sorted({row.cell for row in rows})
        if len(cells) > 1:
            sizes = ", ".join(cell.label for cell in cells)
            raise ValueError(f"{path}: trial {name!r} has rows of several sizes ({sizes}); name them apart")
        rows.sort(key=lambda row: row.step)
    return Table(path, tuple(Trial(name, tuple(rows), facts[name]) for name, rows in by_trial.items()), column)


def protocol_differences(examples: Mapping[Protocol, str]) -> str:
    """In what ways of measuring differ, in one line; by protocol, the name of a trial measured so.

    Keys of JSON protocols are named one by one: the strings are too long to be compared by eye.
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


def check_one_config(trials: Sequence[Trial]) -> None:
    """Raises ValueError, in one line, where trials of one cell differ in more than the seed: they are no replicates.

    Of a CSV the further columns with a dot in their name are config values; others may say what they like.
    """
    first: dict[Cell, Trial] = {}
    for trial in trials:
        other = first.setdefault(trial.cell, trial)
        a, b = other.facts.config, trial.facts.config
        keys = [k for k in {**a, **b} if "." in k and k != "start.trial" and a.get(k) != b.get(k)]
        if keys:
            raise ValueError(
                f"trials of {trial.cell.label} differ in more than the seed ({', '.join(keys[:3])}, as "
                f"{other.name} and {trial.name}); such a study has no one point a size, give a table of one setting"
            )


def _keys(measured: Protocol) -> dict[str, Any]:
    """The fields of a protocol, with those of its JSON in the place of that."""
    try:
        inner = json.loads(measured.protocol)
    except ValueError:
        inner = None
    fields = measured._asdict()
    if isinstance(inner, dict):
        del fields["protocol"]
        return fields | {f"protocol.{key}": value for key, value in inner.items() if key not in fields}
    return fields


def _read_csv(path: Path, column: str) -> Iterator[tuple[Row, Facts]]:
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _require(path, header, (*CSV_REQUIRED, *_extra(column)), f"; optional: {', '.join(CSV_OPTIONAL)}")
            for fields in reader:
                if not any(field.strip() for field in fields):
                    continue
                where = f"{path}, row {reader.line_num}"
                if len(fields) != len(header):
                    raise ValueError(f"{where}: {len(fields)} fields, but the header has {len(header)}")
                values = dict(zip(header, (f.strip() for f in fields), strict=True))
                known = {*CSV_REQUIRED, *CSV_OPTIONAL, *CONSTANTS, *VALUES, "flags"}
                others = tuple((name, value) for name, value in values.items() if name not in known)
                yield _check(values, where, column), _facts(values, where, others)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error


def _read_parquet(path: Path, column: str) -> Iterator[tuple[Row, Facts]]:
    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: cannot be read as parquet: {_one_line(str(error))}") from error
    wanted = (*PARQUET_REQUIRED, *_extra(column))
    _require(path, table.column_names, wanted)
    constants = [name for name in (*CONSTANTS, "flags") if name in table.column_names]
    for number, row in enumerate(table.select([*wanted, *constants]).to_pylist(), start=1):
        where = f"{path}, row {number}"
        yield _check(row, where, column), _facts(row, where)


def _extra(column: str) -> tuple[str, ...]:
    return () if column == "value" else (column,)


def _require(path: Path, present: list[str], required: tuple[str, ...], more: str = "") -> None:
    missing = [name for name in required if name not in present]
    if missing:
        need = f"required: {', '.join(required)}{more}"
        raise ValueError(f"{path}: missing columns: {', '.join(missing)}; {need}")


def _check(row: Mapping[str, Any], where: str, column: str) -> Row:
    status = _text(row, "status", where, "done")
    if status not in STATUSES:
        raise ValueError(f"{where}: status must be one of {', '.join(STATUSES)}, got {status!r}")
    broken = status in BROKEN
    generator_size = _text(row, "generator_size", where)
    cell = Cell(
        generator_size,
        _text(row, "discriminator_size", where, generator_size),
        _integer(row, "patch", where, low=1, default=2),
    )
    metric = _text(row, "metric", where, "" if broken else None)
    # Only the last evaluation of a trial measures the others.
    absent = _is_absent(row[column]) and (broken or column != "value")
    measured = Protocol(
        metric if column == "value" else f"{metric}:{column}",
        _integer(row, "n", where, low=0, default=0) or None,
        _text(row, "reference", where, ""),
        _text(row, "protocol", where, ""),
    )
    steps = _integer(row, "steps", where, low=0, default=-1)
    return Row(
        trial=_text(row, "trial", where),
        cell=cell,
        seed=_integer(row, "seed", where, low=0, default=0),
        step=_integer(row, "step", where, low=0),
        steps=None if steps < 0 else steps,
        # A trial that fails before its first step has trained for nothing, and is listed all the same.
        flops=0.0 if broken and _is_nothing(row["flops"]) else _positive(row, "flops", where),
        g_forward_flops=_positive(row, "g_forward_flops", where),
        value=math.nan if absent else _positive(row, column, where),
        measured=measured,
        status=status,
        reason=_one_line(_text(row, "reason", where, "")),
        flags=_one_line(_text(row, "flags", where, "")),
    )


def _facts(row: Mapping[str, Any], where: str, others: tuple[tuple[str, str], ...] = ()) -> Facts:
    try:
        return _constants(tuple(row.get(name) or "" for name in CONSTANTS), row["generator_size"], others)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: one of {', '.join(CONSTANTS)} cannot be read: {_one_line(str(error))}") from None


@lru_cache(maxsize=4096)  # the same on every row of a trial, and parsing JSON is what takes the time
def _constants(values: tuple[Any, ...], size: str, others: tuple[tuple[str, str], ...]) -> Facts:
    named = dict(zip(CONSTANTS, values, strict=True))
    config = _flat(json.loads(named["config"])) if named["config"] else {}
    config |= {name: _plain(text) for name, text in others}

    def number(name: str, otherwise: Any = None) -> float | None:
        return float(named[name]) if named[name] != "" else otherwise

    sizes = {"g": config.get("model.generator", size), "d": config.get("model.discriminator", size)}
    widths = {key: number(f"{key}_width", config.get(f"ladder.{name}.width")) for key, name in sizes.items()}
    return Facts(
        config=config,
        items={name: float(flops) for name, flops in json.loads(named["flops_per_image"] or "{}").items()},
        lr_g=number("lr_g"),
        lr_d=number("lr_d"),
        g_width=None if widths["g"] is None else int(widths["g"]),
        d_width=None if widths["d"] is None else int(widths["d"]),
        d_forward_flops=number("d_forward_flops"),
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(text: str) -> Any:
    """A cell of a CSV: a number where it is one."""
    number = _float(text)
    return text if math.isnan(number) else number


def _text(row: Mapping[str, Any], column: str, where: str, default: str | None = None) -> str:
    value = row.get(column)
    if value is not None and str(value).strip():
        return str(value)
    if default is None:
        raise ValueError(f"{where}: {column} is empty")
    return default


def _float(value: Any) -> float:
    """NaN for what is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _is_nothing(value: Any) -> bool:
    return _is_absent(value) or _float(value) == 0


def _is_absent(value: Any) -> bool:
    """Empty, or a number that is not finite: what a diverged trial measures."""
    return value in (None, "") or str(value).lower().lstrip("+-") in ("nan", "inf", "infinity")


def _positive(row: Mapping[str, Any], column: str, where: str) -> float:
    number = _float(row[column])
    if not 0 < number < math.inf:
        raise ValueError(f"{where}: {column} must be a positive number, got {row[column]!r}")
    return number


def _integer(row: Mapping[str, Any], column: str, where: str, low: int, default: int | None = None) -> int:
    value = row.get(column)
    if default is not None and value in (None, ""):
        return default
    number = _float(value)  # through float, for the 100.0 that spreadsheets and pandas write
    if not (math.isfinite(number) and number.is_integer() and number >= low):
        raise ValueError(f"{where}: {column} must be a whole number of at least {low}, got {value!r}")
    return int(number)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _why_excluded(trial: Trial, column: str) -> str:
    last = trial.last
    if last.status in BROKEN:
        return last.reason or f"{last.status} at step {last.step} of {trial.steps}"
    if last.status == "done" and last.step == trial.steps:
        return f"{column} was not measured at its last evaluation"
    progress = f"unfinished: step {last.step} of {trial.steps}"
    return f"{progress}, status {last.status}" if last.step == trial.steps else progress
