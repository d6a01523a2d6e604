"""An MLflow server on loopback, which a rehearsal or a test kills and starts again."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gat_sweep.monitor.tracking import create_store
from gat_sweep.monitor.ui import default_uri


class Server:
    """`mlflow server` on a port and database of its own."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri, self.database = f"http://127.0.0.1:{self.port}", home / "mlflow.db"
        create_store(default_uri(home), home)
        self.command = [
            *(sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
            *("--port", str(self.port), "--backend-store-uri", default_uri(home)),
            *("--artifacts-destination", str(home / "mlartifacts"), "--uvicorn-opts", "--log-level critical"),
        ]

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            self.command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Returns when the server answers. Raises TimeoutError after a minute of refusals."""
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise TimeoutError

    def signal(self, number: int) -> None:
        """To the server and its workers."""
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()

    def points(self) -> int:
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10) as database:
            (count,) = database.execute("select count(*) from metrics").fetchone()
        return int(count)
