"""Shared small configs. One thread: results are compared bit for bit, and tests share two cores with Ray."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "200"  # of the tables that commands print

import multiprocessing
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import S3FileSystem
from sklearn.datasets import load_sample_images
from torch.utils.data import Dataset

from gat_sweep.config import TrialConfig
from gat_sweep.data.shards import CachedTeacher, Columns, float16, write_manifest, write_shard
from gat_sweep.data.tokenizer import Pixels, TokenizerIdentity
from gat_sweep.files.storage import Remote, place
from gat_sweep.recipe import load_recipe, resolve
from gat_sweep.run.trial import Trial
from gat_sweep.vision.teacher import EFFICIENTNET, load_teacher

torch.set_num_threads(1)
# Workers of tests are forked from a process that has imported everything once.
multiprocessing.set_forkserver_preload(["gat_sweep.train.loop"])

REFERENCE = Path(__file__).parent / "data" / "official_step.safetensors"
TINY: dict[str, Any] = {
    "train.steps": 4,
    "train.batch": 8,
    "train.eval_every": 2,
    "train.log_every": 1,
    "eval.samples": 64,
    "eval.resize": 32,
}


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
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def home_with_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose reference statistics are computed already."""
    from gat_sweep.metrics.reference import load_reference

    home = tmp_path_factory.mktemp("reference")
    load_reference(tiny_config(), home)
    return home


@pytest.fixture(scope="session")
def bucket() -> Iterator[Remote]:
    """A bucket of moto's S3 server, which speaks the protocol over HTTP on loopback."""
    from moto.server import ThreadedMotoServer

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


def tiny_config(**overrides: Any) -> TrialConfig:
    """Digits at a few steps; keys with `__` for dots."""
    return resolve(load_recipe("digits"), TINY, {k.replace("__", "."): v for k, v in overrides.items()})


def tiny_trial(home: Path, name: str = "run", **overrides: Any) -> Trial:
    return Trial("trial", name, "sweep", tiny_config(**overrides), home)


def photographs(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Squares out of scikit-learn's two photographs, in turn; uint8 [count, 3, side, side]."""
    random, images = np.random.default_rng(seed), load_sample_images().images
    corners = [random.integers(0, [427 - side + 1, 640 - side + 1]) for _ in range(count)]
    squares = [images[i % 2][y : y + side, x : x + side] for i, (y, x) in enumerate(corners)]
    return np.stack(squares).transpose(0, 3, 1, 2)


class Photographs(Dataset[torch.Tensor]):
    """Pictures as torch-fidelity takes them."""

    def __init__(self, pictures: np.ndarray):
        self.pictures = torch.from_numpy(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pictures[index]


def encoded_pixels(folder: Path, count: int, side: int, grid: int | None = None) -> np.ndarray:
    """A data set of photographs in two classes, in shards of 7; returns its pictures.

    grid: EfficientNet-Lite0's tokens are stored beside them, so many to a side.
    """
    pictures = photographs(count, side)
    parts = [{"pixels": part} for part in _split(pictures)]
    teacher = None
    if grid:
        network = load_teacher(EFFICIENTNET, None, grid)
        for part in parts:
            part["teacher"] = network.tokens(torch.from_numpy(part["pixels"])).half().numpy()
        teacher = CachedTeacher(name=EFFICIENTNET, digest=network.digest, tokens=1 + grid**2, width=network.width)
    _write(folder, Pixels(3).identity, side, "uint8", parts, teacher)
    return pictures


def encoded_latents(
    folder: Path, count: int, side: int, channels: int, scale: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A data set of Gaussian posteriors without pictures; returns their means and standard deviations, float32."""
    random = np.random.default_rng(1)
    mean, std = float16(random.normal(size=(2, count, channels, side, side)))[0]
    std = np.abs(std)
    identity = TokenizerIdentity("nowhere", "0" * 12, channels, 8, scale, shift)
    parts = [{"mean": m, "std": s} for m, s in zip(_split(mean), _split(std), strict=True)]
    _write(folder, identity, side, "float16", parts)
    return mean.astype(np.float32), std.astype(np.float32)


def _split(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + 7] for start in range(0, len(values), 7)]


def _write(
    folder: Path,
    tokenizer: TokenizerIdentity,
    side: int,
    dtype: str,
    parts: list[dict[str, np.ndarray]],
    teacher: CachedTeacher | None = None,
) -> None:
    shards, start = [], 0
    for number, part in enumerate(parts):
        count = len(next(iter(part.values())))
        index = np.arange(start, start := start + count)
        columns = Columns((index % 2).astype(np.int32), [str(i) for i in index], **part)
        shards.append(write_shard(folder / "shards" / f"{number:05d}.arrow", columns))
    write_manifest(
        folder,
        name="photographs",
        count=start,
        side=side,
        channels=tokenizer.channels,
        picture_side=side * tokenizer.factor,
        dtype=dtype,
        has_pictures=dtype == "uint8",
        tokenizer=tokenizer,
        teacher=teacher,
        classes=("palace", "flower"),
        shards=tuple(shards),
        skipped=(),
    )
