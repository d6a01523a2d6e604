"""A race on the trials of a sweep, without Ray: exactness, kills, decisions that are taken once, what is refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.mistakes import message
from helpers.processes import Gat
from helpers.trials import CPU, TINY, assert_same_state, rows

from analysis.race import Decision, Standing
from gat_sweep.launch import race as launched
from gat_sweep.launch.driver import train_pack
from gat_sweep.launch.race import open_race, reopen, with_looks
from gat_sweep.run.journal import add_record
from gat_sweep.run.race import read_run_race, write_race
from gat_sweep.run.record import open_run
from gat_sweep.run.stop import request_stop
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep, load_sweep
from gat_sweep.text import silent
from gat_sweep.train.recorder import record_failure, trial_constants

RATES = "product: {train.rate_g: [0.5, 1, 2, 4]}\n"
FACTORS = ["rate_g=0.5", "rate_g=1.0", "rate_g=2.0", "rate_g=4.0"]


def race_sweep(folder: Path, steps: int = 16, more: str = RATES, seeds: str = "[0, 1]", **changes: Any) -> Sweep:
    """Four arms of two seeds, with looks after steps 2, 4 and 8."""
    values = TINY | {"train.steps": steps, "train.eval_every": steps} | changes
    (folder / "race.yaml").write_text(f"about: a race\nset: {json.dumps(values)}\n{more}seeds: {seeds}\n")
    return load_sweep(folder / "race.yaml", "digits")


def trials_of(sweep: Sweep, home: Path, run: str = "race") -> list[Trial]:
    return [Trial(name, run, "race", config, home) for name, config in sweep.trials.items()]


def on_cpu(stage: list[Trial]) -> None:
    train_pack(stage, CPU)


def run(
    trials: list[Trial], drive: Callable[[list[Trial]], None] = on_cpu, say: Callable[[str], None] = silent
) -> None:
    left = [trial for trial in trials if trial.status() in ("waiting", "running")]
    open_race(trials[0].run_folder, trials).run_stages(left, drive, say)


def planted(values: Callable[[Trial, int], float]) -> Callable[[list[Trial]], None]:
    """A drive that trains nothing: it writes the rows that training to the goal would leave."""

    def drive(stage: list[Trial]) -> None:
        for trial in stage:
            table = RunTable(trial.table, trial_constants(trial.run, trial.sweep, trial.id, trial.config))
            done = trial.goal == trial.config.train.steps
            row = {"metric": "fd_x", "n": 64, "reference": "r", "protocol": "{}", "flops": 1e9 * trial.goal}
            table.put(
                trial.goal, status="done" if done else "running", value=values(trial, trial.goal), reason="", **row
            )

    return drive


def value(trial: Trial, step: int) -> float:
    """Far apart, with a small noise: the arm of factor 1 is the best, that of 4 the worst."""
    noise = math.sin(7 * trial.config.seed + trial.config.train.rate_g + step) / 50
    return math.exp(abs(math.log(trial.config.train.rate_g)) * 5 + noise) * 100 / step


def statuses(trials: list[Trial]) -> dict[str, list[str]]:
    """Statuses of an arm's trials, by factor."""
    found: dict[str, list[str]] = {}
    for trial in trials:
        found.setdefault(f"rate_g={trial.config.train.rate_g}", []).append(trial.status())
    return found


# ---------------------------------------------------------------- exactness


@pytest.fixture
def drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at step 2 drops the arm of factor 4, that at step 4 the arm of factor 2; values do not matter."""

    def decided(values: Any, step: int, alpha: float) -> Decision:
        drop = {2: FACTORS[3], 4: FACTORS[2]}.get(step)
        return Decision(step, alpha, FACTORS[1], 0.1, 3, {a: Standing(0.5, 0.001, a == drop) for a in values})

    monkeypatch.setattr(launched, "decide", decided)


def test_survivors_equal_trials_without_a_race(home: Path, tmp_path: Path, drops: None) -> None:
    """Final weights, counters and values, bit for bit; a dropped arm has the look's checkpoint and goes on from it."""
    sweep = with_looks(race_sweep(tmp_path, steps=8, more="product: {train.rate_g: [1, 4]}\n", **{"eval.samples": 16}))
    raced, plain = trials_of(sweep, home), trials_of(sweep, home, "plain")[::3]
    run(raced)
    assert statuses(raced) == {"rate_g=1.0": ["done"] * 2, "rate_g=4.0": ["raced"] * 2}
    train_pack(plain, CPU)
    same = ("step", "steps", "images", "flops", "value", "metric", "n", "config", "kernel_distance", "flags")
    for ours, theirs in zip(raced[::3], plain, strict=True):
        mine = [[row[key] for key in same] for row in rows(ours)]
        assert mine == [[row[key] for key in same] for row in rows(theirs)][: len(mine)]
    assert_same_state(raced[0], plain[0], 8)
    assert [row["step"] for row in rows(raced[0])] == [1, 2, 4, 8]
    last = rows(raced[-1])[-1]
    assert (last["step"], last["status"]) == (2, "raced") and last["value"] > 0
    assert last["reason"] == "dropped at look 2 of 3, step 2: 1.65 times the value of rate_g=1.0, p = 0.001"
    assert (raced[-1].folder / "checkpoints" / "step_00000002").is_dir()

    # Nothing is left to run. What was dropped is run on request, and equals the same trial without a race.
    before = {path: path.stat().st_mtime_ns for path in raced[0].run_folder.rglob("*")}
    run(raced)
    assert before == {path: path.stat().st_mtime_ns for path in raced[0].run_folder.rglob("*")}
    reopen(raced[0].run_folder, raced[-1:])
    run(raced)
    assert [trial.status() for trial in raced] == ["done", "done", "raced", "done"]
    assert_same_state(raced[-1], plain[-1], 8)


