"""Encoding on Ray Data: tasks on CPUs read and crop, an actor per GPU (or per CPU without GPUs) encodes and writes.

Functions import ray and torch, not the module, so that importing it is fast and readers need no torch (see sources.py).
"""

import json
import logging
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gat_sweep.cluster import session
from gat_sweep.encode.sources import Loaded, read_unit
from gat_sweep.encode.units import Source, Unit
from gat_sweep.errors import UserError

if TYPE_CHECKING:  # these import torch, which readers do not need
    from gat_sweep.encode.encoder import Encoding
    from gat_sweep.encode.ledger import Done

CPUS_PER_WRITER = 8  # without a network, one encoder only writes what this many CPUs read


def run_on_ray(
    encoding: "Encoding", units: list[Unit], address: str | None, cpus: int | None, gpus: int | None
) -> "Generator[Done, None, None]":
    """Encodes units on the Ray cluster at `address`, or on a local Ray; yields each unit when it is done.

    cpus, gpus: how many of this machine a local Ray uses; None for all.
    Raises UserError when one was raised in a worker.
    """
    from gat_sweep.encode.ledger import Done

    # Ray's core logs a long line, as an error, when actors of Ray Data may be restarted.
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    notes: list[str] = []
    with ExitStack() as stack:
        with _no_stderr():
            there = stack.enter_context(session(address, cpus, gpus, notes.append))
        for note in notes:
            print(note, file=sys.stderr)
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        cores, devices = int(there.cpus), int(there.gpus)
        networks = encoding.runs_networks
        encoders = (devices or cores) if networks else max(1, cores // CPUS_PER_WRITER)
        items = [{"unit": json.dumps(asdict(unit))} for unit in units]
        rows = (
            ray.data.from_items(items, override_num_blocks=len(items))  # one task per unit
            .map_batches(
                partial(_read, encoding.source, encoding.picture_side, encoding.store_images),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
            )
            .map_batches(
                _Encoder,
                batch_size=1,
                batch_format="pyarrow",
                fn_constructor_kwargs={"encoding": encoding, "device": "cuda" if devices and networks else "cpu"},
                compute=ray.data.ActorPoolStrategy(size=min(encoders, len(items))),
                # Encoders reserve no CPU: readers would wait forever for CPUs that idle encoders hold.
                num_cpus=0,
                num_gpus=1 if devices and networks else 0,
            )
        )
        for row in rows.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield Done.model_validate_json(row["done"])


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Hides stderr, where Ray's C++ core prints about its log settings; failures are exceptions."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _read(source: Source, size: int, as_png: bool, batch: pa.Table) -> pa.Table:
    """Reads the pictures of a unit, in a task, into one row, which Ray Data cannot split."""
    unit = Unit(**json.loads(batch["unit"][0].as_py()))
    try:
        return _pack(unit.index, read_unit(source, unit, size, as_png))
    except UserError as error:  # an exception would arrive as one of Ray's, with a long traceback
        return _pack(unit.index, Loaded([], [], [], None, None, []), str(error))


class _Encoder:
    """Encodes units, in an actor."""

    def __init__(self, encoding: "Encoding", device: str):
        import torch

        from gat_sweep.encode.encoder import Encoder

        torch.set_num_threads(1)  # there is one encoder per CPU, and sums over more threads differ in the last bits
        self.encoder = Encoder(encoding, device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        index, loaded, error = _unpack(batch)
        done = ""
        if not error:
            try:
                done = self.encoder.write(index, loaded).model_dump_json()
            except UserError as own:
                error = str(own)
        return pa.table({"error": [error], "done": [done]})


def _pack(index: int, loaded: Loaded, error: str = "") -> pa.Table:
    """A unit as a table of one row, without copying arrays."""
    head: dict[str, Any] = {"index": index, "names": loaded.names, "labels": loaded.labels, "skipped": loaded.skipped}
    head["captions"] = loaded.captions
    columns = {"images": pa.array([loaded.images], pa.list_(pa.large_binary()))}
    for name in ("pictures", "moments"):
        values = getattr(loaded, name)
        head[name] = None if values is None else values.shape
        data = pa.py_buffer(b"" if values is None else np.ascontiguousarray(values))
        offsets = pa.py_buffer(np.array([0, data.size], np.int64))
        columns[name] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])
    return pa.table({"head": [json.dumps(head)], "error": [error], **columns})


def _unpack(batch: pa.Table) -> tuple[int, Loaded, str]:
    """Arguments of _pack, from the table that it returned."""
    head = json.loads(batch["head"][0].as_py())
    pictures, moments = (
        None if head[name] is None else np.frombuffer(batch[name][0].as_buffer(), dtype).reshape(head[name])
        for name, dtype in (("pictures", np.uint8), ("moments", np.float32))
    )
    skipped = [(name, reason) for name, reason in head["skipped"]]
    images, captions = batch["images"][0].as_py(), head["captions"]
    loaded = Loaded(head["names"], head["labels"], skipped, pictures, moments, images, captions)
    return head["index"], loaded, batch["error"][0].as_py()
