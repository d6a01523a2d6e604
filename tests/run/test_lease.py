"""One launch per run: another process, a killed one, another machine, and a machine that slept."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gat_sweep.errors import UserError
from gat_sweep.run.lease import FILE, lease

HOLD = """
import pathlib, sys, time
from gat_sweep.run.lease import lease
with lease(pathlib.Path(sys.argv[1]), print, beat=0.05):
    print("held", flush=True)
    time.sleep(60)
"""


def elsewhere(run: Path, count: int) -> None:
    """A sign of life of a launch on another machine."""
    sign = {"launch": "theirs", "host": "another-machine", "pid": 7, "count": count}
    run.mkdir(exist_ok=True)
    part = run / "part"
    part.write_text(json.dumps(sign))
    part.replace(run / FILE)


def test_a_second_launch_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    said: list[str] = []
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout and first.stdout.readline() == "held\n"
            says = rf"'run' is being run by a launch on .* \(pid {first.pid}\)"
            with pytest.raises(UserError, match=says), lease(tmp_path / "run", said.append, beat=0.1):
                pytest.fail("two launches of one run")
        finally:
            first.kill()
    with lease(tmp_path / "run", said.append, beat=0.1):
        assert said[-1].startswith("taking over from a launch on") and f"(pid {first.pid})" in said[-1]
    assert not (tmp_path / "run" / FILE).exists()


def test_a_launch_on_another_machine_is_believed_while_it_beats(tmp_path: Path) -> None:
    """No clock is compared: what counts is whether its file changes."""
    run, beats, ended = tmp_path / "run", iter(range(10**6)), threading.Event()
    elsewhere(run, next(beats))

    def beat() -> None:
        while not ended.wait(0.02):
            elsewhere(run, next(beats))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match=r"another-machine \(pid 7\)"), lease(run, str, beat=0.1):
        pytest.fail("two launches of one run")
    ended.set()
    thread.join()
    said: list[str] = []
    with lease(run, said.append, beat=0.02):
        assert [line.split()[0] for line in said] == ["run", "taking"]


def test_a_launch_that_lost_its_lease_is_interrupted(tmp_path: Path) -> None:
    """Its machine slept, and another one took over; the other's lease stays. Also where a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(KeyboardInterrupt), lease(tmp_path, str, beat=0.02):
        elsewhere(tmp_path, 0)
        time.sleep(5)
        pytest.fail("not interrupted")
    assert json.loads((tmp_path / FILE).read_text())["launch"] == "theirs"
    signal.signal(signal.SIGINT, before)


def test_a_lease_damaged_on_the_way_is_written_again(tmp_path: Path) -> None:
    with lease(tmp_path, str, beat=0.02):
        (tmp_path / FILE).write_text("{")
        time.sleep(0.3)
        assert json.loads((tmp_path / FILE).read_text())["count"] > 0
    assert not (tmp_path / FILE).exists()


def test_a_damaged_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match=r"launch.json is damaged; if no other launch"), lease(tmp_path, str):
        pytest.fail("opened")
