"""One GAN iteration: both networks, their optimizers, the running average of G, and the step that updates them.

The training loop and the benchmark run this same object. `iterate` returns tensors and never waits for the device.
A non-finite gradient norm freezes the weights of both networks from that step on; `trouble` reports it.
"""

import copy
import gc
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.gat.augment import AugmentDraws, augment, draw_augmentation
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.ema import update_ema, update_style_mean
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.layers import Attention
from gat_sweep.gat.losses import Draws, discriminator_losses, generator_loss
from gat_sweep.gat.memory import Memory
from gat_sweep.gat.mng import make_perturb
from gat_sweep.plan import compiles, discriminator_precision, memory_plan
from gat_sweep.train.batch import Batch
from gat_sweep.train.graph import IterationGraph

LOOKED_AT = 16  # images whose penalties are computed in both precisions for the journal


class Engine:
    """Networks and optimizers of a trial on one device.

    world: number of processes that share a batch; above one, gradients are averaged over the process group.
    Raises UserError when the trial does not fit the device's memory, or asks for what the machine does not have.
    """

    def __init__(self, config: TrialConfig, device: torch.device, world: int = 1):
        self.config, self.device = config, device
        # Of a worker, on average. Divided by it, the mean over workers is the mean over images, whatever their shares.
        self._images = config.train.batch / world
        self.memory = check_worker(config, device, math.ceil(self._images))
        torch.manual_seed(config.seed)
        self.generator = Generator(config.generator_spec).to(device)
        self.discriminator = Discriminator(config.discriminator_spec).to(device)
        if config.workers.qk_kernel:
            _use_qk_kernel(self.generator, self.discriminator)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizer_g = _adamw(self.generator, config.lr_g, config)
        self.optimizer_d = _adamw(self.discriminator, config.lr_d, config)
        self.perturb = make_perturb(config.mng.schedule, config.generator_spec.levels, config.mng.mixing, device)
        low, low_d = config.train.precision == "bfloat16", discriminator_precision(config) == "bfloat16"
        self.bf16 = torch.autocast(device.type, torch.bfloat16, enabled=low)
        self.bf16_d = torch.autocast(device.type, torch.bfloat16, enabled=low_d)  # of D's step
        self.tf32_d = low and not low_d
        self.generator.checkpointed = self.memory.checkpointed
        # True after a non-finite gradient norm: then no weight moves, and the norms keep their values.
        self._stopped = torch.zeros((), dtype=torch.bool, device=device)
        self._norms = torch.zeros(2, device=device)  # of D and G
        self._finished = torch.zeros((), dtype=torch.int64, device=device)  # completed iterations
        self._call_g: nn.Module = self.generator
        self._call_d: nn.Module = self.discriminator
        if world > 1:
            # Gradients live in buckets, which are averaged once per network and step. (A static graph fails with
            # no_sync.)
            options: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
            self._call_g = DistributedDataParallel(self.generator, **options)
            self._call_d = DistributedDataParallel(self.discriminator, **options)
        self.compiled = compiles(config, device.type == "cpu")
        if self.compiled:
            _compile_blocks(self.generator, self.discriminator)
        self._graph: IterationGraph | None = None
        if config.workers.cuda_graph and device.type == "cuda" and world == 1:
            self._graph = IterationGraph(self.launch, [self.optimizer_g, self.optimizer_d])

    def parts(self) -> dict[str, Any]:
        """Networks and optimizers that training changes, by name; each has a state_dict."""
        names = ["generator", "discriminator", "ema", "optimizer_g", "optimizer_d"]
        return {name: getattr(self, name) for name in names}

    def iterate(self, batch: Batch) -> dict[str, Tensor]:
        """Runs one D step and one G step; returns the terms of both losses, [B] each, and the gradient norms."""
        return self._graph(batch) if self._graph else self.launch(batch)

    def make_room(self) -> None:
        """Frees what only training needs and the next iteration makes anew, for an evaluation beside it."""
        if self._graph:
            self._graph.drop()

    def launch(self, batch: Batch) -> dict[str, Tensor]:
        """The work of `iterate`, launched kernel by kernel."""
        size = len(batch)
        with self.bf16:
            fake_levels, w = self._call_g(batch.z, batch.y)  # one forward serves both steps
        # G's graph ends here. The G step sums the gradient of the images over its chunks and passes it back to G once.
        fakes = fake_levels.detach().requires_grad_()

        terms: dict[str, list[Tensor]] = {}
        for images in _chunks(size, self.memory.chunk):
            part = batch.part(images)
            with self._averaged(self._call_d, images.stop == size), _tf32(self.tf32_d):
                with self.bf16_d:
                    losses = self._losses_d(self._call_d, part, fakes[:, images].detach())
                (losses["loss_d"].sum() / self._images).backward()
            for name, value in losses.items():
                terms.setdefault(name, []).append(value.detach())
        self._update(0, self.discriminator, self.optimizer_d)

        self.discriminator.requires_grad_(False)
        for images in _chunks(size, self.memory.chunk_g):
            part = batch.part(images)
            with self.bf16:
                loss_g = generator_loss(
                    self.discriminator,
                    part.real,
                    fakes[:, images],
                    part.y,
                    part.draws_g,
                    self._augment,
                    self.perturb,
                )
            (loss_g.sum() / self._images).backward()
            terms.setdefault("loss_g", []).append(loss_g.detach())
        self.discriminator.requires_grad_(True)
        fake_levels.backward(fakes.grad)
        self._update(1, self.generator, self.optimizer_g)
        self._finished += ~self._stopped
        update_style_mean(self.generator, w.detach(), batch.y)
        update_ema(self.ema, self.generator, self.config.train.ema_decay)
        norms = {"grad_norm_d": self._norms[0].clone(), "grad_norm_g": self._norms[1].clone()}
        return {name: torch.cat(values) for name, values in terms.items()} | norms

    @torch.no_grad()
    def penalty_rounding(self, batch: Batch) -> float:
        """Share of D's penalties on up to LOOKED_AT images that is rounding of bfloat16; waits for the device.

        Rounding adds its variance to the mean of a squared difference. Below 0 it took more away, by chance.
        """
        part = batch.part(slice(0, LOOKED_AT))
        with torch.compiler.set_stance("force_eager"):  # compiled code of these shapes would take a minute
            with self.bf16:
                fakes = self.generator(part.z, part.y)[0]
                low = self._losses_d(self.discriminator, part, fakes)
            high = self._losses_d(self.discriminator, part, fakes)
        exact, rounded = (float((terms["penalty_real"] + terms["penalty_fake"]).sum()) for terms in (high, low))
        return 1 - exact / rounded

    def _losses_d(self, discriminator: nn.Module, part: Batch, fakes: Tensor) -> dict[str, Tensor]:
        return discriminator_losses(
            discriminator,
            part.real,
            fakes,
            part.y,
            part.teacher,
            part.draws_d,
            self._augment,
            self.perturb,
            self.config.objective,
        )

    def trouble(self) -> tuple[int, str, float] | None:
        """(completed iterations, network, its gradient norm) after a non-finite norm, else None; waits for device."""
        if not self._stopped.item():
            return None
        norm_d, norm_g = self._norms.tolist()
        network, norm = ("G", norm_g) if torch.isfinite(self._norms[0]) else ("D", norm_d)
        return int(self._finished.item()), network, norm

    @contextmanager
    def _averaged(self, network: nn.Module, last: bool) -> Iterator[None]:
        """Context in which only the last chunk averages gradients over the workers: once per step."""
        if last or not isinstance(network, DistributedDataParallel):
            yield
        else:
            with network.no_sync():
                yield

    def _augment(self, x: Tensor, draws: AugmentDraws) -> Tensor:
        return augment(x, self.config.augment, draws)

    def _update(self, which: int, network: nn.Module, optimizer: torch.optim.AdamW) -> None:
        """Clips by the norm over the whole network and steps; skips the step if a norm was ever non-finite.

        Fused AdamW divides by `grad_scale` and skips a step with `found_inf` on the device itself. So clipping needs
        no pass of its own over the gradients, and the loop does not wait.
        """
        norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        self._norms[which] = torch.where(self._stopped, self._norms[which], norm)
        self._stopped |= ~torch.isfinite(norm)
        optimizer.grad_scale = (norm / self.config.train.clip).clamp(min=1.0)  # type: ignore[attr-defined]
        optimizer.found_inf = self._stopped.float()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Context in which a GPU may round the inputs of float32 products to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _chunks(batch: int, chunk: int) -> Iterator[slice]:
    for start in range(0, batch, chunk):
        yield slice(start, min(start + chunk, batch))


