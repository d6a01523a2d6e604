"""The script for the day a GPU is there (benchmarks/gpu_check.py), walked through on a CPU."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.pictures import photographs
from PIL import Image

ROOT = Path(__file__).parents[1]
# In the order of their needs: `evaluate` reads the data that `data` encoded, `noise` what `sweep` trained.
STAGES = ["info", "parity", "precision", "resume", "data", "reference", "evaluate", "cli", "ddp", "bench:S", "micro"]
STAGES += ["sweep:S", "noise:S"]


@pytest.mark.slow
def test_every_stage_ends_on_a_cpu_with_networks_of_nothing(tmp_path: Path) -> None:
    """What it finds is kept, each stage says a line, and the archive for readers is there."""
    for name in ("gat_sweep", "analysis", "benchmarks", "tests", "docs", "sweeps", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    rows = []
    for i, picture in enumerate(photographs(300, 32)):
        content = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(content, "JPEG")
        rows.append({"image": {"bytes": content.getvalue(), "path": None}, "label": i % 10})
    (tmp_path / ".kit").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / ".kit" / "cifar10.parquet")
    command = [sys.executable, "benchmarks/gpu_check.py", "--out", "out", "--rehearse", "--budget", "1100"]
    environment = os.environ | {"GAT_KIT_WORK": str(tmp_path / "work"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--only", ",".join(STAGES)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["rehearsal"] and list(found["stages"]) == STAGES
    stages = found["stages"].items()
    bad = {name: stage.get("error", stage["status"]) for name, stage in stages if stage["status"] != "ended"}
    assert bad == {}, done.stdout
    assert all(stage["line"] for stage in found["stages"].values())
    assert (tmp_path / "out" / "extras.tar.gz").stat().st_size > 0
