"""`gat-sweep encode`: shards that depend on their images alone, whoever wrote them and however often it was cut off."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from helpers.pictures import PHOTO, bad_pictures, save, save_vae, square, write_edm2
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_images

from gat_sweep.data.shards import Manifest, open_shards
from gat_sweep.data.tokenizer import load_tokenizer
from gat_sweep.encode.encoder import Encoder, Encoding
from gat_sweep.encode.job import EncodeJob, encode
from gat_sweep.encode.ledger import Done
from gat_sweep.encode.sources import read_unit
from gat_sweep.encode.units import Unit
from gat_sweep.errors import UserError


def here(encoding: Encoding, units: list[Unit], *machines: object) -> Generator[Done, None, None]:
    """Without Ray."""
    encoder = Encoder(encoding)
    for unit in units:
        yield encoder.write(unit.index, read_unit(encoding.source, unit, encoding.picture_side, encoding.store_images))


def run(job: EncodeJob, said: io.StringIO | None = None, by: Any = here) -> Manifest:
    return encode(job, Console(file=said or io.StringIO(), width=200), by)


def write_tiles(folder: Path, side: int = 40, bad: bool = True) -> None:
    """Two photographs cut into tiles, a class each, with the bad pictures among them."""
    images = load_sample_images()
    for photo, name in zip(images.images, ("china", "flower"), strict=True):
        for y in range(0, photo.shape[0] - side + 1, side):
            for x in range(0, photo.shape[1] - side + 1, side):
                file = io.BytesIO()
                Image.fromarray(photo[y : y + side, x : x + side]).save(file, "JPEG", quality=95)
                save(folder / name / f"{y:03d}-{x:03d}.jpg", file.getvalue())
    for i, content in enumerate(bad_pictures().values() if bad else ()):
        save(folder / "china" / f"{i * 50:03d}-bad.jpg", content)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vae")
    save_vae(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder)
    return str(folder)


def content(folder: Path) -> dict[str, bytes]:
    """All of a data set but the record of how it came about."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("encode.jsonl", ".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_pictures_become_pixels(tmp_path: Path, tiles: str) -> None:
    said = io.StringIO()
    manifest = run(EncodeJob(tmp_path / "set", "pixels", images=tiles, size=32, shard_size=100), said)
    assert manifest.count == 2 * 10 * 16 and manifest.classes == ("china", "flower")
    assert [shard.count for shard in manifest.shards] == [96, 98, 100, 26]  # the bad ones lie in the first two
    assert {skipped.source: skipped.reason.partition(":")[0] for skipped in manifest.skipped} == {
        f"china/{i * 50:03d}-bad.jpg": word for i, word in enumerate(bad_pictures())
    }
    assert "encoded 320 images" in said.getvalue() and "6 skipped (china/000-bad.jpg is empty" in said.getvalue()
    shards = open_shards(tmp_path / "set")
    assert shards.labels.tolist() == [0] * 160 + [1] * 160
    picture = square((Path(tiles) / "flower/040-080.jpg").read_bytes(), 32)
    np.testing.assert_array_equal(shards.pictures([160 + 16 + 2])[0], picture)


def test_latents_are_the_tokenizers_in_half_precision(tmp_path: Path, tiles: str, vae: str) -> None:
    job = EncodeJob(tmp_path, vae, images=tiles, size=32, store_images=True, batch=4)
    assert run(job).tokenizer == load_tokenizer(vae).identity
    shards, index = open_shards(tmp_path), [3, 200, 319]
    pictures = shards.pictures(index)
    expected = load_tokenizer(vae).encode(torch.from_numpy(pictures))
    for stored, exact in zip(shards.moments(index), expected, strict=True):
        np.testing.assert_allclose(stored, exact, rtol=2**-10, atol=1e-6)


def test_an_image_is_encoded_the_same_beside_any_others(tmp_path: Path, vae: str) -> None:
    write_tiles(tmp_path / "all", bad=False)
    write_tiles(tmp_path / "some", bad=False)
    for i, path in enumerate(sorted((tmp_path / "some").rglob("*.jpg"))):
        if i % 3 == 1 or i > 60:
            path.write_bytes(b"")
    found = []
    for name, shard_size in (("all", 1000), ("some", 40)):
        out = tmp_path / f"out-{name}"
        run(EncodeJob(out, vae, images=str(tmp_path / name), size=32, shard_size=shard_size, max_bad=1000, batch=4))
        found.append(open_shards(out).moments(np.arange(41)))
    kept = [i for i in range(61) if i % 3 != 1]
    for whole, part in zip(open_shards(tmp_path / "out-all").moments(kept), found[1], strict=True):
        np.testing.assert_array_equal(whole, part)


