"""status, stop and logs of a run, from its files; caps on what it may spend."""

import io
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import Gat
from helpers.trials import CPU, TINY, tiny_config
from rich.console import Console

from gat_sweep.compute import step_flops
from gat_sweep.config import Start
from gat_sweep.errors import UserError
from gat_sweep.files.storage import append, write
from gat_sweep.launch.driver import stopping_on_sigterm
from gat_sweep.monitor.budget import Amount, Budget, Meter, admitted, check_caps, enforce, kept
from gat_sweep.monitor.progress import Monitor
from gat_sweep.monitor.status import trial_status
from gat_sweep.run.crowd import FILE, FRESH
from gat_sweep.run.journal import add_record
from gat_sweep.run.record import open_run
from gat_sweep.run.stop import request_stop, stop_reason
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep
from gat_sweep.train.loop import train
from gat_sweep.train.recorder import record_failure

SWEEP = f"about: two sizes\nset: {json.dumps(TINY)}\nzip: {{model.generator: [S, B], model.discriminator: [S, B]}}\n"


@pytest.fixture
def trials(home: Path, tmp_path: Path) -> list[Trial]:
    """A recorded run of two trials, of which none has begun."""
    (tmp_path / "two.yaml").write_text(SWEEP)
    sweep = load_sweep(tmp_path / "two.yaml", "digits")
    open_run(home, "two", sweep)
    return [Trial(name, "two", "two", config, home) for name, config in sweep.trials.items()]


def answer(gat: Gat, home: Path, *args: str) -> Any:
    code, out, err = gat(*args, "--home", str(home), "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_trial_is_what_its_files_say(
    trials: list[Trial],
    home: Path,
    gat: Gat,
) -> None:
    small, middle = trials

    def states() -> list[str]:
        return [t["status"] for t in answer(gat, home, "status", "two")["trials"]]

    assert states() == ["waiting", "waiting"]
    train(small, CPU)
    asked = iter([""] * 3 + ["enough"] * 3)
    train(middle, CPU, lambda: next(asked))
    found = answer(gat, home, "status", "two")
    done, stopped = found["trials"]
    assert (done["status"], done["step"], done["saved"], done["value"] > 0) == ("done", 4, 4, True)
    assert (stopped["status"], stopped["reason"], stopped["step"]) == ("stopped", "enough", stopped["saved"])
    assert done["flops"] == 4 * step_flops(small.config) and found["spent"]["flops"] == done["flops"] + stopped["flops"]

    steps = small.config.train.model_copy(update={"steps": 8})  # as `run --extend` makes it
    extended = trial_status(replace(small, config=small.config.model_copy(update={"train": steps})))
    assert (extended["status"], extended["reason"]) == ("waiting", "was done at step 4; its steps were extended")

    # Signs of life, as a worker on another machine writes them, and then no more.
    sign = middle.folder / "alive" / "rank-000.json"
    values = json.loads(sign.read_text()) | {"ended": False, "host": "gpu-7"}
    write(sign, json.dumps(values | {"time": time.time()}).encode())
    running = answer(gat, home, "status", "two")["trials"][1]
    assert running["status"] == "running" and running["workers"][0]["host"] == "gpu-7"
    add_record(middle.folder, {"step": 2, "status": "running", "gpus": 0})
    write(sign, json.dumps(values | {"time": time.time() - 300}).encode())
    assert states() == ["done", "cut off"]
    record_failure(middle, "out of memory")
    assert states() == ["done", "failed"]
    assert answer(gat, home, "status") == [{"run": "two", "trials": {"done": 1, "failed": 1}}]
    code, out, _ = gat("status", "two", "--home", str(home))
    assert code == 0 and "out of memory" in out and f"{done['value']:.1f}" in out


def test_who_waits_for_machines_is_shown_while_a_launch_says_so(trials: list[Trial], home: Path, gat: Gat) -> None:
    """In `status` and above the live lines, once for each change; an old line is of a launch that has ended."""
    text = "2 at work, 9 wait for 8 GPUs each; the cluster has 16 of at most 64 GPUs on 2 machines"
    assert answer(gat, home, "status", "two")["crowd"] == ""
    write(home / "two" / FILE, json.dumps({"time": time.time(), "line": text}).encode())
    assert answer(gat, home, "status", "two")["crowd"] == text
    assert text in gat("status", "two", "--home", str(home))[1]
    console = Console(width=200, file=io.StringIO())
    monitor = Monitor(trials, console, lambda folders: "")
    with monitor:
        time.sleep(2.5)
    assert isinstance(console.file, io.StringIO) and console.file.getvalue().count(text) == 1
    assert text in str(monitor.table().caption)
    write(home / "two" / FILE, json.dumps({"time": time.time() - FRESH - 1, "line": text}).encode())
    assert answer(gat, home, "status", "two")["crowd"] == ""


