"""Reader of run tables: one row per evaluation of a trial, as parquet (the sweep's) or CSV (a user's own)."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.csvfile import SUFFIXES, read_csv
from analysis.table import BROKEN, STATUSES, Cell, Facts, Protocol, Row, Table, Trial

# Columns that a user's CSV must have, and columns with a default if they are absent or blank.
CSV_REQUIRED = ("trial", "generator_size", "step", "flops", "metric", "value")
CSV_OPTIONAL = (
    "g_forward_flops", "discriminator_size", "patch", "seed", "steps", "n", "reference", "protocol", "status", "reason",
)  # fmt: skip
# A sweep writes every column into its parquet: a missing `status` or `steps` is damage, and the default "done" would
# turn an interrupted trial into a point of the law.
PARQUET_REQUIRED = CSV_REQUIRED + CSV_OPTIONAL

# Columns with one value per trial; each may be absent. Other columns of a CSV are read as config values.
CONSTANTS = ("lr_g", "lr_d", "g_width", "d_width", "d_forward_flops", "data_images", "flops_per_image", "config")

LARGEST = 1e100  # no value or number of FLOPs; the smallest is its inverse
LEAST_PER_STEP = 1e3  # FLOP; a step of the smallest networks costs a million

# Columns that vary within a trial and may be absent.
MORE = ("images", "flags", "split_half")

# Columns that can be analysed; all but `value` are measured at a trial's end only.
VALUES = ("value", "fd_infinity", "kernel_distance")


def load_table(path: Path, column: str = "value") -> Table:
    """Read a directory of .parquet files (one per trial), one .parquet, or one .csv or .tsv.

    column: the one of VALUES to read values from; the metric of another than `value` is named `<metric>:<column>`.
    Raises ValueError, in one line that names the file and, if a cell is at fault, its row, column and value.
    Rows are numbered as the user sees them: lines of a CSV (the header is line 1), from 1 in parquet.
    """
    path = Path(path)
    if column not in VALUES:
        raise ValueError(f"no such measure: {column!r}; use {', '.join(VALUES)}")
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise ValueError(f"{path}: no .parquet files in this directory")
    elif path.is_file() and path.suffix.lower() in (".parquet", *SUFFIXES):
        files = [path]
    else:
        problem = "not a run table" if path.exists() else "no such file or directory"
        raise ValueError(f"{path}: {problem}; give a directory of .parquet files, a .parquet, a .csv or a .tsv")

    by_trial: dict[str, list[Row]] = defaultdict(list)
    facts: dict[str, Facts] = {}
    for file in files:
        for row, its_facts in (
            _read_csv(file, column) if file.suffix.lower() in SUFFIXES else _read_parquet(file, column)
        ):
            by_trial[row.trial].append(row)
            facts[row.trial] = its_facts  # the last row's, because a trial may have been extended
    if not by_trial:
        raise ValueError(f"{path}: the table has no rows")
    for name, rows in by_trial.items():
        cells = sorted({row.cell for row in rows})
        if len(cells) > 1:
            sizes = ", ".join(cell.label for cell in cells)
            raise ValueError(
                f"{path}: trial {name!r} has rows of several sizes ({sizes}); give each trial its own name"
            )
        _check_seed(rows)
        rows.sort(key=lambda row: row.step)
        _check_order(rows)
    return Table(path, tuple(Trial(name, tuple(rows), facts[name]) for name, rows in by_trial.items()), column)


def _check_seed(rows: list[Row]) -> None:
    for row in rows:
        if row.seed != rows[0].seed:
            raise ValueError(
                f"{row.where}: trial {row.trial!r} has seed {row.seed} here and {rows[0].seed} in {_number(rows[0])}; "
                "give each seed a trial name of its own"
            )


def _check_order(rows: list[Row]) -> None:
    """Refuse two values of one trial at one step, and FLOPs that do not rise with its steps; rows: by rising step."""
    values: dict[tuple[int, Protocol], Row] = {}
    before: Row | None = None
    for row in rows:
        if math.isfinite(row.value):
            other = values.setdefault((row.step, row.measured), row)
            if other is not row:
                raise ValueError(
                    f"{row.where}: trial {row.trial!r} has a second value at step {row.step}, {row.value:g} after "
                    f"{other.value:g} in {_number(other)}; delete one, or give each trial its own name"
                )
        if row.flops == 0:  # it failed before its first step
            continue
        if before and row.step > before.step and row.flops <= before.flops:
            raise ValueError(
                f"{row.where}: trial {row.trial!r} has {row.flops:g} flops at step {row.step}, not more than the "
                f"{before.flops:g} at step {before.step} in {_number(before)}; flops are all training so far"
            )
        before = row


def _number(row: Row) -> str:
    return row.where.rpartition(", ")[2]  # "row 7"


def _read_csv(path: Path, column: str) -> Iterator[tuple[Row, Facts]]:
    known = {*CSV_REQUIRED, *CSV_OPTIONAL, *CONSTANTS, *VALUES, *MORE}
    empty = True
    for line, values in read_csv(path, known):
        if empty:
            _require(path, list(values), (*CSV_REQUIRED, *_extra(column)), f"; optional: {', '.join(CSV_OPTIONAL)}")
            empty = False
        where = f"{path}, row {line}"
        others = tuple((name, value) for name, value in values.items() if name not in known)
        yield _check(values, where, column), _facts(values, where, others)


def _read_parquet(path: Path, column: str) -> Iterator[tuple[Row, Facts]]:
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:  # Arrow says OSError of a damaged page
        raise ValueError(f"{path}: cannot be read as parquet: {_one_line(str(error))}") from error
    wanted = (*PARQUET_REQUIRED, *_extra(column))
    _require(path, table.column_names, wanted)
    for name in wanted:
        if table.column_names.count(name) > 1:
            raise ValueError(f"{path}: the column {name} is there twice; delete one of them")
    constants = [name for name in (*CONSTANTS, *MORE) if name in table.column_names]
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
    # Columns other than `value` are measured at the last evaluation alone.
    absent = _is_absent(row[column]) and (broken or column != "value")
    measured = Protocol(
        metric if column == "value" else f"{metric}:{column}",
        _integer(row, "n", where, low=0, default=0) or None,
        _text(row, "reference", where, ""),
        _text(row, "protocol", where, ""),
    )
    step, steps = _integer(row, "step", where, low=0), _integer(row, "steps", where, low=0, default=-1)
    flops = 0.0 if broken and _is_absent_or_zero(row["flops"]) else _positive(row, "flops", where)
    forward = None if row.get("g_forward_flops") in (None, "") else _positive(row, "g_forward_flops", where)
    if forward is not None and 0 < flops < forward * step:
        raise ValueError(
            f"{where}: flops are {flops:g}, less than one forward pass of the generator in each of {step} steps "
            f"({forward * step:g}); give the FLOP of all training so far, 2 per multiply-add, not in another unit"
        )
    if 0 < flops < LEAST_PER_STEP * step:
        raise ValueError(
            f"{where}: flops are {flops:g} after {step} steps, too few to train a network; give the FLOP of all "
            "training so far, 2 per multiply-add, not in another unit and not their logarithm"
        )
    return Row(
        trial=_text(row, "trial", where),
        cell=cell,
        seed=_integer(row, "seed", where, low=0, default=0),
        step=step,
        steps=None if steps < 0 else steps,
        # A trial that fails before its first step has no FLOP, but is listed.
        flops=flops,
        g_forward_flops=forward,
        value=math.nan if absent else _positive(row, column, where),
        measured=measured,
        status=status,
        reason=_one_line(_text(row, "reason", where, "")),
        images=_integer(row, "images", where, low=0, default=0) or None,
        flags=_one_line(_text(row, "flags", where, "")),
        split_half=None
        if column != "value" or _is_absent(row.get("split_half"))
        else _positive(row, "split_half", where),
        where=where,
    )


def _facts(row: Mapping[str, Any], where: str, others: tuple[tuple[str, str], ...] = ()) -> Facts:
    try:
        return _constants(tuple(row.get(name) or "" for name in CONSTANTS), row["generator_size"], others)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: one of {', '.join(CONSTANTS)} cannot be read: {_one_line(str(error))}") from None


@lru_cache(maxsize=4096)  # equal on every row of a trial, and parsing the JSON takes most of the time
def _constants(values: tuple[Any, ...], size: str, others: tuple[tuple[str, str], ...]) -> Facts:
    named = dict(zip(CONSTANTS, values, strict=True))
    config = _flattened_config(json.loads(named["config"])) if named["config"] else {}
    config |= {name: _number_or_text(text) for name, text in others}

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
        data_images=None if named["data_images"] == "" else int(float(named["data_images"])),
    )


def _flattened_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flattened_config(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _number_or_text(text: str) -> Any:
    """A field of a CSV, as a number if it is one."""
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
    """A value as a number; NaN if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _is_absent_or_zero(value: Any) -> bool:
    return _is_absent(value) or _float(value) == 0


def _is_absent(value: Any) -> bool:
    """Whether a field is empty or not finite, which is what a diverged trial measures."""
    return value in (None, "") or str(value).lower().lstrip("+-") in ("nan", "inf", "infinity")


def _positive(row: Mapping[str, Any], column: str, where: str) -> float:
    number = _float(row[column])
    if not 0 < number < math.inf:
        raise ValueError(f"{where}: {column} must be a positive number, got {row[column]!r}")
    if not 1 / LARGEST < number < LARGEST:  # squares and powers of it would not be numbers any more
        ends = f"between {1 / LARGEST:g} and {LARGEST:g}"
        raise ValueError(f"{where}: {column} is {row[column]!r}; give it in a unit in which it is {ends}")
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