def test_a_teachers_tokens_are_stored(tmp_path: Path, tiles: str) -> None:
    from gat_sweep.vision.teacher import load_teacher

    path = tmp_path / "some/x"
    path.mkdir(parents=True)
    for i in range(6):
        os.link(f"{tiles}/flower/000-{40 * i:03d}.jpg", path / f"{i}.jpg")
    name = "efficientnet_lite0"
    job = EncodeJob(tmp_path / "set", "pixels", str(tmp_path / "some"), size=32, teacher=name, teacher_grid=4, batch=4)
    manifest = run(job)
    assert manifest.teacher is not None and manifest.teacher.tokens == 17
    shards = open_shards(tmp_path / "set")
    tokens = load_teacher(name, None, 4, torch.device("cpu")).tokens(torch.from_numpy(shards.pictures([5, 1])))
    np.testing.assert_allclose(shards.teacher([5, 1]), tokens, rtol=1e-2, atol=1e-3)
    with pytest.raises(UserError, match="has another encoding: teacher was"):
        run(replace(job, teacher_grid=5))


def test_latents_of_edm2_are_imported(tmp_path: Path, vae: str) -> None:
    latents = write_edm2(tmp_path / "edm2")
    folders = {"latents": str(tmp_path / "edm2/vae"), "images": str(tmp_path / "edm2/images")}
    manifest = run(EncodeJob(tmp_path / "set", vae, store_images=True, shard_size=2, **folders))
    assert (manifest.side, manifest.picture_side, manifest.count) == (8, 16, 5)
    shards = open_shards(tmp_path / "set")
    mean, std = shards.moments([4, 0])
    np.testing.assert_array_equal(mean, np.stack([latents[4], latents[0]])[:, :4].astype(np.float16))
    np.testing.assert_array_equal(std, np.stack([latents[4], latents[0]])[:, 4:].astype(np.float16))
    np.testing.assert_array_equal(shards.pictures([4])[0], PHOTO[4:20, :16].transpose(2, 0, 1))

    alone = run(EncodeJob(tmp_path / "alone", vae, latents=folders["latents"]))
    assert not alone.has_pictures and alone.classes == ("0", "1")
    with pytest.raises(UserError, match="need pictures; add --images"):
        run(EncodeJob(tmp_path / "x", vae, latents=folders["latents"], store_images=True))
    with pytest.raises(UserError, match="the latents have 4 channels, but --tokenizer pixels has"):
        run(EncodeJob(tmp_path / "x", "pixels", latents=folders["latents"]))


def test_latents_beyond_half_precision_are_left_out(tmp_path: Path, vae: str) -> None:
    latents = write_edm2(tmp_path / "edm2")
    latents[2][1, 2, 3] = 1e5
    np.save(tmp_path / "edm2/vae/00000/img-mean-std-00000002.npy", latents[2])
    manifest = run(EncodeJob(tmp_path / "set", vae, latents=str(tmp_path / "edm2/vae")))
    assert manifest.count == 4
    assert [(s.source, s.reason.partition(":")[0]) for s in manifest.skipped] == [
        ("00000/img-mean-std-00000002.npy", "not finite")
    ]
    np.testing.assert_array_equal(open_shards(tmp_path / "set").moments([2])[0][0], latents[3][:4].astype(np.float16))


def test_too_many_bad_images_stop_it_and_nothing_is_lost(tmp_path: Path, tiles: str) -> None:
    job = EncodeJob(tmp_path, "pixels", images=tiles, size=32, shard_size=20, max_bad=3)
    with pytest.raises(UserError, match=r"4 images are unusable \(china/000-bad.jpg is empty.*--max-bad"):
        run(job)
    before = (tmp_path / "encode.jsonl").read_text()
    with pytest.raises(UserError, match="4 images are unusable"):
        run(job)
    assert (tmp_path / "encode.jsonl").read_text() == before
    assert run(replace(job, max_bad=10)).count == 320
    assert (tmp_path / "encode.jsonl").read_text().startswith(before)


def test_nothing_but_bad_images_makes_no_data_set(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"in/{i}.jpg", b"")
    with pytest.raises(UserError, match="all images are unusable"):
        run(EncodeJob(tmp_path / "out", "pixels", images=str(tmp_path / "in"), size=32))
    assert not (tmp_path / "out/manifest.json").exists() and not list((tmp_path / "out").rglob("*.arrow"))


def test_cut_off_anywhere_it_ends_the_same(tmp_path: Path, tiles: str) -> None:
    job = EncodeJob(tmp_path / "whole/set", "pixels", images=tiles, size=32, shard_size=64)
    run(job)
    cut = replace(job, out=tmp_path / "cut/set")

    def dies(encoding: Encoding, units: list[Unit], *machines: object) -> Generator[Done, None, None]:
        """After two units, and a third whose line is not written."""
        for i, done in enumerate(here(encoding, units)):
            if i == 2:
                raise KeyboardInterrupt
            yield done

    with pytest.raises(KeyboardInterrupt):
        run(cut, by=dies)
    journal = cut.out / "encode.jsonl"
    done = journal.read_text()
    assert done.count("\n") == 3 and len(list(cut.out.rglob("*.arrow"))) == 3
    journal.write_text(done + done.splitlines()[-1][:30])  # half a line
    (cut.out / "shards/00000.arrow").write_bytes(b"cut")  # recorded, but not there
    (cut.out / "shards/.00003.arrow.x.tmp").write_bytes(b"half a shard")
    redone: list[int] = []

    def counts(encoding: Encoding, units: list[Unit], *machines: object) -> Generator[Done, None, None]:
        redone.extend(unit.index for unit in units)
        yield from here(encoding, units)

    run(cut, by=counts)
    assert redone == [0, 2, 3, 4, 5]
    assert content(cut.out) == content(job.out)

    said = io.StringIO()
    run(cut, said, by=lambda *_: pytest.fail("nothing was left to do"))
    assert "is already encoded: 320 images" in said.getvalue()


