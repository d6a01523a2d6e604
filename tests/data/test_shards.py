"""Encoded data sets on disk: what was written is what is read, and what is not whole is refused."""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gat_sweep.data.dataset import Encoded
from gat_sweep.data.pictures import png
from gat_sweep.data.shards import (
    CachedTeacher,
    Columns,
    float16,
    open_shards,
    write_manifest,
    write_shard,
)
from gat_sweep.data.tokenizer import PIXELS, TokenizerIdentity
from gat_sweep.errors import UserError

COUNTS = (5, 3, 1, 4)  # images of each shard
TOTAL = sum(COUNTS)
PICTURE = np.random.default_rng(1).integers(0, 256, (3, 6, 6), dtype=np.uint8)
VAE = TokenizerIdentity("some/vae", "0123456789ab", channels=4, factor=2, scale=0.5, shift=0.25)


def write_latents(
    folder: Path,
    name: str = "set",
    source: str = "some/vae",
    stored: Mapping[int, bytes] = MappingProxyType({}),
    **fields: Any,
) -> dict[str, np.ndarray]:
    """A data set of random moments, pictures (some of them `stored` otherwise), teacher tokens; what was put in."""
    random = np.random.default_rng(0)
    values = {
        "mean": random.normal(size=(TOTAL, 4, 3, 3)).astype(np.float16),
        "std": random.random(size=(TOTAL, 4, 3, 3)).astype(np.float16),
        "pictures": random.integers(0, 256, (TOTAL, 3, 6, 6), dtype=np.uint8),
        "teacher": random.normal(size=(TOTAL, 5, 7)).astype(np.float16),
        "labels": random.integers(0, 3, TOTAL).astype(np.int32),
    }
    shards, start = [], 0
    for i, count in enumerate(COUNTS):
        rows = slice(start, start + count)
        columns = Columns(
            values["labels"][rows],
            [f"{row}.jpg" for row in range(start, start + count)],
            mean=values["mean"][rows],
            std=values["std"][rows],
            images=[stored.get(i, png(values["pictures"][i])) for i in range(start, start + count)],
            teacher=values["teacher"][rows],
        )
        shards.append(write_shard(folder / "shards" / f"{i:05d}.arrow", columns))
        start += count
    given: dict[str, Any] = {
        "name": name,
        "count": TOTAL,
        "side": 3,
        "channels": 4,
        "picture_side": 6,
        "dtype": "float16",
        "has_pictures": True,
        "tokenizer": TokenizerIdentity(source, *list(vars(VAE).values())[1:]),
        "teacher": CachedTeacher(name="t", digest="d", tokens=5, width=7),
        "classes": ("a", "b", "c"),
        "shards": tuple(shards),
        "skipped": (),
    }
    write_manifest(folder, **{**given, **fields})
    return values


@pytest.mark.parametrize("bad", [b"", b"no picture", png(np.zeros((3, 9, 9), np.uint8)), png(PICTURE)[:-30]])
def test_a_stored_picture_that_is_another_is_named(tmp_path: Path, bad: bytes) -> None:
    values = write_latents(tmp_path, stored={6: bad})
    shards = open_shards(tmp_path)
    np.testing.assert_array_equal(shards.pictures([0, 5, 7]), values["pictures"][[0, 5, 7]])
    with pytest.raises(UserError, match=r"00001\.arrow: picture 1 is (broken|different): .*; copy the data set again"):
        shards.pictures([0, 6])


def test_images_come_back_in_any_order(tmp_path: Path) -> None:
    values = write_latents(tmp_path)
    shards = open_shards(tmp_path)
    shards.verify()
    np.testing.assert_array_equal(shards.labels, values["labels"])
    assert shards.labels.dtype == np.int64
    for index in ([0], [12, 0, 4, 5, 7, 8, 9, 0], list(range(TOTAL))[::-1], []):
        mean, std = shards.moments(index)
        assert mean.dtype == std.dtype == np.float32
        np.testing.assert_array_equal(mean, values["mean"][index].astype(np.float32))
        np.testing.assert_array_equal(std, values["std"][index].astype(np.float32))
        np.testing.assert_array_equal(shards.pictures(index), values["pictures"][index])
        np.testing.assert_array_equal(shards.teacher(index), values["teacher"][index])
    for outside in ([TOTAL], [-1]):
        with pytest.raises(IndexError):
            shards.moments(outside)


