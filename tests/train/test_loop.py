"""The training loop without Ray: a pulse end to end, determinism, resume, divergence, two workers."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.pictures import encoded_pixels
from helpers.trials import CPU, assert_same_state, rows, tiny_config, tiny_trial

from gat_sweep.errors import UserError
from gat_sweep.gat import flops
from gat_sweep.metrics import evaluator as evaluate
from gat_sweep.run.checkpoint import step_checkpoint
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.train import engine
from gat_sweep.train.loop import train
from gat_sweep.train.recorder import record_failure


def test_a_pulse_leaves_everything_it_promises(trained: Trial) -> None:
    trial = trained
    assert trial.status() == "done"
    first, last = rows(trial)
    assert (first["step"], first["status"], last["step"], last["status"]) == (2, "running", 4, "done")
    assert last["metric"] == "fd_efficientnet_lite0" and 0 < last["value"] < float("inf")
    assert (last["images"], last["n"], last["seed"]) == (32, 64, 0)
    config = trial.config
    per_image = sum(flops.iteration(config.generator_spec, config.discriminator_spec).values())
    assert last["flops"] == per_image * 32 and sum(json.loads(last["flops_per_image"]).values()) == per_image
    assert json.loads(last["config"]) == config.identity() and last["config_hash"] == config.digest()
    assert last["reference"].startswith("digits:1797:") and json.loads(last["protocol"])["n"] == 64
    assert sorted(p.name for p in (trial.folder / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]
    journal = [json.loads(line) for line in (trial.folder / "journal.jsonl").read_text().splitlines()]
    assert journal[0]["status"] == "running" and journal[-1]["status"] == "done"
    assert [j["step"] for j in journal if "loss_d" in j.get("metrics", {})] == [1, 2, 3, 4]


def test_training_is_deterministic_and_the_seed_matters(home: Path, trained: Trial) -> None:
    a, b, c = trained, tiny_trial(home, "b", seed=0), tiny_trial(home, "c", seed=1)
    for trial in (b, c):
        train(trial, CPU)
    assert_same_state(a, b, 4)
    assert [r["value"] for r in rows(a)] == [r["value"] for r in rows(b)] != [r["value"] for r in rows(c)]


def test_a_cut_run_continues_bit_for_bit(home: Path, trained: Trial) -> None:
    """Stopped once the checkpoint of step 2 is on disk, and killed so that a line was half-written.

    The checkpoint is written beside the evaluation of step 2, so the stop comes in it or one step later."""
    straight, cut = trained, tiny_trial(home, "cut")
    outcome = train(cut, CPU, lambda: "enough" if (cut.folder / "checkpoints" / "latest.json").exists() else "")
    assert (outcome.status, outcome.reason) == ("stopped", "enough") and outcome.step in (2, 3)
    with open(cut.folder / "journal.jsonl", "a") as journal:
        journal.write('{"step": 3, "metr')
    assert train(cut, CPU).status == "done"
    assert_same_state(straight, cut, 4)
    same = ["step", "value", "status", "flops", "images"]
    assert [[r[k] for k in same] for r in rows(straight)] == [[r[k] for k in same] for r in rows(cut)]


def test_rows_after_the_checkpoint_are_not_counted_twice(trained_copy: Trial) -> None:
    """Killed between the row of step 4 and its checkpoint: step 4 is evaluated again, and stands once."""
    trial = trained_copy
    shutil.rmtree(trial.folder / "checkpoints" / "step_00000004")
    train(trial, CPU)
    assert [(r["step"], r["status"]) for r in rows(trial)] == [(2, "running"), (4, "done")]


def test_a_non_finite_gradient_stops_the_trial_before_the_update(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found at the next look, two steps late, and reported where it was."""
    trial = tiny_trial(home, train__steps=8, train__log_every=3)
    real_losses = engine.discriminator_losses
    calls = []

    def poisoned(*args: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        terms = real_losses(*args)
        return terms | {"loss_d": terms["loss_d"] * float("nan")} if len(calls) == 4 else terms

    monkeypatch.setattr(engine, "discriminator_losses", poisoned)
    outcome = train(trial, CPU)
    assert (outcome.status, outcome.step) == ("diverged", 3)
    assert "gradient norm of D is nan at step 3" in outcome.reason
    first, last = rows(trial)
    assert (first["step"], first["status"]) == (2, "running") and first["value"] is not None
    assert (last["step"], last["status"], last["value"]) == (3, "diverged", None)
    assert not (trial.folder / "checkpoints" / "step_00000003").exists()


@pytest.mark.reliability
def test_a_trial_without_a_number_at_its_end_is_not_done(
    home: Path, monkeypatch: pytest.MonkeyPatch, figures: Any
) -> None:
    """All steps trained, but the last distance is not a number: `failed`, with the reason; measured again it is done.
    Rows that claim to be done short of their steps, or without a number, do not count."""
    trial = tiny_trial(home)
    real_measure = evaluate.measure_features

    def poisoned(*args: Any) -> dict[str, float | None]:
        return real_measure(*args) | {"value": float("nan")}

    monkeypatch.setattr(evaluate, "measure_features", poisoned)
    outcome = train(trial, CPU)
    assert (outcome.status, outcome.step) == ("failed", 4) and "is nan after the last step" in outcome.reason
    assert trial.status() == "failed"
    monkeypatch.undo()
    assert train(trial, CPU).status == "done" == trial.status()

    table = RunTable(trial.table, {})
    whole = table.rows
    broken = [
        {**whole[-1], "step": 3},
        {**whole[-1], "value": None},
        {**whole[-1], "value": float("inf")},
        {**whole[-1], "status": "running"},
    ]
    for row in broken:
        table.rows = [whole[0], row]
        table.put(row["step"])
        assert trial.status() == "running"
    figures(broken_ends=len(broken) + 1, counted_as_done=0)


def test_a_failed_trial_leaves_a_row_that_says_so(home: Path) -> None:
    trial = tiny_trial(home)
    record_failure(trial, "out of memory")
    (row,) = rows(trial)
    assert (row["status"], row["reason"], row["value"], row["generator_size"]) == ("failed", "out of memory", None, "S")


@pytest.mark.parametrize(
    "overrides",
    [
        {"mng__schedule": "none"},
        {"mng__schedule": "msg"},
        {"mng__schedule": "linear"},
        {"mng__mixing": "official", "objective__gp_weight": 0.05},
        {"data__classes": 0},
        {"model__patch": 4, "model__generator": "B"},
        {"train__precision": "bfloat16", "objective__penalty_precision": "tf32"},
    ],
)
def test_every_variant_trains(home: Path, overrides: dict[str, Any]) -> None:
    trial = tiny_trial(home, train__steps=2, **overrides)
    assert train(trial, CPU).status == "done"


def test_the_journal_says_how_much_of_a_penalty_is_rounding(home: Path) -> None:
    low = tiny_trial(home, "low", train__steps=2, train__precision="bfloat16")
    exact = tiny_trial(home, "exact", train__steps=2)
    for trial, steps in ((low, [1, 2]), (exact, [])):
        assert train(trial, CPU).status == "done"
        lines = [json.loads(line) for line in (trial.folder / "journal.jsonl").read_text().splitlines()]
        shares = {
            line["step"]: line["metrics"]["penalty_rounding"] for line in lines if "penalty_rounding" in str(line)
        }
        assert list(shares) == steps and all(0 < share < 1 for share in shares.values())


# ---------------------------------------------------------------- two workers


def _worker(rank: int, world: int, trial: Trial, file: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    train(trial, CPU)
    dist.destroy_process_group()


@pytest.mark.slow  # its parts are in the default suite: the step, the evaluation, and a Ray trial on two workers
def test_two_workers_give_the_number_that_one_gives(home: Path, tmp_path: Path) -> None:
    """Two processes train one model; the evaluation of its weights equals that of one worker."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    context = multiprocessing.get_context("forkserver")
    trial = tiny_trial(home, workers__count=2)
    workers = [context.Process(target=_worker, args=(rank, 2, trial, tmp_path / "store")) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert [(r["step"], r["images"], r["status"]) for r in rows(trial)] == [(2, 16, "running"), (4, 32, "done")]

    from gat_sweep.data.dataset import load_dataset
    from gat_sweep.gat.generator import Generator
    from gat_sweep.metrics.evaluator import Evaluator

    config = tiny_config()
    ema = Generator(config.generator_spec)
    ema.load_state_dict(step_checkpoint(trial.folder / "checkpoints", 4).part("ema"))
    alone = Evaluator(config, load_dataset(config.data), home, CPU, 0, 1).measure(ema)
    assert alone.value == rows(trial)[-1]["value"]


# ---------------------------------------------------------------- encoded photographs


def photograph_trial(home: Path, folder: Path, name: str, **overrides: Any) -> Trial:
    data = {"dataset": "encoded", "path": str(folder), "side": 8, "channels": 3, "classes": 2}
    return tiny_trial(home, name, data=data, teacher=TEACHER, **{"objective__align_weight": 1.0, **overrides})


TEACHER = {"name": "efficientnet_lite0", "width": 1280}


def losses(trial: Trial) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (trial.folder / "journal.jsonl").read_text().splitlines()]
    return [r["metrics"] for r in records if "loss_d" in r.get("metrics", {})]


def test_photographs_with_a_teacher_online_and_cached(tmp_path: Path) -> None:
    """On pictures that are not moved both teachers say the same, up to float16; and both give D the alignment term."""
    encoded_pixels(tmp_path / "data", count=40, side=8, grid=4)
    still = {"augment__translation": 0, "augment__flip": 0, "train__steps": 2, "eval__samples": 40}
    online = photograph_trial(tmp_path, tmp_path / "data", "online", **still)
    cached = photograph_trial(tmp_path, tmp_path / "data", "cached", teacher__cached=True, **still)
    without = photograph_trial(tmp_path, tmp_path / "data", "without", objective__align_weight=0, **still)
    for trial in (online, cached, without):
        assert train(trial, CPU).status == "done"
    a, b, c = (losses(trial)[0] for trial in (online, cached, without))
    assert a["alignment"] == pytest.approx(b["alignment"], abs=1e-3) and 0.5 < a["alignment"] < 1.5
    penalties = online.config.objective.gp_weight * (a["penalty_real"] + a["penalty_fake"])
    assert a["loss_d"] == pytest.approx(a["adversarial_d"] + penalties + a["alignment"], rel=1e-5)
    assert "alignment" not in c
    assert json.loads(rows(online)[-1]["flops_per_image"])["teacher_forward"] > 7e8
    assert "teacher_forward" not in json.loads(rows(cached)[-1]["flops_per_image"])
    reference = rows(online)[-1]["reference"]
    assert reference.startswith("photographs:40:") and json.loads(rows(online)[-1]["protocol"])["tokenizer"] == "pixels"


def test_another_data_set_is_no_continuation(tmp_path: Path) -> None:
    encoded_pixels(tmp_path / "data", count=40, side=8)
    encoded_pixels(tmp_path / "other", count=41, side=8)
    short = {"train__steps": 2, "train__eval_every": 1, "eval__samples": 40, "objective__align_weight": 0}
    begun = photograph_trial(tmp_path, tmp_path / "data", "run", **short)
    calls = iter(["", "", "enough", "enough"])
    assert train(begun, CPU, lambda: next(calls)).status == "stopped"
    with pytest.raises(UserError, match=r"set data\.path to the data it was trained on"):
        train(photograph_trial(tmp_path, tmp_path / "other", "run", **short), CPU)
    shutil.move(tmp_path / "data", tmp_path / "moved")  # its place is not part of its identity
    assert train(photograph_trial(tmp_path, tmp_path / "moved", "run", **short), CPU).status == "done"
