"""Training of one trial: one flat loop that runs alone, under torchrun, or in a Ray Train worker.

Imports neither Ray nor MLflow. It writes files below the trial's folder, which the monitor reads:
    config.json             the resolved config
    journal.jsonl           one line per log point, evaluation, note and change of status
    samples/step_*.png      a grid of fixed-seed samples per evaluation; captions.txt has their captions, row by row
    checkpoints/            the whole training state (run/checkpoint.py)
    alive/rank-*.json       each worker's last sign of life (train/watch.py)
and the rows of `<run>/table/<trial>.parquet`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from gat_sweep.compute import step_flops
from gat_sweep.config import Start
from gat_sweep.data.dataset import check_needs, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.metrics.evaluator import Evaluator
from gat_sweep.plan import discriminator_precision
from gat_sweep.run.alive import take_over
from gat_sweep.run.checkpoint import Checkpoint, check_data, check_text_encoder, resume, step_checkpoint
from gat_sweep.run.saved import Damaged
from gat_sweep.run.stop import stop_reason
from gat_sweep.run.trial import GRID, Trial
from gat_sweep.run.workers import resize_reason
from gat_sweep.text import silent
from gat_sweep.train.counters import Counters
from gat_sweep.train.device import keep_freed_memory
from gat_sweep.train.engine import Engine
from gat_sweep.train.feed import Feed
from gat_sweep.train.load import Load
from gat_sweep.train.recorder import Recorder, leave_note
from gat_sweep.train.saver import Saver
from gat_sweep.train.watch import Watch


@dataclass(frozen=True)
class Outcome:
    """Result of training: status "done", "diverged", "failed", or "stopped" or "paused" with everything saved."""

    status: str
    step: int
    reason: str = ""


class Stopped(Exception):
    """All workers agreed to stop in the middle of an evaluation; the step is saved already."""


def train(trial: Trial, device: torch.device, asked_to_stop: Callable[[], str] = lambda: "") -> Outcome:
    """Trains up to the config's number of steps, or the trial's pause, from the newest checkpoint if there is one.

    asked_to_stop: returns why this process must end soon, or "" if it need not; called before every step.
    Under an initialised torch.distributed process group, each rank works on its share of every batch.
    Raises UserError for invalid input; the caller records any other exception with `record_failure`.
    """
    config = trial.config
    if device.type == "cpu":
        keep_freed_memory()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = load_dataset(config.data)
    check_needs(config, dataset)
    engine = Engine(config, device, world)
    feed = Feed(config, dataset, device, rank, world, say=lambda text: leave_note(trial, text))

    # ---------------------------------------------------------------- resume
    owner = take_over(trial.folder, lambda text: leave_note(trial, text)) if rank == 0 else ""
    found = _resumed(trial, engine.parts(), rank, world)
    if found:
        check_data(found, dataset, f"trial {trial.id}")
        check_text_encoder(found, feed.encoder, f"trial {trial.id}")
    begun = (found.step, found.facts) if found else (0, {})
    counters = Counters.restored(config.train.batch, step_flops(config), *begun, device)
    began = saved_at = counters.step

    recorder = Recorder(trial, counters, len(dataset), world) if rank == 0 else None
    saver = Saver(trial.folder / "checkpoints")  # only rank 0 writes
    report = recorder.note if recorder else (lambda text: leave_note(trial, text))
    saved_when = time.perf_counter()
    agreement = Agreement(world)
    watch = Watch(
        trial.folder,
        owner,
        rank,
        world,
        config.workers.hang_minutes * 60,
        report,
        lambda: stop_reason(trial.run_folder, trial.id) or resize_reason(trial, world),
        Load(device, report if rank == 0 else silent) if config.workers.system_metrics else None,
    )

    def why_stop() -> str:
        return asked_to_stop() or watch.stop_reason

    def between_chunks() -> None:
        watch.move()
        if agreement.reached(bool(why_stop()), False)[0]:
            raise Stopped

    def save() -> None:
        if rank == 0:
            facts = {"data": dataset.digest, "world": world, **counters.facts()}
            if feed.encoder:
                facts["text"] = feed.encoder.identity.digest
            saver.start(counters.step, engine.parts(), facts)

    def saved() -> None:
        """Waits until everything is on disk that results and the end of this process take for granted."""
        watch.at(counters.step, "save")
        saver.finish()

    def stopped() -> Outcome:
        saved()
        reason = why_stop() or "another worker of the trial was asked to stop"
        if recorder:
            recorder.status("stopped", reason)
        return Outcome("stopped", counters.step, reason)

    with watch, agreement, saver:
        evaluator = Evaluator(config, dataset, trial.home, device, rank, world, report, feed.encoder)
        if recorder and counters.step == 0 and evaluator.reference.halves is not None:
            recorder.journal({f"{evaluator.extractor.metric}_real_halves": evaluator.reference.halves})
        window_start, window_step = time.perf_counter(), counters.step
        rounds = discriminator_precision(config) == "bfloat16" and config.objective.gp_weight > 0

        while True:
            step = counters.step
            watch.at(step, "agree")
            last = step == config.train.steps
            evaluates = config.train.evaluates(step) and step > counters.evaluated
            logs = last or step % config.train.log_every == 0
            late = time.perf_counter() - saved_when > config.workers.save_minutes * 60
            stops, saves = agreement.reached(bool(why_stop()), rank == 0 and late)
            saves = step > saved_at and (saves or stops or evaluates)

            # -------------------------------------------------------- diverged?
            # Gradients are averaged over ranks, so every rank sees the same norms. The check waits for the device. It
            # may come late, because no weight moves after a non-finite norm.
            if (logs or saves or evaluates) and (trouble := engine.trouble()):
                finished, network, norm = trouble
                counters.move(began + finished - step)
                reason = f"gradient norm of {network} is {norm} at step {counters.step}"
                if recorder:
                    recorder.close("diverged", reason)
                return Outcome("diverged", counters.step, reason)

            # -------------------------------------------------------- log
            if logs and counters.logged_steps:
                watch.at(step, "log")
                means = counters.means()
                flagged = counters.collapse.look(step, means)
                if recorder:
                    now = time.perf_counter()
                    rate = (step - window_step) * config.train.batch / (now - window_start)
                    recorder.journal({**means, "images_per_second": rate, **counters.progress(), **watch.take_loads()})
                    if flagged:
                        recorder.note(flagged)
                    window_start, window_step = now, step

            # -------------------------------------------------------- save
            # Before evaluating: a worker that must end during an evaluation then has everything, or nearly, on disk.
            if saves:
                watch.at(step, "save")
                saved_at, saved_when = step, time.perf_counter()
                save()
            saver.look()

            # -------------------------------------------------------- stop?
            if stops:
                return stopped()

            # -------------------------------------------------------- evaluate
            if evaluates:
                watch.at(step, "evaluate")
                engine.make_room()
                try:
                    result = evaluator.measure(engine.ema, extras=last, between=between_chunks)
                except Stopped:
                    return stopped()
                counters.evaluated = step
                saved()
                if recorder:
                    recorder.evaluation(result)
                    count = GRID * GRID
                    recorder.samples(evaluator.samples(engine.ema, 0, count), evaluator.captions(0, count))
                if last:
                    status, reason = "done", ""
                    if not math.isfinite(result.value):
                        status, reason = "failed", f"{result.metric} is {result.value} after the last step"
                    if recorder:
                        recorder.close(status, reason)
                    return Outcome(status, step, reason)
                window_start, window_step = time.perf_counter(), step

            # -------------------------------------------------------- pause?
            if step == trial.pause:
                if evaluates:  # the checkpoint above does not know of the evaluation, and would repeat it
                    save()
                saved()
                if recorder:
                    recorder.status("paused", f"waits for the other trials at step {step}, a look of the race")
                return Outcome("paused", step)

            # -------------------------------------------------------- step
            watch.at(step, "data")
            batch = feed.batch(step)
            watch.at(step, "step")
            counters.add(engine.iterate(batch))
            counters.move(1)
            if rounds and recorder and counters.step % config.train.log_every == 0:
                recorder.journal({"penalty_rounding": engine.penalty_rounding(batch)})


class Agreement:
    """Lets all workers act at the same step when one of them has to; one step late.

    Each answer is read at the next question, so that no worker waits for it.
    """

    def __init__(self, world: int):
        # A group of its own, on the CPU: on the device, a question would wait for the step and mix with DDP's.
        self.group: Any = dist.new_group(backend="gloo") if world > 1 else None
        self.flags = torch.zeros(2, dtype=torch.int32)
        self.pending: Any = None

    def __enter__(self) -> "Agreement":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if self.group is not None and kind is None:
            self.pending.wait()  # every worker leaves after the same question

    def reached(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any worker raised each flag (several workers: in the previous call). All workers call it together."""
        if self.group is None:
            return flags
        if self.pending is not None:
            self.pending.wait()
        answer = tuple(self.flags.bool().tolist())
        self.flags = torch.tensor(flags, dtype=torch.int32)
        self.pending = dist.all_reduce(self.flags, dist.ReduceOp.MAX, self.group, async_op=True)
        return answer


def _resumed(trial: Trial, parts: dict[str, Any], rank: int, world: int) -> Checkpoint | None:
    """Loads the newest whole checkpoint into `parts`, else that of the trial it starts from; None if there is neither.

    Rank 0 chooses the checkpoint, and the other ranks load the same one.
    """
    folder, start = trial.folder / "checkpoints", trial.config.start
    found = resume(folder, parts, lambda text: leave_note(trial, text)) if rank == 0 else None
    if rank == 0 and start and not found:
        found = _begun(trial, start, parts)
        leave_note(trial, f"starts from step {start.step} of {start.trial}")
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
    """Loads the checkpoint that a trial starts from into `parts`. Raises UserError if it is missing or damaged."""
    folder = trial.run_folder / "trials" / start.trial / "checkpoints"
    try:
        found = step_checkpoint(folder, start.step)
        found.restore(parts)
        return found
    except Damaged as damage:
        raise UserError(f"cannot start from step {start.step} of trial {start.trial}: {damage}") from None
