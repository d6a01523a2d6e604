"""Training one trial: one flat loop that runs alone, under torchrun, or in a Ray Train worker.

Imports neither Ray nor MLflow. It writes files below the trial's folder, and others read them:
    config.json            the resolved config
    journal.jsonl          one line per log point, evaluation and change of status
    samples/step_*.png     a grid of fixed-seed samples per evaluation
    checkpoints/step_*.pt  the whole training state
and the rows of `<run>/table/<trial>.parquet`.
"""

import copy
import ctypes
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gat_sweep.checkpoint import load_checkpoint, save_checkpoint
from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import check_dataset
from gat_sweep.data.sampler import batch_indices
from gat_sweep.gat import flops
from gat_sweep.gat.augment import AugmentDraws, augment, draw_augmentation
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.ema import update_ema, update_style_mean
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.losses import Draws, discriminator_losses, generator_loss
from gat_sweep.gat.mng import make_perturb
from gat_sweep.metrics.evaluate import Evaluator
from gat_sweep.run_table import RunTable, trial_constants

GRID = 8  # sample grids are GRID x GRID


@dataclass(frozen=True)
class Trial:
    """A config with its place in a run."""

    id: str
    run: str
    sweep: str
    config: TrialConfig
    home: Path  # absolute

    @property
    def folder(self) -> Path:
        return self.home / self.run / "trials" / self.id

    @property
    def table(self) -> Path:
        return self.home / self.run / "table" / f"{self.id}.parquet"


@dataclass(frozen=True)
class Outcome:
    """How training ended: status "done" or "diverged"."""

    status: str
    step: int
    reason: str = ""


