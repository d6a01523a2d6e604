"""doctor: every planted fault is found, and each finding names its fix."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.pictures import encoded_pixels
from helpers.processes import Gat
from helpers.trials import TINY

from gat_sweep.launch import doctor
from gat_sweep.sweep import load_sweep

SWEEP = f"about: one\nset: {json.dumps(TINY)}\n"


def examined(folder: Path, home: Path, uri: str | None = None, **settings: Any) -> dict[str, doctor.Finding]:
    (folder / "one.yaml").write_text(SWEEP)
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    sweep = load_sweep(folder / "one.yaml", "digits", overrides=overrides)
    return {finding.check: finding for finding in doctor.examine(sweep, home, "127.0.0.1:1", uri)}


@pytest.mark.reliability
def test_every_fault_is_found(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Any,
) -> None:
    """Faults planted in storage, disk, data, weights, tracking and cluster, one at a time: each is found, in a line
    that names the fix."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    well = examined(tmp_path, home)
    assert {check for check, finding in well.items() if not finding.ok} == {"cluster"}
    assert "no Ray cluster answers at" in well["cluster"].found

    encoded_pixels(tmp_path / "data", 20, 8)
    shard = next((tmp_path / "data" / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    (tmp_path / "file").write_text("")
    usage = shutil.disk_usage(tmp_path)
    full = lambda folder: usage._replace(free=10)  # noqa: E731
    cut = {"data__dataset": "encoded", "data__path": str(tmp_path / "data"), "data__channels": 3, "data__classes": 2}
    faults: list[tuple[str, str, Callable[[], dict[str, doctor.Finding]]]] = [
        ("storage", "use another one", lambda: examined(tmp_path, tmp_path / "file" / "home", "sqlite://")),
        ("data", "", lambda: examined(tmp_path, home, **cut)),
        ("weights", "eval.weights", lambda: examined(tmp_path, home, eval__weights="nowhere.pth", **INCEPTION)),
        ("tracking", "start the server", lambda: examined(tmp_path, home, "http://127.0.0.1:1")),
    ]
    for check, fix, find in faults:
        found = find()
        assert not found[check].ok and fix in found[check].found and len(found[check].found.splitlines()) == 1
    with monkeypatch.context() as patch:
        patch.setattr(doctor.shutil, "disk_usage", full)
        found = examined(tmp_path, home)
        assert not found["disk"].ok and "make room" in found["disk"].found
    figures(faults_planted=len(faults) + 2, found=len(faults) + 2)


INCEPTION = {"eval__extractor": "inception_v3", "eval__resize": 299}


@pytest.mark.ray
@pytest.mark.slow
def test_doctor_from_the_command_line(
    home: Path,
    tmp_path: Path,
    gat: Gat,
) -> None:
    """With a Ray of its own: everything is well, and exit code 0; a trial larger than the machine is found."""
    (tmp_path / "one.yaml").write_text(SWEEP)
    args = ["doctor", str(tmp_path / "one.yaml"), "--recipe", "digits", "--home", str(home), "--json"]
    code, out, _ = gat(*args)
    findings = {finding["check"]: finding for finding in json.loads(out)}
    assert code == 0 and all(finding["ok"] for finding in findings.values())
    assert findings["nodes"]["found"].startswith("1 nodes write and read")
    code, out, _ = gat(*args, "--set", "workers.cpus=4096")
    wrong = [finding for finding in json.loads(out) if not finding["ok"]]
    assert code == 1 and [finding["check"] for finding in wrong] == ["resources"] and "4096" in wrong[0]["found"]
