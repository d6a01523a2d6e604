"""Training one trial: one flat loop that runs alone, under torchrun, or in a Ray Train worker.

Imports neither Ray nor MLflow. It writes files below the trial's folder, and others read them:
    config.json             the resolved config
    journal.jsonl           one line per log point, evaluation, note and change of status
    samples/step_*.png      a grid of fixed-seed samples per evaluation
    checkpoints/            the whole training state (checkpoint.py)
    alive/rank-*.json       each worker's last sign of life (watch.py)
and the rows of `<run>/table/<trial>.parquet`.
"""

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from gat_sweep.checkpoint import Checkpoint, Damaged, check_data, resume, save_checkpoint, step_checkpoint
from gat_sweep.collapse import Collapse
from gat_sweep.config import Start, TrialConfig
from gat_sweep.data.dataset import check_dataset
from gat_sweep.data.loader import Loader
from gat_sweep.device import keep_freed_memory
from gat_sweep.engine import Engine, draw
from gat_sweep.errors import UserError
from gat_sweep.journal import add_record
from gat_sweep.metrics.evaluate import Evaluation, Evaluator
from gat_sweep.plan import iteration_flops
from gat_sweep.run_table import RunTable, final_status, trial_constants
from gat_sweep.steer import stop_reason
from gat_sweep.storage import Place, write
from gat_sweep.teacher import taught, teacher_tokens, trial_teacher
from gat_sweep.watch import Watch, signs, take_over

GRID = 8  # sample grids are GRID x GRID


@dataclass(frozen=True)
class Trial:
    """A config with its place in a run."""

    id: str
    run: str
    sweep: str
    config: TrialConfig
    home: Place

    @property
    def run_folder(self) -> Place:
        return self.home / self.run

    @property
    def folder(self) -> Any:  # a Place; tests know that theirs is a Path
        return self.run_folder / "trials" / self.id

    @property
    def table(self) -> Any:
        return self.run_folder / "table" / f"{self.id}.parquet"

    def status(self) -> str:
        """waiting, running, done, diverged or failed, as its rows tell."""
        return final_status(self.table, self.config.train.steps)

    def start_status(self) -> str:
        """The same of the trial that it starts from; "done" when it starts from none."""
        start = self.config.start
        return final_status(self.run_folder / "table" / f"{start.trial}.parquet", start.step) if start else "done"


@dataclass(frozen=True)
class Outcome:
    """How training ended: status "done", "diverged", "failed", or "stopped" with everything saved."""

    status: str
    step: int
    reason: str = ""


class Stopped(Exception):
    """All workers agreed to stop in the middle of an evaluation; the step is saved already."""


