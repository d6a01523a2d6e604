"""A sweep on Ray: Tune schedules packs of trials, each pack is a Ray Train worker group that runs train() on them.

A pack is one trial, or several small ones: a worker takes half a minute to start, a small trial not much longer.

With cluster.py and encode/on_ray.py the only file that imports ray. Workers leave files (see train.py); nothing but a
trial's end comes back through Ray, so what was recorded does not depend on who was alive to receive it.
"""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from gat_sweep.cluster import MAX_DRIVERS, Cluster
from gat_sweep.config import Workers
from gat_sweep.data.dataset import load_dataset
from gat_sweep.errors import UserError
from gat_sweep.files.storage import write
from gat_sweep.launch.packs import Queue
from gat_sweep.metrics.reference import load_reference
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import request_stop, stop_reason
from gat_sweep.run.table import FINISHED
from gat_sweep.run.trial import Trial
from gat_sweep.train.loop import train
from gat_sweep.train.recorder import leave_note, record_failure

# Machines come and go: a trial whose workers died goes on from its newest checkpoint, as often as it gets further
# each time. So many attempts in a row that save nothing are a failure.
TRIES = 3
# Another attempt would end the same way.
HOPELESS = ("UserError", "OutOfMemoryError", "Unsaved")
DRIVER_RESTARTS = 3  # of a Tune trial, which only waits for workers


def run_sweep(trials: list[Trial], there: Cluster) -> None:
    """Runs the trials to their end on the Ray that is up, as many at once as it holds.

    A trial that fails leaves its reason in the run table and does not stop the others.
    """
    from ray import tune

    slots = max(1, min(MAX_DRIVERS, *(_fits(t.config.workers, there) for t in trials)))
    # A pack's driver takes no CPU: with one, drivers would starve their own workers for ever.
    drive = tune.with_resources(_drive_pack, {"sweep_driver": 1})
    queue = Queue(trials, slots)
    tuner = tune.Tuner(
        drive,
        tune_config=tune.TuneConfig(
            search_alg=_in_order(queue), num_samples=len(queue.waiting), max_concurrent_trials=slots
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=_scratch(trials[0]),
            verbose=0,
            callbacks=[_silent_progress()],
            failure_config=tune.FailureConfig(max_failures=DRIVER_RESTARTS),
        ),
    )
    with stopping_on_sigterm(trials):
        tuner.fit()


def measure_reference(trial: Trial) -> None:
    """Measures the reference of a trial on its workers. Raises UserError when that fails."""
    from ray.train import TrainingFailedError

    try:
        _trainer(_measure_reference, [trial], f"reference-{trial.id}-{time.time_ns()}").fit()
    except TrainingFailedError as error:
        raise UserError(f"the reference cannot be measured: {_reason(error)}") from None


@contextmanager
def stopping_on_sigterm(trials: list[Trial]) -> Iterator[None]:
    """While Ray works: SIGTERM asks the trials to save and end, as `gat-sweep stop` does."""

    def stop(*_: object) -> None:
        request_stop(trials[0].run_folder, "gat-sweep run was told to end (SIGTERM)")

    before = signal.signal(signal.SIGTERM, stop)  # after Ray's own, which ends the process at once
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _drive_pack(config: dict[str, Any]) -> None:
    """Runs in a Tune trial: Ray Train runs one after the other, until no trial of the pack has anything left to do."""
    from ray.train import TrainingFailedError

    left: list[Trial] = config["pack"]
    fruitless = 0
    while left := [trial for trial in left if trial.status() not in FINISHED and not _asked_to_stop(trial)]:
        # Workers go through the pack in order: what fails is the first that is not finished.
        trial, before = left[0], saved_step(left[0].folder / "checkpoints")
        if (start := trial.config.start) and trial.start_status() != "done":
            if trial.start_status() in ("failed", "diverged"):
                record_failure(trial, f"{start.trial}, which it starts from, has {trial.start_status()}")
            left = left[1:]
            continue
        try:
            # Train keeps state under a name and does nothing when it finds a finished run there; ours is in the
            # trials' own checkpoints, so every attempt takes a fresh one.
            _trainer(_train_pack, left, f"{trial.id}-{time.time_ns()}").fit()
            return
        except TrainingFailedError as error:
            if _asked_to_stop(trial) or trial.status() in FINISHED:
                continue
            further = saved_step(trial.folder / "checkpoints") > before
            fruitless = 0 if further or _is_preemption(error) else fruitless + 1
            reason = _reason(error)
            if fruitless < TRIES and not reason.startswith(HOPELESS):
                leave_note(trial, f"another attempt after: {reason}")
                continue
            write(trial.folder / "failure.txt", str(error).encode())
            record_failure(trial, reason if reason.startswith(HOPELESS) else f"{reason} ({TRIES} attempts)")
            left, fruitless = left[1:], 0


