"""MLflow's UI for the store of a home, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_no_credentials
from gat_sweep.files.storage import Place

HOST = "127.0.0.1"  # MLflow asks for no password: others reach it through ssh
DATABASES = ("postgresql", "mysql", "mssql")  # MLflow's, beside sqlite


def tracking_uri(given: str | None, home: Place) -> str:
    """URI of the MLflow store: the given one, or a sqlite store below `home`.

    Raises UserError for a URI with a password, of a database behind which no MLflow server stands, of a folder, in
    which MLflow 3 keeps nothing, or of a sqlite file without its whole path.
    """
    if given is None:
        return default_uri(home)
    check_no_credentials(given, "--tracking-uri")
    if given.startswith(DATABASES):  # it would have no place for artifacts, and several launches no common writer
        raise UserError(
            f"--tracking-uri {given} (or MLFLOW_TRACKING_URI) is a database; start an `mlflow server` before it "
            "and give the server's http:// address"
        )
    if given.startswith("file:") or ("://" not in given and not given.startswith("databricks")):
        raise UserError(
            f"--tracking-uri {given} (or MLFLOW_TRACKING_URI) is a folder, in which MLflow 3 keeps nothing; leave it "
            "out for a sqlite store below the home, or give sqlite:////<path of a file> or a server's http:// address"
        )
    if given.startswith("sqlite:") and not given.startswith("sqlite:////"):
        path = Path(given.removeprefix("sqlite:///")).absolute()
        raise UserError(
            f"--tracking-uri {given} (or MLFLOW_TRACKING_URI) would be another store in each folder; give the whole "
            f"path, sqlite:///{path}"
        )
    return given


def default_uri(home: Place) -> str:
    """URI of a sqlite store below `home`; absolute, because MLflow resolves a relative path by the working directory.

    Raises UserError when `home` is not a folder of this machine, or its path has a % or ?.
    """
    if not isinstance(home, Path):
        raise UserError(f"--home {home} cannot hold MLflow's database; give --tracking-uri, such as a server's address")
    path = Path(home).absolute()
    # Escaped, the address would be right; but MLflow makes a folder of the escaped path as well.
    if {"%", "?"} & set(str(path)):
        raise UserError(
            f"MLflow keeps no store below {path}, because a % or ? in a path means something else in an address; "
            "choose another --home, or give --tracking-uri"
        )
    return f"sqlite:///{path / 'mlflow.db'}"


def serve_ui(uri: str, home: Place, port: int) -> None:
    """Run MLflow's UI for a sqlite store, on loopback, in the foreground until Ctrl-C or SIGTERM; main thread only.

    Raises UserError when there is no store or the port is not free, or when the server stops by itself.
    """
    check_no_credentials(uri, "--tracking-uri")
    if not uri.startswith("sqlite:"):
        raise UserError(f"{uri} is a server already; open it in a browser")
    database = Path(uri.removeprefix("sqlite:///"))
    if not database.exists():
        raise UserError(f"no MLflow store at {database}; run gat-sweep run first")
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {HOST}:{port} ({error}); choose another port") from error
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", HOST, "--port", str(port), "--allowed-hosts", f"{HOST}:{port},localhost:{port}"]
    command += ["--uvicorn-opts", "--log-level warning", "--artifacts-destination", "mlartifacts"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its helpers outlive SIGTERM
    print(f"MLflow UI: http://{HOST}:{port} (up within half a minute; Ctrl-C stops it)", flush=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(command, cwd=str(home), env=environment, start_new_session=True)
    try:
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        for sig in (signal.SIGTERM, signal.SIGKILL):  # the whole group: the server has workers
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, sig)
                server.wait(5)
        signal.signal(signal.SIGTERM, before)
    raise UserError(f"the MLflow server stopped with exit code {code}")