def train(trial: Trial, device: torch.device, asked_to_stop: Callable[[], str] = lambda: "") -> Outcome:
    """Trains to the config's number of steps, from the newest checkpoint when there is one.

    asked_to_stop: why this process has to end soon, "" while it has not; asked before every step.
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
    dataset = taught(config, dataset, device, lambda text: leave_note(trial, text))
    loader = Loader(config, dataset, device, rank, world)

    # ---------------------------------------------------------------- resume
    owner = take_over(trial.folder, lambda text: leave_note(trial, text)) if rank == 0 else ""
    found = _resumed(trial, engine.parts(), rank, world)
    step, facts = 0, dict[str, Any]()
    if found:
        step, facts = found.step, found.facts
        check_data(found, dataset, f"trial {trial.id}")
    began = saved_at = step
    evaluated = facts.get("evaluated", 0)
    seconds = facts.get("seconds", 0.0)
    # Sums since the last log, kept on the device.
    logged = {name: torch.tensor(value, device=device) for name, value in facts.get("logged", {}).items()}
    logged_steps = facts.get("logged_steps", 0)
    collapse = Collapse(**facts.get("collapse", {}))

    recorder = Recorder(trial, step, collapse) if rank == 0 else None
    report = recorder.note if recorder else (lambda text: leave_note(trial, text))
    random = torch.Generator(device)
    images_per_rank = config.train.batch // world
    spec = config.generator_spec
    flops_per_step = sum(iteration_flops(config).values()) * config.train.batch
    # Of all steps before, which may have been another trial's with another batch and other losses.
    images_before, flops_before = facts.get("images", 0), facts.get("flops", 0)
    started = time.perf_counter() - seconds
    saved_when = time.perf_counter()
    agreement = Agreement(world)
    watch = Watch(
        trial.folder,
        owner,
        rank,
        world,
        config.workers.hang_minutes * 60,
        report,
        lambda: stop_reason(trial.run_folder, trial.id),
    )

    def progress() -> dict[str, float]:
        return {
            "images": images_before + (step - began) * config.train.batch,
            "flops": flops_before + (step - began) * flops_per_step,
            "seconds": time.perf_counter() - started,
        }

    def why_stop() -> str:
        return asked_to_stop() or watch.stop_reason

    def between_chunks() -> None:
        watch.move()
        if agreement.reached(bool(why_stop()), False)[0]:
            raise Stopped

    def stopped() -> Outcome:
        reason = why_stop() or "another worker of the trial was asked to stop"
        if recorder:
            recorder.status("stopped", step, reason)
        return Outcome("stopped", step, reason)

    with watch, agreement:
        evaluator = Evaluator(config, dataset, trial.home, device, rank, world, say=report)
        if recorder and step == 0 and evaluator.reference.halves is not None:
            recorder.journal(0, {f"{evaluator.extractor.metric}_real_halves": evaluator.reference.halves})
        window_start, window_step = time.perf_counter(), step

        while True:
            watch.at(step, "agree")
            last = step == config.train.steps
            evaluates = (last or step % config.train.eval_every == 0) and step > evaluated
            logs = last or step % config.train.log_every == 0
            late = time.perf_counter() - saved_when > config.workers.save_minutes * 60
            stops, saves = agreement.reached(bool(why_stop()), rank == 0 and late)
            saves = step > saved_at and (saves or stops or evaluates)

            # -------------------------------------------------------- diverged?
            # Gradients are averaged over ranks, so every rank sees the same norms. Asking waits for the device;
            # after a norm that is not finite no weight moves, so it can be asked late.
            if (logs or saves or evaluates) and (trouble := engine.trouble()):
                finished, network, norm = trouble
                step = began + finished
                reason = f"gradient norm of {network} is {norm} at step {step}"
                if recorder:
                    recorder.close("diverged", reason, step, progress())
                return Outcome("diverged", step, reason)

            # -------------------------------------------------------- log
            if logs and logged_steps:
                watch.at(step, "log")
                means = {name: value.item() / logged_steps for name, value in logged.items()}
                flagged = collapse.look(step, means)
                if recorder:
                    now = time.perf_counter()
                    rate = (step - window_step) * config.train.batch / (now - window_start)
                    recorder.journal(step, {**means, "images_per_second": rate, **progress()})
                    if flagged:
                        recorder.note(flagged)
                    window_start, window_step = now, step
                logged, logged_steps = {}, 0

            # -------------------------------------------------------- save
            # Before evaluating: whoever is told to end in the middle of that has everything on the disk.
            if saves:
                watch.at(step, "save")
                saved_at, saved_when = step, time.perf_counter()
                if recorder:
                    recorder.checkpoint(
                        step,
                        engine.parts(),
                        {
                            "data": dataset.digest,
                            "world": world,
                            **progress(),
                            "evaluated": evaluated,
                            "logged": {name: value.item() for name, value in logged.items()},
                            "logged_steps": logged_steps,
                            "collapse": vars(collapse),
                        },
                    )

            # -------------------------------------------------------- stop?
            if stops:
                return stopped()

            # -------------------------------------------------------- evaluate
            if evaluates:
                watch.at(step, "evaluate")
                try:
                    result = evaluator.measure(engine.ema, extras=last, between=between_chunks)
                except Stopped:
                    return stopped()
                evaluated = step
                if recorder:
                    recorder.evaluation(step, result, progress())
                    recorder.samples(step, evaluator.samples(engine.ema, 0, GRID * GRID))
                if last:
                    status, reason = "done", ""
                    if not math.isfinite(result.value):
                        status, reason = "failed", f"{result.metric} is {result.value} after the last step"
                    if recorder:
                        recorder.close(status, reason, step, progress())
                    return Outcome(status, step, reason)
                window_start, window_step = time.perf_counter(), step

            # -------------------------------------------------------- step
            watch.at(step, "data")
            random.manual_seed(_mix(config.seed, step, rank))
            rows = loader.batch(step)
            watch.at(step, "step")
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


class Agreement:
    """Lets all workers do something at the same step because one of them has to; one step late.

    The answer to each question is fetched with the next one, so that nobody waits for it.
    """

    def __init__(self, world: int):
        # Its own group, on the CPU: on the device it would wait for the step, in another's order of operations.
        self.group: Any = dist.new_group(backend="gloo") if world > 1 else None
        self.flags = torch.zeros(2, dtype=torch.int32)
        self.pending: Any = None

    def __enter__(self) -> "Agreement":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if self.group is not None and kind is None:
            self.pending.wait()  # every worker leaves after the same question

    def reached(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any worker raised a flag; all workers ask together."""
        if self.group is None:
            return flags
        if self.pending is not None:
            self.pending.wait()
        answer = tuple(self.flags.bool().tolist())
        self.flags = torch.tensor(flags, dtype=torch.int32)
        self.pending = dist.all_reduce(self.flags, dist.ReduceOp.MAX, self.group, async_op=True)
        return answer


