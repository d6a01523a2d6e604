"""Checkpoints written in a thread, while training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from gat_sweep.files.storage import Place
from gat_sweep.run.checkpoint import Copies, copied, write_checkpoint


class Unsaved(Exception):
    """A checkpoint could not be written. A retry would only train the same steps again."""


class Saver:
    """Writes the checkpoints of a trial, one at a time. The loop waits only while the state is copied.

    folder: <trial>/checkpoints. Used by `with`, whose end waits for the write under way: another attempt at the trial
    in this process must not meet it.
    """

    def __init__(self, folder: Place):
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self._step = 0

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits, and raises nothing: what ended the loop says more, and every other way out has called `finish`."""
        self._thread.shutdown()

    def start(self, step: int, parts: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Copies the state of `parts` and begins to write it as the checkpoint of `step`.

        Waits for the checkpoint before. Raises Unsaved as `finish` does, for that one.
        """
        self.finish()
        copies = copied(parts)
        event = None
        if torch.cuda.is_initialized():
            event = torch.cuda.Event()
            event.record()
        self._step = step
        self._pending = self._thread.submit(self._write, step, copies, facts, event)

    def look(self) -> None:
        """Raises Unsaved as `finish` does if the write has failed by now; never waits."""
        if self._pending and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Waits until the newest checkpoint is on disk. Raises Unsaved when it cannot be written."""
        pending, self._pending = self._pending, None
        try:
            if pending:
                pending.result()
        except OSError as error:
            text = f"checkpoint of step {self._step} cannot be written: {error}; the previous one is whole"
            raise Unsaved(text) from error

    def _write(self, step: int, copies: Copies, facts: Mapping[str, Any], event: torch.cuda.Event | None) -> None:
        if event:
            event.synchronize()  # the copies have arrived
        write_checkpoint(self.folder, step, copies, facts)