def _in_order(queue: Queue) -> Any:
    """Tune asks it for the next pack, and again later where none is ready."""
    from ray.tune.search import Searcher

    class InOrder(Searcher):
        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            pack = queue.take(trial_id)
            return {"pack": pack} if pack else None

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            queue.ended(trial_id)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: what is finished is told by the trials' own files."""

    return InOrder()


def _asked_to_stop(trial: Trial) -> bool:
    return bool(stop_reason(trial.run_folder, trial.id))


def _is_preemption(error: Exception) -> bool:
    from ray.train import PreemptionError

    return isinstance(error, PreemptionError) or "Preempted: " in str(error)


def _trainer(work: Callable[[dict[str, Any]], None], pack: list[Trial], name: str) -> Any:
    """The Ray Train run of `work` on the workers of a pack."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    workers = pack[0].config.workers
    return TorchTrainer(
        work,
        train_loop_config={"pack": pack},
        torch_config=_torch_config(),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        run_config=RunConfig(name=name, storage_path=_scratch(pack[0])),
    )


def _torch_config() -> Any:
    """Ray's, whose workers mind SIGTERM: their own handler would end them before anything is saved."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class MindfulBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_mind_sigterm)
            super().on_start(worker_group, backend_config)

    class MindfulConfig(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return MindfulBackend

    return MindfulConfig()


_told_to_end: list[str] = []  # of this worker process


def _mind_sigterm() -> None:
    """Runs in a worker's main thread; training runs in another one."""
    signal.signal(signal.SIGTERM, lambda *_: _told_to_end.append("SIGTERM"))


def _told() -> str:
    """Why this worker's machine is about to go, "" while it is not."""
    from ray.train import get_preemption_info

    if _told_to_end:
        return _told_to_end[0]
    info = get_preemption_info()
    return "a node of the trial is being taken away" if info else ""


class Preempted(Exception):
    """The trial is saved; its workers have to go."""


def _silent_progress() -> Any:
    """Tune adds a callback that prints trials unless it is given one of the kind; ours is the live table."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class Silent(TrialProgressCallback):
        def on_trial_result(self, *args: Any, **kwargs: Any) -> None: ...
        def on_trial_error(self, *args: Any, **kwargs: Any) -> None: ...
        def on_trial_complete(self, *args: Any, **kwargs: Any) -> None: ...

    return Silent()


def _train_pack(config: dict[str, Any]) -> None:
    """Runs in a Train worker: the process group is up, the device is this worker's."""
    pack: list[Trial] = config["pack"]
    train_pack(pack, _worker_device(pack[0]), _told)
    if _told():
        raise Preempted("saved, and ended because its machine goes")


def _measure_reference(config: dict[str, Any]) -> None:
    """Runs in a Train worker: its share of the reference statistics, which end in the home's cache."""
    (trial,) = config["pack"]
    device = _worker_device(trial)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = load_dataset(trial.config.data)
    load_reference(trial.config, dataset, trial.home, device, rank, world, say=lambda text: leave_note(trial, text))


def _worker_device(trial: Trial) -> torch.device:
    from ray.train.torch import get_device

    torch.set_num_threads(max(1, int(trial.config.workers.cpus)))
    return get_device()


def train_pack(pack: list[Trial], device: torch.device, asked_to_stop: Callable[[], str] = lambda: "") -> None:
    """Trains one after the other what is not finished: a restarted worker goes on where the last one ended."""
    for trial in pack:
        if not asked_to_stop() and not _asked_to_stop(trial) and trial.status() not in FINISHED:
            train(trial, device, asked_to_stop)


def _reason(error: Exception) -> str:
    """The worker's own exception, type and message in one line, out of Ray's report of a failure."""
    failure = next(iter((getattr(error, "worker_failures", None) or {0: error}).values()))
    text = " ".join(str(failure).split())
    # A traceback ends with its exception.
    named = list(re.finditer(r"(?:\w+\.)*((?:\w*(?:Error|Exception)|Unsaved|Preempted|Damaged): )", text))
    return (text[named[-1].start(1) :] if named else f"{type(failure).__name__}: {text}")[:500]


def _fits(workers: Workers, there: Cluster) -> int:
    """How many such trials run at once."""
    by_cpu = there.cpus // (workers.count * workers.cpus)
    by_gpu = there.gpus // (workers.count * workers.gpus) if workers.gpus else by_cpu
    return int(min(by_cpu, by_gpu))


def _scratch(trial: Trial) -> str:
    """Ray's own files of a run; nothing there is needed once the run is over."""
    return str(trial.run_folder / "ray")
