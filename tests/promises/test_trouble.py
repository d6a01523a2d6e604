"""Trouble on the way: hangs, SIGTERM, a collapsed discriminator, a full disk, a worker that outlives its launch."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.processes import together
from helpers.trials import CPU, TINY, assert_same_state, rows, tiny_config, tiny_trial

from gat_sweep.data.loader import Loader
from gat_sweep.run import alive
from gat_sweep.run.alive import take_over
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import EXIT_STOPPED, clear_stop, request_stop
from gat_sweep.run.trial import Trial
from gat_sweep.train.collapse import WINDOWS, Collapse
from gat_sweep.train.engine import Engine
from gat_sweep.train.loop import train
from gat_sweep.train.saver import Unsaved
from gat_sweep.train.watch import EXIT_HUNG, EXIT_REPLACED, blame

Figures = Callable[..., None]


def notes(trial: Trial) -> list[str]:
    lines = [json.loads(line) for line in (trial.folder / "journal.jsonl").read_text().splitlines()]
    return [line["note"] for line in lines if "note" in line]


# ---------------------------------------------------------------- hangs


@pytest.mark.parametrize(
    ("positions", "moving", "silent", "culprits"),
    [
        ({0: (7, "step"), 1: (7, "data"), 2: (7, "step")}, {0, 1, 2}, [], [1]),
        ({0: (7, "save"), 1: (7, "step"), 2: (7, "step")}, {0, 1, 2}, [], [0]),  # the others are ahead already
        ({0: (7, "agree"), 1: (6, "step"), 2: (7, "agree")}, {0, 1, 2}, [], [1]),
        ({0: (7, "step"), 1: (7, "step"), 2: (7, "step")}, {0, 1, 2}, [], [0, 1, 2]),  # nobody can tell
        ({0: (7, "step"), 1: (7, "data"), 2: (7, "step")}, {0, 1}, [2], [2]),
        ({0: (7, "step"), 1: (7, "step")}, {0, 1}, [2], [2]),  # never started
    ],
)
def test_who_is_to_blame(
    positions: dict[int, tuple[int, str]], moving: set[int], silent: list[int], culprits: list[int]
) -> None:
    before = {rank: {"step": step, "phase": phase, "count": 1} for rank, (step, phase) in positions.items()}
    after = {rank: {**sign, "count": 1 + (rank in moving)} for rank, sign in before.items()}
    assert blame(before, after, 3, 0) == (silent, culprits)


def _hanging_worker(rank: int, world: int, trial: Trial, file: Path, how: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    read = Loader.batch

    def batch(loader: Loader, step: int) -> Any:
        if rank == 1 and step == 2:
            if how == "data":
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGSTOP)
        return read(loader, step)

    Loader.batch = batch  # type: ignore[method-assign]
    train(trial, CPU)


def hang(home: Path, how: str) -> str:
    """Two workers of which one hangs at step 2; what the journal says of it. Everyone else has ended."""
    trial = tiny_trial(home, how, workers__count=2, workers__hang_minutes=0.05, train__eval_every=4)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    context = multiprocessing.get_context("forkserver")
    args = (2, trial, home / f"store-{how}", how)
    workers = [context.Process(target=_hanging_worker, args=(rank, *args)) for rank in range(2)]
    for worker in workers:
        worker.start()
    workers[0].join(90)
    assert workers[0].exitcode == EXIT_HUNG
    if how == "stopped":
        workers[1].kill()
    workers[1].join(30)
    assert workers[1].exitcode == (EXIT_HUNG if how == "data" else -signal.SIGKILL)
    (note,) = [note for note in notes(trial) if "no progress" in note]
    assert f"(pid {workers[1].pid})" in note and f"(pid {workers[0].pid})" not in note
    return note


@pytest.mark.slow
@pytest.mark.reliability
def test_a_hung_worker_is_named(home: Path, figures: Figures) -> None:
    """A worker that hangs while it reads data is named, with the line it hangs at, and the trial's workers end."""
    note = hang(home, "data")
    assert "rank 1" in note and "is at 'data' (feed.py:" in note and "step 2" in note
    figures(hangs=1, culprits_named=1)


@pytest.mark.slow
@pytest.mark.reliability
def test_a_stopped_worker_is_named(home: Path, figures: Figures) -> None:
    """A worker whose whole process stands still (SIGSTOP) is named, and the others end."""
    note = hang(home, "stopped")
    assert "rank 1" in note and "gives no sign of life" in note
    figures(hangs=1, culprits_named=1)


