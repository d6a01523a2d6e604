"""Where workers fit, and when a pack may ask for machines (launch/places.py, launch/crowd.py, launch/prepare.py)."""

from pathlib import Path

import pytest
from helpers.trials import tiny_config

from gat_sweep.autoscaler import UNKNOWN, _types
from gat_sweep.cluster import Cluster, Machine
from gat_sweep.config import Elastic, Workers
from gat_sweep.errors import UserError
from gat_sweep.launch.crowd import line
from gat_sweep.launch.packs import Queue, packs
from gat_sweep.launch.places import fits, grown, largest, may_begin, placed, places, shrunk
from gat_sweep.launch.prepare import check_feasible
from gat_sweep.run.trial import Trial

BOX = Machine(8, 4)  # CPUs, GPUs
ONE, FOUR, EIGHT = Workers(gpus=1), Workers(count=4, gpus=1), Workers(count=8, gpus=1)


def test_workers_fit_on_machines_and_not_on_totals() -> None:
    """Four GPUs on one machine are not four on two; ten workers of a tenth of a GPU fit on one."""
    assert fits([FOUR, FOUR], [BOX, BOX]) and not fits([FOUR, FOUR, ONE], [BOX, BOX])
    two = Workers(gpus=2)
    assert not fits([two], [Machine(8, 1), Machine(8, 1)])
    assert fits([ONE, two, ONE], [Machine(8, 2), Machine(8, 2)])  # the largest choose first
    tenth = Workers(cpus=0.1, gpus=0.1)
    assert fits([tenth] * 10, [Machine(1, 1)]) and not fits([tenth] * 11, [Machine(1, 1)])
    assert places(tenth, [Machine(1, 1)]) == 10 and places(Workers(cpus=3), [BOX]) == 2
    assert places(two, [Machine(8, 3), Machine(8, 3)]) == 2 and places(EIGHT, [BOX]) == 0


def test_packs_ask_for_what_fits_or_may_come() -> None:
    fixed = Cluster((BOX,))
    assert may_begin(EIGHT, [], fixed)  # one is always under way, and was checked before
    assert may_begin(ONE, [ONE] * 3, fixed) and not may_begin(ONE, [ONE] * 4, fixed)
    known = Cluster((), "head:6379", grows=True, most=(BOX, BOX))
    assert may_begin(ONE, [ONE] * 7, known) and not may_begin(ONE, [ONE] * 8, known)
    unknown = Cluster((BOX,), "head:6379", grows=True)
    assert may_begin(ONE, [ONE] * 4, unknown)  # the fifth waits, and is what the autoscaler sees
    assert not may_begin(ONE, [ONE] * 5, unknown)
    lost = Cluster((), "head:6379", grows=True)
    assert not may_begin(ONE, [ONE], lost)


@pytest.mark.parametrize(
    ("there", "workers", "words"),
    [
        (Cluster((BOX,)), EIGHT, r"asks for 8 GPUs \(8 workers\), the cluster has 4"),
        (Cluster((), "h:1", grows=True, most=(BOX,)), EIGHT, r"asks for 8 GPUs \(8 workers\), the cluster grows to 4"),
        (Cluster((), "h:1"), ONE, r"asks for 1 CPUs \(1 workers\), the cluster has 0"),
        (Cluster((BOX, BOX)), Workers(gpus=8), r"asks for 8 GPUs in one worker, no machine .* more than 4"),
        (Cluster((Machine(3, 0),) * 4), Workers(count=6, cpus=2), r"6 workers of 2 CPUs .* has room for 4; lower"),
    ],
)
def test_what_no_machine_can_hold_is_refused(there: Cluster, workers: Workers, words: str) -> None:
    config = tiny_config().model_copy(update={"workers": workers})
    with pytest.raises(UserError, match=words):
        check_feasible({"trial": config}, there)


def test_what_may_come_is_not_refused() -> None:
    config = tiny_config().model_copy(update={"workers": EIGHT})
    check_feasible({"trial": config}, Cluster((), "h:1", grows=True, most=(BOX, BOX)))
    check_feasible({"trial": config}, Cluster((), "h:1", grows=True))  # how far is not known here


def test_the_line_says_who_waits_for_what() -> None:
    there = Cluster((BOX, BOX), "h:1", grows=True, most=(BOX,) * 16)
    under_way, waiting = [(FOUR, 1), (EIGHT, 1), (FOUR, 1)], [(EIGHT, 1), (ONE, 9)]
    assert line(under_way, waiting, there) == (
        "2 at work, 11 wait for 8 GPUs each; the cluster has 8 of at most 64 GPUs on 2 machines"
    )
    assert line([(ONE, 3)], [], Cluster((BOX,), "h:1")) == "1 at work; the cluster has 4 GPUs on 1 machine"
    assert line([(Workers(), 2)], [], Cluster((), "h:1", grows=True)) == (
        "0 at work, 2 wait for 1 CPUs each; the cluster has 0 CPUs on 0 machines"
    )