def draw(config: TrialConfig, batch: int, random: torch.Generator, penalty: bool) -> Draws:
    """Random numbers of one D step (with penalty noise) or one G step, for (real, fake)."""
    spec = config.generator_spec
    shape = (batch, spec.channels, spec.side, spec.side)

    def noise(*leading: int) -> Tensor:
        return torch.randn(*leading, *shape, generator=random, device=random.device)

    mng = noise(2, spec.levels)
    penalty_noise = None
    if penalty:
        fake = noise(spec.levels)
        penalty_noise = torch.stack([noise(1).expand_as(fake), fake])
    draws = draw_augmentation(config.augment, (2, batch), spec.side, random)
    return Draws(mng=mng, penalty=penalty_noise, augment=draws)


def check_worker(config: TrialConfig, device: torch.device, batch: int) -> Memory:
    """Memory plan of `batch` images on this worker.

    Raises UserError when they do not fit, or the trial needs a compiler or a device that is not there.
    """
    if config.workers.qk_kernel and device.type != "cuda":
        raise UserError(f"workers.qk_kernel needs a CUDA device, not {device.type}; set workers.qk_kernel=false")
    # Inductor builds C++ on a CPU; on CUDA, Triton builds the part that launches a kernel.
    has_compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiles(config, device.type == "cpu") and not has_compiler:
        raise UserError("workers.compile needs a C++ compiler; install g++ or set workers.compile=false")
    if config.workers.qk_kernel and not has_compiler:
        raise UserError("workers.qk_kernel needs a C++ compiler; install g++ or set workers.qk_kernel=false")
    return worker_memory(config, device, batch)