@pytest.mark.slow
@pytest.mark.reliability
def test_a_worker_that_outlives_its_launch_ends(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    """While one process trains, a second takes the trial over: the first ends, and only then the second begins."""
    values = {**TINY, "train.steps": 100_000, "train.eval_every": 100_000, "workers.hang_minutes": 0.05}
    first = start_train(home, values)
    trial = only_trial(home)
    wait_for(lambda: saved(trial, "journal.jsonl").count(b"loss_d") > 3)
    # As from another machine, whose process this one cannot look up.
    sign = trial.folder / "alive" / "rank-000.json"
    said: list[str] = []

    def elsewhere() -> None:
        values = json.loads(sign.read_text())
        sign.write_text(json.dumps({**values, "host": "elsewhere"}))

    elsewhere()
    monkeypatch.setattr(alive, "BEAT", 1.5)  # twice what the worker's is, by its hang_minutes
    take_over(trial.folder, said.append)
    first.communicate(timeout=30)
    assert first.returncode == EXIT_REPLACED and "waiting for an earlier worker on elsewhere" in said[0]
    figures(taken_over=1, first_worker_ended=1)


# ---------------------------------------------------------------- asked to stop


def start_train(home: Path, values: dict[str, Any], name: str = "train") -> "subprocess.Popen[str]":
    settings = [f"--set={key}={json.dumps(value)}" for key, value in values.items()]
    command = [sys.executable, "-m", "gat_sweep.cli", "train", "--recipe", "digits", "--home", str(home)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "--name", name, *settings], **pipes)  # type: ignore[call-overload]


def only_trial(home: Path, name: str = "train") -> Trial:
    """The trial of a run of one, once it has begun."""
    wait_for(lambda: len(list((home / name / "trials").glob("*"))) == 1)
    (folder,) = (home / name / "trials").iterdir()
    wait_for((folder / "journal.jsonl").exists)
    return Trial(folder.name, name, "train", tiny_config(), home)


def saved(trial: Trial, file: str) -> bytes:
    return (trial.folder / file).read_bytes()


