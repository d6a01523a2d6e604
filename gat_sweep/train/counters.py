"""Progress of a trial: the loop moves the counters, the recorder writes them, a checkpoint stores them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gat_sweep.train.collapse import Collapse


@dataclass
class Counters:
    """Counters of all attempts of a trial, and of the trial that it starts from.

    `images` and `flops` include the steps of the trial that it starts from, whose batch and losses may differ.
    """

    batch: int  # images of a step, over all workers
    step_flops: int  # FLOP of a step (2 per multiply-add), over all workers
    step: int = 0
    images: int = 0
    flops: int = 0
    evaluated: int = 0  # the step of the last evaluation
    logged: dict[str, Tensor] = field(default_factory=dict)  # sums since the last log, on the device
    logged_steps: int = 0
    collapse: Collapse = field(default_factory=Collapse)
    started: float = field(default_factory=time.perf_counter)  # this attempt's, minus the seconds of earlier attempts

    @classmethod
    def restored(
        cls, batch: int, step_flops: int, step: int, facts: Mapping[str, Any], device: torch.device
    ) -> "Counters":
        """Counters from the facts of a checkpoint of `step`."""
        return cls(
            batch,
            step_flops,
            step,
            facts.get("images", 0),
            facts.get("flops", 0),
            facts.get("evaluated", 0),
            {name: torch.tensor(value, device=device) for name, value in facts.get("logged", {}).items()},
            facts.get("logged_steps", 0),
            Collapse(**facts.get("collapse", {})),
            time.perf_counter() - facts.get("seconds", 0.0),
        )

    def facts(self) -> dict[str, Any]:
        """Values that a checkpoint stores; waits for the device."""
        return {
            **self.progress(),
            "evaluated": self.evaluated,
            "logged": {name: value.item() for name, value in self.logged.items()},
            "logged_steps": self.logged_steps,
            "collapse": vars(self.collapse),
        }

    def progress(self) -> dict[str, float]:
        """Images, FLOP (2 per multiply-add) and seconds so far, evaluation included."""
        return {"images": self.images, "flops": self.flops, "seconds": time.perf_counter() - self.started}

    def move(self, steps: int) -> None:
        """Adds whole steps; a negative number takes back steps that do not count."""
        self.step += steps
        self.images += steps * self.batch
        self.flops += steps * self.step_flops

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Adds the terms of one step, [B] each or scalars, to the next log window."""
        for name, value in terms.items():
            self.logged[name] = self.logged[name] + value.mean() if name in self.logged else value.mean()
        self.logged_steps += 1

    def means(self) -> dict[str, float]:
        """Means of the terms since the last log; begins a new log window and waits for the device."""
        means = {name: value.item() / self.logged_steps for name, value in self.logged.items()}
        self.logged, self.logged_steps = {}, 0
        return means