def worker_memory(config: TrialConfig, device: torch.device, batch: int) -> Memory:
    """Memory plan of `batch` images on this worker: chunks, recomputed blocks.

    The plan depends on the size of the device and not on what is free, because the chunks set the order of sums.
    Raises UserError if the images do not fit, or another process has too much of the GPU.
    """
    workers = config.workers
    free = math.inf
    if device.type == "cuda":
        gc.collect()  # an earlier engine's graph, in this process, holds its memory until then
        free, available = map(float, torch.cuda.mem_get_info(device))
        free += torch.cuda.memory_reserved(device)  # an earlier trial's, in this process
        available *= min(1.0, workers.gpus or 1.0)  # trials may share a GPU
    else:
        share = min(1.0, workers.cpus / (os.cpu_count() or 1))
        available = share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if workers.memory_gib is not None:
        available = workers.memory_gib * 2**30
    try:
        plan = memory_plan(config, batch, device.type == "cpu", available)
    except ValueError as error:
        raise UserError(str(error)) from None
    if plan.total > free:
        raise UserError(
            f"a worker needs {plan.total / 2**30:.1f} GiB but {device} has only {free / 2**30:.1f} GiB free; end what "
            "else uses it, or set workers.memory_gib"
        )
    return plan


def _use_qk_kernel(generator: Generator, discriminator: Discriminator) -> None:
    """Lets every attention norm and rotate q and k in one kernel."""
    from gat_sweep.gat.qk_kernel import qk_norm_rope  # Triton comes with torch's builds for CUDA alone

    for module in [*generator.modules(), *discriminator.modules()]:
        if isinstance(module, Attention):
            module.kernel = qk_norm_rope


def _compile_blocks(generator: Generator, discriminator: Discriminator) -> None:
    """Compiles block by block. The blocks of a network share compiled code, so start-up does not grow with depth."""
    torch.compiler.reset()  # shapes of an earlier trial in this worker count towards the recompile limit
    # D's block has seven versions, and torch's own limit is eight. Beyond the limit it runs eagerly, and only a log
    # of torch says so.
    torch._dynamo.config.recompile_limit = 16
    for block in [*generator.blocks, *discriminator.blocks]:
        block.compile(dynamic=False)


def _adamw(network: nn.Module, rate: float, config: TrialConfig) -> torch.optim.AdamW:
    t = config.train
    return torch.optim.AdamW(
        network.named_parameters(), lr=rate, betas=(t.beta1, t.beta2), eps=t.eps, weight_decay=0.0, fused=True
    )
