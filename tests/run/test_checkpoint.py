"""Checkpoints: what a crash, a flipped bit or a full disk leaves, and a bucket of a real S3 server."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trials import save_checkpoint
from torch import Tensor, nn

from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, Remote, append, children, place, read_from, remove_folder, size_of, write
from gat_sweep.run import checkpoint, saved
from gat_sweep.run.checkpoint import open_checkpoint, resume, step_checkpoint
from gat_sweep.run.saved import Damaged, saved_step

Figures = Callable[..., None]


class Parts(dict[str, Any]):
    """A small network and its optimizer, a step trained from a seed."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        network = nn.Linear(7, 5)
        optimizer = torch.optim.AdamW(network.named_parameters(), lr=0.1 * (seed + 1), fused=True)
        network(torch.randn(3, 7)).square().mean().backward()
        optimizer.step()
        super().__init__(network=network, optimizer=optimizer)

    def tensors(self) -> list[Tensor]:
        state = self["optimizer"].state_dict()["state"]
        moments = [state[index][name] for index in sorted(state) for name in sorted(state[index])]
        return [*self["network"].state_dict().values(), *moments]


def same(a: Parts, b: Parts) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- folders


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """Bit for bit, with the counters; the optimizer keeps the rates of its config; the newest two stay."""
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, Parts(step), {"evaluated": step})
    assert [child.name for child in children(tmp_path)] == ["latest.json", "step_00000020", "step_00000030"]
    parts = Parts(0)
    found = resume(tmp_path, parts, pytest.fail)
    assert found is not None and (found.step, found.facts, saved_step(tmp_path)) == (30, {"evaluated": 30}, 30)
    assert same(parts, Parts(30)) and parts["optimizer"].param_groups[0]["lr"] == pytest.approx(0.1)
    assert resume(tmp_path / "nowhere", parts, pytest.fail) is None


@pytest.mark.reliability
def test_damage_is_found_and_the_checkpoint_before_is_used(tmp_path: Path, figures: Figures) -> None:
    """A bit flipped anywhere in a checkpoint, or a file cut or lost, is detected and the one before is used."""
    for step in (10, 20):
        save_checkpoint(tmp_path / "whole", step, Parts(step), {})
    random = np.random.default_rng(0)
    newest = files(tmp_path / "whole" / "step_00000020")

    def flipped(content: bytes) -> bytes:
        place = int(random.integers(len(content)))
        return content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]

    def cut(content: bytes) -> bytes:
        return content[: int(random.integers(len(content)))]

    tried = detected = recovered = 0
    for file in newest:
        for damage in [flipped] * 40 + [cut] * 10 + [None]:
            folder = tmp_path / "damaged"
            shutil.copytree(tmp_path / "whole", folder)
            target = folder / file.relative_to(tmp_path / "whole")
            if damage is None:
                target.unlink()
            else:
                target.write_bytes(damage(target.read_bytes()))
            tried += 1
            said: list[str] = []
            parts = Parts(0)
            found = resume(folder, parts, said.append)
            detected += any("step 20 is damaged" in line and "trying the previous one" in line for line in said)
            recovered += found is not None and found.step == 10 and same(parts, Parts(10))
            shutil.rmtree(folder)
    figures(damages_tried=tried, detected=detected, went_on_from_the_one_before=recovered)
    assert tried == 153 and detected == recovered == tried


def test_a_damaged_pointer_costs_nothing_but_a_line(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, Parts(step), {})
    pointer = tmp_path / "latest.json"
    for content in (b"", b"{", pointer.read_bytes().replace(b"20", b"10")):
        pointer.write_bytes(content)
        said: list[str] = []
        found = resume(tmp_path, Parts(0), said.append)
        assert found is not None and found.step == 20 and "latest.json" in said[0]
    for file in files(tmp_path):
        file.write_bytes(b"no")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged; delete that folder"):
        resume(tmp_path, Parts(0), [].append)


@pytest.mark.reliability
def test_a_crash_anywhere_in_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """A save that ends at any of its writes leaves the one before, or the new one, whole; the next save succeeds."""

    class Crash(BaseException):
        pass

    writes = 0

    def crashing(limit: int) -> Callable[[Place, bytes], None]:
        left = [limit]

        def instead(target: Place, content: bytes) -> None:
            nonlocal writes
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            write(target, content)

        return instead

    found_steps = []
    for limit in range(5):
        folder = tmp_path / str(limit)
        save_checkpoint(folder, 10, Parts(10), {})
        one_limit = crashing(limit)
        for writer in (checkpoint, saved):
            monkeypatch.setattr(writer, "write", one_limit)
        try:
            save_checkpoint(folder, 20, Parts(20), {})
        except Crash:
            writes += 1
        monkeypatch.undo()
        parts = Parts(0)
        found = resume(folder, parts, pytest.fail)
        assert found is not None and same(parts, Parts(found.step))
        found_steps.append(found.step)
        save_checkpoint(folder, 20, Parts(20), {})
        assert same(parts, Parts(20)) if resume(folder, parts, pytest.fail) else False
    figures(places=writes, whole_checkpoint_found=len(found_steps))
    assert found_steps == [10, 10, 10, 10, 20] and writes == 4  # two parts, the manifest, the pointer


