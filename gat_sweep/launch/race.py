"""A race of arms, `run --race`: trials pause at the looks, analysis/race.py decides, the other arms go on.

The driver runs the trials of every stage as it runs any trials; a stage ends where all of them have paused or finished.
Everything that a race knows is on disk, so the same command continues it:
    <run>/race.json         groups, looks and decisions; a decision is written before the rows that it closes
    table/<trial>.parquet   the values at the looks; a dropped trial ends with status `raced`
A look is decided once. It compares the arms whose trials all have a value there. An arm with a trial that diverged or
failed has left the race: nothing is known against its other trials, so they are trained to their end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from analysis.race import MIN_SEEDS, PARTS, Decision, Group, Race, decide, in_words, look_steps, spent
from analysis.table import Cell
from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place
from gat_sweep.run.journal import add_record
from gat_sweep.run.race import read_run_race, write_race
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import stop_reason
from gat_sweep.run.table import RunTable, read_rows
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep, differences, varied_text
from gat_sweep.text import Say

LEFT = ("waiting", "running")  # statuses of trials that have steps left


def with_looks(sweep: Sweep) -> Sweep:
    """The sweep with an evaluation of every trial at its looks, which changes no step of its training.

    Raises UserError, one line, when its trials cannot race.
    """
    for size, trials in _by_size(sweep.trials).items():
        _check_group(size, trials)
    return replace(sweep, trials={trial: _evaluated_at_looks(config) for trial, config in sweep.trials.items()})


def _evaluated_at_looks(config: TrialConfig) -> TrialConfig:
    train = config.train
    usual = train.eval_at or range(train.eval_every, train.steps, train.eval_every)
    at = tuple(sorted({*usual, *look_steps(train.steps)}))
    return config.model_copy(update={"train": train.model_copy(update={"eval_at": at})})


def _by_size(trials: dict[str, TrialConfig]) -> dict[str, dict[str, TrialConfig]]:
    found: dict[str, dict[str, TrialConfig]] = {}
    for trial, config in trials.items():
        size = Cell(config.model.generator, config.model.discriminator, config.model.patch).label
        found.setdefault(size, {})[trial] = config
    return found


def _arms(trials: dict[str, TrialConfig]) -> dict[str, dict[int, str]]:
    """The arms of a group: trial by label and seed."""
    varied = differences(trials)
    arms: dict[str, dict[int, str]] = {}
    for trial, config in trials.items():
        arms.setdefault(varied_text(varied[trial]), {})[config.seed] = trial
    return arms


def _check_group(size: str, trials: dict[str, TrialConfig]) -> None:
    configs = list(trials.values())
    if any(config.start for config in configs):
        raise UserError(f"--race: trials of {size} start from others; run this sweep without --race")
    first = configs[0]
    for config in configs:
        apart = [key for key in ("data", "eval") if getattr(config, key) != getattr(first, key)]
        apart += [
            f"train.{key}" for key in ("steps", "batch") if getattr(config.train, key) != getattr(first.train, key)
        ]
        if apart:
            raise UserError(
                f"--race: trials of {size} differ in {', '.join(apart)}, and looks compare values of one protocol at "
                "equal images; run this sweep without --race"
            )
    arms = _arms(trials)
    if len(arms) < 2:
        raise UserError(f"--race: {size} has one arm, and a race needs two; run this sweep without --race")
    seeds = {label: sorted(found) for label, found in arms.items()}
    label, other = (pick(seeds, key=lambda label: len(seeds[label])) for pick in (min, max))
    if len(seeds[label]) < MIN_SEEDS:
        raise UserError(f"--race: one seed of an arm says nothing about the noise ({size}); give two: --seeds 0,1")
    if any(found != seeds[label] for found in seeds.values()):
        other = next(name for name, found in seeds.items() if found != seeds[label])
        raise UserError(
            f"--race: arms of {size} have different seeds ({label}: {seeds[label]}, {other}: {seeds[other]})"
        )
    if first.train.steps < max(PARTS):
        raise UserError(f"--race: trials of {size} have {first.train.steps} steps, and a race needs {max(PARTS)}")


# ---------------------------------------------------------------- the race of a run


@dataclass
class Racing:
    """The race of a run."""

    run: Place
    trials: dict[str, Trial]
    race: Race

    def run_stages(self, todo: Sequence[Trial], drive: Callable[[list[Trial]], None], say: Say) -> None:
        """Runs these trials from look to look, and those that are left to the end.

        drive: runs trials to their end or pause. Returns when nothing is left, or no trial could go on.
        """
        left = list(todo)
        while True:
            self._decide({trial.id for trial in left}, say)
            left = [trial for trial in left if not trial.at_goal()]
            stage = [replace(trial, pause=self._pause(trial)) for trial in left]
            stage = [t for t in stage if not t.at_goal() and not stop_reason(self.run, t.id)]
            if not stage:
                return
            drive(stage)
            left = [trial for trial in left if trial.status() in LEFT]
            if all(trial.status() in LEFT and not trial.at_goal() for trial in stage):
                return

    def _pause(self, trial: Trial) -> int | None:
        group = next(group for group in self.race.groups if trial.id in group.trials)
        return group.next_look if group.arm_of(trial.id) in group.racing else None

    def _decide(self, running: set[str], say: Say) -> None:
        """Takes every decision whose values are all there. running: trials that this launch still trains."""
        for number, group in enumerate(self.race.groups):
            while (step := group.next_look) and (decision := self._decision(group, step, running)):
                group = replace(group, decisions=(*group.decisions, decision))
                groups = (*self.race.groups[:number], group, *self.race.groups[number + 1 :])
                self.race = replace(self.race, groups=groups)
                write_race(self.run, self.race)
                words = [f"{arm} {in_words(group, decision, arm)}" for arm in decision.dropped] or ["no arm dropped"]
                say(f"{group.size}, step {step}: {'; '.join(words)}; racing on: {', '.join(decision.left)}")
        self._close_dropped()

    def _decision(self, group: Group, step: int, running: set[str]) -> Decision | None:
        """What a look decides; None while a trial may still get there."""
        values: dict[str, dict[int, float]] = {}
        protocols = set()
        for label in group.racing:
            found = {}
            for seed, name in group.arms[label].items():
                trial = self.trials[name]
                status = trial.status()
                if status == "diverged" or (status == "failed" and name not in running):
                    continue
                row = trial.row_at(step)
                if row is None:
                    return None
                if math.isfinite(row["value"]):
                    protocols.add(tuple(row[key] for key in ("metric", "n", "reference", "protocol")))
                    found[seed] = math.log(row["value"])
            if len(found) == len(group.arms[label]):
                values[label] = found
        if len(protocols) > 1:
            raise UserError(f"values of {group.size} at step {step} have several protocols; choose another --name")
        return decide(values, step, spent(len(group.looks))[group.looks.index(step)])

    def _close_dropped(self) -> None:
        """Gives dropped trials their last status. After a kill, this finishes what the record says."""
        for group in self.race.groups:
            for decision in group.decisions:
                for label in decision.dropped:
                    for trial in map(self.trials.__getitem__, group.arms[label].values()):
                        if trial.id not in self.race.retried and trial.status() == "running":
                            reason = in_words(group, decision, label)
                            add_record(trial.folder, {"step": decision.step, "status": "raced", "reason": reason})
                            RunTable(trial.table, {}).close("raced", reason, decision.step)


def open_race(run: Place, trials: Sequence[Trial]) -> Racing:
    """The race of a run, from its record or at its beginning; writes nothing.

    Raises UserError when the record has other arms or looks, or a trial was trained beyond a look that is not decided.
    """
    planned = tuple(
        Group(size, look_steps(next(iter(configs.values())).train.steps), _arms(configs))
        for size, configs in _by_size({trial.id: trial.config for trial in trials}).items()
    )
    race = read_run_race(run) or Race(planned)
    if any(group.decisions for group in race.groups):
        if [(group.size, group.looks, group.arms) for group in race.groups] != [
            (group.size, group.looks, group.arms) for group in planned
        ]:
            raise UserError(
                f"--race: the race of run '{run.name}' has begun with other arms or steps; choose another --name"
            )
    else:
        race = Race(planned, race.retried)
    racing = Racing(run, {trial.id: trial for trial in trials}, race)
    for group in race.groups:
        look = group.next_look
        for trial in (racing.trials[name] for label in group.racing for name in group.arms[label].values()):
            if look and trial.status() in (*LEFT, "done") and _position(trial) > look:
                raise UserError(
                    f"--race: trial {trial.id} was trained to step {_position(trial)}, beyond the look at step {look}; "
                    "run without --race, or choose another --name"
                )
    return racing


def _position(trial: Trial) -> int:
    rows = read_rows(trial.table) if trial.table.exists() else []
    return max([saved_step(trial.folder / "checkpoints"), *(row["step"] for row in rows)])


def reopen(run: Place, trials: Sequence[Trial]) -> None:
    """Lets dropped trials go on from their checkpoints (`--retry raced`); the race does not drop them again."""
    race = read_run_race(run)
    if race:
        write_race(run, replace(race, retried=tuple(dict.fromkeys([*race.retried, *(t.id for t in trials)]))))
    for trial in trials:
        RunTable(trial.table, {}).put(read_rows(trial.table)[-1]["step"], status="running", reason="")
