"""Iterations as one CUDA graph: captured once, then replayed with a single launch."""

import copy
import gc
from collections.abc import Callable

import torch
from torch import Tensor

from gat_sweep.train.batch import Batch


class IterationGraph:
    """`launch`, an iteration of an engine, captured after a few calls and replayed from then on.

    An iteration starts thousands of kernels. For a small network, starting them takes longer than running them. The
    first calls start kernel by kernel: libraries choose their kernels then, and the optimizers make their state.
    All batches must have the shapes of the first one. No tensor that an iteration changes may be replaced later.
    """

    WARM_UP = 3

    def __init__(self, launch: Callable[[Batch], dict[str, Tensor]], optimizers: list[torch.optim.AdamW]):
        self.launch, self.optimizers = launch, optimizers
        self.begun = 0
        # One for all warm-ups: the allocator keeps the memory of a stream for that stream.
        self.side = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Batch | None = None  # where the graph reads
        self.terms: dict[str, Tensor] = {}  # and where it leaves its results

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of `launch`, copied from where the graph leaves them."""
        if self.begun < self.WARM_UP:
            self.begun += 1
            return self._aside(batch)
        if self.graph is None or self.batch is None:
            self.batch = copy.deepcopy(batch)
            self.graph = self._capture(self.batch)
        torch._foreach_copy_(self.batch.tensors(), batch.tensors())
        self.graph.replay()
        return {name: value.clone() for name, value in self.terms.items()}

    def drop(self) -> None:
        """Frees the memory of the recorded iteration; the next call records it again."""
        self.graph = None
        self.batch, self.terms = None, {}

    def _aside(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration on a stream of its own, as torch asks before a capture."""
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            terms = self.launch(batch)
        current.wait_stream(self.side)
        return terms

    def _capture(self, batch: Batch) -> torch.cuda.CUDAGraph:
        """Records an iteration without running it."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["capturable"] = True
        graph = torch.cuda.CUDAGraph()
        # An engine with a graph is part of a cycle. If the collector freed an earlier one now, it would destroy that
        # one's graph, and the capture would fail.
        gc.collect()
        gc.disable()
        # A stream of its own: on the default one for captures, products share a workspace with every graph before.
        # Other threads may go on: the loader pins memory meanwhile, and a checkpoint may be on its way to the disk.
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                self.terms = self.launch(batch)
        finally:
            gc.enable()
        for group in groups:
            group["capturable"] = False  # a checkpoint keeps the groups' options, and a CPU refuses this one
        return graph
