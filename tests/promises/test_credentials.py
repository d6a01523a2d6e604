"""No secret is written: places that carry one are refused, messages lose theirs, and no file of a run has any."""

import base64
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers.processes import Gat
from helpers.trials import tiny_config, tiny_trial
from rich.console import Console

from gat_sweep.encode.job import EncodeJob, encode
from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_config, check_no_credentials, without_credentials
from gat_sweep.files.storage import place
from gat_sweep.monitor.progress import Monitor
from gat_sweep.monitor.tracking import Tracker, create_store, log_artifacts
from gat_sweep.monitor.ui import default_uri, serve_ui
from gat_sweep.recipe import flatten
from gat_sweep.run.record import open_run
from gat_sweep.sweep import Sweep, trial_id
from gat_sweep.train.loop import train

pytestmark = pytest.mark.reliability
SECRET = "hunter22"
WITH_SECRETS = """
http://me:hunter22@host:5000            https://hunter22@host/                     HTTP://me:hunter22@host
http://me:hunter22%40x@host             http://me%3Ahunter22%40host                http://me:hunter22?x@host
http://me:hunter22#x@host               http://me:@hunter22@host/                  http://mlflow:12345@host
http://[::1]:hunter22@host              me:hunter22@host:5000                      hf://user:hunter22@datasets/x
s3://AKIAX:hunter22@bucket/p            s3://AKIAX:hun/ter22@bucket/p              s3:/AKIAX:hun/ter22@bucket
s3://AKIAX:123/hunter22@bucket          gs://x:hunter22@bucket                     abfss://c:hunter22@a.windows.net/x
s3://b/p?access_key=A&secret_key=hunter22   s3://b/p?region=x&session_token=hunter22   s3://b?SECRET-KEY=hunter22
https://h/x.npz?X-Amz-Signature=hunter22    https://h/x.npz?X-Amz-Credential=hunter22  https://h/c?sv=1&sig=hunter22
https://h/x?token=hunter22              https://h/x#access_token=hunter22          https://h/?hf_token=hunter22
https://h/?PASSWORD=hunter22            https://h/?api-key=hunter22                https://h/?apikey=hunter22
postgresql://me:hunter22@db/mlflow      postgresql+psycopg2://me:hunter22@db:5432/x    postgresql://db/x?password=hunter22
mysql+pymysql://me:hunter22@db/mlflow   mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter22
"""
WITHOUT = """
runs  /home/me/runs  /data/a@b:c/d  data/cifar@v2:3  ./weights.pth  digits  a=b  token=3/x.pt  C:/x@y
s3://bucket/prefix  s3://bucket/a@b  s3://my.bucket/exp:1/x  s3://b/p?region=eu-west-1&endpoint_override=localhost:9000
http://127.0.0.1:5000  http://localhost:5000/path@x  https://[::1]:5000/a@b  http://host/?page=2  file:///tmp/mlruns
sqlite:////tmp/runs/mlflow.db  sqlite:////tmp/a@b:c/mlflow.db  databricks://profile  databricks
stabilityai/sd-vae-ft-mse  hf-hub:timm/vit@main  hf-hub:timm/vit  org/name@rev  hf://datasets/u/n@rev
abfss://c@acc.dfs.core.windows.net/x  vit_base_patch14_dinov2.lvd142m
"""
CARRIERS, HARMLESS = WITH_SECRETS.split(), WITHOUT.split()


def refused(action: Callable[[], object], *words: str) -> bool:
    try:
        action()
    except UserError as error:
        assert SECRET not in str(error) and "\n" not in str(error) and all(word in str(error) for word in words), error
        return True
    return False


def test_places_with_secrets_are_told_from_others(figures: Callable[..., None]) -> None:
    """A URI with a password, key or signature is refused before anything is written, and is not repeated."""
    found = [uri for uri in CARRIERS if refused(lambda uri=uri: check_no_credentials(uri, "--home"), "--home")]
    mistaken = [uri for uri in HARMLESS if refused(lambda uri=uri: check_no_credentials(uri, "--home"))]
    assert found == CARRIERS and mistaken == []
    for uri, fix in [("http://a:b@c", "MLFLOW_TRACKING_PASSWORD"), ("s3://a:b@c", "AWS_ACCESS_KEY_ID")]:
        assert refused(lambda uri=uri: check_no_credentials(uri, "x"), fix)
    figures(uris_with_secrets=len(CARRIERS), refused=len(found), others=len(HARMLESS), refused_by_mistake=0)


