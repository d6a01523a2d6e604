"""Processes that a killed command left behind: which are ended, and which are not touched."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from gat_sweep.leftovers import FILE, end_leftovers, signed

HOLDS = "import sys, time; file = open(sys.argv[1], 'w'); print('open', flush=True); time.sleep(100)"


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """A process with a log open in a session's folder, as every process of Ray has, and that folder."""
    session = tmp_path / "session_2026-01-01_00-00-00_000000_1"
    (session / "logs").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", HOLDS, session / "logs" / "raylet.out"], stdout=-1) as process:
        assert process.stdout and process.stdout.readline() == b"open\n"
        yield process, session
        process.kill()


def starter(session: Path, **changed: Any) -> None:
    with signed(session):
        written = json.loads((session / FILE).read_text())
    (session / FILE).write_text(json.dumps({**written, **changed}))


@pytest.mark.parametrize("changed", [{"pid": 2**22 + 1}, {"started": 1.0}])
def test_what_a_killed_command_left_is_ended(holder: Any, changed: dict[str, Any]) -> None:
    """Its process is gone, or its number belongs to a later one."""
    process, session = holder
    starter(session, **changed)
    said: list[str] = []
    end_leftovers(session.parent, said.append)
    assert not psutil.pid_exists(process.pid) and not (session / FILE).exists()
    (line,) = said
    assert line.startswith("ended 1 process of Ray that a killed command (pid ")
    end_leftovers(session.parent, said.append)
    assert len(said) == 1


def test_a_living_command_and_one_of_another_machine_keep_theirs(holder: Any) -> None:
    process, session = holder
    for changed in ({}, {"host": "elsewhere", "pid": 2**22 + 1}):
        starter(session, **changed)
        end_leftovers(session.parent, pytest.fail)
        assert process.poll() is None and (session / FILE).exists()


def test_an_ended_command_leaves_no_sign(holder: Any) -> None:
    process, session = holder
    with signed(session):
        assert json.loads((session / FILE).read_text())["pid"] == psutil.Process().pid
    assert not (session / FILE).exists()
    end_leftovers(session.parent, pytest.fail)
    assert process.poll() is None
