"""Processes that a killed command left behind: which are ended, and which are not touched."""

import os
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


def test_what_a_killed_command_left_is_ended(holder: Any) -> None:
    process, session = holder
    command = "import sys, time; from pathlib import Path; from gat_sweep.leftovers import signed\n"
    command += "with signed(Path(sys.argv[1])): print('signed', flush=True); time.sleep(100)"
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", command, session], stdout=-1) as starter:
        assert starter.stdout and starter.stdout.readline() == b"signed\n"
        end_leftovers(session.parent, pytest.fail)
        assert process.poll() is None
        starter.kill()
        starter.wait()
        end_leftovers(session.parent, said.append)
    assert not psutil.pid_exists(process.pid) and not (session / FILE).exists()
    assert said == [f"ended 1 process of Ray that a killed command (pid {starter.pid}) had left"]
    end_leftovers(session.parent, pytest.fail)


def test_an_ended_command_leaves_no_sign(holder: Any) -> None:
    process, session = holder
    with signed(session):
        assert int((session / FILE).read_text()) == os.getpid()
        end_leftovers(session.parent, pytest.fail)
        assert (session / FILE).exists()
    assert not list(session.glob(f"{FILE}*"))
    end_leftovers(session.parent, pytest.fail)
    assert process.poll() is None
