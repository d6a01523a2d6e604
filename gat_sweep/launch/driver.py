"""Sweeps on Ray: Tune schedules packs of trials, and a Ray Train worker group runs train() on each pack.

A pack is one trial or several small ones, because a worker takes half a minute to start and a small trial not much
longer. Only this file, cluster.py and encode/on_ray.py import ray. Workers write files (see train/loop.py). Only the
end of a trial comes back through Ray, so results are recorded even if the receiver has died.
"""

import math
import re
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from gat_sweep.cluster import MAX_DRIVERS, Cluster, is_private, look
from gat_sweep.data.dataset import load_dataset
from gat_sweep.errors import UserError
from gat_sweep.files.storage import write
from gat_sweep.launch.crowd import LOOK, Crowd
from gat_sweep.launch.packs import SHARE_BELOW, Queue
from gat_sweep.launch.places import largest, places
from gat_sweep.metrics.reference import load_reference
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import request_stop, stop_reason
from gat_sweep.run.trial import Trial
from gat_sweep.run.workers import ask_workers, asked_workers
from gat_sweep.train.loop import train
from gat_sweep.train.recorder import leave_note, record_failure

# Retry a trial from its newest checkpoint as long as each attempt saves a later step. After this many attempts in a
# row without a new checkpoint, it has failed.
TRIES = 3
# A retry would fail with the same error.
HOPELESS = ("UserError", "OutOfMemoryError", "Unsaved")
DRIVER_RESTARTS = 3  # of a Tune trial, which only waits for workers


def run_sweep(trials: list[Trial], there: Cluster) -> None:
    """Runs the trials to their end, or to their pause, on the connected Ray, as many at once as fit.

    A trial that fails leaves its reason in the run table and does not stop the others.
    """
    from ray import tune

    slots = max(1, min(MAX_DRIVERS, *(places(t.config.workers, there.machines) for t in trials)))
    # A pack's driver takes no CPU: drivers with CPUs could take them all, and their workers would wait for ever.
    drive = tune.with_resources(_drive_pack, {"sweep_driver": 1})
    # Where machines may join and leave, packs are short.
    queue = Queue(trials, slots, SHARE_BELOW if there.address else math.inf)
    crowd = Crowd(trials[0].run_folder, there, queue)
    tuner = tune.Tuner(
        drive,
        tune_config=tune.TuneConfig(
            search_alg=_in_order(queue, crowd), num_samples=len(queue.waiting), max_concurrent_trials=MAX_DRIVERS
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=_scratch(trials[0]),
            verbose=0,
            callbacks=[_own_words()],
            failure_config=tune.FailureConfig(max_failures=DRIVER_RESTARTS),
        ),
    )
    with stopping_on_sigterm(trials), crowd:
        tuner.fit()


def measure_reference(trial: Trial) -> None:
    """Measures the reference of a trial on its workers. Raises UserError when that fails."""
    from ray.train import TrainingFailedError

    try:
        name = f"reference-{trial.id}-{time.time_ns()}"
        _trainer(_measure_reference, [trial], name, trial.config.workers.least).fit()
    except TrainingFailedError as error:
        raise UserError(f"the reference cannot be measured: {_reason(error)}") from None


