"""Joining a cluster, and a Ray of our own: tokens, ports, nodes that answer and nodes that do not."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from gat_sweep import cluster
from gat_sweep.errors import UserError
from gat_sweep.leftovers import holds_open

AWS = Path(__file__).parents[2] / "cluster.yaml"
Figures = Callable[..., None]


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray looks for the token of a user who has none yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path / ".ray" / "auth_token"
    monkeypatch.undo()
    cluster.reread_access()


def refusal(address: str) -> str:
    with pytest.raises(UserError) as error, cluster.session(address):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_token_is_asked_for_and_kept_from_others(token_file: Path) -> None:
    assert "ray get-auth-token --generate" in refusal("127.0.0.1:1") and str(token_file) in refusal("127.0.0.1:1")
    token_file.parent.mkdir()
    token_file.write_text("\n")
    assert "no token for the Ray cluster" in refusal("127.0.0.1:1")
    token_file.write_text("a" * 64)
    for mode in (0o644, 0o640, 0o604):
        token_file.chmod(mode)
        assert refusal("127.0.0.1:1") == f"others can read the token in {token_file}: chmod 600 {token_file}"
    token_file.chmod(0o600)
    assert "no Ray cluster answers at" in refusal("127.0.0.1:1")


def test_a_cluster_that_cannot_be_reached_is_named_in_time(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, somebody says nothing, no such name, no address: seconds, where Ray itself tries for minutes."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.setattr(cluster, "GREETING_S", 1.0)
    # As Ray would, for the sake of a listener on loopback: it calls 127.0.0.1 by the machine's own address.
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert f"no Ray cluster answers at {address}" in refusal(address)
    for nobody in (address, "no-such-host.invalid:6379"):
        assert f"no Ray cluster answers at {nobody}" in refusal(nobody)
    for nothing in ("nonsense", "10.0.0.1", "ray://10.0.0.1:10001", "local"):
        assert f"--address {nothing}" in refusal(nothing)
    assert time.monotonic() - start < 10


# ---------------------------------------------------------------- with Ray

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")

JUST_A_RAY = """
import sys
from gat_sweep import cluster
from gat_sweep.errors import UserError

try:
    with cluster.session(None, cpus=1, gpus=0):
        pass
except UserError as error:
    sys.exit(str(error))
"""
OWN_RAY = """
import json, os, psutil
before = dict(os.environ)
from pathlib import Path
from gat_sweep import cluster
from gat_sweep.errors import UserError

def here():
    return "well"

def raises():
    raise ValueError("of two\\nlines")

def sleeps():
    import time
    time.sleep(100)

def sockets():
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.environ().get("GAT_SWEEP_TEST") == os.environ["GAT_SWEEP_TEST"]:
                found += [(process.info["name"], c.laddr.ip) for c in process.net_connections() if c.status == "LISTEN"]
        except psutil.Error:
            pass
    return found

with cluster.session(None, cpus=1, gpus=0) as there:
    import ray

    token, gcs = os.environ["RAY_AUTH_TOKEN"], ray.get_runtime_context().gcs_address
    result = {
        "cpus": there.cpus,
        "nodes": [vars(node) for node in cluster.nodes()],
        "here": cluster.on_every_node(here),
        "raises": cluster.on_every_node(raises),
        "sleeps": cluster.on_every_node(sleeps, timeout=1.0),
        "sockets": sockets(),
    }
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [file for file in session.rglob("*") if file.is_file()]
    result["files"] = len(files)
    result["token on disk"] = [str(file) for file in files if token.encode() in file.read_bytes()]
    cluster._greet(gcs)
    os.environ["RAY_AUTH_TOKEN"] = "0" * 64
    cluster.reread_access()
    try:
        cluster._greet(gcs)
    except UserError as error:
        result["wrong token"] = str(error)
changed = [name for name in os.environ if os.environ[name] != before.get(name)]
result["left in the environment"] = sorted(name for name in changed if "AUTH" in name or "IFNAME" in name)
print(json.dumps(result))
"""


def left(mark: str) -> list[psutil.Process]:
    """Processes that inherited a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GAT_SWEEP_TEST") == mark:
                found.append(process)
        except psutil.Error:
            pass
    return found