def test_a_pause_does_not_measure_twice(home: Path, tmp_path: Path) -> None:
    """The checkpoint of a look knows its evaluation."""
    trial = replace(trials_of(with_looks(race_sweep(tmp_path)), home)[0], pause=2)
    train_pack([trial], CPU)
    assert (trial.status(), trial.at_goal()) == ("running", True)
    train_pack([trial], CPU)  # at its goal
    train_pack([replace(trial, pause=4)], CPU)
    journal = [json.loads(line) for line in (trial.folder / "journal.jsonl").read_text().splitlines()]
    assert [r["step"] for r in journal if "fd_efficientnet_lite0" in r.get("metrics", {})] == [2, 4]
    assert [r["status"] for r in journal if "status" in r] == ["running", "paused"] * 2


def test_a_kill_between_looks_changes_nothing(tmp_path: Path) -> None:
    """Cut in a stage, after the last value of a look, and between the record and the rows that it closes."""
    sweep = with_looks(race_sweep(tmp_path))
    straight, cut = trials_of(sweep, tmp_path, "straight"), trials_of(sweep, tmp_path, "cut")
    run(straight, planted(value))

    class Killed(Exception):
        pass

    def half(stage: list[Trial]) -> None:
        planted(value)(stage[:3])
        raise Killed

    def then_killed(stage: list[Trial]) -> None:
        planted(value)(stage)
        raise Killed

    for drive in (half, then_killed):
        with pytest.raises(Killed):
            run(cut, drive)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):

        def killed(self: Any) -> None:
            raise Killed

        patch.setattr(launched.Racing, "_close_dropped", killed)
        run(cut, planted(value))
    record = read_run_race(cut[0].run_folder)
    assert record and len(record.groups[0].decisions) == 1 and cut[-1].status() == "running"
    run(cut, planted(value))
    assert statuses(cut) == statuses(straight)
    assert read_run_race(cut[0].run_folder) == read_run_race(straight[0].run_folder)


# ---------------------------------------------------------------- decisions, without training


def test_worse_arms_are_dropped_and_the_record_says_so(tmp_path: Path) -> None:
    sweep = with_looks(race_sweep(tmp_path))
    trials, said = trials_of(sweep, tmp_path), list[str]()
    goals: list[list[int]] = []

    def drive(stage: list[Trial]) -> None:
        goals.append([trial.goal for trial in stage])
        planted(value)(stage)

    run(trials, drive, said.append)
    assert statuses(trials) == {"rate_g=1.0": ["done"] * 2} | dict.fromkeys(
        [FACTORS[0], FACTORS[2], FACTORS[3]], ["raced"] * 2
    )
    assert goals == [[2] * 8, [16] * 2]  # one arm is left: it has no further look
    assert "racing on: rate_g=1.0" in said[0] and "times the value of rate_g=1.0" in said[0]
    record = json.loads((tmp_path / "race" / "race.json").read_text())
    (group,) = record["groups"]
    assert (group["size"], group["looks"]) == ("S/2", [2, 4, 8]) and record["alpha"] == 0.03
    assert group["decisions"][0]["leader"] == "rate_g=1.0" and group["decisions"][0]["degrees_of_freedom"] == 3


def test_equal_arms_race_to_the_end(tmp_path: Path) -> None:
    trials = trials_of(with_looks(race_sweep(tmp_path)), tmp_path)
    run(trials, planted(lambda trial, step: 100 + math.sin(hash((trial.id, step)) % 997)))
    assert {trial.status() for trial in trials} == {"done"}
    record = read_run_race(tmp_path / "race")
    assert record and [len(decision.arms) for decision in record.groups[0].decisions] == [4, 4, 4]