def test_one_folder_holds_one_encoding(tmp_path: Path, tiles: str, vae: str) -> None:
    job = EncodeJob(tmp_path / "set", "pixels", images=tiles, size=32)
    run(job)
    for other, says in [
        (replace(job, size=16), "size was 32, is 16"),
        (replace(job, shard_size=100), "inputs was .* shard_size was 1024, is 100"),
        (replace(job, tokenizer=vae), "tokenizer was pixels, is "),
        (replace(job, images=f"{tiles}/china"), "images was 326, is 166"),
    ]:
        with pytest.raises(UserError, match=f"has another encoding: .*{says}"):
            run(other)
    run(replace(job, batch=3, max_bad=50))  # how, not what
    save(tmp_path / "mine/notes.txt", b"")
    with pytest.raises(UserError, match=r"has notes.txt, which is not part of an encoding"):
        run(replace(job, out=tmp_path / "mine"))


def test_two_at_once_are_refused(tmp_path: Path, tiles: str) -> None:
    job = EncodeJob(tmp_path / "set", "pixels", images=tiles, size=32)

    def meanwhile(encoding: Encoding, units: list[Unit], *machines: object) -> Generator[Done, None, None]:
        with pytest.raises(UserError, match="another `gat-sweep encode` writes to"):
            run(job)
        yield from here(encoding, units)

    assert run(job, by=meanwhile).count == 320


def test_without_locks_it_goes_on_and_says_so(tmp_path: Path, tiles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    expected = run(EncodeJob(tmp_path / "a", "pixels", images=tiles, size=16))
    monkeypatch.setattr(fcntl, "flock", flock)
    said = io.StringIO()
    assert run(EncodeJob(tmp_path / "b", "pixels", images=tiles, size=16), said).shards == expected.shards
    assert f"the file system of {tmp_path / 'b'} has no locks" in said.getvalue()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"images": None}, "give --images or --latents"),
        ({"size": 31, "tokenizer": "VAE"}, "--size 31 is not a multiple of 2"),
        ({"out": Path(__file__) / "x"}, "choose a writable folder"),
    ],
)
def test_jobs_that_cannot_be_done(tmp_path: Path, tiles: str, vae: str, fields: dict[str, Any], says: str) -> None:
    if "tokenizer" in fields:
        fields = {**fields, "tokenizer": vae}
    with pytest.raises(UserError, match=says):
        run(replace(EncodeJob(tmp_path / "x", "pixels", images=tiles, size=32), **fields))


SCRIPT = """
import json, sys
from pathlib import Path
from rich.console import Console
from gat_sweep.encode.job import EncodeJob, encode
job = json.loads(sys.argv[1])
encode(EncodeJob(**{**job, "out": Path(job["out"])}), Console(width=200))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_on_ray_it_ends_as_without(tmp_path: Path, tiles: str, vae: str, killed: bool) -> None:
    """Also when the whole process group is killed after the first units, and another number of encoders goes on."""
    whole = EncodeJob(tmp_path / "whole/set", vae, images=tiles, size=32, shard_size=16, batch=4, store_images=True)
    run(whole)
    out = tmp_path / "cut/set"
    job = {"out": str(out), "tokenizer": vae, "images": tiles, "size": 32, "shard_size": 16, "batch": 4}
    job |= {"store_images": True, "gpus": 0}

    def start(cpus: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SCRIPT, json.dumps({**job, "cpus": cpus})]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ
        )

    if not killed:
        said = start(cpus=1).communicate(timeout=120)[0].decode()
        assert said.splitlines()[-1].startswith("encoded 320 images"), said
        assert content(out) == content(whole.out)
        return
    first = start(cpus=1)
    deadline = time.monotonic() + 120
    journal = out / "encode.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    theirs = psutil.Process(first.pid).children(recursive=True)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    _, alive = psutil.wait_procs(theirs, timeout=20)
    assert not alive, "Ray outlived its driver"
    assert not (out / "manifest.json").exists()
    before = len(journal.read_text().splitlines())
    assert 2 <= before < 22

    second = start(cpus=2)
    said = second.communicate(timeout=120)[0].decode()
    assert second.returncode == 0, said
    lines = [line for line in said.splitlines() if " images/s, " not in line]
    assert len(lines) == 3 and lines[0].startswith("2 classes, numbered from 0"), said
    assert "are already done" in lines[1] and "encoded 320 images" in lines[2], said
    assert content(out) == content(whole.out)
    assert len(journal.read_text().splitlines()) == 1 + 21  # none twice
