"""What a launch makes sure of first: data and protocol of each trial, room on the machines, and the reference."""

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
    """Measures the reference of each protocol among the trials, once, into the home's cache; Ray is up.

    On CPUs of this machine it is measured in this process, as workers would take longer to start; on a cluster or on
    GPUs, by the workers of a trial. datasets: by the trial's id.
    Raises UserError when a reference cannot be measured.
    """
    for trial in one_per_reference(trials):
        if address is not None or trial.config.workers.gpus:
            driver.measure_reference(trial)
            continue
        reference = load_reference(trial.config, datasets[trial.id], trial.home, say=say)
        if reference.halves is not None:  # what a distance of zero looks like here
            say(f"{reference.metric}: two random halves of the real data are {reference.halves:.1f} apart")
