"""Ray for sweeps and encodings: a running cluster, or a local one that is started here and stopped afterwards."""

import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gat_sweep import autoscaler
from gat_sweep.errors import UserError
from gat_sweep.leftovers import end_leftovers, signed

R = TypeVar("R")

# Ray reads these at import or at start, so they are set before.
RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a traceback each; the driver says them in a line (launch/driver.py)
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # we handle Ctrl-C, to stop the workers at once, not two steps later
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # Under `uv run`, Ray would copy the working folder to every worker. Workers here use the driver's environment.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
GONE = signal.SIGUSR2  # raises KeyboardInterrupt here when Ray's processes have ended
PRIVATE = "GAT_SWEEP_PRIVATE_RAY"  # set in every process of a Ray that was started for one command
MAX_DRIVERS = 64  # most trials at once, for a cluster of any size
SOCKET_PATH = 107  # bytes of the path of a Unix socket, on Linux
GREETING_S = 10.0  # seconds to wait for a cluster; Ray itself tries for minutes and ignores Ctrl-C
ANSWER_S = 60.0  # seconds to wait for a node, including the start of a worker


@dataclass(frozen=True)
class Machine:
    """What one machine has for work."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    """Machines for work."""

    machines: tuple[Machine, ...]  # that are up
    address: str | None = None  # of a running cluster; None: a Ray of this command alone, which stays as it is
    drives_sweeps: bool = True  # has the resource that the driver of a trial asks for
    grows: bool = False  # an autoscaler adds machines for work that waits
    most: tuple[Machine, ...] | None = None  # all that it may have at once, where its limits are known
    free: tuple[Machine, ...] | None = None  # what nobody uses now; None: nobody has looked

    @property
    def cpus(self) -> float:
        return sum(machine.cpus for machine in self.machines)

    @property
    def gpus(self) -> float:
        return sum(machine.gpus for machine in self.machines)


@dataclass(frozen=True)
class Node:
    """A machine of the connected cluster."""

    id: str
    address: str
    cpus: float
    gpus: float
    is_head: bool = False


def local_resources() -> Cluster:
    """What this process may use of this machine: the processors of its affinity, within a container's quota."""
    import joblib  # both here, because readers of an encoding do not need them
    import torch

    return Cluster((Machine(joblib.cpu_count(), torch.cuda.device_count()),))


