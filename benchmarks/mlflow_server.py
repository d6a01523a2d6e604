"""A real `mlflow server` on loopback, with a database and artifacts of its own: for tests and rehearsals."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

import psutil


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def end_with_parent() -> None:
    """To be called in a new process: it is asked to end when the tests are killed, which then end nothing."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def listening(pid: int) -> set[str]:
    """Addresses that a process or any below it listens on."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    sockets = [one for process in processes for one in process.net_connections("inet")]
    return {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}


class Server:
    """`mlflow server` on a port of its own; in a process group of its own, which a signal reaches as a whole."""

    def __init__(self, backend: str, artifacts: str, environment: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [
            *(sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
            *("--port", str(self.port), "--backend-store-uri", backend, "--artifacts-destination", artifacts),
            *("--uvicorn-opts", "--log-level critical"),
        ]
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - end() closes it
        # The server's helpers would outlive SIGTERM.
        self.environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            start_new_session=True,
            preexec_fn=end_with_parent,
            stdout=self.output,
            stderr=self.output,
        )

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.output.seek(0)
        raise RuntimeError(self.output.read())

    def signal(self, number: int) -> None:
        """To the server and its workers."""
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)  # a stopped process cannot be waited for
            self.signal(signal.SIGKILL)
        self.output.close()

    def listening(self) -> set[str]:
        """Addresses that any process of the server listens on."""
        return listening(self.process.pid)
