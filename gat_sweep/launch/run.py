"""The work of `gat-sweep run`, from its options to the last line that it prints."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from gat_sweep.cluster import MAX_DRIVERS, Cluster, local_resources, session
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place
from gat_sweep.launch.probe import check_writable, probe_nodes
from gat_sweep.launch.race import open_race, reopen, with_looks
from gat_sweep.metrics.reference import reference_name
from gat_sweep.monitor.budget import Budget, Meter, admitted, check_caps, enforce, kept
from gat_sweep.monitor.progress import Monitor
from gat_sweep.monitor.status import results_table
from gat_sweep.monitor.ui import tracking_uri
from gat_sweep.run.lease import lease
from gat_sweep.run.race import write_race
from gat_sweep.run.record import open_run, sweep_trials
from gat_sweep.run.stop import EXIT_STOPPED, clear_stop, stop_reason
from gat_sweep.run.table import FINISHED
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep
from gat_sweep.text import nearest
from gat_sweep.version import source_commit


@dataclass(frozen=True)
class Launch:
    """Options of the command line that say how to run a sweep."""

    address: str | None = None  # of a running Ray cluster
    tracking_uri: str | None = None
    retry: tuple[str, ...] = ()  # statuses of trials to go on with: failed, raced
    extend: bool = False
    budget: Budget = field(default_factory=Budget)
    hold: tuple[str, ...] = ()  # sizes to skip
    race: bool = False  # drop arms that are significantly worse than the best one


def run_command(sweep: Sweep, home: Place, name: str, how: Launch, console: Console) -> int:
    """Runs the unfinished trials of a sweep; returns the exit code, 0 when every trial is done, diverged or raced.

    Raises UserError before anything is written when the sweep cannot run.
    """
    from gat_sweep.launch import driver, prepare

    sweep = with_looks(sweep) if how.race else sweep
    trials = sweep_trials(sweep, home, name)
    for size in how.hold:
        if not any(size in _sizes(trial) for trial in trials):
            there_are = sorted({size for trial in trials for size in _sizes(trial)})
            raise UserError(f"--hold {size}: the sweep has no such size; {nearest(size, there_are)}")
    opened = prepare.check_data([trial.config for trial in trials])
    datasets = {trial.id: dataset for trial, dataset in zip(trials, opened, strict=True)}
    check_caps(trials, how.budget)
    uri = tracking_uri(how.tracking_uri, home)
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    with ExitStack() as stack:
        there = local_resources() if how.address is None else stack.enter_context(session(how.address))
        prepare.check_feasible(sweep.trials, there)
        if how.address is not None:
            check_drives_sweeps(there)
            probe_nodes(home)
        check_writable(home)
        run = home / name
        stack.enter_context(lease(run, say))
        racing = open_race(run, trials) if how.race else None
        open_run(home, name, sweep, how.extend)
        clear_stop(run)
        if racing:
            write_race(run, racing.race)
        todo, held = _to_do(trials, how, console)
        meters, budget = [Meter(trial) for trial in trials], kept(run, how.budget)

        def affordable(trials: list[Trial]) -> list[Trial]:
            chosen, refused = admitted(trials, meters, budget)
            for refusal, text in refused.items():
                say(f"{refusal} skipped: it {text}")
            return chosen

        # Trials that race may end at the next look, so each stage asks for what it needs itself.
        todo = todo if racing else affordable(todo)
        launch = _Launched(run, trials, todo, meters, budget)

        def work() -> None:
            with session(None, say=say) if how.address is None else nullcontext(there) as here:
                prepare.measure_references(todo, datasets, here, say)

                def drive(stage: list[Trial]) -> None:
                    if chosen := affordable(stage):
                        driver.run_sweep(chosen, here)

                if racing:
                    racing.run_stages(todo, drive, say)
                else:
                    driver.run_sweep(todo, here)

        tags = {"gat_sweep.commit": source_commit(), "gat_sweep.reference": reference_name(trials[0].config, opened[0])}
        stopped = launch.followed(work, uri, sweep.name, tags, console)
    console.print(results_table(trials))
    console.print(f"results  {run / 'table'}", soft_wrap=True, highlight=False)
    console.print(f"samples  {run / 'trials'}/<trial>/samples", soft_wrap=True, highlight=False)
    ui = "gat-sweep ui" + ("" if home == Path("runs").absolute() else f" --home {home}")
    console.print(f"MLflow   {how.tracking_uri or ui}", soft_wrap=True, highlight=False)
    if stopped:
        reason = next(filter(None, (stop_reason(run, trial.id) for trial in todo)))
        console.print(f"stopped, with everything saved: {reason}. Run the same command to continue.", soft_wrap=True)
        return EXIT_STOPPED
    return int(any(trial.status() not in FINISHED for trial in trials if trial not in held))


@dataclass(frozen=True)
class _Launched:
    """One launch of a run: all its trials, those left to run, and the budget."""

    run: Place
    trials: list[Trial]
    todo: list[Trial]
    meters: list[Meter]
    budget: Budget

    def followed(
        self, work: Callable[[], None], uri: str, experiment: str, tags: dict[str, str], console: Console
    ) -> bool:
        """Calls `work` while the trials are watched and shipped to MLflow; returns whether they stopped on request.

        Does nothing when no trial is left to run and MLflow has everything.
        """
        from gat_sweep.monitor import tracking

        # Trials that ended while MLflow was unreachable.
        late = tracking.behind(trial.folder for trial in self.trials if trial not in self.todo)
        if not (self.todo or late):
            return False
        home = self.run.parent
        tracking.create_store(uri, home)
        tracker = tracking.Tracker(uri, home, experiment, self.run.name, tags)
        status, stopped = "stopped", False

        def ship_and_count(folders: list[Path]) -> str:
            enforce(self.run, self.meters, self.budget)
            return tracker.ship([*folders, *late])[1]

        try:
            with Monitor(self.todo, console, ship_and_count):
                if self.todo:
                    work()
            status = "done" if all(trial.status() in ("done", "raced") for trial in self.trials) else "failed"
            stopped = any(stop_reason(self.run, t.id) and t.status() not in FINISHED for t in self.todo)
        except KeyboardInterrupt:
            console.print(
                f"\nstopped; results so far are in {self.run}. Run the same command to continue.", soft_wrap=True
            )
            raise
        finally:
            tracker.finish("stopped" if stopped else status)
            if unsent := tracking.unsent(trial.folder for trial in self.trials):
                console.print(
                    f"{unsent:,} points not sent to MLflow at {uri}; the same command sends them once it answers",
                    soft_wrap=True,
                    highlight=False,
                )
            tracker.note(self.run)
        return stopped


def check_drives_sweeps(there: Cluster) -> None:
    """Raises UserError when the cluster lacks the resource that the drivers of trials need."""
    if not there.drives_sweeps:
        raise UserError(
            "the cluster has no 'sweep_driver' resource, which the drivers of trials need; start its head with "
            f"--resources='{{\"sweep_driver\": {MAX_DRIVERS}}}' (cluster.yaml does)"
        )


def _to_do(trials: list[Trial], how: Launch, console: Console) -> tuple[list[Trial], list[Trial]]:
    """The trials left to run, and those held back; prints how many are finished, failed, raced or held back."""
    status = {trial.id: trial.status() for trial in trials}
    count = Counter(status.values())
    if finished := sum(count[ended] for ended in FINISHED):
        console.print(f"{finished} of {len(trials)} trials are finished already")
    if count["failed"] and "failed" not in how.retry:
        console.print(f"{count['failed']} of {len(trials)} trials failed before; --retry failed runs them again")
    if count["raced"] and "raced" not in how.retry:
        console.print(
            f"{count['raced']} of {len(trials)} trials were dropped by a race; --retry raced goes on with them"
        )
    left = [trial for trial in trials if status[trial.id] in ("waiting", "running", *how.retry)]
    held = [trial for trial in left if not _sizes(trial).isdisjoint(how.hold)]
    if held:
        console.print(f"{len(held)} of {len(trials)} trials are held back: {', '.join(how.hold)}", highlight=False)
    todo = [trial for trial in left if trial not in held]
    if dropped := [trial for trial in todo if status[trial.id] == "raced"]:
        reopen(trials[0].run_folder, dropped)
    return todo, held


def _sizes(trial: Trial) -> set[str]:
    return {trial.config.model.generator, trial.config.model.discriminator}
