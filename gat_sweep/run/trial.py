"""A trial: a config with its place in a run."""

from dataclasses import dataclass
from typing import Any

from gat_sweep.config import TrialConfig
from gat_sweep.files.storage import Place
from gat_sweep.run.table import FINISHED, final_status, read_rows

GRID = 8  # sample grids are GRID x GRID


@dataclass(frozen=True)
class Trial:
    """A config with its place in a run."""

    id: str
    run: str
    sweep: str
    config: TrialConfig
    home: Place
    pause: int | None = None  # the step of a look of a race, at which training pauses

    @property
    def run_folder(self) -> Place:
        return self.home / self.run

    @property
    def folder(self) -> Any:  # a Place; tests know that theirs is a Path
        return self.run_folder / "trials" / self.id

    @property
    def table(self) -> Any:
        return self.run_folder / "table" / f"{self.id}.parquet"

    def status(self) -> str:
        """The status in the trial's rows: waiting, running, done, diverged, failed or raced."""
        return final_status(self.table, self.config.train.steps)

    @property
    def goal(self) -> int:
        """The step to which it is trained now."""
        return self.config.train.steps if self.pause is None else self.pause

    def at_goal(self) -> bool:
        """Whether there is nothing to train: it is finished, or evaluated at the step where it pauses."""
        if self.status() in FINISHED:
            return True
        return self.pause is not None and self.row_at(self.pause) is not None

    def row_at(self, step: int) -> dict[str, Any] | None:
        """The row of a step with a distance; None if none was measured there."""
        rows = read_rows(self.table) if self.table.exists() else []
        return next((row for row in rows if row["step"] == step and row["value"] is not None), None)

    def start_status(self) -> str:
        """The status of the trial that this one starts from; "done" when it starts from none."""
        start = self.config.start
        return final_status(self.run_folder / "table" / f"{start.trial}.parquet", start.step) if start else "done"
