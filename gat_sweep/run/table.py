"""The result rows of a trial: their schema, and the one parquet file they live in.

One row per evaluation. `analysis` reads these files and nothing else of a run.
"""

import math
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, write

# A divergence is a result: running it again would only repeat it. `raced`: a race dropped it (launch/race.py).
FINISHED = ("done", "diverged", "raced")
LOST = "restore a copy, or remove it to train the trial on from its newest checkpoint; `logs` still has its distances"
SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("sweep", pa.string()),
        ("trial", pa.string()),
        ("recipe", pa.string()),
        ("generator_size", pa.string()),
        ("discriminator_size", pa.string()),
        ("patch", pa.int64()),
        ("seed", pa.int64()),
        ("commit", pa.string()),
        ("config", pa.string()),  # JSON
        ("config_hash", pa.string()),
        ("step", pa.int64()),
        ("steps", pa.int64()),  # planned
        ("images", pa.int64()),  # real images seen
        ("data_images", pa.int64()),  # images of the data set; null if the trial failed before it opened it
        ("flops", pa.float64()),  # of training so far, 2 per multiply-add
        ("g_forward_flops", pa.float64()),  # one sample
        ("d_forward_flops", pa.float64()),
        ("flops_per_image", pa.string()),  # JSON: item of an iteration -> FLOP
        ("params_g", pa.int64()),
        ("params_d", pa.int64()),
        ("lr_g", pa.float64()),
        ("lr_d", pa.float64()),
        ("metric", pa.string()),
        ("value", pa.float64()),  # null only on a row whose reason says why
        ("n", pa.int64()),
        ("reference", pa.string()),
        ("protocol", pa.string()),  # JSON
        # Measured under the same protocol if eval.extras names them; else null.
        ("kernel_distance", pa.float64()),
        ("kernel_distance_std", pa.float64()),  # over subsets
        ("precision", pa.float64()),
        ("recall", pa.float64()),
        ("fd_infinity", pa.float64()),  # the value extrapolated to infinitely many samples
        ("fd_infinity_se", pa.float64()),  # its standard error
        ("retrieval", pa.float64()),  # share of captions whose real picture is among the nearest
        ("retrieval_low", pa.float64()),  # ends of its 95 % interval
        ("retrieval_high", pa.float64()),
        ("retrieval_chance", pa.float64()),
        ("clip_score", pa.float64()),
        ("clip_score_se", pa.float64()),
        ("split_half", pa.float64()),  # distance between two random halves of the real pictures
        ("status", pa.string()),  # running, done, diverged, failed, raced
        ("reason", pa.string()),
        ("flags", pa.string()),  # a problem that does not end the trial; null or empty: none
        ("seconds", pa.float64()),  # of training so far, evaluation included
        ("time", pa.string()),  # ISO 8601, UTC
    ]
)


class RunTable:
    """Rows of one trial. Every change rewrites the small file, completely or not at all."""

    def __init__(self, path: Place, constants: dict[str, Any]):
        self.path, self.constants = path, constants
        self.rows: list[dict[str, Any]] = read_rows(path) if path.exists() else []

    def truncate(self, step: int) -> None:
        """Drops rows after `step` and rows that only closed an earlier attempt; training resumes from `step`.

        The file changes too: an attempt that is killed before its first row must not leave the end of an earlier one.
        """
        kept = [row for row in self.rows if row["step"] <= step and row["value"] is not None]
        before, self.rows = self.rows, [{**row, "status": "running", "reason": ""} for row in kept]
        if self.rows:
            if self.rows != before:
                self._write()
        elif before:
            self.path.unlink()

    def put(self, step: int, **values: Any) -> None:
        """Writes the row of a step. Values of an earlier row of the same step stay where this one has none."""
        new = {name: value for name, value in values.items() if value is not None}
        new |= {"step": step, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        old = self.rows.pop() if self.rows and self.rows[-1]["step"] == step else {}
        self.rows.append({**old, **self.constants, **new})
        self._write()

    def close(self, status: str, reason: str, step: int, **values: Any) -> None:
        """Records how the trial ended: on its last row if that has the same step, else on a new row."""
        self.put(step, status=status, reason=reason, **values)

    def _write(self) -> None:
        content = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA), content)
        write(self.path, content.getvalue().to_pybytes())


def read_rows(path: Place) -> list[dict[str, Any]]:
    """Rows of one trial's file as dictionaries; None in columns that it does not have.

    Reads in this thread alone: Arrow's own threads may outlive the interpreter while they hold a Python object, and
    abort the process at its exit (apache/arrow issues 34314, 50482).
    Raises UserError when the file is damaged.
    """
    content = pa.BufferReader(path.read_bytes())
    try:
        with pq.ParquetFile(content, pre_buffer=False) as file:
            rows = file.read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError):  # Arrow says OSError of a damaged page
        raise UserError(f"{path} is damaged; {LOST}") from None
    return [{name: row.get(name) for name in SCHEMA.names} for row in rows]


def final_status(path: Place, steps: int) -> str:
    """The status in a trial's file, as of `status_of`."""
    return status_of(read_rows(path) if path.exists() else [], steps)


def status_of(rows: list[dict[str, Any]], steps: int) -> str:
    """The status of a trial's last row; "waiting" before the first.

    "done" counts only if all `steps` are trained and the last distance is a finite number; else it is "running".
    """
    if not rows:
        return "waiting"
    last = rows[-1]
    whole = last["step"] >= steps and last["value"] is not None and math.isfinite(last["value"])
    return "running" if last["status"] == "done" and not whole else str(last["status"])
