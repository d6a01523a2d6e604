"""A trial: a config with its place in a run."""

from dataclasses import dataclass
from typing import Any

from gat_sweep.config import TrialConfig
from gat_sweep.files.storage import Place
from gat_sweep.run.table import final_status


@dataclass(frozen=True)
class Trial:
    """A config with its place in a run."""

    id: str
    run: str
    sweep: str
    config: TrialConfig
    home: Place

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
        """The status in the trial's rows: waiting, running, done, diverged or failed."""
        return final_status(self.table, self.config.train.steps)

    def start_status(self) -> str:
        """The status of the trial that this one starts from; "done" when it starts from none."""
        start = self.config.start
        return final_status(self.run_folder / "table" / f"{start.trial}.parquet", start.step) if start else "done"