def environment(home: Path, **more: str) -> dict[str, str]:
    dropped = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "HOME": str(home), "GAT_SWEEP_TEST": str(home), "RAY_USAGE_STATS_ENABLED": "0", **more}


def test_a_message_of_rays_processes_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    advice = "A worker died by an unexpected system error. To troubleshoot, look at logs. Worker PID: 1701 ..."
    cluster._print_short({"lines": [advice, "more advice"], "pid": "raylet"})
    cluster._print_short({"lines": ["Raylet is terminated. Termination is unexpected."]})
    assert capsys.readouterr().err.splitlines() == [
        "Ray: A worker died by an unexpected system error (pid 1701)",
        "Ray: Raylet is terminated",
    ]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.reliability
def test_a_ray_of_our_own_is_closed_to_others(tmp_path: Path, figures: Figures) -> None:
    """A Ray started here listens on loopback only, with a token of its own that is on no disk; another is refused."""
    env = environment(tmp_path, RAY_ADDRESS="10.255.255.1:1")  # a cluster's that is not asked for
    run = subprocess.run([sys.executable, "-c", OWN_RAY], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    (node,) = result["nodes"]
    assert result["cpus"] == 1 and (node["address"], node["cpus"], node["gpus"]) == ("127.0.0.1", 1, 0)
    assert result["here"] == {"127.0.0.1": "well"}
    assert result["raises"] == {"127.0.0.1": "ValueError: of two lines"}
    assert result["sleeps"] == {"127.0.0.1": "no answer within 1 s"}
    assert {"gcs_server", "raylet"} <= {name for name, _ in result["sockets"]}
    loopback = [ip for _, ip in result["sockets"] if ip in LOOPBACK]
    assert len(loopback) == len(result["sockets"]), result["sockets"]
    assert result["files"] > 5 and result["token on disk"] == [] and not (tmp_path / ".ray").exists()
    assert "does not accept this token" in result["wrong token"]
    assert result["left in the environment"] == []
    figures(sockets=len(result["sockets"]), on_loopback=len(loopback), wrong_tokens_tried=1, refused=1)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.reliability
def test_a_ray_that_does_not_start_is_one_line(tmp_path: Path, figures: Figures) -> None:
    """A raylet that stands still while it starts, as on a machine without a free processor: one line, and no process
    stays."""
    temporary = tempfile.mkdtemp(prefix="ray")  # short: paths of sockets have at most 107 characters
    env = environment(tmp_path, RAY_TMPDIR=temporary)
    run = subprocess.Popen([sys.executable, "-c", JUST_A_RAY], env=env, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 200
        while not (raylets := [process for process in left(str(tmp_path)) if process.name() == "raylet"]):
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        raylets[0].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        _, said = run.communicate(timeout=120)
        (line,) = said.splitlines()
        assert line.startswith("Ray did not start on this machine") and line.endswith("run the same command again")
        until = time.monotonic() + 30
        while left(str(tmp_path)) and time.monotonic() < until:
            time.sleep(0.1)
        assert left(str(tmp_path)) == []
        figures(seconds=f"{time.monotonic() - start:.0f}", lines=1, processes_left=0)
    finally:
        for process in left(str(tmp_path)):
            process.kill()
        shutil.rmtree(temporary)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.reliability
def test_two_workers_of_a_trial_listen_on_loopback_only(tmp_path: Path, figures: Figures) -> None:
    """While a trial trains on two workers of a Ray started here, none of its processes listens beyond loopback, and
    each of them would be found as left over, had the command been killed."""
    temporary = tempfile.mkdtemp(prefix="ray")  # short: paths of sockets have at most 107 characters
    command = [
        sys.executable,
        "-m",
        "gat_sweep.cli",
        "run",
        "one",
        "--recipe",
        "digits",
        "--home",
        str(tmp_path / "home"),
    ]
    for value in ("workers.count=2", "workers.cpus=0.5", "train.steps=40", "eval.samples=64"):
        command += ["--set", value]
    names: dict[int, str] = {}
    found: set[int] = set()
    sockets: set[tuple[int, str, int]] = set()  # process, address, port
    with subprocess.Popen(command, env=environment(tmp_path, TMPDIR=temporary), stdout=subprocess.DEVNULL) as run:
        while run.poll() is None:
            for process in psutil.Process(run.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if "/ray/" not in (name := " ".join(process.cmdline())) and "ray::" not in name:
                        continue
                    names[process.pid] = f"{names.get(process.pid, '')} {name.split()[0]}"  # Ray renames it
                    listening = [each.laddr for each in process.net_connections() if each.status == "LISTEN"]
                    sockets.update((process.pid, address.ip, address.port) for address in listening)
                    if any(holds_open(process, session) for session in Path(temporary, "ray").glob("session_2*")):
                        found.add(process.pid)
            time.sleep(0.5)
    shutil.rmtree(temporary)
    assert run.returncode == 0
    workers = {pid for pid, name in names.items() if "RayTrainWorker" in name}
    assert len(workers) >= 2, names
    assert not [socket_ for socket_ in sockets if socket_[1] not in LOOPBACK]
    assert not [names[pid] for pid in names.keys() - found]
    figures(processes=len(names), sockets=len(sockets), on_loopback=len(sockets))


ON_A_CLUSTER = """
import json, os, sys
from gat_sweep import cluster
from gat_sweep.errors import UserError

def here():
    import os
    return os.environ.get("RAY_NODE_ID", "") or "well"

try:
    with cluster.session(sys.argv[1]) as there:
        nodes = cluster.nodes()
        answers = cluster.on_every_node(here, timeout=float(sys.argv[2]))
        found = {"drives": there.drives_sweeps, "cpus": there.cpus, "nodes": len(nodes), "answers": answers}
except UserError as error:
    found = {"error": str(error)}
print(json.dumps(found))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.reliability
def test_a_cluster_started_as_the_files_do(tmp_path: Path, figures: Figures) -> None:
    """A head and a node with a token take who has it and refuse others in seconds; a node that hangs is named."""
    temporary = tempfile.mkdtemp(prefix="ray")  # short: paths of sockets have at most 107 characters
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    env = environment(tmp_path, RAY_AUTH_MODE="token")
    token = tmp_path / ".ray" / "auth_token"

    def tool(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    def join(seconds: float = 60, **more: str) -> dict[str, Any]:
        command = [sys.executable, "-c", ON_A_CLUSTER, address, str(seconds)]
        run = subprocess.run(command, env={**env, **more}, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout.splitlines()[-1])

    head = ["start", "--head", f"--port={port}", f"--temp-dir={temporary}", "--include-dashboard=false"]
    resources = yaml.safe_load(AWS.read_text())["available_node_types"]["head"]["resources"]
    try:
        assert tool(*head).returncode != 0  # no token, no cluster
        assert tool("get-auth-token", "--generate").returncode == 0
        assert "chmod 600" in join()["error"]  # as Ray left it
        token.chmod(0o600)
        env["RAY_OVERRIDE_RESOURCES"] = json.dumps(resources)  # what `ray up` gives the head
        assert (started := tool(*head)).returncode == 0, started.stderr
        del env["RAY_OVERRIDE_RESOURCES"]
        assert tool("start", f"--address={address}", "--num-cpus=1").returncode == 0

        found = join()
        assert (found["drives"], found["cpus"], found["nodes"]) == (True, 1, 2) and len(found["answers"]) == 1
        start = time.monotonic()
        assert "does not accept this token" in join(RAY_AUTH_TOKEN="0" * 64)["error"]
        refused = time.monotonic() - start

        raylets = [process for process in left(str(tmp_path)) if process.name() == "raylet"]
        worker = next(process for process in raylets if "--head" not in process.cmdline())
        worker.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        assert list(join(5)["answers"].values()) == ["no answer within 5 s"]
        figures(tokens_tried=3, refused=2, seconds_to_refuse=f"{refused:.1f}", hung_nodes=1, named=1)
    finally:
        for process in left(str(tmp_path)):
            process.kill()
        shutil.rmtree(temporary)
