"""Batches in the order of the sampler; the next batch is read and decoded while the present one trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import Dataset
from gat_sweep.data.rows import Rows
from gat_sweep.data.sampler import batch_indices


class Loader:
    """Batches of a trial by step; a batch depends only on the seed of the config, the step and the rank."""

    def __init__(self, config: TrialConfig, dataset: Dataset, device: torch.device, rank: int, world: int):
        self.device, self.last = device, config.train.steps - 1
        aligned = config.teacher is not None and config.discriminator_spec.teacher_width > 0
        cached = config.teacher is not None and config.teacher.cached
        self.read: Callable[[np.ndarray], Rows] = partial(
            dataset.rows, pictures=aligned and not cached, teacher=aligned and cached
        )
        self.order: Callable[[int], np.ndarray] = lambda step: batch_indices(
            len(dataset), config.train.batch, config.seed, step, rank, world
        )
        self.threads = max(1, min(int(config.workers.cpus), config.train.batch // world))
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="loader")
        self.ahead: dict[int, list[Future[Rows]]] = {}

    def batch(self, step: int) -> Rows:
        """Rows of this rank for `step`, on the device. Raises the error that reading the data raised."""
        parts = self.ahead.pop(step, None) or self._start(step)
        if step < self.last:
            self.ahead = {step + 1: self._start(step + 1)}
        rows = Rows.joined([part.result() for part in parts])
        if self.device.type == "cuda":
            rows = rows.each(torch.Tensor.pin_memory)
        return rows.each(lambda column: column.to(self.device, non_blocking=True))

    def _start(self, step: int) -> "list[Future[Rows]]":
        return [self.pool.submit(self.read, part) for part in np.array_split(self.order(step), self.threads)]