def wait_for(what: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.reliability
def test_sigterm_saves_and_ends_with_its_own_code(home: Path, figures: Figures) -> None:
    """SIGTERM in the middle of training: saved, exit 75; the resumed run equals the straight one bit for bit."""
    values = {**TINY, "train.steps": 40, "train.eval_every": 40, "train.log_every": 1}
    config = {key.replace(".", "__"): value for key, value in values.items()}
    straight = tiny_trial(home, "straight", **config)
    train(straight, CPU)

    seconds = []
    process = start_train(home, values)
    cut = only_trial(home)
    wait_for(lambda: b"loss_d" in saved(cut, "journal.jsonl"))
    process.terminate()
    began = time.monotonic()
    out, _ = process.communicate(timeout=60)
    seconds.append(time.monotonic() - began)
    step = saved_step(cut.folder / "checkpoints")
    assert process.returncode == EXIT_STOPPED and 0 < step < 40, out
    assert saved(cut, "journal.jsonl").splitlines()[-1].count(b'"stopped"') == 1

    assert train(Trial(cut.id, cut.run, cut.sweep, straight.config, home), CPU).status == "done"
    assert_same_state(straight, cut, 40)
    assert rows(straight)[-1]["value"] == rows(cut)[-1]["value"]
    figures(terminated=1, saved=1, seconds_to_exit=f"{max(seconds):.1f}", steps_lost=0)


@pytest.mark.slow
@pytest.mark.reliability
def test_a_stop_in_an_evaluation_loses_nothing(home: Path, figures: Figures) -> None:
    """Asked to stop between two chunks of samples of the last evaluation: its step is saved already, and the evaluation
    is made when the trial goes on."""
    values = {"eval__samples": 640}
    straight, cut = tiny_trial(home, "straight", **values), tiny_trial(home, "cut", **values)
    train(straight, CPU)
    asked = [0]

    def stop() -> str:
        asked[0] += saved_step(cut.folder / "checkpoints") == 4
        return "cut" if asked[0] > 3 else ""

    outcome = train(cut, CPU, stop)
    assert (outcome.status, outcome.step, cut.status()) == ("stopped", 4, "running")
    assert [row["step"] for row in rows(cut)] == [2]
    assert train(cut, CPU).status == "done"
    assert_same_state(straight, cut, 4)
    assert [r["value"] for r in rows(straight)] == [r["value"] for r in rows(cut)]
    figures(evaluations_cut=1, steps_lost=0)


@pytest.mark.reliability
def test_a_stop_is_heard_by_all_workers(home: Path, figures: Figures) -> None:
    """A stop file ends a trial within seconds, saved; without it the trial goes on; another trial's does nothing."""
    values = {"train__steps": 10_000, "train__eval_every": 10_000, "workers__hang_minutes": 0.08}
    trial = tiny_trial(home, "stops", **values)
    request_stop(trial.run_folder, "not this one", ("other",))
    request = multiprocessing.get_context("forkserver").Process(target=_stop_later, args=(trial,))
    request.start()
    outcome = train(trial, CPU)
    request.join()
    assert (outcome.status, outcome.reason) == ("stopped", "enough")
    assert 0 < outcome.step == saved_step(trial.folder / "checkpoints")
    clear_stop(trial.run_folder)
    figures(asked=1, stopped_and_saved=1)


def _stop_later(trial: Trial) -> None:
    wait_for(lambda: (trial.folder / "journal.jsonl").exists() and b"loss_d" in saved(trial, "journal.jsonl"))
    request_stop(trial.run_folder, "enough")


# ---------------------------------------------------------------- collapse


def means(loss: float, margin: float) -> dict[str, float]:
    return {"adversarial_d": loss, "logit_real": margin, "logit_fake": 0.0}


def test_a_collapse_takes_several_logs_in_a_row() -> None:
    healthy, wins, same = means(0.6, 0.3), means(0.001, 8.0), means(0.69315, 0.0)
    for bad, words in ((wins, "tells real from fake without effort"), (same, "says the same of real and fake")):
        collapse = Collapse()
        said = [collapse.look(step, healthy if step == 3 else bad) for step in range(4 + WINDOWS)]
        assert not any(said[: 3 + WINDOWS]) and words in said[3 + WINDOWS] and collapse.flag == said[-1]
        assert collapse.look(99, healthy) == "" and collapse.flag  # once, and it stays
    mixed = Collapse()
    assert not any(mixed.look(step, (wins, same)[step % 2]) for step in range(20))
    assert not any(Collapse().look(step, means(0.6931, 0.4)) for step in range(20))


@pytest.mark.reliability
def test_a_collapsed_discriminator_is_flagged(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    """A discriminator whose weights are all zero: said in the journal, flagged on every row behind, and not an error;
    a healthy trial has no flag."""

    def with_dead_discriminator(*args: Any) -> Engine:
        engine = Engine(*args)
        for weight in engine.discriminator.parameters():
            weight.data.zero_()
        return engine

    values = {"train__steps": WINDOWS + 3, "train__eval_every": 4}
    dead = tiny_trial(home, "dead", train__base_lr=1e-20, **values)
    with monkeypatch.context() as patch:
        patch.setattr("gat_sweep.train.loop.Engine", with_dead_discriminator)
        assert train(dead, CPU).status == "done"
    assert [bool(row["flags"]) for row in rows(dead)] == [False, True]
    assert any("discriminator collapsed by step 5" in note for note in notes(dead))
    healthy = tiny_trial(home, "healthy", **values)
    train(healthy, CPU)
    assert not any(row["flags"] for row in rows(healthy))
    figures(collapses=1, flagged=1, healthy=1, flagged_falsely=0)


# ---------------------------------------------------------------- a full disk


@pytest.mark.slow
@pytest.mark.reliability
def test_a_full_disk_stops_the_trial_with_the_reason(tmp_path: Path, figures: Figures) -> None:
    """The disk is full at a checkpoint: the trial stops with the reason; with room again it goes on from the one before
    and equals the straight run bit for bit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        straight = tiny_trial(tmp_path)
        train(straight, CPU)
        trial = tiny_trial(disk)
        ballast = disk / "ballast"

        def fill() -> str:
            if saved_step(trial.folder / "checkpoints") == 2 and not ballast.exists():
                free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                ballast.write_bytes(b"x" * (free - 300_000))
            return ""

        with pytest.raises(Unsaved, match=r"checkpoint of step 4 cannot be written: .*No space left on device"):
            train(trial, CPU, fill)
        assert saved_step(trial.folder / "checkpoints") == 2
        ballast.unlink()
        assert train(trial, CPU).status == "done"
        assert_same_state(straight, trial, 4)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    figures(full_disks=1, went_on=1, differences=0)


def test_two_workers_stop_together(home: Path) -> None:
    """The one that is asked is not the one that writes."""
    trial = tiny_trial(home, workers__count=2, train__steps=50, train__eval_every=50)
    together(trial, home / "store", cut=3)
    assert 3 <= saved_step(trial.folder / "checkpoints") <= 4 and trial.status() == "waiting"
