"""Preparation of a launch: checks of each trial's data, protocol and resources, and the measurement of references."""

from collections.abc import Sequence

from gat_sweep.cluster import Cluster
from gat_sweep.config import Text, TrialConfig
from gat_sweep.data.condition import captioned, trial_encoder
from gat_sweep.data.dataset import Dataset, check_needs, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.launch import driver
from gat_sweep.launch.crowd import line
from gat_sweep.launch.packs import one_per_reference
from gat_sweep.launch.places import fits, places
from gat_sweep.metrics.evaluator import check_evaluation
from gat_sweep.metrics.reference import load_reference
from gat_sweep.run.trial import Trial
from gat_sweep.text import Say


def check_data(configs: Sequence[TrialConfig]) -> list[Dataset]:
    """The data set of each trial; a data set that several trials share is opened once.

    Raises UserError when one is missing, or lacks what a trial's teacher or evaluation needs, or a text encoder is
    missing or another one.
    """
    opened: dict[str, Dataset] = {}
    read: list[tuple[str, Text]] = []  # data sets whose captions fit their text encoder
    for config in configs:
        key = config.data.model_dump_json()
        dataset = opened.setdefault(key, opened.get(key) or load_dataset(config.data))
        check_needs(config, dataset)
        check_evaluation(config, dataset)
        if config.text and (key, config.text) not in read:
            captioned(dataset, trial_encoder(config))
            read.append((key, config.text))
    return [opened[config.data.model_dump_json()] for config in configs]


def check_feasible(trials: dict[str, TrialConfig], there: Cluster) -> None:
    """Raises UserError when a trial asks for more than the cluster has or may get, with both numbers.

    A worker needs one machine that has everything. A cluster that grows within limits that are not known here is not
    refused.
    """
    machines = there.machines if there.most is None else there.most
    if there.grows and there.most is None:
        return
    verb = "has" if there.most is None else "grows to"
    for trial, config in trials.items():
        need, count = config.workers, config.workers.least
        for name, each, kind in [("CPUs", need.cpus, "cpus"), ("GPUs", need.gpus, "gpus")]:
            offered = [getattr(machine, kind) for machine in machines]
            asked = count * each
            if asked > sum(offered):
                raise UserError(
                    f"trial {trial} asks for {asked:g} {name} ({count} workers), the cluster {verb} "
                    f"{sum(offered):g}; lower workers.count, workers.cpus or workers.gpus with --set, or use a larger "
                    "cluster"
                )
            if each > max(offered, default=0):
                raise UserError(
                    f"trial {trial} asks for {each:g} {name} in one worker, no machine of the cluster has more than "
                    f"{max(offered):g}; lower workers.{kind} with --set, or use larger machines"
                )
        if not fits([need], machines):
            raise UserError(
                f"trial {trial} asks for {count} workers of {need.cpus:g} CPUs and {need.gpus:g} GPUs, the "
                f"cluster {verb} room for {places(need.of(1), machines)}; lower "
                "workers.count, workers.cpus or workers.gpus with --set, or use other machines"
            )


def measure_references(trials: list[Trial], datasets: dict[str, Dataset], there: Cluster, say: Say) -> None:
    """Measures the reference of each protocol once and stores it in the home's cache. Ray must be up.

    On the CPUs of this machine this process measures it, because workers would take longer to start. On a cluster or
    on GPUs the workers of a trial measure it. datasets: by the trial's id.
    Raises UserError when a reference cannot be measured.
    """
    for trial in one_per_reference(trials):
        if there.address is not None or trial.config.workers.gpus:
            if not fits([trial.config.workers], there.machines):
                say(f"the reference is measured first: {line([], [(trial.config.workers, 1)], there)}")
            driver.measure_reference(trial)
            continue
        reference = load_reference(trial.config, datasets[trial.id], trial.home, say=say)
        if reference.halves is not None:  # the lowest distance to expect
            say(f"{reference.metric}: two random halves of the real data are {reference.halves:.1f} apart")