def test_a_data_set_scales_the_moments(tmp_path: Path) -> None:
    values = write_latents(tmp_path)
    dataset = Encoded(str(tmp_path))
    rows = dataset.rows([11, 2])
    np.testing.assert_allclose(rows.mean, (values["mean"][[11, 2]].astype(np.float32) - 0.25) * 0.5)
    np.testing.assert_allclose(rows.std, values["std"][[11, 2]].astype(np.float32) * 0.5)
    assert rows.labels.tolist() == values["labels"][[11, 2]].tolist() and dataset.classes == 3


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    write_latents(tmp_path)
    shards = open_shards(tmp_path)
    orders = [np.random.default_rng(i).permutation(TOTAL) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for order, pictures in zip(orders, pool.map(shards.pictures, orders), strict=True):
            np.testing.assert_array_equal(pictures, shards.pictures(order))


def test_an_open_data_set_holds_no_files_open(tmp_path: Path) -> None:
    """ImageNet has 1,251 shards, many systems allow 1,024 open files."""
    write_latents(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    shards = open_shards(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    view = shards._views["mean"][0]
    assert not view.flags.owndata and not view.flags.writeable  # the mapped file itself
    shards.moments([0])


def test_half_precision_is_within_half_a_unit_and_overflow_is_told() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 4, 2, 2)).astype(np.float32) * 10
    half, good = float16(values)
    assert good.all()
    normal = np.abs(values) > 2**-14
    assert (np.abs(half - values)[normal] <= 2**-11 * np.abs(values)[normal]).all()
    for i, bad in enumerate([65536.0, -1e9, np.nan, np.inf]):
        values[i, 3, 1, 1] = bad
    values[4, 0, 0, 0] = 65504.0  # the largest there is
    assert np.flatnonzero(~float16(values)[1]).tolist() == [0, 1, 2, 3]


def test_the_digest_is_of_content_not_of_names(tmp_path: Path) -> None:
    write_latents(tmp_path / "a")
    write_latents(tmp_path / "b", name="other", source="/elsewhere/vae")
    write_latents(tmp_path / "c", classes=("a", "b", "d"))
    first, same, other = (open_shards(tmp_path / name).manifest.digest for name in "abc")
    assert first == same != other


def edit(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(count=TOTAL + 1), "count is not the sum"),
        (lambda m: m.update(side=4), "digest does not fit"),
        (lambda m: m.update(extra=1), "extra: Extra inputs"),
        (lambda m: m["tokenizer"].update(extra=1), "tokenizer.extra"),
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.update(count="13"), "count"),
        (lambda m: m["shards"][0].update(file="../shards/00000.arrow"), "shards.0.file"),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), "shards.0.file"),
        (lambda m: m["tokenizer"].update(scale=1.0), "digest does not fit"),
        (lambda m: m.update(dtype="uint8"), "dtype does not fit"),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    write_latents(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(UserError, match=says):
        open_shards(tmp_path)


def test_files_that_are_not_the_manifests_are_refused(tmp_path: Path) -> None:
    write_latents(tmp_path)
    path = tmp_path / "shards" / "00001.arrow"
    whole = path.read_bytes()

    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"00001.arrow has \d+ bytes"):
        open_shards(tmp_path)
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(UserError, match="not a complete Arrow file"):
        open_shards(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"00001.arrow is missing"):
        open_shards(tmp_path)

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    shards = open_shards(tmp_path)  # cheap checks do not see a bit
    with pytest.raises(UserError, match=r"00001.arrow has changed since it was written"):
        shards.verify()

    path.write_bytes(whole)
    write_latents(tmp_path, side=2)  # signed
    with pytest.raises(UserError, match="does not have the columns and rows"):
        open_shards(tmp_path)
    write_latents(tmp_path, classes=("a", "b"))
    with pytest.raises(UserError, match="labels are 0 to 2, but there are 2 classes"):
        open_shards(tmp_path)


def test_an_unfinished_folder_says_how_to_finish(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the --out folder"):
        open_shards(tmp_path)
    write_latents(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match="run the same `gat-sweep encode` command again"):
        open_shards(tmp_path)


def test_pixels_are_stored_raw(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), dtype=np.uint8)
    columns = Columns(np.zeros(4, np.int32), list("abcd"), pixels=pictures)
    shard = write_shard(tmp_path / "shards" / "00000.arrow", columns)
    again = write_shard(tmp_path / "shards" / "00001.arrow", columns)
    assert shard.digest == again.digest
    write_manifest(
        tmp_path,
        name="p",
        count=4,
        side=5,
        channels=3,
        picture_side=5,
        dtype="uint8",
        has_pictures=True,
        tokenizer=TokenizerIdentity(PIXELS, "", 3, 1, 1.0, 0.0),
        teacher=None,
        classes=(),
        shards=(shard,),
        skipped=(),
    )
    np.testing.assert_array_equal(open_shards(tmp_path).pictures([3, 1]), pictures[[3, 1]])
    assert pa.ipc.open_file(str(tmp_path / "shards" / "00000.arrow")).schema.names == ["pixels", "label", "source"]
    rows = Encoded(str(tmp_path)).rows([2], pictures=True)
    np.testing.assert_allclose(rows.mean[0], pictures[2] / 127.5 - 1, atol=1e-6)
    assert rows.std is None