def sessions_folder() -> Path:
    """Where Ray keeps a folder for each Ray that is started here."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()) / "ray"


def check_socket_paths() -> None:
    """Raises UserError when TMPDIR is too long for the sockets that Ray makes below it."""
    folder = str(sessions_folder())
    path = f"{folder}/session_2026-01-01_00-00-00_000000_{2**22}/sockets/plasma_store"
    if len(os.fsencode(path)) > SOCKET_PATH:
        room = SOCKET_PATH - (len(path) - len(folder)) - len("/ray")
        raise UserError(
            f"Ray's sockets below {folder} would have longer paths than the system allows; set TMPDIR "
            f"(or RAY_TMPDIR) to a folder with a path of at most {room} letters, such as /tmp"
        )


@contextmanager
def session(
    address: str | None, cpus: int | None = None, gpus: int | None = None, say: Callable[[str], None] | None = None
) -> Iterator[Cluster]:
    """Connects to Ray, without its log lines, until the end of the block.

    address: a running cluster ("auto", "host:port"), or None to start Ray on this machine and stop it afterwards.
    cpus, gpus: how many of this machine to use when Ray is started here (default: all).
    say: is told of processes that a killed command had left; they are ended (default: to stderr).
    Raises UserError when the cluster cannot be joined (no answer, no token, or a wrong token), or when Ray does not
    start here.
    """
    os.environ.update(RAY_ENVIRONMENT)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray._private.worker.print_to_stdstream = _print_short
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    with _cluster_access() if address else _private_access():
        if address:
            found = _greet(address)
            try:
                ray.init(address=found, runtime_env={"env_vars": RAY_ENVIRONMENT}, **quiet)
            except (ConnectionError, RuntimeError) as error:  # another version of Ray or Python, or not a node of it
                raise UserError(f"cannot join the Ray cluster at {found}: {_line(error)}") from None
        else:
            check_socket_paths()
            end_leftovers(sessions_folder(), say or partial(print, file=sys.stderr))
            here = local_resources()
            try:
                ray.init(
                    address="local",  # otherwise Ray joins a cluster that already runs here
                    num_cpus=int(here.cpus) if cpus is None else cpus,
                    num_gpus=int(here.gpus) if gpus is None else gpus,
                    resources={"sweep_driver": MAX_DRIVERS},
                    include_dashboard=False,
                    **quiet,
                )
            except Exception as error:
                # The bare class is Ray's own, for a raylet that is not up within its fixed 30 seconds.
                if type(error) not in (Exception, RuntimeError):
                    raise
                raise UserError(
                    f"Ray did not start on this machine: {_line(error)} Free some of its processors and memory, then "
                    "run the same command again"
                ) from None
        try:
            with nullcontext() if address else _ours():
                yield look(found if address else None)
        finally:
            ray.shutdown()


@contextmanager
def _ours() -> Iterator[None]:
    """Context of a Ray that was started here: it is signed by this process, and the context ends when Ray does."""
    from ray._private import worker

    node: Any = worker.global_worker.node
    with signed(Path(node.get_session_dir_path())), _ends_with_ray(node):
        yield


@contextmanager
def _ends_with_ray(node: Any, beat: float = 5.0) -> Iterator[None]:
    """Context that ends when the Ray that was started here does; it looks every `beat` seconds.

    Without its raylet, Ray's own calls wait for ever. In another thread than the main one it only waits with them.
    Raises UserError when a process of Ray has ended.
    """
    processes = {
        kind: process.process for kind in ("raylet", "gcs_server") for process in node.all_processes.get(kind, [])
    }
    ended, lost = threading.Event(), list[str]()

    def watch() -> None:
        while not ended.wait(beat):
            lost.extend(
                f"{kind} (pid {process.pid})" for kind, process in processes.items() if process.poll() is not None
            )
            if lost:
                os.kill(os.getpid(), GONE)
                return

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(GONE, signal.default_int_handler)
    thread = threading.Thread(target=watch, name="ray", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost:
            raise
        raise UserError(
            f"Ray on this machine has ended: its {' and '.join(lost)} is gone, killed or out of memory; what was saved "
            "stays, run the same command again to continue"
        ) from None
    finally:
        ended.set()
        thread.join()
        signal.signal(GONE, before)


def look(address: str | None = None) -> Cluster:
    """The connected cluster as it is now. address: as host:port, to ask its autoscaler too.

    Raises UserError when Kubernetes does not say how far the cluster may grow.
    """
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node().values()
    return replace(_machines(address), free=tuple(Machine(has.get("CPU", 0), has.get("GPU", 0)) for has in free))


def _machines(address: str | None) -> Cluster:
    import ray

    alive = nodes()
    machines = tuple(Machine(node.cpus, node.gpus) for node in alive if node.cpus or node.gpus)
    drives = "sweep_driver" in ray.cluster_resources()
    if address is None:
        return Cluster(machines, drives_sweeps=drives)
    try:
        types = autoscaler.node_types(address)
    except OSError as error:
        raise UserError(
            f"Kubernetes does not say how far this RayCluster may grow: {_line(error)}; the service account of the "
            "head must be allowed to get it"
        ) from None
    if types is None:
        return Cluster(machines, address, drives, grows=autoscaler.is_there())
    heads = [node for node in alive if node.is_head]
    # Ray leaves what `resources: {}` stands for to the machines. Then only their number is known.
    if any(autoscaler.UNKNOWN in kind for kind in types):
        room = sum(count for *_, count in types) + len(heads) - len(alive)
        return Cluster(machines, address, drives, grows=room > 0)
    own = tuple(Machine(head.cpus, head.gpus) for head in heads if head.cpus or head.gpus)
    most = own + tuple(Machine(cpus, gpus) for cpus, gpus, count in types for _ in range(count))
    return Cluster(machines, address, drives, True, most)


def nodes() -> list[Node]:
    """Machines of the connected cluster that are alive."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    resources = [node["Resources"] for node in alive]
    return [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            has.get("CPU", 0),
            has.get("GPU", 0),
            "node:__internal_head__" in has,
        )
        for node, has in zip(alive, resources, strict=True)
    ]


