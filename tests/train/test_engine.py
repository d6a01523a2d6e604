"""One iteration: against the straightforward step, in chunks, recomputed, frozen, without waiting for the device."""

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.trials import recipe, text_config, tiny_config
from torch import Tensor
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
from torch.utils._python_dispatch import TorchDispatchMode

from gat_sweep.config import TrialConfig
from gat_sweep.gat.discriminator import DiscriminatorBlock
from gat_sweep.gat.generator import GeneratorBlock, JointBlock
from gat_sweep.recipe import resolve
from gat_sweep.speed.clock import make_batch
from gat_sweep.speed.straightforward import Straightforward
from gat_sweep.train.batch import Batch
from gat_sweep.train.engine import Engine

CPU = torch.device("cpu")
TEACHER = {"teacher__name": "efficientnet_lite0", "teacher__width": 24, "objective__align_weight": 1.0}


def inputs(config: TrialConfig, seed: int = 0) -> Batch:
    """A batch, its teacher tokens and the random numbers of an iteration."""
    return make_batch(config, torch.Generator().manual_seed(seed))


def largest_difference(a: torch.nn.Module, b: torch.nn.Module) -> float:
    """Relative to each tensor's largest entry, or to a tenth of a step where there is less."""
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    assert ours.keys() == theirs.keys()
    return max((ours[k] - theirs[k]).abs().max().item() / max(theirs[k].abs().max().item(), 1e-3) for k in ours)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        TEACHER,
        {"data__classes": 0},
        {"data__channels": 3, "model__patch": 4, "augment__color": 1.0, **TEACHER},
        {"augment__color": 1.0, "augment__color_means": "before", "model__positions": "trained"},
    ],
)
def test_the_engine_takes_the_straightforward_step(overrides: dict[str, Any]) -> None:
    """Losses, and the weights they lead to, equal those of an implementation that shares no code."""
    config = tiny_config(augment__flip=0.4, train__eps=1e-3, **overrides)
    engine = Engine(config, CPU)
    plain = Straightforward(config, engine.generator, engine.discriminator, CPU)
    for iteration in range(2):
        batch = inputs(config, iteration)
        ours, theirs = engine.iterate(batch), plain.step(batch)
        for name in ["loss_d", "loss_g"]:
            # a penalty is the square of a difference of nearly equal logits: its rounding is theirs / sigma
            assert torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=[3e-4, 2e-3][iteration])
    # AdamW normalises gradients; eps is large here so that rounding of tiny ones is not blown up.
    assert largest_difference(engine.generator, plain.generator) < 5e-4
    assert largest_difference(engine.discriminator, plain.discriminator) < 5e-4
    assert largest_difference(engine.ema, plain.ema) < 5e-4
    assert torch.allclose(engine.generator.style_mean, plain.generator.style_mean, rtol=1e-4, atol=1e-6)


def one_iteration(
    chunk: int, checkpointed: int, chunk_g: int | None = None, **overrides: Any
) -> tuple[Engine, dict[str, Tensor]]:
    config = tiny_config(train__eps=1e-3, **TEACHER, **overrides)
    engine = Engine(config, CPU)
    engine.memory = replace(engine.memory, chunk=chunk, chunk_g=chunk_g or chunk)
    engine.generator.checkpointed = checkpointed
    return engine, engine.iterate(inputs(config))


@pytest.mark.parametrize(("chunk", "checkpointed", "chunk_g"), [(4, 0, 4), (3, 2, 3), (1, 4, 4)])
def test_chunks_and_recomputation_change_memory_and_nothing_else(chunk: int, checkpointed: int, chunk_g: int) -> None:
    """Real and fake of a pair stay together; the last chunk may be smaller."""
    whole, terms = one_iteration(8, 0)
    parts, same = one_iteration(chunk, checkpointed, chunk_g)
    for name in terms:
        assert torch.allclose(terms[name], same[name], rtol=1e-4, atol=1e-6), name
    assert largest_difference(whole.generator, parts.generator) < 1e-4
    assert largest_difference(whole.discriminator, parts.discriminator) < 1e-4


@pytest.mark.parametrize("poisoned", ["real", "z"])
def test_after_a_non_finite_norm_nothing_moves(poisoned: str) -> None:
    """Not in that iteration and not in any later one; the report says which, and after how many good ones."""
    config = tiny_config()
    engine = Engine(config, CPU)
    engine.iterate(inputs(config, 0))
    assert engine.trouble() is None
    before = {k: v.clone() for part in ("generator", "discriminator") for k, v in _state(engine, part).items()}
    batch = inputs(config, 1)
    if poisoned == "real":
        batch.real[0, 0, 0, 0] = float("nan")
    else:
        engine.generator.outputs[0].linear.weight.register_hook(lambda grad: grad * float("inf"))
        before = None  # D is allowed to move before G's gradient fails
    generator = {k: v.clone() for k, v in _state(engine, "generator").items() if "style_mean" not in k}
    engine.iterate(batch)
    after_d = {k: v.clone() for k, v in _state(engine, "discriminator").items()}
    engine.iterate(inputs(config, 2))
    finished, network, norm = engine.trouble() or (None, None, 0.0)
    assert (finished, network) == (1, "D" if poisoned == "real" else "G") and not torch.isfinite(torch.tensor(norm))
    assert all(torch.equal(v, _state(engine, "discriminator")[k]) for k, v in after_d.items())
    assert all(torch.equal(v, _state(engine, "generator")[k]) for k, v in generator.items())
    if before:
        assert all(torch.equal(v, before[k]) for k, v in after_d.items() if k in before)


