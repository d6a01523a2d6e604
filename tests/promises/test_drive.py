"""What drives a pack when its workers fail, and the probe of every node; without a cluster."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.trials import rows, save_checkpoint, tiny_trial
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError

from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place
from gat_sweep.launch import driver as launch
from gat_sweep.launch import probe
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import request_stop
from gat_sweep.run.trial import Trial
from gat_sweep.train.loop import train


class Workers:
    """In the place of a Train run: fails with an error on the first trial left, or trains what is left."""

    def __init__(self, fail: Callable[[Trial], Exception | None]):
        self.fail, self.attempts = fail, list[str]()

    def __call__(self, work: object, pack: list[Trial], name: str, count: int) -> "Workers":
        self.pack = list(pack)
        return self

    def fit(self) -> None:
        for trial in self.pack:
            self.attempts.append(trial.id)
            if error := self.fail(trial):
                if isinstance(error, ActorDiedError):  # Ray Train's controller itself
                    raise error
                raise WorkerGroupError(str(error), {0: error})
            train(trial, torch.device("cpu"))


def named(home: Path, name: str) -> Trial:
    trial = tiny_trial(home, train__steps=2)
    return Trial(name, trial.run, trial.sweep, trial.config, home)


def drive(monkeypatch: pytest.MonkeyPatch, pack: list[Trial], fail: Callable[[Trial], Exception | None]) -> list[str]:
    workers = Workers(fail)
    monkeypatch.setattr(launch, "_trainer", workers)
    launch._drive_pack({"pack": pack})
    return workers.attempts


@pytest.mark.reliability
def test_a_trial_that_gets_nowhere_is_given_up(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Any,
) -> None:
    """Three attempts in a row that save nothing are a failure, with the traceback kept; its pack mate is trained.
    A trial that gets further each time, or loses its machine, is tried again as often as it takes; bad input is not."""
    bad, good = named(home, "bad"), named(home, "good")
    died = lambda trial: RuntimeError("the worker died") if trial is bad else None  # noqa: E731
    assert drive(monkeypatch, [bad, good], died) == ["bad"] * launch.TRIES + ["good"]
    assert (bad.status(), good.status()) == ("failed", "done")
    assert rows(bad)[-1]["reason"] == f"RuntimeError: the worker died ({launch.TRIES} attempts)"
    assert "the worker died" in (bad.folder / "failure.txt").read_text()

    further, left = named(home, "further"), [7]

    def unlucky(trial: Trial) -> Exception | None:
        left[0] -= 1
        if left[0] % 2:  # every other time it got further
            folder = trial.folder / "checkpoints"
            save_checkpoint(folder, saved_step(folder) + 1, {}, {})
        if left[0] == 0:
            shutil.rmtree(trial.folder / "checkpoints")  # they hold nothing to train from
            return None
        return RuntimeError("the worker died")

    assert drive(monkeypatch, [further], unlucky) == ["further"] * 7 and further.status() == "done"

    moved, places = named(home, "moved"), [6]

    def preempted(trial: Trial) -> Exception | None:
        places[0] -= 1
        return launch.Preempted("gat_sweep.launch.driver.Preempted: saved") if places[0] else None

    assert drive(monkeypatch, [moved], preempted) == ["moved"] * 6 and moved.status() == "done"

    wrong = named(home, "wrong")
    attempts = drive(monkeypatch, [wrong], lambda trial: UserError("gat_sweep.errors.UserError: no such file"))
    assert attempts == ["wrong"] and rows(wrong)[-1]["reason"] == "UserError: no such file"
    figures(given_up=1, attempts=launch.TRIES, kept_going=2, hopeless_tried_again=0)


def test_a_dead_controller_of_ray_train_is_a_retry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, deaths = named(home, "controlled"), [ActorDiedError()]
    assert drive(monkeypatch, [trial], lambda _: deaths.pop() if deaths else None) == ["controlled"] * 2
    assert trial.status() == "done"
    assert "retry after: " in (trial.folder / "journal.jsonl").read_text()


def test_a_dead_driver_is_said_in_the_journal_of_what_is_left(home: Path) -> None:
    """Tune's own words are a traceback each, on the terminal."""
    done, left = named(home, "done"), named(home, "left")
    train(done, torch.device("cpu"))
    written = (done.folder / "journal.jsonl").read_text()
    pack = SimpleNamespace(config={"pack": [done, left]}, get_pickled_error=lambda: RuntimeError("it died"))
    words = launch._own_words()
    words.on_trial_recover(1, [pack], pack)
    words.on_trial_error(1, [pack], pack)
    notes = [json.loads(line)["note"] for line in (left.folder / "journal.jsonl").read_text().splitlines()]
    assert notes == [
        "its driver is started again after: RuntimeError: it died",
        "its driver ended 4 times, the last time after: RuntimeError: it died",
    ]
    assert (done.folder / "journal.jsonl").read_text() == written


def test_storage_that_takes_no_note_does_not_end_the_launch(home: Path) -> None:
    """Tune calls this in its own loop, where an error would end every pack."""
    trial = named(home, "left")
    trial.folder.parent.mkdir(parents=True)
    trial.folder.write_text("in the way")
    pack = SimpleNamespace(config={"pack": [trial]}, get_pickled_error=lambda: RuntimeError("it died"))
    with pytest.raises(OSError):
        launch.leave_note(trial, "this cannot be written")
    launch._own_words().on_trial_recover(1, [pack], pack)
    launch._own_words().on_trial_error(1, [pack], pack)


def test_a_stop_is_no_failure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = named(home, "stopped")

    def stop(_: Trial) -> Exception:
        request_stop(trial.run_folder, "enough")
        return RuntimeError("torn down")

    assert drive(monkeypatch, [trial], stop) == ["stopped"] and trial.status() == "waiting"


@pytest.mark.reliability
def test_nodes_that_do_not_share_the_home_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Any
) -> None:
    """Before a launch every node writes and reads: one that sees another folder of that name, cannot write, or does not
    answer is named, and nothing is left behind."""

    def nodes(**seen: Callable[[Place], Place | str]) -> Callable[..., dict[str, str]]:
        def on_every_node(function: Callable[..., str], folder: Place, token: str) -> dict[str, str]:
            looks = {node: look(folder) for node, look in seen.items()}
            return {n: look if isinstance(look, str) else function(look, token) for n, look in looks.items()}

        return on_every_node

    def elsewhere(folder: Place) -> Place:
        other = tmp_path / "other" / folder.name
        other.mkdir(parents=True, exist_ok=True)
        (other / "driver").write_text("another token")
        return other

    faults: dict[str, Callable[[Place], Place | str]] = {
        "it sees another folder": elsewhere,
        "FileNotFoundError": lambda folder: tmp_path / "absent" / folder.name,
        "no answer within 60 s": lambda folder: "no answer within 60 s",
    }
    for said, fault in faults.items():
        monkeypatch.setattr(probe.cluster, "on_every_node", nodes(well=lambda folder: folder, ill=fault))
        with pytest.raises(UserError, match=f"1 of 2 nodes cannot use --home .*: ill: {said}"):
            probe.probe_nodes(tmp_path / "home")
    monkeypatch.setattr(probe.cluster, "on_every_node", nodes(well=lambda folder: folder))
    assert probe.probe_nodes(tmp_path / "home").startswith("1 nodes write and read")
    assert list((tmp_path / "home").iterdir()) == []
    figures(faulty_nodes=len(faults), named=len(faults))
