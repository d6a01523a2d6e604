"""The live view of a running sweep, and the thread that sends its results to MLflow.

The trials' journals are the only source, so the view is the same whether a worker runs here or on another node.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gat_sweep.run.crowd import crowd_line
from gat_sweep.run.journal import read_records
from gat_sweep.run.trial import Trial
from gat_sweep.text import duration

INTERVAL = 1.0  # seconds between looks at the journals
LINE_EVERY = 30.0  # seconds between plain lines of a trial without news


@dataclass
class TrialView:
    """The state of one trial according to its journal."""

    trial: Trial
    offset: int = 0
    status: str = "waiting"
    reason: str = ""
    step: int = 0
    rate: float = 0.0  # images per second
    distances: list[float] = field(default_factory=list)
    metric: str = ""
    note: str = ""  # work other than training steps; cleared by the next metrics

    @property
    def steps(self) -> int:
        return self.trial.config.train.steps

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step at the last measured rate; None before the first measurement."""
        if self.status == "waiting" or not self.rate:
            return None
        return (self.steps - self.step) * self.trial.config.train.batch / self.rate

    def read(self) -> bool:
        """Reads the new records of the journal; True if one is an evaluation, a note or a change of status."""
        news = False
        for end, record in read_records(self.trial.folder, self.offset):
            self.offset = end
            news |= self._take(record)
        return news

    def _take(self, record: dict[str, Any]) -> bool:
        self.step = record["step"]
        if "status" in record:
            changed = self.status != record["status"]
            self.status, self.reason = record["status"], record.get("reason", "")
            return changed
        self.note = record.get("note", "")
        if self.note:
            return True
        metrics = record["metrics"]
        self.rate = metrics.get("images_per_second", self.rate)
        self.metric = self.trial.config.eval.metric
        if self.metric not in metrics:
            return False
        self.distances.append(metrics[self.metric])
        return True


class Monitor:
    """Follows trials in a thread of its own, from the beginning of a `with` block to its end.

    ship: called with the trials' folders every few seconds and once at the end; sends news to MLflow and
    returns a warning or "".
    """

    def __init__(self, trials: list[Trial], console: Console, ship: Callable[[list[Path]], str]):
        self.views = [TrialView(trial) for trial in trials]
        for view in self.views:
            view.read()  # records of an earlier launch are not news
            if view.status == "running":
                view.status = "waiting"
        self.console, self.ship = console, ship
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._warned = self._said = self.crowd = ""

    def __enter__(self) -> "Monitor":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        if self.console.is_terminal:
            with Live(self.table(), console=self.console, refresh_per_second=2) as live:
                self._loop(lambda _: live.update(self.table()))
        else:
            spoken = {view.trial.id: time.monotonic() for view in self.views}

            def speak(news: set[str]) -> None:
                if self.crowd and self.crowd != self._said:
                    self._said = self.crowd
                    self.console.print(self.crowd, soft_wrap=True, highlight=False, markup=False)
                for view in self.views:
                    quiet = time.monotonic() - spoken[view.trial.id] > LINE_EVERY and view.status == "running"
                    if view.trial.id in news or quiet:
                        spoken[view.trial.id] = time.monotonic()
                        self.console.print(self.line(view), soft_wrap=True, highlight=False, markup=False)

            self._loop(speak)

    def _loop(self, show: Callable[[set[str]], None]) -> None:
        folders = [view.trial.folder for view in self.views]
        last = False
        while not last:
            last = self._stop.wait(INTERVAL)
            try:
                self.crowd = crowd_line(self.views[0].trial.run_folder) if self.views else ""
                show({view.trial.id for view in self.views if view.read()})
                warning = self.ship(folders)
            except OSError as error:  # full or unreachable storage costs one look
                warning = f"the files of the run cannot be read or written: {error}; trying again"
            if warning and warning != self._warned:
                self.console.print(warning, soft_wrap=True, highlight=False, markup=False)
            self._warned = warning

    def table(self) -> Table:
        """One row per trial."""
        table = Table(title=self.summary(), title_justify="left")
        for name in ["trial", "status", "step", "ETA", "images/s", "latest", "best"]:
            table.add_column(name, justify="left" if name in ("trial", "status") else "right", no_wrap=True)
        for view in self.views:
            table.add_row(
                view.trial.id,
                f"{view.status} {view.note}".strip(),
                f"{view.step}/{view.steps}",
                duration(view.seconds_left) if view.status == "running" else "",
                f"{view.rate:.0f}" if view.rate else "",
                f"{view.distances[-1]:.1f}" if view.distances else "",
                f"{min(view.distances):.1f}" if view.distances else "",
            )
        metric = next((view.metric for view in self.views if view.distances), "")
        caption = f"latest and best: {metric}" if metric else "workers take about half a minute to start"
        table.caption = f"{self.crowd}\n{caption}" if self.crowd else caption
        return table

    def line(self, view: TrialView) -> str:
        """The state of a trial as a line of text."""
        parts = [f"{view.trial.id}  {view.status}  step {view.step}/{view.steps}"]
        if view.status == "running" and view.seconds_left is not None:
            parts.append(f"ETA {duration(view.seconds_left)}  {view.rate:.0f} images/s")
        if view.distances:
            parts.append(f"{view.metric} {view.distances[-1]:.1f} (best {min(view.distances):.1f})")
        if view.note:
            parts.append(view.note)
        if view.reason:
            parts.append(view.reason)
        return "  ".join(parts)

    def summary(self) -> str:
        counts: dict[str, int] = {}
        for view in self.views:
            counts[view.status] = counts.get(view.status, 0) + 1
        return ", ".join(f"{count} {status}" for status, count in counts.items())
