"""Iterations as one CUDA graph (train/graph.py)."""

import copy
from dataclasses import fields
from itertools import count

import pytest
import torch
from helpers.trials import recipe

from gat_sweep.recipe import resolve
from gat_sweep.speed.clock import make_batch
from gat_sweep.train.batch import Batch
from gat_sweep.train.engine import Engine


def digits_batch(seed: int) -> Batch:
    return make_batch(resolve(recipe("digits"), {}), torch.Generator().manual_seed(seed))


def test_a_batch_can_be_copied_into_another_as_a_graph_needs_it() -> None:
    """Every tensor is found, at any depth, in one order: after the copy both batches are equal, part by part."""
    into, batch = copy.deepcopy(digits_batch(0)), digits_batch(1)
    for target, source in zip(into.tensors(), batch.tensors(), strict=True):
        target.copy_(source)
    assert into.y is not None and batch.y is not None
    assert torch.equal(into.real, batch.real) and torch.equal(into.z, batch.z) and torch.equal(into.y, batch.y)
    for name in ("draws_d", "draws_g"):
        a, b = getattr(into, name), getattr(batch, name)
        assert torch.equal(a.mng, b.mng)
        assert all(torch.equal(getattr(a.augment, f.name), getattr(b.augment, f.name)) for f in fields(a.augment))
    assert into.draws_d.penalty is not None and batch.draws_d.penalty is not None
    assert torch.equal(into.draws_d.penalty, batch.draws_d.penalty)


def test_a_cpu_needs_no_graph() -> None:
    config = resolve(recipe("digits"), {})
    assert config.workers.cuda_graph and Engine(config, torch.device("cpu"))._graph is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graph_changes_no_bit(precision: str) -> None:
    device, weights = torch.device("cuda", 0), []
    for graph in (False, True, True):
        settings = {"workers.cuda_graph": graph, "train.precision": precision}
        config, seeds = resolve(recipe("digits"), settings), count()
        engine = Engine(config, device)
        for _ in range(8):
            engine.iterate(make_batch(config, torch.Generator(device).manual_seed(next(seeds))))
        assert engine.trouble() is None
        assert not any(g["capturable"] for o in (engine.optimizer_g, engine.optimizer_d) for g in o.param_groups)
        weights.append(
            {
                f"{n}.{k}": v
                for n in ("generator", "discriminator", "ema")
                for k, v in engine.parts()[n].state_dict().items()
            }
        )
    for other in weights[1:]:
        assert [name for name in weights[0] if not torch.equal(weights[0][name], other[name])] == []