def test_stop_names_who_is_asked(
    trials: list[Trial],
    home: Path,
    gat: Gat,
) -> None:
    small, middle = trials
    found = answer(gat, home, "stop", "two", small.id)
    assert found == {"run": "two", "asked": [small.id], "running": []}
    asked = [train(trial, CPU).status for trial in trials if trial is middle]
    assert asked == ["done"]
    code, _, err = gat("stop", "two", "Q-p2", "--home", str(home))
    assert code == 2 and "has no trial 'Q-p2'" in err and len(err.splitlines()) == 1


def test_who_was_asked_stays_asked(tmp_path: Path) -> None:
    request_stop(tmp_path, "one", ("a",))
    request_stop(tmp_path, "two", ("b",))
    assert [bool(stop_reason(tmp_path, trial)) for trial in "abc"] == [True, True, False]
    request_stop(tmp_path, "all")
    request_stop(tmp_path, "one more", ("c",))
    assert all(stop_reason(tmp_path, trial) for trial in "abcd")


def test_a_run_above_its_cap_begins_nothing(
    home: Path,
    tmp_path: Path,
    gat: Gat,
) -> None:
    (tmp_path / "two.yaml").write_text(SWEEP)
    args = ["run", str(tmp_path / "two.yaml"), "--recipe", "digits", "--home", str(home)]
    code, out, _ = gat(*args, "--max-flops", "1000")
    assert code == 1 and out.count(" skipped: it would bring the run to") == 2
    assert not (home / "two-digits" / "trials").exists()
    code, out, _ = gat(*args)  # the cap stays in force
    assert code == 1 and out.count(" skipped: ") == 2
    code, _, err = gat(*args, "--max-gpu-hours", "1")
    assert code == 2 and "use no GPU" in err


def test_logs_are_the_journals_by_time(
    trials: list[Trial],
    home: Path,
    gat: Gat,
) -> None:
    for i in range(3):
        for trial in trials:
            add_record(trial.folder, {"step": i, "note": f"note {i}"})
    append(trials[0].folder / "journal.jsonl", b'{"half')
    code, out, _ = gat("logs", "two", "--home", str(home), "--json", "--lines", "4")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line["note"] for line in lines] == ["note 1", "note 1", "note 2", "note 2"]
    assert [line["trial"] for line in lines] == [trials[0].id, trials[1].id] * 2
    code, out, _ = gat("logs", "two", trials[1].id, "--home", str(home))
    assert code == 0 and out.count(trials[1].id) == 3 and trials[0].id not in out


# ---------------------------------------------------------------- caps


def journal(trial: Trial, records: list[tuple[float, dict[str, Any]]]) -> None:
    text = "".join(json.dumps({**record, "time": moment}) + "\n" for moment, record in records)
    write(trial.folder / "journal.jsonl", text.encode())


@pytest.mark.reliability
def test_what_crashes_cost_is_counted(trials: list[Trial], figures: Any) -> None:
    """Planted attempts, one of which died 3 steps behind its last line: every step trained is counted, also those that
    were lost, and the hours of every GPU held."""
    trial, _ = trials
    journal(
        trial,
        [
            (1000, {"step": 0, "status": "running", "gpus": 8}),
            (1900, {"step": 7, "metrics": {}}),
            # It came to step 10 by 2800, says its last sign of life; step 4 was saved.
            (5000, {"step": 4, "status": "running", "gpus": 4, "previous": {"step": 10, "time": 2800}}),
            (5900, {"step": 9, "metrics": {}}),
        ],
    )
    spent = Meter(trial).read()
    assert spent.flops == (10 + 5) * step_flops(trial.config)
    assert spent.gpu_hours == pytest.approx(1800 * 8 / 3600 + 900 * 4 / 3600)
    figures(attempts=2, steps_counted=15, of_them_lost=6)


@pytest.mark.reliability
def test_a_trial_that_cannot_finish_inside_the_cap_is_not_begun(trials: list[Trial], figures: Any) -> None:
    """Caps on FLOP and on GPU hours: trials are taken in order while they fit with all that was spent before."""
    small, _ = trials
    meters = [Meter(trial) for trial in trials]
    whole = [4 * step_flops(trial.config) for trial in trials]

    tried = []

    def begun(**caps: float) -> list[str]:
        tried.append(caps)
        chosen, refused = admitted(trials, meters, Budget(**caps))
        assert {trial.id for trial in chosen} | refused.keys() == {trial.id for trial in trials}
        return [trial.config.model.generator for trial in chosen]

    assert begun(max_flops=sum(whole)) == ["S", "B"]
    assert begun(max_flops=sum(whole) - 1) == ["S"]
    assert begun(max_flops=whole[1] - 1) == ["S"]
    assert begun(max_flops=whole[0] - 1) == []
    with pytest.raises(UserError, match="use no GPU"):
        check_caps(trials, Budget(max_gpu_hours=1))
    # A restart is dearer: what is spent stays spent, and the newest checkpoint spares the steps before it.
    journal(small, [(0, {"step": 0, "status": "running", "gpus": 0}), (1, {"step": 3, "metrics": {}})])
    assert begun(max_flops=sum(whole) + 3 * step_flops(small.config) - 1) == ["S"]
    assert begun(max_flops=sum(whole) + 3 * step_flops(small.config)) == ["S", "B"]
    figures(caps_tried=len(tried), wrongly_begun=0, wrongly_refused=0)