def test_broken_arms_leave_for_their_own_reason(tmp_path: Path) -> None:
    """Diverged and failed ones are not `raced`; their other seeds are trained to the end, and the others race."""
    trials = trials_of(with_looks(race_sweep(tmp_path)), tmp_path)

    def drive(stage: list[Trial]) -> None:
        for trial in stage:
            factor, seed = trial.config.train.rate_g, trial.config.seed
            if (factor, seed) == (2.0, 0):
                record_failure(trial, "no memory")
            elif (factor, seed) == (4.0, 1):
                RunTable(trial.table, trial_constants("race", "race", trial.id, trial.config)).close(
                    "diverged", "nan", 1
                )
            else:
                planted(value)([trial])

    run(trials, drive)
    assert statuses(trials) == {
        "rate_g=0.5": ["raced"] * 2, "rate_g=1.0": ["done"] * 2,
        "rate_g=2.0": ["failed", "done"], "rate_g=4.0": ["done", "diverged"],
    }  # fmt: skip
    record = read_run_race(tmp_path / "race")
    assert record and list(record.groups[0].decisions[0].arms) == FACTORS[:2]


def test_sizes_do_not_race_each_other(tmp_path: Path) -> None:
    more = "sizes: [S, B]\nproduct: {train.rate_g: [1, 4]}\n"
    trials = trials_of(with_looks(race_sweep(tmp_path, more=more, seeds="[0, 1, 2]")), tmp_path)
    run(trials, planted(lambda t, s: value(t, s) * (1 if t.config.model.generator == "S" else 9)))
    by_size = {(t.config.model.generator, t.config.train.rate_g): t.status() for t in trials}
    assert by_size == {("S", 1.0): "done", ("S", 4.0): "raced", ("B", 1.0): "done", ("B", 4.0): "raced"}


def test_a_request_to_stop_ends_the_stages(tmp_path: Path) -> None:
    trials, stages = trials_of(with_looks(race_sweep(tmp_path)), tmp_path), list[int]()

    def drive(stage: list[Trial]) -> None:
        stages.append(len(stage))
        planted(value)(stage[:5])
        request_stop(tmp_path / "race", "enough")

    run(trials, drive)
    assert stages == [8] and "raced" not in {trial.status() for trial in trials}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": "[0]"}, "one seed of an arm says nothing about the noise (S/2); give two: --seeds 0,1"),
        ({"more": "product: {model.patch: [2, 4]}\n"}, "S/2 has one arm, and a race needs two"),
        ({"more": "points: [{}, {train.steps: x2, train.rate_g: 2}]\n"}, "differ in train.steps"),
        ({"more": "points: [{}, {eval.psi: 0.5}]\n"}, "differ in eval"),
        ({"steps": 7}, "have 7 steps, and a race needs 8"),
        (
            {"more": "parts:\n  a: {product: {train.rate_g: [1, 2]}}\n  b: {after: a, set: {train.steps: x2}}\n"},
            "trials of S/2 start from others",
        ),
    ],
)
def test_sweeps_that_cannot_race(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    sweep = race_sweep(tmp_path, **changes)
    assert said in message(lambda: with_looks(sweep)) and message(lambda: with_looks(sweep)).startswith("--race: ")


def test_a_race_does_not_begin_late_or_change(tmp_path: Path) -> None:
    """A trial that is beyond the first look, other arms or other steps: refused."""
    sweep = race_sweep(tmp_path)
    trials = trials_of(with_looks(sweep), tmp_path)
    planted(value)([replace(trials[0], pause=3)])
    assert "beyond the look at step 2" in message(lambda: open_race(tmp_path / "race", trials))

    other = trials_of(with_looks(sweep), tmp_path, "other")
    run(other, planted(value))
    more = "product: {train.rate_g: [0.5, 1, 2, 4, 8]}\n"
    for changed in (race_sweep(tmp_path, more=more), race_sweep(tmp_path, steps=32)):
        now = trials_of(with_looks(changed), tmp_path, "other")
        assert "begun with other arms or steps" in message(lambda now=now: open_race(tmp_path / "other", now))


def test_a_refusal_writes_nothing(tmp_path: Path, gat: Gat) -> None:
    race_sweep(tmp_path, seeds="[0]")
    code, _, err = gat("run", tmp_path / "race.yaml", "--recipe", "digits", "--home", tmp_path / "runs", "--race")
    assert code == 2 and "--seeds 0,1" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_status_shows_who_waits_and_who_was_dropped(tmp_path: Path, gat: Gat) -> None:
    home, sweep = tmp_path / "home", with_looks(race_sweep(tmp_path))
    trials = trials_of(sweep, home)
    open_run(home, "race", sweep)
    add_record(trials[0].folder, {"step": 2, "status": "paused", "reason": "waits for a look of the race"})
    code, out, _ = gat("status", "race", "--home", home, "--json")
    found = json.loads(out)["trials"][0]
    assert code == 0 and found["status"] == "paused" and "a look of the race" in found["reason"]
    race = open_race(home / "race", trials)
    race.run_stages(trials, planted(value), silent)
    write_race(home / "race", race.race)
    code, out, _ = gat("status", "race", "--home", home)
    assert code == 0 and "dropped at look 1 of 3, step 2" in out