def train(trial: Trial, device: torch.device, stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Trains to the config's number of steps, from the newest checkpoint when there is one.

    Under an initialised torch.distributed process group each rank works on its share of every batch.
    Raises UserError for bad input; any other exception is the caller's to record with `record_failure`.
    """
    config = trial.config
    if device.type == "cpu":
        _keep_freed_memory()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = check_dataset(config)
    latents, labels = dataset.latents.to(device), dataset.labels.to(device)

    # ---------------------------------------------------------------- networks and optimizers
    torch.manual_seed(config.seed)
    generator = Generator(config.generator_spec).to(device)
    discriminator = Discriminator(config.discriminator_spec).to(device)
    ema = copy.deepcopy(generator).requires_grad_(False)
    optimizer_g = _adamw(generator, config.lr_g, config)
    optimizer_d = _adamw(discriminator, config.lr_d, config)
    perturb = make_perturb(config.mng.schedule, config.generator_spec.levels, config.mng.mixing, device)

    def augmented(x: Tensor, draws: AugmentDraws) -> Tensor:
        return augment(x, config.augment, draws)

    # ---------------------------------------------------------------- resume
    state: dict[str, Any] = {
        "generator": generator,
        "discriminator": discriminator,
        "ema": ema,
        "optimizer_g": optimizer_g,
        "optimizer_d": optimizer_d,
    }
    found = load_checkpoint(trial.folder / "checkpoints", device)
    step, seconds = 0, 0.0
    if found:
        step, saved = found
        for name, part in state.items():
            part.load_state_dict(saved[name])
        seconds = saved["seconds"]
    evaluated = saved_at = step

    ddp_g: nn.Module = DistributedDataParallel(generator, broadcast_buffers=False) if world > 1 else generator
    ddp_d: nn.Module = DistributedDataParallel(discriminator, broadcast_buffers=False) if world > 1 else discriminator
    evaluator = Evaluator(config, dataset, trial.home, device, rank, world)
    recorder = Recorder(trial, step) if rank == 0 else None
    if recorder and step == 0:
        recorder.journal(0, {f"{evaluator.extractor.metric}_real_halves": evaluator.reference.halves})

    random = torch.Generator(device)
    images_per_rank = config.train.batch // world
    spec = config.generator_spec
    image_shape = (images_per_rank, spec.channels, spec.side, spec.side)
    flops_per_step = sum(flops.iteration(spec, config.discriminator_spec).values()) * config.train.batch
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16")
    logged: dict[str, Tensor] = {}  # sums since the last log, kept on the device
    logged_steps = 0
    window_start, window_step = time.perf_counter(), step
    started = time.perf_counter() - seconds

    def progress() -> dict[str, float]:
        return {
            "images": step * config.train.batch,
            "flops": float(step) * flops_per_step,
            "seconds": time.perf_counter() - started,
        }

    def diverged(network: str, norm: Tensor) -> Outcome:
        """Gradients are averaged over ranks, so every rank gets here at the same step, before the update."""
        reason = f"gradient norm of {network} is {norm.item()} at step {step}"
        if recorder:
            recorder.close("diverged", reason, step, progress())
        return Outcome("diverged", step, reason)

    while True:
        last = step == config.train.steps

        # ------------------------------------------------------------ evaluate
        if step > evaluated and (last or step % config.train.eval_every == 0):
            result = evaluator.distance(ema)
            evaluated = step
            if recorder:
                recorder.evaluation(step, result.__dict__, progress())
                recorder.samples(step, evaluator.samples(ema, 0, GRID * GRID))
            window_start, window_step = time.perf_counter(), step

        # ------------------------------------------------------------ save
        if step > saved_at and evaluated == step:
            saved_at = step
            if recorder:
                parts = {name: part.state_dict() for name, part in state.items()}
                save_checkpoint(trial.folder / "checkpoints", step, {**parts, "seconds": progress()["seconds"]})

        # ------------------------------------------------------------ stop?
        if last:
            if recorder:
                recorder.close("done", "", step, progress())
            return Outcome("done", step)
        if stop():
            return Outcome("running", step, "stopped")

        # ------------------------------------------------------------ step
        random.manual_seed(_mix(config.seed, step, rank))
        order = batch_indices(len(dataset), config.train.batch, config.seed, step, rank, world)
        index = torch.from_numpy(order).to(device)
        real, y = latents[index], labels[index] if config.data.classes else None
        z = torch.randn(images_per_rank, spec.z_dim, generator=random, device=device)

        with bf16:
            fake_levels, w = ddp_g(z, y)  # one forward serves both steps
            draws = _draw(config, image_shape, random, penalty=True)
            terms = discriminator_losses(
                ddp_d, real, fake_levels.detach(), y, None, draws, augmented, perturb, config.objective
            )
        terms["loss_d"].mean().backward()
        norm_d = nn.utils.clip_grad_norm_(discriminator.parameters(), config.train.clip)

        if not torch.isfinite(norm_d):
            return diverged("D", norm_d)
        optimizer_d.step()
        optimizer_d.zero_grad(set_to_none=True)

        discriminator.requires_grad_(False)
        with bf16:
            draws = _draw(config, image_shape, random, penalty=False)
            loss_g = generator_loss(discriminator, real, fake_levels, y, draws, augmented, perturb)
        loss_g.mean().backward()
        discriminator.requires_grad_(True)
        norm_g = nn.utils.clip_grad_norm_(generator.parameters(), config.train.clip)
        if not torch.isfinite(norm_g):
            return diverged("G", norm_g)
        optimizer_g.step()
        optimizer_g.zero_grad(set_to_none=True)
        update_style_mean(generator, w.detach(), y)
        update_ema(ema, generator, config.train.ema_decay)
        step += 1

        # ------------------------------------------------------------ log
        scalars = {name: value.detach().mean() for name, value in terms.items()}
        scalars |= {"loss_g": loss_g.detach().mean(), "grad_norm_d": norm_d, "grad_norm_g": norm_g}
        for name, value in scalars.items():
            logged[name] = logged[name] + value if name in logged else value
        logged_steps += 1
        if step % config.train.log_every == 0 or step == config.train.steps:
            if recorder:
                now = time.perf_counter()
                means = {name: value.item() / logged_steps for name, value in logged.items()}
                rate = (step - window_step) * config.train.batch / (now - window_start)
                recorder.journal(step, {**means, "images_per_second": rate, **progress()})
                window_start, window_step = now, step
            logged, logged_steps = {}, 0


class Recorder:
    """Writes what a trial leaves behind; rank 0 only."""

    def __init__(self, trial: Trial, step: int):
        self.folder = trial.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_text(self.folder / "config.json", trial.config.model_dump_json(indent=1))
        constants = trial_constants(trial.run, trial.sweep, trial.id, trial.config)
        self.table = RunTable(trial.table, constants)
        self.table.truncate(step)
        _append_journal(self.folder, {"step": step, "status": "running"})

    def journal(self, step: int, metrics: dict[str, float]) -> None:
        _append_journal(self.folder, {"step": step, "metrics": metrics})

    def evaluation(self, step: int, result: dict[str, Any], progress: dict[str, float]) -> None:
        self.table.append(step=step, status="running", reason="", **result, **_columns(progress))
        self.journal(step, {result["metric"]: result["value"], **progress})

    def samples(self, step: int, pictures: Tensor) -> None:
        """A grid of uint8 pictures [n, 3, h, w], small ones enlarged by whole factors."""
        rows, height = len(pictures) // GRID, pictures.shape[2]
        grid = pictures[: rows * GRID].unflatten(0, (rows, GRID)).permute(0, 3, 1, 4, 2)  # rows, y, columns, x, rgb
        grid = grid.flatten(2, 3).flatten(0, 1)
        image = Image.fromarray(grid.cpu().numpy())
        factor = max(1, 64 // height)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        path = self.folder / "samples" / f"step_{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path.with_suffix(".partial"), format="PNG")
        os.replace(path.with_suffix(".partial"), path)

    def close(self, status: str, reason: str, step: int, progress: dict[str, float]) -> None:
        self.table.close(status, reason, step, **_columns(progress))
        _append_journal(self.folder, {"step": step, "status": status, "reason": reason})


def record_failure(trial: Trial, reason: str) -> None:
    """Leaves a row and a journal line that say why a trial ended, after an exception anywhere in it."""
    table = RunTable(trial.table, trial_constants(trial.run, trial.sweep, trial.id, trial.config))
    step = table.rows[-1]["step"] if table.rows else 0
    table.append(step=step, status="failed", reason=reason)
    trial.folder.mkdir(parents=True, exist_ok=True)
    _write_text(trial.folder / "config.json", trial.config.model_dump_json(indent=1))  # it may have failed before
    _append_journal(trial.folder, {"step": step, "status": "failed", "reason": reason})


def _append_journal(folder: Path, values: dict[str, Any]) -> None:
    """One line at the end of the journal; a line that a killed process left half-written is ended first."""
    with open(folder / "journal.jsonl", "a+b") as journal:
        if journal.tell():
            journal.seek(-1, os.SEEK_END)
            if journal.read() != b"\n":
                journal.write(b"\n")
        journal.write(json.dumps({**values, "time": time.time()}).encode() + b"\n")


def _columns(progress: dict[str, float]) -> dict[str, Any]:
    return {"images": int(progress["images"]), "flops": progress["flops"], "seconds": progress["seconds"]}


def _adamw(network: nn.Module, rate: float, config: TrialConfig) -> torch.optim.AdamW:
    t = config.train
    return torch.optim.AdamW(
        network.parameters(), lr=rate, betas=(t.beta1, t.beta2), eps=t.eps, weight_decay=0.0, fused=True
    )


def _draw(config: TrialConfig, shape: tuple[int, int, int, int], random: torch.Generator, penalty: bool) -> Draws:
    """The random numbers of one D step (with penalty noise) or G step, for (real, fake)."""
    levels = config.generator_spec.levels

    def noise(*leading: int) -> Tensor:
        return torch.randn(*leading, *shape, generator=random, device=random.device)

    mng = noise(2, levels)
    penalty_noise = None
    if penalty:
        fake = noise(levels)
        penalty_noise = torch.stack([noise(1).expand_as(fake), fake])
    draws = draw_augmentation(config.augment, (2, shape[0]), shape[-1], random)
    return Draws(mng=mng, penalty=penalty_noise, augment=draws)


def _mix(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed from three numbers, different for every (seed, step, rank) that can occur."""
    return (seed * 1_000_003 + step) * 65_537 + rank & (2**63 - 1)


def _keep_freed_memory() -> None:
    """Lets glibc reuse a step's buffers instead of returning them to the kernel, which zeroes them again each time.

    Half of a small step on CPU is page faults otherwise. Elsewhere than on glibc there is nothing to set.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: its largest value
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _write_text(path: Path, text: str) -> None:
    path.with_suffix(".partial").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".partial"), path)
