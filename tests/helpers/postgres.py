"""A real PostgreSQL on loopback, with a cluster of its own that is gone with the test."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.mlflow_server import Server, end_with_parent, free_port, listening
from gat_sweep.files.storage import Remote

PASSWORD = "hunter2-of-postgres"  # only the MLflow server is told; no line of ours may hold it


def binaries() -> Path | None:
    """Folder of initdb and postgres, which Debian does not put on the path; None where PostgreSQL is not installed."""
    there = [*Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if there:
        return max(there, key=lambda path: int(path.parts[-3])).parent
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


class Postgres:
    """A cluster in a temporary folder, with a password; PostgreSQL refuses root, so another user runs it then."""

    def __init__(self, bin_folder: Path) -> None:
        self.bin, self.port = bin_folder, free_port()
        at = f"postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        self.plain_uri = f"postgresql://{at}"
        self.uri = f"postgresql+psycopg2://{at}"  # which driver `postgresql:` means depends on SQLAlchemy's version
        self.folder = Path(tempfile.mkdtemp(prefix="gat-sweep-postgres-"))  # pytest's own is closed to other users
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            other = pwd.getpwnam("postgres" if _has_user("postgres") else "nobody")
            os.chown(self.folder, other.pw_uid, other.pw_gid)
            self.user = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o644)
        self._run("initdb", "-U", "postgres", "-A", "scram-sha-256", "--pwfile", str(self.folder / "password"), "-N")

    def start(self) -> None:
        """Starts it, after a kill with crash recovery, and waits until it answers."""
        place = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        command = [str(self.bin / "postgres"), "-D", str(self.folder / "data"), *place]
        with (self.folder / "log").open("a") as log:
            options = {"cwd": "/", "start_new_session": True, "preexec_fn": end_with_parent, **self.user}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        for _ in range(600):
            if self._answers():
                return
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.1)
        raise TimeoutError((self.folder / "log").read_text())

    def kill(self) -> None:
        """SIGKILL to all its processes at once: nothing is flushed, no connection is closed in order."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                process.kill()
        self.process.wait()
        psutil.wait_procs(processes, timeout=10)  # a process that is left would keep the memory that all share

    def end(self) -> None:
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder)

    def listening(self) -> set[str]:
        """Addresses that it listens on."""
        return listening(self.process.pid)

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Rows of a query, over a connection of its own."""
        import psycopg2

        connection = psycopg2.connect(self.plain_uri)
        try:
            with connection.cursor() as cursor:
                cursor.execute(text)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def _answers(self) -> bool:
        command = [str(self.bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, cwd="/").returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.bin / program), "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, **self.user)
        if done.returncode:
            raise RuntimeError(done.stderr)


@dataclass(frozen=True)
class TeamMlflow:
    """A server, the PostgreSQL behind it, and the folder in the bucket for its artifacts."""

    server: Server
    postgres: Postgres
    artifacts: Remote


def _has_user(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())
