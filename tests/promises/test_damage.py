"""Every file of a run emptied, cut, altered, replaced by a folder or by a link to itself: one line, or an answer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.planted_run import train
from helpers.processes import Gat
from helpers.trials import tiny_config

from gat_sweep.monitor.budget import Budget, kept
from gat_sweep.run.record import open_run, run_trials
from gat_sweep.run.stop import request_stop
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep
from gat_sweep.train.recorder import write_config

SIZES = ("S", "B", "L", "XL")


def altered(at: float, by: bytes) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = file.read_bytes()
        place = int(at * len(content))
        file.write_bytes(content[:place] + by + content[place + 1 :])

    return damage


def made_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def made_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2]),
    "a list": lambda file: file.write_bytes(b"[3]\n"),
    "another object": lambda file: file.write_bytes(b'{"a": null}\n'),
    "no text": altered(0.5, b"\xff"),
    "a brace": altered(0.3, b"}"),
    "a folder": made_folder,
    "a loop of links": made_loop,
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A run of four sizes as training would leave it, another run beside it, and the small files that commands read."""
    home = tmp_path / "runs"
    for name in ("damaged", "whole"):
        configs = {s: tiny_config(model__generator=s, model__discriminator=s, train__steps=40) for s in SIZES}
        open_run(home, name, Sweep("widths", "about", "digits", configs))
        for size, config in configs.items():
            trial = Trial(size, name, "widths", config, home)
            write_config(trial)
            train(trial)
    run = home / "damaged"
    kept(run, Budget(1e30, 1e9))
    request_stop(run, "a test", ("S",))
    (run / "mlflow.json").write_text(json.dumps({"uri": f"sqlite:///{home}/mlflow.db", "run_id": "0" * 32}))
    alive = run / "trials" / "S" / "alive"
    alive.mkdir()
    sign = {"rank": 0, "pid": 1, "host": "elsewhere", "phase": "step", "step": 3, "count": 9, "ended": False}
    (alive / "rank-000.json").write_text(json.dumps({**sign, "time": 1.0}))
    return home


COMMANDS = [("status",), ("status", "damaged"), ("logs", "damaged"), ("stop", "damaged"), ("fit-law", "damaged")]
FILES = [
    "run.json",
    "budget.json",
    "stop.json",
    "mlflow.json",
    "trials/S/alive/rank-000.json",
    "trials/S/journal.jsonl",
    "table/S.parquet",
]


@pytest.mark.filterwarnings("ignore:Matplotlib")
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_in_one_line(home: Path, gat: Gat, name: str) -> None:
    """Nothing else of the home changes but what the command makes; other runs are shown all the same."""
    trouble = []
    for damage, damaged in DAMAGES.items():
        for command in COMMANDS:
            copy = home.parent / "copy"
            shutil.copytree(home, copy, symlinks=True)
            damaged(copy / "damaged" / name)
            code, out, err = gat(*command, "--home", copy)
            lines = [line for line in err.splitlines() if line.startswith("gat-sweep: ")]
            if code not in (0, 2) or "Traceback" in out + err or (code == 2) != (len(lines) == 1):
                trouble.append((damage, command, code, err))
            if code == 2 and name.rsplit("/", 1)[-1] not in err:
                trouble.append((damage, command, "does not name the file", err))
            if command == ("status",) and "whole: 4 done" not in out:
                trouble.append((damage, command, "hides the other run", out + err))
            shutil.rmtree(copy)
    assert not trouble, "\n".join(map(str, trouble))


def test_a_lost_record_is_made_again_by_the_same_command(home: Path) -> None:
    """run.json holds nothing that the sweep does not say: without it, the trials' rows are still there."""
    before = {trial.id: trial.status() for trial in run_trials(home, "whole")}
    configs = {trial.id: trial.config for trial in run_trials(home, "whole")}
    (home / "whole" / "run.json").unlink()
    open_run(home, "whole", Sweep("widths", "about", "digits", configs))
    assert {trial.id: trial.status() for trial in run_trials(home, "whole")} == before == dict.fromkeys(SIZES, "done")
