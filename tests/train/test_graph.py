"""Iterations as one CUDA graph (train/graph.py)."""

import copy
from dataclasses import fields
from itertools import count

import pytest
import torch
from helpers.trials import recipe

from gat_sweep.config import TrialConfig
from gat_sweep.gat.condition import Captions
from gat_sweep.recipe import resolve
from gat_sweep.speed.bench import TOLERANCE, loss_difference
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


def captions_batch(config: TrialConfig, seed: int, device: torch.device) -> Batch:
    """A batch with captions, half of them with padding, drawn on the CPU."""
    drawn = make_batch(config, torch.Generator().manual_seed(seed))
    assert isinstance(drawn.y, Captions)
    drawn.y.weight[::2, drawn.y.weight.shape[1] // 3 :] = 0
    batch = make_batch(config, torch.Generator(device))
    for target, source in zip(batch.tensors(), drawn.tensors(), strict=True):
        target.copy_(source)
    return batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_captions_with_padding_have_the_losses_of_the_cpu(precision: str) -> None:
    """Padding enters attention as a bias of minus infinity, which every kernel of a GPU treats on its own."""
    settings = {"model.generator": "S", "model.discriminator": "S", "train.precision": precision}
    config, losses = resolve(recipe("emoji"), settings), []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        losses.append(Engine(config, device).iterate(captions_batch(config, 0, device)))
    assert loss_difference({k: v.cpu() for k, v in losses[1].items()}, losses[0]) < TOLERANCE[precision]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_a_graph_changes_no_bit(name: str, precision: str) -> None:
    """With classes and with captions; the third engine drops its graph on the way, as for an evaluation."""
    device, weights = torch.device("cuda", 0), []
    for graph, dropped in ((False, 0), (True, 0), (True, 6)):
        settings = {"workers.cuda_graph": graph, "train.precision": precision}
        sizes = {"model.generator": "S", "model.discriminator": "S"}
        config, seeds = resolve(recipe(name), settings | sizes), count()
        engine = Engine(config, device)
        for i in range(8):
            seed = next(seeds)
            if i == dropped:
                engine.make_room()
            random = torch.Generator(device).manual_seed(seed)
            engine.iterate(captions_batch(config, seed, device) if config.text else make_batch(config, random))
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