@pytest.mark.reliability
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, figures: Figures) -> None:
    """No room left: the save fails with the reason, the checkpoint before is whole, and the room is given back."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        save_checkpoint(disk / "c", 10, Parts(10), {})
        before = {file: file.read_bytes() for file in files(disk)}
        tried = 0
        for size in (60_000, 150_000, 250_000):
            tried += 1
            big = {"network": nn.Linear(size, 1), "other": nn.Linear(200_000, 1)}
            with pytest.raises(OSError) as error:
                save_checkpoint(disk / "c", 20, big, {})
            assert error.value.errno == errno.ENOSPC
            assert {file: file.read_bytes() for file in files(disk)} == before
            parts = Parts(0)
            assert resume(disk / "c", parts, pytest.fail) is not None and same(parts, Parts(10))
        figures(full_disks=tried, previous_whole=tried)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_beyond_the_pointer_does_not_count(tmp_path: Path) -> None:
    """A crash after the last file and before the pointer: the step was never said to be saved."""
    save_checkpoint(tmp_path, 10, Parts(10), {})
    pointer = (tmp_path / "latest.json").read_bytes()
    save_checkpoint(tmp_path, 20, Parts(20), {})
    (tmp_path / "latest.json").write_bytes(pointer)
    found = resume(tmp_path, Parts(0), pytest.fail)
    assert found is not None and found.step == 10


def test_no_half_written_file_has_a_name_that_is_read(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write of 200 MB leaves no such file, however early or late it comes."""
    script = "import sys; from gat_sweep.files.storage import write; from pathlib import Path\n"
    script += "print('go', flush=True); write(Path(sys.argv[1]), b'x' * 200_000_000)"
    for delay in (0.0, 0.02, 0.05, 0.1):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "big")], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        time.sleep(delay)
        process.kill()
        process.communicate()
        if (tmp_path / "big").exists():
            assert (tmp_path / "big").stat().st_size == 200_000_000
            (tmp_path / "big").unlink()


# ---------------------------------------------------------------- buckets


def test_a_bucket_holds_checkpoints_as_a_folder_does(bucket: Remote) -> None:
    folder = bucket / "trial" / "checkpoints"
    assert resume(folder, Parts(0), pytest.fail) is None
    for step in (10, 20, 30):
        save_checkpoint(folder, step, Parts(step), {})
    assert [child.name for child in children(folder)] == ["latest.json", "step_00000020", "step_00000030"]
    parts = Parts(0)
    found = resume(folder, parts, pytest.fail)
    assert found is not None and found.step == 30 and same(parts, Parts(30))
    content = (found.folder / "network.safetensors").read_bytes()
    write(found.folder / "network.safetensors", content[:-1] + bytes([content[-1] ^ 1]))
    said: list[str] = []
    found = resume(folder, parts, said.append)
    assert found is not None and found.step == 20 and same(parts, Parts(20)) and "sha256 differs" in said[0]
    with pytest.raises(Damaged, match="sha256 differs"):
        step_checkpoint(folder, 30).part("network")
    remove_folder(folder / "step_00000030")
    with pytest.raises(Damaged, match="is missing"):
        open_checkpoint(folder / "step_00000030")


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_growing_file_is_read_from_where_one_left_off(where: str, request: pytest.FixtureRequest) -> None:
    """Over many segments of a bucket's object, and with a reader at every position."""
    root: Place = request.getfixturevalue("tmp_path" if where == "folder" else "bucket")
    file, whole = root / "journal.jsonl", b""
    assert (size_of(file), read_from(file)) == (0, b"")
    for i in range(30):
        line = json.dumps({"i": i, "text": "x" * 7000}).encode() + b"\n"
        append(file, line)
        assert read_from(file, len(whole)) == line
        whole += line
    assert size_of(file) == len(whole)
    for offset in (0, 1, 65_535, 65_536, 70_001, 100_000, len(whole) - 1, len(whole)):
        assert read_from(file, offset) == whole[offset:]
    if isinstance(file, Remote):
        assert len(children(file)) == 3


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:secret@bucket/runs",
        "s3://bucket/runs?access_key=AKIA&secret_key=hunter2",
        "gs://bucket/runs",
        "file:///tmp/runs",
        "s3:///runs",
    ],
)
def test_where_runs_cannot_live(uri: str) -> None:
    with pytest.raises(UserError) as error:
        place(uri)
    assert "secret" not in str(error.value).replace("AWS_SECRET", "") and "hunter2" not in str(error.value)


def test_places_are_told_apart() -> None:
    root = place("s3://bucket/a/b?region=x")
    assert isinstance(root, Remote) and str(root / "c.json") == "s3://bucket/a/b/c.json?region=x"
    assert (root / "c.json").parents[1] == place("s3://bucket/a?region=x") and (root / "c.json").stem == "c"
    assert place("runs") == Path("runs").absolute()
    assert os.environ.get("AWS_SECRET_ACCESS_KEY", "") not in (str(root),)
