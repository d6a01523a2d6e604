"""Training one trial: one flat loop that runs alone, under torchrun, or in a Ray Train worker.

Imports neither Ray nor MLflow. It writes files below the trial's folder, and others read them:
    config.json            the resolved config
    journal.jsonl          one line per log point, evaluation and change of status
    samples/step_*.png     a grid of fixed-seed samples per evaluation
    checkpoints/step_*.pt  the whole training state
and the rows of `<run>/table/<trial>.parquet`.
"""

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
from torch import Tensor

from gat_sweep.checkpoint import check_data, load_checkpoint, save_checkpoint
from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import check_dataset
from gat_sweep.data.loader import Loader
from gat_sweep.device import keep_freed_memory
from gat_sweep.engine import Engine, draw
from gat_sweep.metrics.evaluate import Evaluation, Evaluator
from gat_sweep.plan import iteration_flops
from gat_sweep.run_table import RunTable, trial_constants
from gat_sweep.teacher import teacher_tokens, trial_teacher

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
        keep_freed_memory()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = check_dataset(config)
    engine = Engine(config, device, world)
    teacher = trial_teacher(config, device)
    loader = Loader(config, dataset, device, rank, world)

    # ---------------------------------------------------------------- resume
    found = load_checkpoint(trial.folder / "checkpoints", device)
    step, seconds = 0, 0.0
    if found:
        step, saved = found
        check_data(saved, dataset, f"trial {trial.id}")
        for name, part in engine.parts().items():
            part.load_state_dict(saved[name])
        seconds = saved["seconds"]
    began = evaluated = saved_at = step

    recorder = Recorder(trial, step) if rank == 0 else None
    evaluator = Evaluator(
        config,
        dataset,
        trial.home,
        device,
        rank,
        world,
        say=lambda text: recorder.note(step, text) if recorder else None,
    )
    if recorder and step == 0 and evaluator.reference.halves is not None:
        recorder.journal(0, {f"{evaluator.extractor.metric}_real_halves": evaluator.reference.halves})

    random = torch.Generator(device)
    images_per_rank = config.train.batch // world
    spec = config.generator_spec
    flops_per_step = sum(iteration_flops(config).values()) * config.train.batch
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

    while True:
        last = step == config.train.steps
        evaluates = last or step % config.train.eval_every == 0
        logs = last or step % config.train.log_every == 0

        # ------------------------------------------------------------ diverged?
        # Gradients are averaged over ranks, so every rank sees the same norms. Asking waits for the device; after
        # a norm that is not finite no weight moves, so it can be asked late.
        if (evaluates or logs) and (trouble := engine.trouble()):
            finished, network, norm = trouble
            step = began + finished
            reason = f"gradient norm of {network} is {norm} at step {step}"
            if recorder:
                recorder.close("diverged", reason, step, progress())
            return Outcome("diverged", step, reason)

        # ------------------------------------------------------------ log
        if logs and logged_steps:
            if recorder:
                now = time.perf_counter()
                means = {name: value.item() / logged_steps for name, value in logged.items()}
                rate = (step - window_step) * config.train.batch / (now - window_start)
                recorder.journal(step, {**means, "images_per_second": rate, **progress()})
                window_start, window_step = now, step
            logged, logged_steps = {}, 0

        # ------------------------------------------------------------ evaluate
        if evaluates and step > evaluated:
            result = evaluator.measure(engine.ema, extras=last)
            evaluated = step
            if recorder:
                recorder.evaluation(step, result, progress())
                recorder.samples(step, evaluator.samples(engine.ema, 0, GRID * GRID))
            window_start, window_step = time.perf_counter(), step

        # ------------------------------------------------------------ save
        if step > saved_at and evaluated == step:
            saved_at = step
            if recorder:
                parts = {name: part.state_dict() for name, part in engine.parts().items()}
                state = {**parts, "data": dataset.digest, "seconds": progress()["seconds"]}
                save_checkpoint(trial.folder / "checkpoints", step, state)

        # ------------------------------------------------------------ stop?
        if last:
            if recorder:
                recorder.close("done", "", step, progress())
            return Outcome("done", step)
        if stop():
            return Outcome("running", step, "stopped")

        # ------------------------------------------------------------ step
        random.manual_seed(_mix(config.seed, step, rank))
        rows = loader.batch(step)
        real, y = rows.latents(random), rows.labels if config.data.classes else None
        z = torch.randn(images_per_rank, spec.z_dim, generator=random, device=device)

        draws_d = draw(config, images_per_rank, random, penalty=True)
        draws_g = draw(config, images_per_rank, random, penalty=False)
        assert draws_d.augment is not None
        with engine.bf16:
            tokens = teacher_tokens(teacher, config, rows, draws_d.augment)
        terms = engine.iterate(real, y, z, tokens, draws_d, draws_g)
        for name, value in terms.items():
            logged[name] = logged[name] + value.mean() if name in logged else value.mean()
        logged_steps += 1
        step += 1


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

    def note(self, step: int, text: str) -> None:
        """Something that whoever watches should know; not a result."""
        _append_journal(self.folder, {"step": step, "note": text})

    def evaluation(self, step: int, result: Evaluation, progress: dict[str, float]) -> None:
        self.table.append(step=step, status="running", reason="", **vars(result), **_columns(progress))
        self.journal(step, {**result.journal(), **progress})

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


def leave_note(trial: Trial, text: str) -> None:
    """Tells whoever watches what goes on before a trial's first step."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    _append_journal(trial.folder, {"step": 0, "note": text})


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


def _mix(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed from three numbers, different for every (seed, step, rank) that can occur."""
    return (seed * 1_000_003 + step) * 65_537 + rank & (2**63 - 1)


def _write_text(path: Path, text: str) -> None:
    path.with_suffix(".partial").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".partial"), path)
