"""Memory of a worker: the model beside what autograd keeps and a GPU reported, and how a trial is fitted into it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trials import recipe, tiny_config
from torch import Tensor

from gat_sweep.errors import UserError
from gat_sweep.gat.discriminator import DiscriminatorBlock
from gat_sweep.gat.generator import GeneratorBlock, JointBlock
from gat_sweep.gat.layers import rope_table
from gat_sweep.gat.memory import Job, block_bytes
from gat_sweep.gat.spec import GeneratorSpec
from gat_sweep.plan import compiles, memory_job
from gat_sweep.recipe import resolve
from gat_sweep.train.engine import check_worker, worker_memory

CPU = torch.device("cpu")
GIB = 2**30


def saved_bytes(forward: Any, constants: list[Tensor]) -> int:
    """Bytes of the distinct buffers autograd keeps; weights and their low-precision copies not among them."""
    known = {t.untyped_storage().data_ptr() for t in constants}
    shapes = {shape for t in constants for shape in (tuple(t.shape), tuple(t.shape)[::-1])}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known and tuple(t.shape) not in shapes:
            kept[storage.data_ptr()] = (storage.nbytes(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("width", "heads", "grid"), [(128, 4, 8), (384, 6, 16)])
def test_the_memory_model_counts_what_autograd_saves(precision: str, width: int, heads: int, grid: int) -> None:
    batch = 3
    spec = GeneratorSpec(width, 4, heads, 2 * grid, 4, 2, 10, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        for block, tokens, extra in [(GeneratorBlock, grid**2, 0), (DiscriminatorBlock, grid**2 + 1, 1)]:
            layer, rope = block(width, heads), rope_table(width // heads, grid, extra)
            x = torch.randn(batch, tokens, width, requires_grad=True)
            style = [torch.randn(batch, width, requires_grad=True)] if block is GeneratorBlock else []

            def forward(layer: Any = layer, x: Tensor = x, style: Any = style, rope: Tensor = rope) -> Tensor:
                return layer(x, *style, rope)

            found = saved_bytes(forward, [*layer.parameters(), rope])
            assert block_bytes(spec, tokens, precision, True) == pytest.approx(found / batch, rel=0.05)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("width", "heads", "grid", "words"), [(128, 4, 8, 16), (384, 6, 16, 77)])
def test_the_memory_model_counts_the_caption_as_well(
    precision: str, width: int, heads: int, grid: int, words: int
) -> None:
    spec, tokens = GeneratorSpec(width, 4, heads, 2 * grid, 4, 2, 0, 4), grid**2
    block, rope = JointBlock(width, heads, last=False), rope_table(width // heads, grid, 2 * words)
    x, c = (torch.randn(3, n, width, requires_grad=True) for n in (tokens, words))
    style = torch.randn(3, width, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        found = saved_bytes(
            lambda: block(x, style, rope, c, torch.zeros(3, tokens + words)), [*block.parameters(), rope]
        )
    assert block_bytes(spec, tokens + words, precision, True) == pytest.approx(found / 3, rel=0.05)


def test_memory_is_fitted_by_the_cheapest_means_first() -> None:
    """Ample: one call. Less: chunks, which are free. Less still: G's blocks again. Nothing fits: both numbers."""
    config = resolve(recipe("imagenet256"), {"model.generator": "L", "model.discriminator": "L"})
    specs = config.generator_spec, config.discriminator_spec
    job = Job(*specs, 408_000_000, 323_000_000, 64, "bfloat16", "bfloat16", False, False)

    def fit(gib: float) -> Any:
        return job.fit(gib * 2**30)

    ample, chunked, recomputed = fit(400), fit(80), fit(40)
    assert (ample.chunk, ample.checkpointed) == (64, 0)
    assert chunked.chunk < 64 and chunked.checkpointed == 0
    assert recomputed.chunk >= 8 and 0 < recomputed.checkpointed <= 24
    assert (ample.chunk_g, chunked.chunk_g) == (64, 4 * chunked.chunk)  # one input of four has a gradient there
    for memory, gib in [(ample, 400), (chunked, 80), (recomputed, 40)]:
        assert memory.total <= 0.9 * gib * 2**30
    assert job.memory(8, recomputed.checkpointed - 1).total > 0.9 * 40 * 2**30
    with pytest.raises(ValueError, match=r"needs \d+\.\d GiB .* may use only 9\.0 GiB"):
        fit(10)