def on_every_node(function: Callable[..., R], *args: Any, timeout: float = ANSWER_S) -> dict[str, R | str]:
    """Runs a function once on each node of the connected cluster, all at the same time.

    Returns results by node address. A node without a result has one line instead: the error that was raised, or that
    the node did not answer within `timeout` seconds. If nodes share an address, an error line replaces a result.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*args): node
        for node in nodes()
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=timeout)
    results: dict[str, R | str] = {}
    lines: dict[str, str] = {}
    for answer in answered:
        try:
            results[asked[answer].address] = ray.get(answer)
        except RayTaskError as error:
            lines[asked[answer].address] = f"{type(error.cause).__name__}: {_line(error.cause)}"
        except RayError as error:  # the node was lost
            lines[asked[answer].address] = f"{type(error).__name__}: {_line(error)}"
    for answer in silent:
        ray.cancel(answer, force=True)
        lines[asked[answer].address] = f"no answer within {timeout:g} s"
    return results | lines


@contextmanager
def _private_access() -> Iterator[None]:
    """Access to a local Ray that only this process can use: the token is never on disk, all ports are on loopback."""
    from ray._private import ray_constants

    lo = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), PRIVATE: "1", **lo}
    before, joins = {name: os.environ.get(name) for name in ours}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(ours)
    reread_access()
    # Ray has no option for this, and replaces 127.0.0.1 by the machine's own address unless this is off.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = joins
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        reread_access()


def is_private() -> bool:
    """Whether this process belongs to a Ray that was started for one command, on this machine alone."""
    return PRIVATE in os.environ


@contextmanager
def _cluster_access() -> Iterator[None]:
    """Access to a running cluster, with a token unless RAY_AUTH_MODE says that it needs none."""
    if os.environ.setdefault("RAY_AUTH_MODE", "token").lower() == "token":
        _check_token()
    reread_access()
    yield


def _check_token() -> None:
    """Raises UserError when there is no token for a cluster, or others on this machine can read it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        raise UserError(
            f"no token for the Ray cluster in {path}: copy the token of the cluster there, or make one with "
            "`ray get-auth-token --generate` before `ray up`"
        )
    if path.stat().st_mode & 0o077:
        raise UserError(f"others can read the token in {path}: chmod 600 {path}")


def reread_access() -> None:
    """Makes Ray read mode and token again; it reads them only once in a process."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _greet(address: str) -> str:
    """Address, as host:port, of a cluster that answers and accepts our token. Raises UserError otherwise."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    if "://" in address:
        raise UserError(f"--address {address}: give host:port, or auto on a machine of the cluster")
    try:
        found = canonicalize_bootstrap_address(address)
    except ConnectionError:
        found = None
    except ValueError:
        raise UserError(f"--address {address}: give host:port, such as 10.0.0.1:6379, or auto") from None
    if found is None:
        raise UserError(f"--address {address}: no Ray cluster runs here; give host:port, or leave --address out")
    with init_grpc_channel(found, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=GREETING_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise UserError(
                    f"the Ray cluster at {found} does not accept this token: copy ~/.ray/auth_token from its head"
                ) from None
            raise UserError(f"no Ray cluster answers at {found}: {_line(error.details())}") from None
    return found


def _print_short(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    """Prints a message of Ray's own processes as its first sentence; the rest is general advice, a thousand letters."""
    text = " ".join(" ".join(data["lines"]).split())
    process = re.search(r"Worker PID: (\d+)", text)
    print(f"Ray: {text.partition('. ')[0]}" + (f" (pid {process[1]})" if process else ""), file=sys.stderr)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]