class Recorder:
    """Writes what a trial leaves behind; rank 0 only."""

    def __init__(self, trial: Trial, step: int, collapse: Collapse):
        self.folder, self.collapse = trial.folder, collapse
        write_config(trial)
        self.table = RunTable(trial.table, trial_constants(trial.run, trial.sweep, trial.id, trial.config))
        self.table.truncate(step)
        workers = trial.config.workers
        line: dict[str, Any] = {"status": "running", "gpus": workers.count * workers.gpus}
        if earlier := signs(self.folder / "alive").get(0):
            line["previous"] = {"step": earlier["step"], "time": earlier["time"]}  # how far the attempt before came
        self._append(step, line)
        self.step = step

    def journal(self, step: int, metrics: dict[str, float]) -> None:
        self._append(step, {"metrics": metrics})

    def note(self, text: str) -> None:
        """Something that whoever watches should know; not a result."""
        self._append(self.step, {"note": text})

    def status(self, status: str, step: int, reason: str) -> None:
        self._append(step, {"status": status, "reason": reason})

    def checkpoint(self, step: int, parts: dict[str, Any], facts: dict[str, Any]) -> None:
        """Raises Unsaved when there is no room, or no way to write."""
        try:
            save_checkpoint(self.folder / "checkpoints", step, parts, facts)
        except OSError as error:
            raise Unsaved(f"checkpoint of step {step} cannot be written: {error}; the one before is whole") from error

    def evaluation(self, step: int, result: Evaluation, progress: dict[str, float]) -> None:
        flags = self.collapse.flag
        self.table.put(step=step, status="running", reason="", flags=flags, **vars(result), **_columns(progress))
        self.journal(step, {**result.journal(), **progress})

    def samples(self, step: int, pictures: Tensor) -> None:
        """A grid of uint8 pictures [n, 3, h, w], small ones enlarged by whole factors."""
        rows, height = len(pictures) // GRID, pictures.shape[2]
        grid = pictures[: rows * GRID].unflatten(0, (rows, GRID)).permute(0, 3, 1, 4, 2)  # rows, y, columns, x, rgb
        grid = grid.flatten(2, 3).flatten(0, 1)
        image = Image.fromarray(grid.cpu().numpy())
        factor = max(1, 64 // height)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        content = io.BytesIO()
        image.save(content, format="PNG")
        write(self.folder / "samples" / f"step_{step:08d}.png", content.getvalue())

    def close(self, status: str, reason: str, step: int, progress: dict[str, float]) -> None:
        self.table.close(status, reason, step, flags=self.collapse.flag, **_columns(progress))
        self.status(status, step, reason)

    def _append(self, step: int, values: dict[str, Any]) -> None:
        self.step = step
        add_record(self.folder, {"step": step, **values})


class Unsaved(Exception):
    """A checkpoint could not be written. Trying again would train the same steps for nothing."""


def leave_note(trial: Trial, text: str) -> None:
    """Tells whoever watches what goes on before a trial's first step, or beside it."""
    add_record(trial.folder, {"step": 0, "note": text})


def record_failure(trial: Trial, reason: str) -> None:
    """Leaves a row and a journal line that say why a trial ended, after an exception anywhere in it."""
    table = RunTable(trial.table, trial_constants(trial.run, trial.sweep, trial.id, trial.config))
    step = table.rows[-1]["step"] if table.rows else 0
    table.put(step=step, status="failed", reason=reason)
    write_config(trial)  # it may have failed before
    add_record(trial.folder, {"step": step, "status": "failed", "reason": reason})


def write_config(trial: Trial) -> None:
    write(trial.folder / "config.json", trial.config.model_dump_json(indent=1).encode())


def _resumed(trial: Trial, parts: dict[str, Any], rank: int, world: int) -> Checkpoint | None:
    """The newest whole checkpoint, put into `parts`, else that of the trial it starts from.

    Rank 0 finds it, the others take the same one.
    """
    folder, start = trial.folder / "checkpoints", trial.config.start
    found = resume(folder, parts, lambda text: leave_note(trial, text)) if rank == 0 else None
    if rank == 0 and start and not found:
        found = _begun(trial, start, parts)
        leave_note(trial, f"goes on from step {start.step} of {start.trial}")
    if world > 1:
        device = parts["ema"].style_mean.device
        step = torch.tensor(found.step if found else 0, device=device)
        dist.broadcast(step, 0)
        if rank and start and step.item() == start.step:
            found = _begun(trial, start, parts)
        elif rank and step.item():
            found = step_checkpoint(folder, int(step.item()))
            found.restore(parts)
    return found


def _begun(trial: Trial, start: Start, parts: dict[str, Any]) -> Checkpoint:
    """The training state that a trial begins with, put into `parts`. Raises UserError when it is not there."""
    folder = trial.run_folder / "trials" / start.trial / "checkpoints"
    try:
        found = step_checkpoint(folder, start.step)
        found.restore(parts)
        return found
    except Damaged as damage:
        raise UserError(f"trial {start.trial}, from whose step {start.step} it goes on: {damage}") from None


def _columns(progress: dict[str, float]) -> dict[str, Any]:
    return {"images": progress["images"], "flops": float(progress["flops"]), "seconds": progress["seconds"]}


def _mix(seed: int, step: int, rank: int) -> int:
    """One 63-bit seed from three numbers, different for every (seed, step, rank) that can occur."""
    return (seed * 1_000_003 + step) * 65_537 + rank & (2**63 - 1)