@contextmanager
def stopping_on_sigterm(trials: list[Trial]) -> Iterator[None]:
    """Context in which SIGTERM asks the trials to save and end, as `gat-sweep stop` does.

    A second SIGTERM does not wait for them: it raises KeyboardInterrupt, as Ctrl-C does.
    """
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        request_stop(trials[0].run_folder, "gat-sweep run was told to end (SIGTERM)")

    before = signal.signal(signal.SIGTERM, stop)  # replaces Ray's handler, which ends the process at once
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _drive_pack(config: dict[str, Any]) -> None:
    """Runs in a Tune trial: starts one Ray Train run after the other, until every trial of the pack has ended."""
    from ray.exceptions import ActorDiedError
    from ray.train import TrainingFailedError

    left: list[Trial] = config["pack"]
    fruitless, elastic = 0, left[0].config.workers.elastic
    while left := [trial for trial in left if not trial.at_goal() and not _asked_to_stop(trial)]:
        # Workers train the pack in order, so the trial that fails is the first unfinished one.
        trial, before = left[0], saved_step(left[0].folder / "checkpoints")
        if (start := trial.config.start) and trial.start_status() != "done":
            if trial.start_status() in ("failed", "diverged"):
                record_failure(trial, f"{start.trial}, which it starts from, has {trial.start_status()}")
            left = left[1:]
            continue
        try:
            # Ray Train does nothing when it finds a finished run of the same name. Our state is in the trials' own
            # checkpoints, so every attempt gets a new name.
            _trainer(_train_pack, left, f"{trial.id}-{time.time_ns()}", asked_workers(trial)).fit()
            if not elastic:
                return
        except (TrainingFailedError, ActorDiedError) as error:  # the workers, or Ray Train's controller
            if _asked_to_stop(trial) or trial.at_goal():
                continue
            if elastic:
                _ask_what_fits(trial)
            if _found_no_place(error):
                continue
            further = saved_step(trial.folder / "checkpoints") > before
            fruitless = 0 if further or _is_preemption(error) else fruitless + 1
            reason = _reason(error)
            if fruitless < TRIES and not reason.startswith(HOPELESS):
                leave_note(trial, f"retry after: {reason}")
                continue
            write(trial.folder / "failure.txt", str(error).encode())
            record_failure(trial, reason if reason.startswith(HOPELESS) else f"{reason} ({TRIES} attempts)")
            left, fruitless = left[1:], 0


def _in_order(queue: Queue, crowd: Crowd) -> Any:
    """A search algorithm of Tune that returns the next ready pack; Tune asks again later when none may begin."""
    from ray.tune.search import Searcher

    class InOrder(Searcher):
        def __init__(self, queue: Queue, crowd: Crowd):
            super().__init__()
            self.queue, self.crowd = queue, crowd

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            group = self.queue.take(trial_id, self.crowd.begin)
            if group is None:
                return None
            if group.pack[0].config.workers.elastic:
                ask_workers(group.pack[0].folder, group.workers.least)
            return {"pack": group.pack}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.queue.ended(trial_id)

        def save(self, checkpoint_path: str) -> None:
            """Saves nothing: the trials' own files show what is finished."""

        def __getstate__(self) -> dict[str, Any]:
            """Nothing, for the same reason; Tune pickles its searcher, and threads cannot be."""
            return {}

        def __deepcopy__(self, memo: dict[int, Any]) -> "InOrder":
            return self

    return InOrder(queue, crowd)


def _asked_to_stop(trial: Trial) -> bool:
    return bool(stop_reason(trial.run_folder, trial.id))


def _is_preemption(error: Exception) -> bool:
    from ray.train import PreemptionError

    return isinstance(error, PreemptionError) or "Preempted: " in str(error)


def _ask_what_fits(trial: Trial) -> None:
    """After workers or their places were lost: lets an elastic trial ask for as many workers as fit now."""
    time.sleep(LOOK)  # until Ray knows what the lost workers have left
    workers, before = trial.config.workers, asked_workers(trial)
    count = min(before, largest(workers, [], look().free or ()))
    if count != before:
        ask_workers(trial.folder, count)
        leave_note(trial, f"asks for {count} workers instead of {before}: more do not fit now")


def _found_no_place(error: Exception) -> bool:
    """Whether the workers of an elastic trial got no machines in time."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _trainer(work: Callable[[dict[str, Any]], None], pack: list[Trial], name: str, count: int) -> Any:
    """The Ray Train run of `work` on `count` workers of a pack."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    again: dict[str, Any] = {}
    if pack[0].config.workers.elastic:  # one that loses its places, or finds none, asks for fewer; the others wait on
        again = {"controller_failure_limit": 0, "max_preemption_failures": 0}

    workers = pack[0].config.workers
    return TorchTrainer(
        work,
        train_loop_config={"pack": pack},
        torch_config=_torch_config(),
        scaling_config=ScalingConfig(
            num_workers=count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=_scratch(pack[0]),
            failure_config=FailureConfig(**again),
        ),
    )