def test_nobody_overtakes_the_first_pack() -> None:
    """A stream of small packs would keep a large one waiting for ever."""

    def planted(name: str, steps: int, workers: Workers) -> Trial:
        config = tiny_config(train__steps=steps).model_copy(update={"workers": workers})
        return Trial(name, "run", "sweep", config, Path("/nowhere"))

    queue = Queue([planted("large", 90, FOUR), planted("a", 20, ONE), planted("b", 10, ONE)], slots=2)
    there = Cluster((BOX,))

    def begin(new: Workers, others: list[Workers], waiting: list[Workers]) -> Workers | None:
        return new if may_begin(new, others, there) else None

    first = queue.take("1", begin)
    assert first is not None and first.pack[0].id == "large"
    assert queue.take("2", begin) is None
    queue.ended("1")
    taken = [queue.take(str(i), begin) for i in (2, 3)]
    assert [[trial.id for trial in group.pack] for group in taken if group] == [["a"], ["b"]]


SOME = Workers(count=Elastic(min=2, max=8), gpus=1)


def test_an_elastic_group_begins_with_what_is_left() -> None:
    """It leaves their places to the groups under way and the least to those that wait; it never begins with less than
    its own least, and then waits for it."""
    assert largest(SOME, [], [BOX, BOX]) == 8 and largest(SOME, [], [BOX]) == 4
    assert largest(SOME, [ONE], [BOX, BOX]) == 7
    assert largest(SOME, [SOME, FOUR], [BOX, BOX]) == 2  # 8 places, of which 2 and 4 belong to others
    assert largest(SOME, [EIGHT], [BOX, BOX]) == 2  # there is no room at all
    two = Workers(count=Elastic(min=1, max=4), gpus=2)
    assert largest(two, [], [Machine(8, 3), Machine(8, 3)]) == 2  # three GPUs hold one worker of two
    assert fits([SOME] * 4, [BOX, BOX]) and not fits([SOME] * 5, [BOX, BOX]) and places(SOME, [BOX]) == 2


def test_elastic_groups_take_what_is_free_in_turn() -> None:
    assert grown([(SOME, 2)], [BOX]) == [6] and grown([(SOME, 2)], [BOX, BOX]) == [8]
    assert grown([(SOME, 2), (SOME, 2)], [Machine(8, 5)]) == [5, 4]
    assert grown([(SOME, 7), (SOME, 2)], [Machine(8, 4)]) == [8, 5]  # the first has all that it may have
    two = Workers(count=Elastic(min=1, max=4), gpus=2)
    assert grown([(two, 1), (SOME, 2)], [Machine(8, 1)]) == [1, 3]  # one GPU is no place for a worker of two
    assert grown([(SOME, 2)], []) == [2] and grown([], [BOX]) == []


def test_elastic_groups_make_room_for_those_that_wait_and_for_nobody_else() -> None:
    machines = [BOX, BOX]
    assert shrunk([(SOME, 8)], [ONE], machines) == [7]
    assert shrunk([(SOME, 8)], [SOME, ONE], machines) == [5]
    assert shrunk([(SOME, 5), (SOME, 3)], [FOUR], machines) == [2, 2]  # most beyond its least gives first
    assert shrunk([(SOME, 4), (FOUR, 4)], [ONE], machines) == [3, 4]  # who is not elastic keeps its workers
    assert shrunk([(SOME, 6)], [ONE, ONE], machines) == [6]  # there is room
    assert shrunk([(SOME, 8)], [EIGHT, ONE], machines) == [8]  # no use: 8 would not fit, and nobody overtakes it
    assert shrunk([(SOME, 8), (FOUR, 4)], [], machines) == [4, 4]  # one under way has lost its machine
    assert placed([SOME.of(3), ONE], machines) == [Machine(4, 0), Machine(8, 4)]


def test_packs_are_short_where_machines_may_join() -> None:
    trials = [Trial(f"{i}", "r", "s", tiny_config(train__steps=10), Path("/nowhere")) for i in range(12)]
    (whole,) = packs(trials, 1)
    assert len(whole) == 12
    each = 10 * 1.5e9  # as packs.py counts: launching dominates a small step
    assert [len(pack) for pack in packs(trials, 1, most=3.5 * each)] == [3, 3, 3, 3]
    assert len(packs(trials, 6, most=3.5 * each)) == 6


def test_limits_are_those_of_the_cluster_file() -> None:
    """The head is not a worker. A type has at most as many machines as the whole. What is left out is unknown."""
    types = {
        "head": {"resources": {"CPU": 0}},
        "gpu": {"resources": {"CPU": 8, "GPU": 4}, "max_workers": 9},
        "cpu": {"resources": {"CPU": 16}, "max_workers": 2},
        "aws": {"resources": {}},
    }
    config = {"max_workers": 4, "head_node_type": "head", "available_node_types": types}
    assert _types(config) == [(8, 4, 4), (16, 0, 2), (UNKNOWN, UNKNOWN, 4)]