def test_a_trial_too_big_for_its_worker_is_refused_in_one_line() -> None:
    config = tiny_config(workers__memory_gib=1e-5)
    with pytest.raises(UserError, match="use more workers"):
        worker_memory(config, CPU, config.train.batch)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for a GPU with some memory, in GiB; a call sets it."""

    def has(total: float, free: float, reserved: float = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * GIB), int(total * GIB)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(reserved * GIB))

    return has


def test_blocks_are_compiled_by_default_on_cuda_alone(monkeypatch: pytest.MonkeyPatch, gpu: Any) -> None:
    gpu(80, 79)
    config = resolve(recipe("imagenet256"), {"workers.memory_gib": 80})
    assert compiles(config, on_cpu=False) and not compiles(config, on_cpu=True)
    for asked in (False, True):
        explicit = resolve(recipe("imagenet256"), {"workers.compile": asked})
        assert compiles(explicit, True) == compiles(explicit, False) == asked
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match=r"install g\+\+ or set workers.compile=false"):
        check_worker(config, torch.device("cuda"), 8)
    check_worker(config, CPU, 8)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_the_memory_model_meets_the_peaks_of_a_gpu(size: str, compiled: bool) -> None:
    """Those that an H200 reported for an iteration of 64 images of imagenet256 at patch 2."""
    measured = json.loads(Path("docs/gpu/2026-11-27-h200-b.json").read_text())["stages"][f"bench:{size}"]
    settings = {"model.generator": size, "model.discriminator": size, "workers.compile": compiled}
    job = memory_job(resolve(recipe("imagenet256"), settings), 64, on_cpu=False)
    found = replace(job, params_frozen=0).memory(measured["plan"]["chunk"], 0).total / GIB
    assert found == pytest.approx(measured["compiled" if compiled else "eager"]["peak_allocated_gib"], rel=0.025)


def test_the_teacher_that_runs_in_training_is_in_memory() -> None:
    online, stored = ({"teacher.cached": cached} for cached in (False, True))
    jobs = [memory_job(resolve(recipe("imagenet256"), settings), 64, False) for settings in (online, stored)]
    assert jobs[0].memory(8, 0).weights - jobs[1].memory(8, 0).weights == 4 * 85_724_928


def test_a_trial_gets_its_share_of_a_gpu(gpu: Any) -> None:
    """Half a GPU means half its memory; what other processes hold is not there; our own cache is."""
    gpu(80, free=79)
    cuda, settings = torch.device("cuda", 0), {"model.generator": "L", "model.discriminator": "L"}
    whole, half, two = (
        worker_memory(resolve(recipe("imagenet256"), settings | {"workers.gpus": gpus}), cuda, 64)
        for gpus in (1, 0.5, 2)
    )
    assert 36 * GIB < whole.total <= 72 * GIB and half.total <= 36 * GIB and two == whole
    assert worker_memory(resolve(recipe("imagenet256"), settings | {"workers.gpus": 0}), cuda, 64) == whole
    config = resolve(recipe("imagenet256"), settings)
    gpu(80, free=20)
    with pytest.raises(UserError, match=r"needs \d+\.\d GiB but cuda:0 has only 20\.0 GiB free; end what else"):
        worker_memory(config, cuda, 64)
    gpu(80, free=20, reserved=59)
    assert worker_memory(config, cuda, 64) == whole


def test_exact_penalties_need_more_memory() -> None:
    low = {"train.precision": "bfloat16", "workers.memory_gib": 20}
    plans = [
        check_worker(resolve(recipe("imagenet256"), low | {"objective.penalty_precision": p}), torch.device("cpu"), 64)
        for p in ("trained", "tf32")
    ]
    assert plans[0].activations_g == plans[1].activations_g
    per_pair = [plan.activations_d / plan.chunk for plan in plans]
    assert 1.5 < per_pair[1] / per_pair[0] < 2.1  # a saved value has 4 bytes, but not all had 2
