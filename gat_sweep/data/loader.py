"""Batches in the order of the sampler; the next batch is read and decoded while the present one trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import Dataset
from gat_sweep.data.rows import Rows
from gat_sweep.data.sampler import batch_indices, caption_draws


class Loader:
    """Batches of a trial by step; a batch depends only on the seed of the config, the step and the rank."""

    def __init__(self, config: TrialConfig, dataset: Dataset, device: torch.device, rank: int, world: int):
        self.device, self.last = device, config.train.steps - 1
        aligned = config.teacher is not None and config.discriminator_spec.teacher_width > 0
        cached = config.teacher is not None and config.teacher.cached
        self.read: Callable[[np.ndarray, np.ndarray | None], Rows] = lambda index, draws: dataset.rows(
            index, pictures=aligned and not cached, teacher=aligned and cached, captions=draws
        )
        place = config.train.batch, config.seed
        self.order: Callable[[int], np.ndarray] = lambda step: batch_indices(len(dataset), *place, step, rank, world)
        self.draws: Callable[[int], np.ndarray] | None = None
        if config.text:
            self.draws = lambda step: caption_draws(*place, step, rank, world)
        self.threads = max(1, min(int(config.workers.cpus), config.train.batch // world))
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="loader")
        # One more thread joins the parts, so that the loop copies no bytes itself.
        self.on_gpu = device.type == "cuda"
        choose = partial(torch.cuda.set_device, device) if self.on_gpu else None
        self.joiner = ThreadPoolExecutor(1, thread_name_prefix="loader-join", initializer=choose)
        self.ahead: dict[int, Future[Rows]] = {}

    def batch(self, step: int) -> Rows:
        """Rows of this rank for `step`, on the device. Raises the error that reading the data raised."""
        rows = self.ahead.pop(step, None) or self._start(step)
        if step < self.last:
            self.ahead = {step + 1: self._start(step + 1)}
        return rows.result().each(lambda column: column.to(self.device, non_blocking=True))

    def _start(self, step: int) -> "Future[Rows]":
        indices = np.array_split(self.order(step), self.threads)
        draws = np.array_split(self.draws(step), self.threads) if self.draws else [None] * self.threads
        parts = [self.pool.submit(self.read, *part) for part in zip(indices, draws, strict=True)]
        return self.joiner.submit(self._joined, parts)

    def _joined(self, parts: "list[Future[Rows]]") -> Rows:
        rows = Rows.joined([part.result() for part in parts])
        return rows.each(torch.Tensor.pin_memory) if self.on_gpu else rows
