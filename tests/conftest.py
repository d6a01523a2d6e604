"""Fixtures. One thread: results are compared bit for bit, and tests share two cores with Ray.

What takes seconds to import is imported in the fixtures: pytest-xdist's main process runs no test.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "200"  # of the tables that commands print

import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import pytest

if TYPE_CHECKING:
    from helpers.planted import PlantedTrial
    from helpers.postgres import TeamMlflow

    from gat_sweep.files.storage import Remote
    from gat_sweep.run.trial import Trial

# Workers of tests are forked from a process that has imported everything once.
multiprocessing.set_forkserver_preload(["gat_sweep.train.loop", "sklearn.datasets", "psutil", "pytest"])


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


# ---------------------------------------------------------------- homes


@pytest.fixture
def home(tmp_path: Path, home_with_reference: Path) -> Path:
    """A home of a test's own; the reference statistics are there already."""
    shutil.copytree(home_with_reference / "cache", tmp_path / "home" / "cache")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def trained(home_with_reference: Path) -> "Trial":
    """A trial that is done, for tests that only read it."""
    from helpers.trials import CPU, tiny_trial

    from gat_sweep.train.loop import train

    trial = tiny_trial(home_with_reference, "trained")
    assert train(trial, CPU).status == "done"
    return trial


@pytest.fixture
def trained_copy(trained: "Trial", home: Path) -> "Trial":
    """The same in a test's own home."""
    from helpers.trials import tiny_trial

    shutil.copytree(trained.run_folder, home / trained.run)
    return tiny_trial(home, trained.run)


@pytest.fixture(scope="session")
def home_with_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store for all tests, since making one takes 2 s; each test has its own experiment."""
    from gat_sweep.monitor.tracking import create_store
    from gat_sweep.monitor.ui import default_uri

    home = tmp_path_factory.mktemp("store")
    create_store(default_uri(home), home)
    return home


@pytest.fixture
def planted(home_with_store: Path, request: pytest.FixtureRequest) -> "PlantedTrial":
    """A trial whose files a test writes, in a run named as the test."""
    from helpers.planted import PlantedTrial

    return PlantedTrial(home_with_store, request.node.name)


@pytest.fixture
def sizes(tmp_path: Path) -> "list[Trial]":
    """The trials of the planted run `sizes`: four sizes of two seeds; all but XL are done."""
    from helpers.planted import SIZES_SWEEP, finish, value_of

    from gat_sweep.run.record import open_run
    from gat_sweep.run.trial import Trial
    from gat_sweep.sweep import load_sweep

    (tmp_path / "sizes.yaml").write_text(SIZES_SWEEP)
    sweep = load_sweep(tmp_path / "sizes.yaml", "digits", seeds=[0, 1])
    open_run(tmp_path, "sizes", sweep)
    found = [Trial(name, "sizes", "sizes", config, tmp_path) for name, config in sweep.trials.items()]
    for trial in found:
        if trial.config.model.generator != "XL":
            finish(trial, value_of(trial))
    return found


# ---------------------------------------------------------------- the command line


@pytest.fixture
def gat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """gat("plan", file): exit code, stdout and stderr of a command, run in this process and in the test's folder."""
    from gat_sweep import cli

    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gat-sweep", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


# ---------------------------------------------------------------- figures of docs/reliability.md

PROMISES: dict[str, tuple[str, dict[str, Any]]] = {}  # test -> what it promises, its figures


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """figures(kills=20, recovered=20): what a test counted; `make test-slow` writes it to docs/reliability.md.

    The promise is the first line of the test's docstring, so each such test has one.
    """

    def note(**numbers: Any) -> None:
        promise = " ".join(request.function.__doc__.split("\n\n")[0].split())
        request.node.user_properties.append(("promise", (promise, numbers)))  # travels to whoever reports

    return note


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", type=Path, help="write the figures of the tests that passed to this file")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    properties: dict[str, Any] = dict(report.user_properties)
    if report.when == "call" and report.passed and "promise" in properties:
        PROMISES[report.nodeid] = properties["promise"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--figures")
    if path is None or hasattr(session.config, "workerinput"):  # one of pytest-xdist's helpers
        return
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    lines = [
        "# What was tried, and what held",
        "",
        f"Written by `make test-slow` on {datetime.now(UTC):%Y-%m-%d} at commit {commit}. Who failed is not here.",
        "",
        "| promise | figures | test |",
        "|---|---|---|",
    ]
    for test, (promise, numbers) in sorted(PROMISES.items()):
        shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in numbers.items())
        lines.append(f"| {promise} | {shown} | `{test.removeprefix('tests/')}` |")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    _, section, written = before.partition("\n## ")  # sections below the table are written by hand
    path.write_text("\n".join(lines) + "\n" + section + written, encoding="utf-8")


@pytest.fixture(scope="session")
def home_with_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose reference statistics are computed already."""
    from helpers.trials import tiny_config

    from gat_sweep.data.dataset import load_dataset
    from gat_sweep.metrics.reference import load_reference

    home = tmp_path_factory.mktemp("reference")
    load_reference(tiny_config(), load_dataset(tiny_config().data), home)
    return home


@pytest.fixture(scope="session")
def bucket() -> "Iterator[Remote]":
    """A bucket of moto's S3 server, which speaks the protocol over HTTP on loopback."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    from gat_sweep.files.storage import Remote, place

    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}"
        where = {"region": "us-east-1", "scheme": "http", "endpoint_override": f"{host}:{port}"}
        S3FileSystem(**where, allow_bucket_creation=True).create_dir("runs")
        root = place(f"s3://runs/gat?{options}")
        assert isinstance(root, Remote)
        yield root
        server.stop()


@pytest.fixture(scope="session")
def team_mlflow(bucket: "Remote") -> "Iterator[TeamMlflow]":
    """MLflow as a team runs it: a server on PostgreSQL, with artifacts in a bucket. Tests may kill either."""
    from helpers.postgres import Postgres, TeamMlflow, binaries

    from benchmarks.mlflow_server import Server
    from gat_sweep.files.storage import Remote

    folder = binaries()
    if folder is None:
        pytest.skip("no PostgreSQL on this machine (Debian: apt-get install postgresql)")
    pytest.importorskip(
        "psycopg2", reason="psycopg2-binary is not installed, which an MLflow server on PostgreSQL needs"
    )
    endpoint = dict(parse_qsl(urlsplit(str(bucket)).query))["endpoint_override"]
    postgres = Postgres(folder)
    try:
        postgres.start()
        where = {"MLFLOW_S3_ENDPOINT_URL": f"http://{endpoint}", "AWS_DEFAULT_REGION": "us-east-1"}
        server = Server(postgres.uri, "s3://runs/mlflow", where)
        server.start()
        try:
            server.wait()
            yield TeamMlflow(server, postgres, Remote(bucket.store, "mlflow"))
        finally:
            server.end()
    finally:
        postgres.end()
