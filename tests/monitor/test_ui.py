"""MLflow's UI: on loopback alone, and gone with its processes when it is stopped."""

import inspect
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.planted import PlantedTrial
from helpers.processes import mind_ctrl_c

from gat_sweep import cli
from gat_sweep.monitor import ui as module
from gat_sweep.monitor.ui import default_uri, serve_ui


def test_ui_needs_a_store_and_a_free_port(home_with_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no MLflow store at .*; run gat-sweep run first"):
        serve_ui(default_uri(tmp_path), tmp_path, 5000)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ValueError, match="another port"):
        serve_ui(default_uri(home_with_store), home_with_store, taken.getsockname()[1])


@pytest.mark.reliability
def test_the_ui_is_for_this_machine_alone(
    home_with_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Callable[..., None],
) -> None:
    """MLflow's UI listens on loopback, there is no option for more, and no file of ours names another address."""
    commands: list[list[str]] = []

    class Recorded:
        pid = 0

        def __init__(self, command: list[str], **options: Any) -> None:
            commands.append(command)

        def wait(self, *timeout: float) -> int:
            if not timeout:
                raise KeyboardInterrupt
            return 0

    monkeypatch.setattr(module.subprocess, "Popen", Recorded)
    monkeypatch.setattr(module.os, "killpg", lambda group, sig: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve_ui(default_uri(home_with_store), home_with_store, port)
    (command,) = commands
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--host"] == "127.0.0.1" and options["--port"] == str(port)
    assert options["--allowed-hosts"] == f"127.0.0.1:{port},localhost:{port}"
    assert list(inspect.signature(serve_ui).parameters) == ["uri", "home", "port"]
    assert [option.name for option in cli.cli.commands["ui"].params] == ["home", "port"]
    files = list((Path(__file__).parents[2] / "gat_sweep").rglob("*.py"))
    everywhere = [
        path.name for path in files for address in ("0.0.0.0", '"::"', '(("",') if address in path.read_text()
    ]
    assert everywhere == [] and len(files) > 50
    figures(files_read=len(files), addresses_beyond_loopback=0)


# ---- with a server: 20 s for each to start


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def ui(home_with_store: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`serve_ui` in a process of its own, not yet answering."""
    home = home_with_store
    code = (
        "from pathlib import Path; from gat_sweep.monitor.ui import serve_ui; "
        f"serve_ui({default_uri(home)!r}, Path({str(home)!r}), {port})"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, preexec_fn=mind_ctrl_c)
    yield process
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def wait_for(port: int) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError


def server_group(ui: subprocess.Popen[bytes]) -> int:
    """The process group that serve_ui started."""
    children = subprocess.run(["ps", "-o", "pgid=", "--ppid", str(ui.pid)], capture_output=True, text=True)
    (group,) = children.stdout.split()
    return int(group)


def members(group: int) -> list[str]:
    table = subprocess.run(["ps", "-eo", "pgid=,pid="], capture_output=True, text=True, check=True).stdout
    return [line for line in table.splitlines() if int(line.split()[0]) == group]


@pytest.mark.slow
def test_server_comes_back_and_the_ui_leaves_no_process(
    planted: PlantedTrial,
    home_with_store: Path,
    port: int,
    ui: subprocess.Popen[bytes],
) -> None:
    uri = f"http://127.0.0.1:{port}"
    tracker = planted.tracker(uri=uri)
    planted.points(*range(50, 60_000, 50))
    planted.points(60_000, loss_g=math.nan, loss_d=math.inf)
    assert tracker.ship([planted.dir])[0] == 0  # still starting
    wait_for(port)
    assert tracker.ship([planted.dir]) == (2400, "")
    assert planted.steps(uri=uri) == [*range(50, 60_001, 50)]
    (planted.dir / "shipped.json").unlink()
    assert planted.tracker("second", uri).ship([planted.dir]) == (0, "")  # pages through the history
    assert math.isnan(planted.runs(uri)[1][0].data.metrics["loss_g"])
    foreign = urllib.request.Request(f"{uri}/api/2.0/mlflow/experiments/get", headers={"Host": "evil.test"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(foreign, timeout=5)
    group = server_group(ui)
    listening = {
        one.laddr.ip
        for line in members(group)
        for one in psutil.Process(int(line.split()[1])).net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert len(members(group)) > 1  # the server and its worker
    ui.send_signal(signal.SIGINT)
    assert ui.wait(20) == 0
    assert members(group) == []
    planted.points(60_050)
    points, warning = tracker.ship([planted.dir])
    assert points == 0 and warning != ""