def test_every_way_in_refuses_them(
    tmp_path: Path,
    gat: Gat,
    monkeypatch: pytest.MonkeyPatch,
    figures: Callable[..., None],
) -> None:
    """Every option and config value that takes a place refuses secrets, and leaves no file."""
    http, s3 = "http://me:hunter22@127.0.0.1:1", "s3://AKIA:hunter22@bucket/x"
    job = {"out": tmp_path / "out", "tokenizer": "pixels", "images": str(tmp_path)}
    ways: list[Callable[[], object]] = [
        lambda: Tracker(http, tmp_path, "sweep", "launch", {}),
        lambda: log_artifacts(http, "run", [], "law"),
        lambda: serve_ui(http, tmp_path, 5000),
        lambda: place(s3),
        lambda: place("s3://AKIA:hun/ter22@bucket"),  # as many of Amazon's secrets are
        *(lambda name=name: encode(EncodeJob(**{**job, name: s3}), Console()) for name in ("tokenizer", "images")),
        lambda: encode(EncodeJob(**{**job, "out": Path(s3)}), Console()),
        lambda: encode(EncodeJob(**job, teacher_checkpoint=s3), Console()),
        lambda: encode(EncodeJob(**job, latents=s3), Console()),
        *(
            lambda key=key: check_config({**flatten(tiny_config().model_dump()), key: s3})
            for key in ("data.path", "data.tokenizer", "teacher.checkpoint", "eval.weights", "eval.reference")
        ),
        lambda: check_config({"some.list": ["x", {"y": s3}]}),
        *(
            lambda key=key: tiny_config(**{key: s3})
            for key in ("data__path", "data__tokenizer", "teacher__checkpoint", "eval__weights", "eval__reference")
        ),
    ]
    assert sum(refused(way) for way in ways) == len(ways)
    check_config(flatten(tiny_config().model_dump()))

    sweep, home = tmp_path / "s.yaml", tmp_path / "home"
    run = ["run", str(sweep), "--recipe", "digits", "--home", str(home)]
    sweep.write_text("about: x\n")
    commands = [
        [*run, "--tracking-uri", http],
        ["run", str(sweep), "--recipe", "digits", "--home", s3],
        [*run, "--set", f"data.path={s3}"],
        ["train", "--recipe", "digits", "--home", str(home), "--set", f"eval.reference={s3}"],
        ["evaluate", s3],
    ]
    for command in commands:
        code, out, err = gat(*command)
        assert code == 2 and len(err.strip().splitlines()) == 1 and SECRET not in out + err, command
    sweep.write_text(f"about: x\nset: {{data.path: '{s3}'}}\n")
    code, out, err = gat(*run)
    assert code == 2 and "data.path" in err and SECRET not in out + err
    sweep.write_text("about: x\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", http)
    code, out, err = gat(*run)
    assert code == 2 and "--tracking-uri" in err and SECRET not in out + err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.yaml"]
    figures(ways_in=len(ways) + len(commands) + 2, refused=len(ways) + len(commands) + 2, files_left=0)


def test_messages_lose_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_fromtheenvironment")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    for text in [
        *("refused http://me:hunter22@host/x", "refused http://hunter22@host/x", "/api?token=hunter22&x=1"),
        *("{'Authorization': 'Basic aHVudGVyMjI='}", "Authorization: Bearer hunter22", '"password": "hunter22"'),
        *("aws_secret_access_key=hunter22", "sent hf_fromtheenvironment along"),
    ]:
        said = without_credentials(text)
        assert "..." in said and not any(word in said for word in (SECRET, "aHVudGVyMjI", "fromtheenvironment")), said
    for text in ("HTTPConnectionPool(host='h', port=5000): refused http://h:5000/ok", "abc is a word", ""):
        assert without_credentials(text) == text
    assert len(without_credentials("a" * 100_000 + "token" * 10_000)) < 5000  # and soon


class Echo(BaseHTTPRequestHandler):
    """A server, or a proxy before one, that answers every request with an error that repeats its headers."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(str(self.headers.get("Authorization")))
        body = json.dumps({"headers": dict(self.headers), "also": [SECRET]}).encode()
        self.send_response(500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_error_of_mlflow_shows_no_secret(tmp_path: Path, echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    header = base64.b64encode(f"someone:{SECRET}".encode()).decode()
    tracker = Tracker(echo, tmp_path, "sweep", "launch", {})
    said = [tracker.ship([]), tracker.finish("done"), log_artifacts(echo, "0" * 32, [Path(__file__)], "law")]
    assert f"Basic {header}" in Echo.seen  # the credentials do work
    assert all(header not in str(line) and SECRET not in str(line) for line in said), said
    assert all("MLflow at http" in str(line) for line in said)


@pytest.mark.slow
def test_nothing_a_run_leaves_holds_a_secret(
    tmp_path: Path,
    home_with_reference: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    figures: Callable[..., None],
) -> None:
    """Secrets of the environment are in no file, no MLflow row and no line of output of a finished run."""
    planted = {
        "MLFLOW_TRACKING_USERNAME": "planted-username",
        "MLFLOW_TRACKING_PASSWORD": "planted-password",
        "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
        "AWS_SECRET_ACCESS_KEY": "planted/aws+secret",
        "HF_TOKEN": "hf_planted",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    shutil.copytree(home_with_reference / "cache", home / "cache")
    trial = tiny_trial(home)
    open_run(home, "run", Sweep("sweep", "one", "digits", {trial_id(trial.config): trial.config}))
    create_store(default_uri(home), home)
    tracker = Tracker(default_uri(home), home, "sweep", "run", {"commit": "abc"})
    with Monitor([trial], Console(), lambda folders: tracker.ship(folders)[1]):
        train(trial, torch.device("cpu"))
    assert tracker.ship([trial.folder])[1] == tracker.finish("done") == ""
    assert log_artifacts(tracker.uri, tracker.parent_id, [home / "run" / "run.json"], "law") == ""
    output = "".join(capfd.readouterr())
    assert "done" in output
    files = [path for path in home.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".json", ".jsonl", ".safetensors", ".parquet", ".png", ".db"} <= kinds
    held = b"".join(path.read_bytes() for path in files)
    assert b"trial" in held and b"loss_g" in held  # nothing is compressed away from this look
    for value in planted.values():
        for form in (value, base64.b64encode(value.encode()).decode().rstrip("=")):
            assert form.encode() not in held and form not in output
    figures(secrets=len(planted), files_searched=len(files), megabytes=round(len(held) / 1e6, 1), found=0)
