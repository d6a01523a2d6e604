"""The Ray that sweeps and encodings run on: a running cluster's, or one started here for the time being."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Cluster:
    """What work can be given: totals over all nodes."""

    cpus: float
    gpus: float
    drives_sweeps: bool = True  # offers the resource that trials are driven from


def local_resources() -> Cluster:
    """This machine's."""
    import torch  # readers of an encoding do without

    return Cluster(len(os.sched_getaffinity(0)), torch.cuda.device_count())


@contextmanager
def session(address: str | None, cpus: int | None = None, gpus: int | None = None) -> Iterator[Cluster]:
    """Ray, connected and quiet, until the end of the block.

    address: of a running cluster ("auto"), or None to start Ray on this machine and stop it afterwards.
    cpus, gpus: of this machine, when Ray is started here; all unless given.
    """
    os.environ.update(RAY_ENVIRONMENT)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        ray.init(address=address, runtime_env={"env_vars": RAY_ENVIRONMENT}, **quiet)
    else:
        here = local_resources()
        ray.init(
            num_cpus=int(here.cpus) if cpus is None else cpus,
            num_gpus=int(here.gpus) if gpus is None else gpus,
            resources={"sweep_driver": MAX_DRIVERS},
            include_dashboard=False,
            **quiet,
        )
    try:
        there = ray.cluster_resources()
        yield Cluster(there.get("CPU", 0), there.get("GPU", 0), "sweep_driver" in there)
    finally:
        ray.shutdown()
