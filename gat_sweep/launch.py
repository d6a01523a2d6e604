"""A sweep on Ray: Tune schedules the trials, each trial is a Ray Train worker group that runs train().

The only file that imports ray. Workers leave files (see train.py); nothing but a trial's end comes back
through Ray, so what was recorded does not depend on who was alive to receive it.
"""

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gat_sweep.config import TrialConfig, Workers
from gat_sweep.errors import UserError
from gat_sweep.train import Trial, record_failure, train

# Read by Ray at import or at start; set before either.
RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it ends the workers at once, not the step after next
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
MAX_DRIVERS = 64  # trials at once, whatever the cluster's size
WORKER_RESTARTS = 1  # after a worker died; it resumes from its newest checkpoint


@dataclass(frozen=True)
class Cluster:
    """What trials can be given: totals over all nodes."""

    cpus: float
    gpus: float


def local_resources() -> Cluster:
    """This machine's."""
    import torch

    return Cluster(len(os.sched_getaffinity(0)), torch.cuda.device_count())


def check_feasible(trials: dict[str, TrialConfig], cluster: Cluster) -> None:
    """Raises UserError when a trial asks for more than the cluster has, with both numbers."""
    for trial, config in trials.items():
        need = config.workers
        for name, asked, there in [
            ("CPUs", need.count * need.cpus, cluster.cpus),
            ("GPUs", need.count * need.gpus, cluster.gpus),
        ]:
            if asked > there:
                raise UserError(
                    f"trial {trial} asks for {asked:g} {name} ({need.count} workers), the cluster has {there:g}; "
                    "lower workers.count, workers.cpus or workers.gpus with --set, or use a larger cluster"
                )


def run_sweep(trials: list[Trial], address: str | None) -> None:
    """Runs the trials to their end, as many at once as the cluster holds.

    address: of a running cluster ("auto"), or None to start Ray on this machine and stop it afterwards.
    A trial that fails leaves its reason in the run table and does not stop the others.
    """
    os.environ.update(RAY_ENVIRONMENT)
    import ray
    from ray import tune

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        ray.init(address=address, runtime_env={"env_vars": RAY_ENVIRONMENT}, **quiet)
    else:
        cpus, gpus = local_resources().cpus, local_resources().gpus
        ray.init(
            num_cpus=int(cpus),
            num_gpus=int(gpus),
            resources={"sweep_driver": MAX_DRIVERS},
            include_dashboard=False,
            **quiet,
        )
    try:
        there = ray.cluster_resources()
        cluster = Cluster(there.get("CPU", 0), there.get("GPU", 0))
        check_feasible({t.id: t.config for t in trials}, cluster)
        if "sweep_driver" not in there:
            raise UserError(
                "the cluster offers no 'sweep_driver' resource, which trials are driven from; start its head with "
                f"--resources='{{\"sweep_driver\": {MAX_DRIVERS}}}' (cluster.yaml does)"
            )
        at_once = max(1, min(_fits(t.config.workers, cluster) for t in trials))
        # A trial's driver takes no CPU: were it to, drivers would starve their own workers for ever.
        drive = tune.with_resources(_drive_trial, {"sweep_driver": 1})
        tuner = tune.Tuner(
            drive,
            param_space={"trial": tune.grid_search(trials), "launch": time.strftime("%Y%m%d-%H%M%S")},
            tune_config=tune.TuneConfig(max_concurrent_trials=min(at_once, MAX_DRIVERS)),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(_scratch(trials[0])), verbose=0, callbacks=[_silent_progress()]
            ),
        )
        tuner.fit()
    finally:
        ray.shutdown()


def _drive_trial(config: dict[str, Any]) -> None:
    """Runs in a Tune trial: one Ray Train run. Records why, when it fails."""
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    trial: Trial = config["trial"]
    workers = trial.config.workers
    trainer = TorchTrainer(
        _work,
        train_loop_config={"trial": trial},
        scaling_config=ray_train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        run_config=ray_train.RunConfig(
            # Train keeps state under this name and does nothing when it finds a finished run there; ours is
            # in the trial's own checkpoints, so every launch takes a fresh name.
            name=f"{trial.id}-{config['launch']}",
            storage_path=str(_scratch(trial)),
            failure_config=ray_train.FailureConfig(max_failures=WORKER_RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except ray_train.TrainingFailedError as error:
        record_failure(trial, _reason(error))


def _silent_progress() -> Any:
    """Tune adds a callback that prints trials unless it is given one of the kind; ours is the live table."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class Silent(TrialProgressCallback):
        def on_trial_result(self, *args: Any, **kwargs: Any) -> None: ...
        def on_trial_error(self, *args: Any, **kwargs: Any) -> None: ...
        def on_trial_complete(self, *args: Any, **kwargs: Any) -> None: ...

    return Silent()


def _work(config: dict[str, Any]) -> None:
    """Runs in a Train worker: the process group is up, the device is this worker's."""
    import torch
    from ray.train.torch import get_device

    trial: Trial = config["trial"]
    torch.set_num_threads(max(1, int(trial.config.workers.cpus)))
    train(trial, get_device())


def _reason(error: Exception) -> str:
    """The worker's own exception, type and message in one line, out of Ray's report of a failure."""
    failure = next(iter((getattr(error, "worker_failures", None) or {0: error}).values()))
    text = " ".join(str(failure).split())
    named = list(re.finditer(r"[\w.]+(?:Error|Exception): ", text))  # a traceback ends with its exception
    return (text[named[-1].start() :] if named else f"{type(failure).__name__}: {text}")[:500]


def _fits(workers: Workers, cluster: Cluster) -> int:
    """How many such trials run at once."""
    by_cpu = cluster.cpus // (workers.count * workers.cpus)
    by_gpu = cluster.gpus // (workers.count * workers.gpus) if workers.gpus else by_cpu
    return int(min(by_cpu, by_gpu))


def _scratch(trial: Trial) -> Path:
    """Ray's own files of a run; nothing there is needed once the run is over."""
    return trial.home / trial.run / "ray"
