"""Elastic trials on a cluster that is planted look by look: when they are told to go on with another number."""

import time
from pathlib import Path

import pytest
from helpers.trials import tiny_config

from gat_sweep.cluster import Cluster, Machine
from gat_sweep.config import Elastic, Workers
from gat_sweep.launch import crowd as module
from gat_sweep.launch import driver
from gat_sweep.launch.crowd import Crowd
from gat_sweep.launch.packs import Queue
from gat_sweep.run.trial import Trial
from gat_sweep.run.workers import ask_workers, asked_workers, resize_reason

SOME, FOUR = Workers(count=Elastic(min=2, max=8), gpus=1), Workers(count=4, gpus=1)
BOX = Machine(8, 4)


class Held:
    """Stands for Demand: remembers what is asked for; `held` places have come."""

    def __init__(self) -> None:
        self.asked: list[Workers] = []
        self.places: list[Workers] = []

    def held(self) -> list[Workers]:
        return self.places

    def ask(self, wanted: list[Workers]) -> None:
        self.asked = wanted


class Scene:
    """A launch of some trials, a clock, and what the cluster looks like."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, *workers: Workers):
        self.trials = [
            Trial(f"t{i}", "run", "sweep", tiny_config(train__steps=90 - i).model_copy(update={"workers": each}), home)
            for i, each in enumerate(workers)
        ]
        self.now, self.cluster = time.monotonic(), Cluster((), "head:6379")
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.queue = Queue(self.trials, slots=1)
        self.crowd = Crowd(home / "run", self.cluster, self.queue)
        self.demand = Held()
        self.crowd._demand = self.demand  # type: ignore[assignment]

    def begin(self) -> list[int]:
        """Numbers of workers of the packs that may begin now."""
        counts = []
        while group := self.queue.take(str(len(self.queue.under_way)), self.crowd.begin):
            counts.append(group.workers.least)
            if group.pack[0].config.workers.elastic:
                ask_workers(group.pack[0].folder, group.workers.least)
        return counts

    def sees(self, machines: int, free: int, most: int | None = None, grows: bool = False) -> None:
        """Boxes of four GPUs that are up, GPUs that nobody uses, and boxes that may be up."""
        limits = None if most is None else (BOX,) * most
        self.cluster = Cluster((BOX,) * machines, "head:6379", True, grows, limits, (Machine(free, free),))
        self.crowd.there = self.cluster

    def look(self, seconds: float = 5.0) -> list[int]:
        """One more look; the numbers of workers that the trials are asked to go on with."""
        self.now += seconds
        self.crowd._resize()
        return [asked_workers(trial) for trial in self.trials]


def test_it_begins_with_what_is_free_and_leaves_the_least_to_those_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, SOME, SOME)
    scene.sees(machines=2, free=8)
    assert scene.begin() == [6, 2]
    other = Scene(tmp_path, monkeypatch, SOME)
    other.sees(machines=2, free=3)  # another launch uses five
    assert other.begin() == [3]
    late = Scene(tmp_path, monkeypatch, SOME)
    late.sees(machines=0, free=0, most=2, grows=True)
    assert late.begin() == [2]  # asks for its least, which the autoscaler sees


def test_it_takes_what_stays_free_but_not_at_every_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, SOME)
    scene.sees(machines=1, free=4)
    assert scene.begin() == [4]
    scene.sees(machines=2, free=4)
    assert scene.look(module.REST) == [4]  # free for a moment only
    assert scene.look(5.0) == [4]
    assert scene.look(module.SETTLE) == [8]
    assert resize_reason(scene.trials[0], 4) == "goes on with 8 workers instead of 4"
    assert resize_reason(scene.trials[0], 8) == ""
    ask_workers(scene.trials[0].folder, 3)  # its driver found no room for more
    assert scene.look(module.SETTLE) == [3] and scene.look(module.SETTLE) == [3]  # it has begun a moment ago
    assert scene.look(module.REST) == [7]  # of 4 free ones, as another launch uses one


def test_places_of_those_that_are_about_to_begin_are_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sees the four as free until the workers of the second trial have started."""
    scene = Scene(tmp_path, monkeypatch, SOME, FOUR)
    scene.sees(machines=2, free=8)
    assert scene.begin() == [4, 4]
    scene.look(module.REST)
    assert scene.look(module.SETTLE) == [4, 4]


def test_it_makes_room_for_those_that_wait_unless_machines_may_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, SOME, FOUR)
    scene.queue.waiting, held_back = scene.queue.waiting[:1], scene.queue.waiting[1:]
    scene.sees(machines=2, free=8)
    assert scene.begin() == [8]
    scene.queue.waiting = held_back  # a trial that starts from another becomes ready
    scene.sees(machines=2, free=0, most=3, grows=True)
    assert scene.look() == [8, 4]  # the autoscaler brings a third box
    scene.sees(machines=2, free=0, grows=True)
    assert scene.look() == [8, 4]  # or may bring one
    scene.sees(machines=2, free=0)
    assert scene.look() == [4, 4] and scene.begin() == [4]


def test_it_makes_room_for_a_trial_that_lost_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, SOME, FOUR)
    scene.sees(machines=3, free=12)
    assert scene.begin() == [8, 4]
    scene.sees(machines=2, free=0)
    assert scene.look() == [4, 4]


def test_the_autoscaler_is_asked_for_what_it_could_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the cluster may grow; what comes is held until the trial takes it, and then given back."""
    scene = Scene(tmp_path, monkeypatch, SOME)
    scene.sees(machines=1, free=4, most=2, grows=True)
    assert scene.begin() == [4]
    scene.sees(machines=1, free=0, most=2, grows=True)
    scene.look()
    assert scene.demand.asked == [SOME.of(1)] * 4
    scene.demand.places = [SOME.of(1)] * 3
    scene.sees(machines=2, free=1, most=2, grows=True)
    assert scene.look(module.REST) == [4] and scene.demand.asked == [SOME.of(1)] * 3
    assert scene.look(module.SETTLE) == [8] and scene.demand.asked == []
    scene.demand.places = []
    scene.sees(machines=2, free=0, most=2, grows=True)
    scene.look()
    assert scene.demand.asked == []  # it has all that it may have


def test_a_trial_that_lost_workers_asks_for_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its least if there is less, and never more than before: more would need a look at those that wait."""
    scene = Scene(tmp_path, monkeypatch, SOME)
    (trial,), left = scene.trials, [0]
    monkeypatch.setattr(driver, "look", lambda: Cluster((), free=(Machine(left[0], left[0]),)))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    ask_workers(trial.folder, 6)
    for left[0], expected in [(9, 6), (5, 5), (1, 2), (4, 2)]:
        driver._ask_what_fits(trial)
        assert asked_workers(trial) == expected