def _state(engine: Engine, part: str) -> dict[str, Tensor]:
    return {f"{part}.{k}": v for k, v in engine.parts()[part].state_dict().items()}


def _half(rank: int, file: Path) -> None:
    """One of two processes: its half of the batch, in two chunks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    config = tiny_config(train__eps=1e-3, **TEACHER)
    engine = Engine(config, CPU, world=2)
    engine.memory = replace(engine.memory, chunk=2, chunk_g=4)
    mine = slice(4 * rank, 4 * rank + 4)
    for iteration in range(3):
        engine.iterate(inputs(config, iteration).part(mine))
    torch.save({name: part.state_dict() for name, part in engine.parts().items()}, f"{file}.{rank}")
    dist.destroy_process_group()


def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    """Gradients are averaged once a step, with the last chunk; the running mean of w is over both halves."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=_half, args=(rank, tmp_path / "store")) for rank in range(2)]
    for worker in workers:
        worker.start()
    config = tiny_config(train__eps=1e-3, **TEACHER)
    alone = Engine(config, CPU)
    for iteration in range(3):
        alone.iterate(inputs(config, iteration))
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    states = [torch.load(f"{tmp_path / 'store'}.{rank}", weights_only=True) for rank in range(2)]
    for part in ("generator", "discriminator", "ema"):
        for name, value in alone.parts()[part].state_dict().items():
            first, second = (state[part][name] for state in states)
            assert torch.equal(first, second), name
            assert torch.allclose(first, value, rtol=1e-3, atol=1e-5), name


class Waits(TorchDispatchMode):
    """Lists the operations that copy a value from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_an_iteration_never_waits_for_the_device() -> None:
    config = tiny_config(augment__flip=0.4, augment__color=0.5, **TEACHER)
    engine = Engine(config, CPU)
    batch = inputs(config)
    engine.iterate(batch)  # optimizers make their state
    with Waits() as waits:
        engine.iterate(batch)
        assert waits.found == []
        engine.trouble()
    assert waits.found != []


def test_chunks_of_captions_change_nothing() -> None:
    """Gradients of pairs in chunks, with G's blocks recomputed, are those of the whole batch."""
    config = text_config(train__eps=1e-3)
    batch = make_batch(config, torch.Generator().manual_seed(0))
    whole, parts = Engine(config, CPU), Engine(config, CPU)
    parts.memory = replace(parts.memory, chunk=3, chunk_g=4)
    parts.generator.checkpointed = 2
    terms, same = whole.iterate(batch), parts.iterate(batch)
    for name in terms:
        assert torch.allclose(terms[name], same[name], rtol=1e-4, atol=1e-6), name
    assert largest_difference(whole.generator, parts.generator) < 1e-4
    assert largest_difference(whole.discriminator, parts.discriminator) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of what it does itself
@pytest.mark.parametrize(
    ("make", "more", "block"), [(tiny_config, TEACHER, GeneratorBlock), (text_config, {}, JointBlock)]
)
def test_compiled_blocks_give_the_same_losses(make: Any, more: dict[str, Any], block: Any) -> None:
    config = make(train__eps=1e-3, **more)
    plain, compiled = Engine(config, CPU), Engine(make(train__eps=1e-3, workers__compile=True, **more), CPU)
    for iteration in range(2):
        batch = inputs(config, iteration)
        ours, theirs = compiled.iterate(batch), plain.iterate(batch)
        for name in ours:
            assert torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5), name
    versions = [len(_debug_get_cache_entry_list(b.forward.__code__)) for b in (block, DiscriminatorBlock)]
    assert versions[0] <= 2 and versions[1] <= 7, versions  # each is compiled at every start


def first_penalties(engine: Engine, batch: Batch) -> tuple[Tensor, Tensor]:
    """Penalties of the first step, and the same in float32 for the same fakes."""
    with torch.no_grad(), engine.bf16:
        fakes = engine.generator(batch.z, batch.y)[0]
    with torch.no_grad():
        exact = engine._losses_d(engine.discriminator, batch, fakes)
    return engine.iterate(batch)["penalty_real"], exact["penalty_real"]


def test_penalties_beside_a_step_in_bfloat16_can_be_exact() -> None:
    settings = {"train.precision": "bfloat16", "workers.memory_gib": 4}
    for precision, exact in (("tf32", True), ("trained", False)):
        config = resolve(recipe("digits"), settings | {"objective.penalty_precision": precision})
        engine = Engine(config, torch.device("cpu"))
        batch = make_batch(config, torch.Generator().manual_seed(0))
        share = engine.penalty_rounding(batch)
        assert 0.3 < share < 1
        penalty, reference = first_penalties(engine, batch)
        assert torch.equal(penalty, reference) == exact
        assert exact or penalty.mean() > reference.mean() / (1 - 0.3)
        assert torch.get_float32_matmul_precision() == "highest"


def test_float32_has_nothing_to_round() -> None:
    config = resolve(recipe("digits"), {"objective.penalty_precision": "tf32"})
    engine = Engine(config, torch.device("cpu"))
    assert not engine.tf32_d
    assert engine.penalty_rounding(make_batch(config, torch.Generator().manual_seed(0))) == 0