def _torch_config() -> Any:
    """Ray's TorchConfig, with two changes.

    Workers record SIGTERM; Ray's handler would end them before they save. Workers of a Ray that is private to this
    machine meet in a file: torch's own store listens on all interfaces and has no option for less.
    """
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch import config as ray_torch

    class MindfulBackend(ray_torch._TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_mind_sigterm)
            world = len(worker_group)
            if world == 1:  # it has nobody to meet
                return
            if not is_private():
                super().on_start(worker_group, backend_config)
                return
            worker_group.execute(ray_torch._set_torch_distributed_env_vars)
            gpus = worker_group.get_resources_per_worker().get("GPU", 0)
            meeting = {
                "backend": "nccl" if gpus else "gloo",
                "init_method": f"file://{tempfile.gettempdir()}/gat-sweep-{uuid.uuid4().hex}",  # torch removes it
                "world_size": world,
                "timeout_s": backend_config.timeout_s,
            }
            joined = [
                worker_group.execute_single_async(
                    rank, ray_torch._setup_torch_process_group, world_rank=rank, **meeting
                )
                for rank in range(world)
            ]
            ray.get(joined)

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
    """The reason why this worker must end soon; "" if it need not."""
    from ray.train import get_preemption_info

    if _told_to_end:
        return _told_to_end[0]
    info = get_preemption_info()
    return "a node of the trial is being preempted" if info else ""


class Preempted(Exception):
    """The trial is saved, and its workers must end."""


def _own_words() -> Any:
    """A callback of Tune that says in the journals when the driver of a pack dies, and prints nothing.

    Without a progress callback Tune adds its own, which would print over our live table.
    """
    from ray.tune.progress_reporter import TrialProgressCallback

    def say(pack: Any, what: str) -> None:
        error = pack.get_pickled_error()
        reason = _reason(error) if error else "no reason was left"
        with suppress(OSError):  # full or unreachable storage costs the note, not the launch with all other packs
            for trial in pack.config["pack"]:
                if not trial.at_goal():
                    leave_note(trial, f"{what}: {reason}")

    class OwnWords(TrialProgressCallback):
        def on_trial_result(self, *args: Any, **kwargs: Any) -> None: ...
        def on_trial_complete(self, *args: Any, **kwargs: Any) -> None: ...

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **kwargs: Any) -> None:
            say(trial, "its driver is started again after")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **kwargs: Any) -> None:
            say(trial, f"its driver ended {DRIVER_RESTARTS + 1} times, the last time after")

    return OwnWords()


def _train_pack(config: dict[str, Any]) -> None:
    """Runs in a Ray Train worker, whose process group is up: trains a pack on this worker's device."""
    pack: list[Trial] = config["pack"]
    train_pack(pack, _worker_device(pack[0]), _told)
    if _told():
        raise Preempted("saved, and ended because its machine is preempted")


def _measure_reference(config: dict[str, Any]) -> None:
    """Runs in a Ray Train worker: measures its share of the reference, which is stored in the home's cache."""
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
    """Trains the unfinished trials one after the other, so a restarted worker continues where the last one ended."""
    for trial in pack:
        if not asked_to_stop() and not _asked_to_stop(trial) and not trial.at_goal():
            train(trial, device, asked_to_stop)


def _reason(error: Exception) -> str:
    """Type and message of the worker's own exception in one line, extracted from Ray's failure report."""
    failure = next(iter((getattr(error, "worker_failures", None) or {0: error}).values()))
    text = " ".join(str(failure).split())
    # A traceback ends with its exception.
    named = list(re.finditer(r"(?:\w+\.)*((?:\w*(?:Error|Exception)|Unsaved|Preempted|Damaged): )", text))
    return (text[named[-1].start(1) :] if named else f"{type(failure).__name__}: {text}")[:500]


def _scratch(trial: Trial) -> str:
    """Folder of Ray's own files of a run; nothing in it is needed after the run."""
    return str(trial.run_folder / "ray")
