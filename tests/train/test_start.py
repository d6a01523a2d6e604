"""Trials that start from another trial's checkpoint: exactness, what may change, and the order they run in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trials import CPU, assert_same_state, rows, tensors, tiny_config, tiny_trial

from gat_sweep.compute import iteration_flops
from gat_sweep.config import Start
from gat_sweep.errors import UserError
from gat_sweep.launch.packs import Queue, generations
from gat_sweep.run.journal import read_records
from gat_sweep.run.saved import saved_step
from gat_sweep.run.trial import Trial
from gat_sweep.train.loop import train


def later(first: Trial, name: str, **overrides: Any) -> Trial:
    """A trial of the same run that goes on from the end of another."""
    config = tiny_config(**overrides)
    start = Start(trial=first.id, step=first.config.train.steps)
    return Trial(name, first.run, first.sweep, config.model_copy(update={"start": start}), first.home)


def test_a_trial_that_goes_on_unchanged_equals_one_trained_through(home: Path, trained_copy: Trial) -> None:
    """Bit for bit: networks, EMA, optimizers, running mean of w, counters; and the rows from there on."""
    straight, first = tiny_trial(home, "straight", train__steps=8), trained_copy
    second = later(first, "second", train__steps=8)
    for trial in (straight, second):
        assert train(trial, CPU).status == "done"
    assert_same_state(straight, second, 8)
    same = ["step", "value", "images", "flops", "n"]
    assert [[r[k] for k in same] for r in rows(second)] == [[r[k] for k in same] for r in rows(straight)[1:]]
    notes = [record["note"] for _, record in read_records(second.folder) if "note" in record]
    assert notes == ["starts from step 4 of trial"]
    assert second.config.digest() != straight.config.digest()


def test_one_that_is_cut_goes_on_from_its_own_checkpoint(trained_copy: Trial) -> None:
    first = trained_copy
    whole, cut = (later(first, name, train__steps=8, objective__gp_weight=1.0) for name in ("whole", "cut"))
    train(whole, CPU)
    asked = iter([""] * 2)  # it is asked before each step, and during evaluations
    stopped = train(cut, CPU, lambda: next(asked, "enough"))
    assert 4 < stopped.step < 8 and saved_step(cut.folder / "checkpoints") == stopped.step
    train(cut, CPU)
    assert_same_state(whole, cut, 8)
    assert not torch.equal(tensors(whole, 8)["generator/style_mean"], tensors(first, 4)["generator/style_mean"])


def test_alignment_may_end(home: Path) -> None:
    """D goes on without its projector, with all other weights and moments; compute counts what each part cost."""
    first = tiny_trial(home, objective__align_weight=1.0, teacher__cached=False, train__steps=2)
    second = later(first, "second", train__steps=4, teacher__cached=False)
    train(first, CPU)
    train(second, CPU)
    before, after = tensors(first, 2), tensors(second, 4)
    gone = {name for name in before if name.startswith(("discriminator/projector.", "optimizer_d/projector."))}
    assert before.keys() - after.keys() == gone and len(gone) == 6 + 6 * 3 and after.keys() <= before.keys()
    per_image = [sum(iteration_flops(trial.config).values()) for trial in (first, second)]
    assert per_image[0] > per_image[1]
    assert rows(second)[-1]["flops"] == 16 * sum(per_image) and rows(second)[-1]["images"] == 32


def test_what_it_starts_from_has_to_be_there(home: Path) -> None:
    second = later(tiny_trial(home), "second", train__steps=8)
    with pytest.raises(UserError, match=r"cannot start from step 4 of trial trial: .* is missing"):
        train(second, CPU)
    assert second.status() == "waiting" and second.start_status() == "waiting"


def test_trials_run_behind_those_that_they_start_from() -> None:
    """Packs of one generation; a pack is given out once nothing it starts from is queued or under way."""

    def planted(name: str, after: str | None, **overrides: Any) -> Trial:
        config = tiny_config(**overrides)
        start = Start(trial=after, step=4) if after else None
        return Trial(name, "run", "sweep", config.model_copy(update={"start": start}), Path("/nowhere"))

    big = {"train__steps": 9, "workers__count": 2}  # a pack of its own
    first, other = planted("first", None, **big), planted("other", None, **big)
    second, third = planted("second", "first", **big), planted("third", "second", **big)
    elsewhere = planted("elsewhere", "finished before", **big)
    trials = [first, other, second, third, elsewhere]
    assert [[t.id for t in g] for g in generations(trials)] == [["first", "other", "elsewhere"], ["second"], ["third"]]

    queue, order = Queue(trials, slots=2), []
    for number in range(3):
        group = queue.take(str(number))
        assert group is not None
        order.append(group.pack[0].id)
    assert sorted(order) == ["elsewhere", "first", "other"] and queue.take("3") is None
    queue.ended(str(order.index("other")))
    assert queue.take("3") is None
    queue.ended(str(order.index("first")))
    next_one = queue.take("3")
    assert next_one is not None and next_one.pack == [second] and queue.take("4") is None
    queue.ended("3")
    last = queue.take("4")
    assert last is not None and last.pack == [third] and queue.waiting == []

    small = [planted("a", None), planted("b", "a", train__steps=8), planted("c", None)]
    assert [[t.id for t in pack] for pack in Queue(small, slots=1).waiting] == [["a", "c"], ["b"]]