def test_a_trial_is_refused_with_the_one_it_starts_from(trials: list[Trial]) -> None:
    """And needs the steps that it adds alone."""
    first = trials[0]
    start = Start(trial=first.id, step=4)
    longer = first.config.train.model_copy(update={"steps": 6})
    second = replace(first, id="second", config=first.config.model_copy(update={"start": start, "train": longer}))
    both, meters = [first, second], [Meter(first), Meter(second)]
    whole = 6 * step_flops(first.config)
    assert admitted(both, meters, Budget(max_flops=whole)) == (both, {})
    assert admitted(both, meters, Budget(max_flops=whole - 1))[0] == [first]
    chosen, refused = admitted(both, meters, Budget(max_flops=3 * step_flops(first.config)))
    assert chosen == [] and refused["second"] == f"starts from {first.id}, which is skipped"


def test_hours_are_estimated_from_the_rate_measured(home: Path) -> None:
    """A trial of the same sizes tells; for other sizes the fastest one, so that what could finish is not refused."""

    def trial(name: str, size: str, **values: Any) -> Trial:
        config = tiny_config(model__generator=size, model__discriminator=size, workers__gpus=1, **values)
        return Trial(name, "run", "sweep", config, home)

    first, second, other = trial("first", "S"), trial("second", "S", seed=1), trial("other", "B")
    journal(first, [(0, {"step": 0, "status": "running", "gpus": 1}), (3600, {"step": 4, "metrics": {}})])
    meters = [Meter(t) for t in (first, second, other)]
    assert [t.id for t in admitted([second], meters, Budget(max_gpu_hours=2.0))[0]] == ["second"]
    chosen, refused = admitted([second], meters, Budget(max_gpu_hours=1.9))
    assert not chosen and "would bring the run to 2 GPU hours, above --max-gpu-hours 1.9" in refused["second"]
    hours = 1 + step_flops(other.config) / step_flops(first.config)
    assert admitted([other], meters, Budget(max_gpu_hours=hours * 1.01))[0] == [other]
    assert not admitted([other], meters, Budget(max_gpu_hours=hours * 0.99))[0]


@pytest.mark.reliability
def test_a_run_is_stopped_at_its_cap(trials: list[Trial], figures: Any) -> None:
    """Trials that together come to a cap while they train, as crashes can make them, are asked to stop, and do."""
    small, middle = trials
    meters, run = [Meter(trial) for trial in trials], small.run_folder
    budget = Budget(max_flops=5 * step_flops(small.config))
    journal(small, [(0, {"step": 0, "status": "running", "gpus": 0}), (1, {"step": 5, "metrics": {}})])
    request_stop(run, "only this one", (small.id,))
    enforce(run, meters, budget)
    assert stop_reason(run, middle.id) == ""
    journal(middle, [(0, {"step": 0, "status": "running", "gpus": 0}), (1, {"step": 1, "metrics": {}})])
    enforce(run, meters, budget)
    assert "above --max-flops" in stop_reason(run, middle.id) == stop_reason(run, small.id)
    figures(caps_reached=1, runs_stopped=1)


def test_a_cap_stays_in_force(tmp_path: Path) -> None:
    assert kept(tmp_path) == Budget()
    assert kept(tmp_path, Budget(max_flops=10)) == Budget(max_flops=10)
    assert kept(tmp_path, Budget(max_gpu_hours=3)) == Budget(10, 3) == kept(tmp_path)
    assert kept(tmp_path, Budget(max_flops=20)) == Budget(20, 3)
    assert Budget(20, 3).excess(Amount(20, 3)) == "" and "--max-flops 20" in Budget(20, 3).excess(Amount(21, 0))


def test_a_home_that_cannot_be_written_costs_one_line(tmp_path: Path, gat: Gat) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "two.yaml").write_text(SWEEP)
    args = ["run", str(tmp_path / "two.yaml"), "--recipe", "digits", "--home", str(tmp_path / "file" / "home")]
    code, _, err = gat(*args)
    assert code == 2 and "cannot be written" in err and len(err.splitlines()) == 1
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_a_second_sigterm_does_not_wait(trials: list[Trial]) -> None:
    with stopping_on_sigterm(trials):
        os.kill(os.getpid(), signal.SIGTERM)
        assert "SIGTERM" in stop_reason(trials[0].run_folder, trials[0].id)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
