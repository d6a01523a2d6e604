"""Names in files cannot lead out of their folder, and headers that lie about sizes cost neither memory nor time."""

import io
import json
import multiprocessing
import os
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.mistakes import refuses
from helpers.pictures import PHOTO, encoded, encoded_pixels, names, photo_config, png_that_claims, save, write_edm2
from helpers.trials import tiny_config
from PIL import Image

from gat_sweep.data.shards import open_shards
from gat_sweep.encode.latents import plan_latents
from gat_sweep.encode.sources import plan_images, read_unit
from gat_sweep.errors import UserError
from gat_sweep.metrics.picture_sets import open_pictures
from gat_sweep.metrics.reference import check_reference, reference_dataset

pytestmark = pytest.mark.reliability
Figures = Callable[..., None]
TILE = encoded(Image.fromarray(PHOTO[:16, :16]), "PNG")


def read(images: Path, units: int = 1) -> None:
    plan = plan_images(str(images), 100)
    for unit in plan.units[:units]:
        read_unit(plan.source, unit, 16)


def test_names_and_links_cannot_leave_their_folder(tmp_path: Path, figures: Figures) -> None:
    """Entries of dataset.json and manifest.json, members of npz and links in picture folders stay in their folder."""
    outside = tmp_path / "outside"
    save(outside / "private.png", TILE)
    np.save(outside / "private.npy", np.zeros((8, 8, 8), np.float32))
    tried = refused = 0

    def try_it(load: Callable[[], object]) -> None:
        nonlocal tried, refused
        tried += 1
        refused += refuses(load)

    # Names in lists.
    write_edm2(tmp_path / "edm2")
    latents, images = tmp_path / "edm2/vae", tmp_path / "edm2/images"
    for name in ("../../outside/private.npy", str(outside / "private.npy"), "00000/../../../outside/private.npy"):
        (latents / "other.json").write_text("")
        sound = (latents / "dataset.json").read_text()
        (latents / "dataset.json").write_text(json.dumps({"labels": [[name, 0]]}))
        try_it(lambda: plan_latents(str(latents), None, 10))
        (latents / "dataset.json").write_text(sound)
    encoded_pixels(tmp_path / "data", 14, 8)
    manifest = tmp_path / "data/manifest.json"
    sound = json.loads(manifest.read_text())
    for name in ("../00000.arrow", "/etc/passwd", "shards/../../x.arrow", "shards/00000.arrow\n", "shards//0.arrow"):
        first = {**sound["shards"][0], "file": name}
        manifest.write_text(json.dumps({**sound, "shards": [first, *sound["shards"][1:]]}))
        try_it(lambda: open_shards(tmp_path / "data"))

    # Links: a latent and its picture, the first (which the plan reads) and a later one.
    for number in (0, 3):
        for file in (latents / f"00000/img-mean-std-{number:08d}.npy", images / f"00000/img{number:08d}.png"):
            kept = file.read_bytes()
            file.unlink()
            file.symlink_to(outside / f"private{file.suffix}")

            def load() -> None:
                plan = plan_latents(str(latents), str(images), 10)
                read_unit(plan.source, plan.units[0], 16)

            try_it(load)
            file.unlink()
            file.write_bytes(kept)
    load()  # as it was: all is well

    # Links in a folder of pictures: to a file, a class folder, up and back.
    for i, target in enumerate((outside / "private.png", Path("../../outside/private.png"))):
        save(tmp_path / f"files{i}/a/1.png", TILE)
        (tmp_path / f"files{i}/a/2.png").symlink_to(target)
        try_it(lambda i=i: read(tmp_path / f"files{i}"))
    save(tmp_path / "folders/a/1.png", TILE)
    (tmp_path / "folders/b").symlink_to(outside)
    try_it(lambda: read(tmp_path / "folders"))
    save(tmp_path / "loose/1.png", TILE)
    (tmp_path / "loose/2.png").symlink_to(outside / "private.png")
    try_it(lambda: read(tmp_path / "loose"))
    plan = plan_images(str(tmp_path / "edm2/images/00000"), 10)
    (images / "00000/img00000000.png").unlink()  # swapped between plan and reading
    (images / "00000/img00000000.png").symlink_to(outside / "private.png")
    try_it(lambda: read_unit(plan.source, plan.units[0], 16))

    # Members of an archive that would lie elsewhere: they are never unpacked.
    before = sorted(tmp_path.rglob("*"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("../../escaped.npy", "/tmp/escaped.npy", "mu.npy/../../escaped.npy"):
            archive.writestr(name, b"x")
    config = photo_config(tmp_path / "nowhere", eval__reference=str(tmp_path / "a.npz"))
    try_it(lambda: check_reference(config, reference_dataset(config)))
    try_it(lambda: open_pictures(tmp_path / "a.npz"))
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "a.npz"])
    assert refused == tried
    figures(bad_paths_tried=tried, refused=refused)


