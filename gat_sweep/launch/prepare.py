"""Preparation of a launch: checks of each trial's data, protocol and resources, and the measurement of references."""

from collections.abc import Sequence

from gat_sweep.cluster import Cluster
from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import Dataset, check_teacher, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.launch import driver
from gat_sweep.launch.packs import one_per_reference
from gat_sweep.metrics.evaluator import check_evaluation
from gat_sweep.metrics.reference import load_reference
from gat_sweep.run.trial import Trial
from gat_sweep.text import Say


def check_data(configs: Sequence[TrialConfig]) -> list[Dataset]:
    """The data set of each trial; a data set that several trials share is opened once.

    Raises UserError when one is missing, or lacks what a trial's teacher or evaluation needs.
    """
    opened: dict[str, Dataset] = {}
    for config in configs:
        key = config.data.model_dump_json()
        dataset = opened.setdefault(key, opened.get(key) or load_dataset(config.data))
        check_teacher(config, dataset)
        check_evaluation(config, dataset)
    return [opened[config.data.model_dump_json()] for config in configs]


def check_feasible(trials: dict[str, TrialConfig], there: Cluster) -> None:
    """Raises UserError when a trial asks for more than the cluster has, with both numbers."""
    for trial, config in trials.items():
        need = config.workers
        for name, asked, offered in [
            ("CPUs", need.count * need.cpus, there.cpus),
            ("GPUs", need.count * need.gpus, there.gpus),
        ]:
            if asked > offered:
                raise UserError(
                    f"trial {trial} asks for {asked:g} {name} ({need.count} workers), the cluster has {offered:g}; "
                    "lower workers.count, workers.cpus or workers.gpus with --set, or use a larger cluster"
                )


def measure_references(trials: list[Trial], datasets: dict[str, Dataset], address: str | None, say: Say) -> None:
    """Measures the reference of each protocol once and stores it in the home's cache. Ray must be up.

    On the CPUs of this machine this process measures it, because workers would take longer to start. On a cluster or
    on GPUs the workers of a trial measure it. datasets: by the trial's id.
    Raises UserError when a reference cannot be measured.
    """
    for trial in one_per_reference(trials):
        if address is not None or trial.config.workers.gpus:
            driver.measure_reference(trial)
            continue
        reference = load_reference(trial.config, datasets[trial.id], trial.home, say=say)
        if reference.halves is not None:  # the lowest distance to expect
            say(f"{reference.metric}: two random halves of the real data are {reference.halves:.1f} apart")