def test_links_that_people_make_still_work(tmp_path: Path) -> None:
    """The folder itself, links inside of it, and parquet files as Hugging Face's cache keeps them: links to blobs."""
    save(tmp_path / "disk/imagenet/a/1.png", TILE)
    (tmp_path / "disk/imagenet/a/2.png").symlink_to("1.png")
    (tmp_path / "disk/imagenet/b").symlink_to("a")
    (tmp_path / "imagenet").symlink_to(tmp_path / "disk/imagenet")
    plan = plan_images(str(tmp_path / "imagenet"), 10)
    assert names(plan) == [("a/1.png", 0), ("a/2.png", 0), ("b/1.png", 1), ("b/2.png", 1)]
    assert len(read_unit(plan.source, plan.units[0], 16).names) == 4
    (tmp_path / "blobs").mkdir()
    pq.write_table(pa.table({"image": [TILE] * 3}), tmp_path / "blobs/0a1b")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/train.parquet").symlink_to("../blobs/0a1b")
    plan = plan_images(str(tmp_path / "snapshot"), 10)
    assert len(read_unit(plan.source, plan.units[0], 16).names) == 3


# ---------------------------------------------------------------- sizes


def npy(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """A header, and no data to go with it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def bombs(folder: Path) -> dict[str, Path]:
    """Small files that claim, or unpack to, more than there is memory."""
    found = {}

    def archive(name: str, members: dict[str, bytes], zeros: int = 0) -> None:
        found[name] = folder / f"{name.replace(' ', '-')}.npz"
        with zipfile.ZipFile(found[name], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
            for member, content in members.items():
                with target.open(f"{member}.npy", "w", force_zip64=True) as file:
                    file.write(content)
                    for _ in range(zeros):
                        file.write(bytes(2**24))

    # 100 GB: 50,000 pictures would be 256 x 256; 2,000 of 4096 x 4096; one of 182,000 x 182,000.
    for name, shape in {
        "many": (508_626, 256, 256, 3),
        "large": (2000, 4096, 4096, 3),
        "one": (1, 2**18, 2**17, 3),
    }.items():
        archive(f"pictures {name}", {"arr_0": npy(shape)})
    archive("pictures negative", {"arr_0": npy((-1, 8, 8, 3))})
    archive("pictures unpacked", {"arr_0": npy((1, 2**12, 2**12, 3))}, zeros=3)  # zeros that are there
    archive("statistics", {"mu": npy((110_000,), "<f8"), "sigma": npy((110_000, 110_000), "<f8")})
    archive("statistics right", {"mu": npy((1280,), "<f8"), "sigma": npy((1280, 1280), "<f8")})
    archive("statistics wide", {"mu": npy((1280,), "|V100000000"), "sigma": npy((1280, 1280), "<U10000000")})
    with zipfile.ZipFile(folder / "lying.npz", "w") as target:
        target.writestr("arr_0.npy", npy((1, 8, 8, 3)) + bytes(192))
    raw = bytearray((folder / "lying.npz").read_bytes())
    at = raw.rindex(b"PK\x01\x02") + 24  # uncompressed size, in the directory
    raw[at : at + 4] = struct.pack("<I", 2**32 - 2)
    (folder / "lying.npz").write_bytes(raw)
    return found | {"lying": folder / "lying.npz"}


def load(kind: str, path: str) -> None:
    if kind == "pictures":
        list(open_pictures(Path(path)).batches(8))
    elif kind == "statistics":
        check_reference(tiny_config(eval__reference=path), None)
    else:
        plan = plan_latents(path, None, 10) if kind == "latents" else plan_images(path, 10)
        loaded = read_unit(plan.source, plan.units[0], 16)
        if loaded.skipped and not loaded.names:
            raise UserError(loaded.skipped[0][1])


def load_all(loads: list[tuple[str, str]], results: Path) -> None:
    """Writes what each load said, its seconds and the megabytes by which the process has grown; in 4 GB more."""
    used = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**32, used + 2**32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = []
    for kind, path in loads:
        began, said = time.monotonic(), ""
        try:
            load(kind, path)
        except UserError as error:
            said = str(error)
        except MemoryError:
            pass
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found.append((said, time.monotonic() - began, grown))
    results.write_text(json.dumps(found))


@pytest.mark.slow
def test_files_that_claim_more_than_there_is_are_refused(tmp_path: Path, figures: Figures) -> None:
    """Archives, arrays, tables and pictures that claim up to 100 GB end in one line; in little memory and time."""
    loads = [
        ("statistics" if name.startswith("statistics") else "pictures", str(path))
        for name, path in bombs(tmp_path).items()
    ]
    for i, content in enumerate((npy((8, 2**16, 2**16), "<f4"), npy((8, 2**30), "<f4"), npy((2**40, 1, 1), "<f8"))):
        save(tmp_path / f"latents{i}/0.npy", content)
        save(tmp_path / f"latents{i}/dataset.json", b'{"labels": [["0.npy", 0]]}')
        loads.append(("latents", str(tmp_path / f"latents{i}")))
    for i, content in enumerate((png_that_claims(60_000, 60_000), png_that_claims(2**31 - 1, 1))):
        save(tmp_path / f"pictures{i}/0.png", content)
        loads += [(kind, str(tmp_path / f"pictures{i}")) for kind in ("images", "pictures")]
    (tmp_path / "sparse").mkdir()
    with open(tmp_path / "sparse/0.png", "wb") as file:
        file.truncate(100 * 2**30)
    loads.append(("images", str(tmp_path / "sparse")))
    for name, target in (("device", "/dev/zero"), ("pipe", None)):
        (tmp_path / name).mkdir()
        if target:
            (tmp_path / name / "0.png").symlink_to(target)
        else:
            os.mkfifo(tmp_path / name / "0.png")
        loads.append(("images", str(tmp_path / name)))
    # A million million rows of nothing are a few bytes.
    empty = pa.array(np.zeros(5_000_000, np.int8))
    pq.write_table(pa.table({"label": empty, "image": pa.nulls(5_000_000, pa.binary())}), tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 100_000
    loads.append(("images", str(tmp_path / "rows.parquet")))

    process = multiprocessing.get_context("forkserver").Process(target=load_all, args=(loads, tmp_path / "found"))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    found = json.loads((tmp_path / "found").read_text())
    missed = [bomb for bomb, (said, _, _) in zip(loads, found, strict=True) if not said]
    assert missed == []
    assert all("\n" not in said and len(said) < 500 for said, _, _ in found)
    slowest, most = max(seconds for _, seconds, _ in found), max(grown for _, _, grown in found)
    assert slowest < 5 and most < 500
    figures(bombs_tried=len(loads), refused=len(found), most_megabytes=round(most), slowest_s=round(slowest, 2))


def test_damaged_tables_raise_nothing_else(tmp_path: Path, figures: Figures) -> None:
    """Random damage to parquet files, arrays and latents: read, or refused in one line."""
    random = np.random.default_rng(0)
    columns = {"image": [TILE] * 40, "label": list(range(4)) * 10}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {}}})})
    pq.write_table(table, tmp_path / "t.parquet")
    np.savez_compressed(tmp_path / "a.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    write_edm2(tmp_path, 1)
    latent = tmp_path / "vae/00000/img-mean-std-00000000.npy"
    began, outcomes = time.monotonic(), {True: 0, False: 0}

    def latents() -> None:
        plan = plan_latents(str(tmp_path / "vae"), None, 10)
        if read_unit(plan.source, plan.units[0], 16).skipped:
            raise UserError("left out")

    loaders = {
        tmp_path / "t.parquet": lambda: read(tmp_path / "t.parquet"),
        tmp_path / "a.npz": lambda: list(open_pictures(tmp_path / "a.npz").batches(3)),
        latent: latents,
    }
    for path, load in loaders.items():
        whole = path.read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            ends = (0, 200) if random.random() < 0.5 else (max(0, len(data) - 800), len(data))
            for at in random.integers(ends[0], ends[1], 3):
                data[at] = random.integers(256)
            path.write_bytes(data)
            outcomes[refuses(load)] += 1
    assert min(outcomes.values()) > 20
    figures(damaged_files=sum(outcomes.values()), refused=outcomes[True], seconds=round(time.monotonic() - began, 1))
