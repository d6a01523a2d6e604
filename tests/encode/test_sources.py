"""What is found to encode, how a picture is cropped, and which are left out."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.pictures import (
    PHOTO,
    bad_pictures,
    encoded,
    names,
    png_that_claims,
    save,
    square,
    write_edm2,
    write_parquet,
)
from PIL import Image

from gat_sweep.data.pictures import Unusable, center_crop
from gat_sweep.encode.latents import plan_latents
from gat_sweep.encode.sources import plan_images, read_unit
from gat_sweep.errors import UserError

BOX, BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC


def test_crop_is_adms_step_by_step() -> None:
    photo = Image.fromarray(PHOTO)
    steps = photo.resize((320, 213), BOX).resize((160, 106), BOX).resize((97, 64), BICUBIC).crop((16, 0, 80, 64))
    np.testing.assert_array_equal(center_crop(photo, 64), np.asarray(steps).transpose(2, 0, 1))
    upright = photo.crop((0, 0, 200, 427))
    steps = upright.resize((100, 213), BOX).resize((64, 136), BICUBIC).crop((0, 36, 64, 100))
    np.testing.assert_array_equal(center_crop(upright, 64), np.asarray(steps).transpose(2, 0, 1))
    # Smaller than asked: scaled up; of that size already: untouched.
    tile = Image.fromarray(PHOTO[:48, :32])
    larger = tile.resize((64, 96), BICUBIC).crop((0, 16, 64, 80))
    np.testing.assert_array_equal(center_crop(tile, 64), np.asarray(larger).transpose(2, 0, 1))
    np.testing.assert_array_equal(center_crop(tile, 32), PHOTO[8:40, :32].transpose(2, 0, 1))


def test_crop_takes_the_middle_and_halves_by_means() -> None:
    stripes = np.zeros((64, 192, 3), np.uint8)
    stripes[:, :64, 0], stripes[:, 64:128, 1], stripes[:, 128:, 2] = 255, 255, 255
    middle = center_crop(Image.fromarray(stripes), 64)
    assert (middle[1] == 255).all() and not middle[[0, 2]].any()
    dots = np.random.default_rng(0).integers(0, 64, (32, 32, 3), dtype=np.uint8) * 4
    means = dots.reshape(16, 2, 16, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(center_crop(Image.fromarray(dots), 16).transpose(1, 2, 0) - means).max() <= 0.5


def test_pillow_turns_other_modes_to_rgb_and_exif_turns_nothing() -> None:
    tile = Image.fromarray(PHOTO[:40, :60])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = encoded(tile, quality=95, exif=exif)
    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(square(turned, 40), square(encoded(tile, quality=95), 40))
    deep = Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40)
    for image in (*(tile.convert(mode) for mode in ("L", "P", "RGBA", "LA", "1")), deep):
        expected = center_crop(image.convert("RGB"), 40)
        np.testing.assert_array_equal(square(encoded(image, "PNG"), 40), expected)
    grey = square(encoded(tile.convert("L"), "PNG"), 40)
    assert (grey[0] == grey[1]).all() and grey.std() > 0


@pytest.mark.parametrize("word", bad_pictures())
def test_bad_pictures_are_told_apart(word: str) -> None:
    with pytest.raises(Unusable, match=f"^{word}: "):
        square(bad_pictures()[word], 32)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (png_that_claims(9500, 9500), "^large: its header"),  # where Pillow warns and goes on
        (png_that_claims(8, 100_000), "^large: 8x100000 is a strip too long"),
        (png_that_claims(64, 64), "^(truncated|broken): "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n", "^no picture: "),  # a program
    ],
)
def test_pictures_made_to_harm_are_not_decoded(data: bytes, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        square(data, 256)


def test_damaged_pictures_raise_nothing_else() -> None:
    """Random damage to real files, in each format: a picture, or Unusable."""
    random = np.random.default_rng(0)
    tile = Image.fromarray(PHOTO[:32, :32])
    outcomes = {True: 0, False: 0}
    for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM"):
        whole = encoded(tile, kind)
        for _ in range(150):
            data = bytearray(whole)
            for at in random.integers(0, min(len(data), 400), 4):
                data[at] = random.integers(256)
            try:
                outcomes[square(bytes(data), 32).shape == (3, 32, 32)] += 1
            except Unusable:
                outcomes[False] += 1
    assert min(outcomes.values()) > 50


def test_pillows_warnings_stay_inside(tmp_path: Path) -> None:
    palette = Image.fromarray(PHOTO[:16, :16]).convert("P")
    data = encoded(palette, "PNG", transparency=bytes([0] * 8))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        square(data, 16)
    assert not said


def test_a_folder_has_a_class_per_subfolder(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/10.jpeg", "a/x/y/1.png", "a/.hidden.png", ".cache/1.png", "b/notes.txt"):
        save(tmp_path / name, b"")
    plan = plan_images(str(tmp_path), shard_size=2)
    assert names(plan) == [("a/x/y/1.png", 0), ("b/10.jpeg", 1), ("b/2.JPG", 1)]
    assert plan.classes == ("a", "b") and [unit.index for unit in plan.units] == [0, 1] and len(plan) == 3
    assert plan.digest == plan_images(str(tmp_path), 2).digest != plan_images(str(tmp_path), 3).digest
    (tmp_path / "a/x/y/1.png").rename(tmp_path / "a/1.png")
    assert plan.digest != plan_images(str(tmp_path), 2).digest


def test_a_folder_without_subfolders_is_unlabelled(tmp_path: Path) -> None:
    for name in ("b.png", "a.webp"):
        save(tmp_path / name, b"")
    plan = plan_images(str(tmp_path), 10)
    assert names(plan) == [("a.webp", 0), ("b.png", 0)] and plan.classes == ()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["train/a/1.png", "val/a/1.png"], "has the splits train, val; name one"),
        (["a/1.png", "loose.png"], "outside its class folders, such as loose.png"),
        (["a/1.png", "b/notes.txt"], "no pictures in class folder 'b'"),
        (["notes.txt"], "no pictures"),
        (["data_batch_1", "batches.meta"], "unpack the archive again"),
        (["train-00000-of-00002.parquet", "test-00000-of-00001.parquet"], "several splits; .*test.*train"),
        (["train-00000-of-00002.parquet"], "1 of 2 parquet files"),
        (["train.parquet"], "not a parquet file"),
    ],
)
def test_unclear_folders_are_refused(tmp_path: Path, files: list[str], says: str) -> None:
    for name in files:
        save(tmp_path / name, b"x")
    with pytest.raises(UserError, match=says):
        plan_images(str(tmp_path), 10)
    with pytest.raises(UserError, match="there is no such file or folder; give a folder"):
        plan_images(str(tmp_path / "absent"), 10)


def pictures(count: int) -> list[dict[str, Any]]:
    tiles = [PHOTO[8 * i : 8 * i + 16, :16] for i in range(count)]
    return [{"bytes": encoded(Image.fromarray(tile), "PNG"), "path": f"{i}.png"} for i, tile in enumerate(tiles)]


def test_parquet_rows_are_read_across_row_groups(tmp_path: Path) -> None:
    images = pictures(22)
    for part, rows in enumerate((range(10), range(10, 22))):
        columns = {"image": [images[i] for i in rows], "label": [i % 3 for i in rows]}
        write_parquet(tmp_path / f"train-{part:05d}-of-00002.parquet", columns, ["cat", "dog", "owl", "elk"])
    for images_of in (str(tmp_path), str(tmp_path / "train-*.parquet")):
        plan = plan_images(images_of, shard_size=5)
        assert plan.classes == ("cat", "dog", "owl", "elk")
        assert [len(unit.names) for unit in plan.units] == [5, 5, 5, 5, 2]
        assert plan.units[4].names == [f"train-00001-of-00002.parquet:{row}" for row in (10, 11)]
        loaded = [read_unit(plan.source, unit, 16) for unit in plan.units]
        expected = [PHOTO[8 * i : 8 * i + 16, :16].transpose(2, 0, 1) for i in range(22)]
        np.testing.assert_array_equal(np.concatenate([part.pictures for part in loaded]), expected)
        assert [label for part in loaded for label in part.labels] == [i % 3 for i in range(22)]


def test_parquet_columns_are_found_by_type(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    plain = [image["bytes"] for image in pictures(4)]
    write_parquet(path, {"jpg": plain, "cls": [1, 0, 1, 0]})
    plan = plan_images(str(path), 10)
    assert plan.source.column == "jpg" and plan.classes == ("0", "1") and plan.units[0].labels == [1, 0, 1, 0]
    write_parquet(path, {"jpg": plain})
    assert plan_images(str(path), 10).classes == ()
    write_parquet(path, {"jpg": plain, "width": [16] * 4, "cls": [0, 1, 2, 0]})
    with pytest.raises(UserError, match="width, cls; choose one with --label-column"):
        plan_images(str(path), 10)
    assert plan_images(str(path), 10, "cls").classes == ("0", "1", "2")
    with pytest.raises(UserError, match="no integer column 'clz'; did you mean"):
        plan_images(str(path), 10, "clz")
    write_parquet(path, {"a": plain, "b": plain})
    with pytest.raises(UserError, match=r"2 image columns \['a', 'b'\]"):
        plan_images(str(path), 10)


@pytest.mark.parametrize(
    ("labels", "named", "says"),
    [
        ([0, 1, 3, 3], None, "0 to 3 without 2"),
        ([1, 2, 1, 2], None, "1 to 2 without 0"),
        ([-1, -1, -1, -1], ["a", "b"], "labels are -1 to -1, but there are 2 classes"),
        ([0, 1, 2, 0], ["a", "b"], "labels are 0 to 2, but there are 2 classes"),
        ([0, 1, None, 0], None, "row 2 has no label"),
    ],
)
def test_parquet_labels_have_to_be_classes(
    tmp_path: Path, labels: list[int | None], named: list[str] | None, says: str
) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, {"image": pictures(4), "label": pa.array(labels, pa.int64())}, named)
    with pytest.raises(UserError, match=says):
        plan_images(str(path), 10)


def test_rows_without_bytes_are_bad_pictures(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    images = [*pictures(2), None, {"bytes": None, "path": "x"}]
    write_parquet(path, {"image": images})
    plan = plan_images(str(path), 10)
    loaded = read_unit(plan.source, plan.units[0], 16)
    assert loaded.names == ["t.parquet:0", "t.parquet:1"]
    assert loaded.skipped == [("t.parquet:2", "empty: 0 bytes"), ("t.parquet:3", "empty: 0 bytes")]


def test_latents_of_edm2_are_read_with_their_pictures(tmp_path: Path) -> None:
    latents = write_edm2(tmp_path)
    plan = plan_latents(str(tmp_path / "vae"), str(tmp_path / "images"), shard_size=3)
    assert plan.source.latent == (4, 8) and plan.classes == ("0", "1")
    loaded = [read_unit(plan.source, unit, 16) for unit in plan.units]
    np.testing.assert_array_equal(np.concatenate([part.moments for part in loaded]), latents)
    np.testing.assert_array_equal(loaded[1].pictures[0], PHOTO[3:19, :16].transpose(2, 0, 1))
    alone = plan_latents(str(tmp_path / "vae"), None, 3)
    without = read_unit(alone.source, alone.units[0], 16)
    assert without.labels == [0, 1, 0] and without.pictures is None
    np.testing.assert_array_equal(without.moments, latents[:3])


def test_bad_latents_are_left_out(tmp_path: Path) -> None:
    latents = write_edm2(tmp_path)
    nan, log_variance = latents[1].copy(), latents[2].copy()
    nan[0, 0, 0], log_variance[4:] = np.nan, -3
    for i, values in ((1, nan), (2, log_variance), (3, latents[3][:, :4])):
        np.save(tmp_path / f"vae/00000/img-mean-std-{i:08d}.npy", values)
    np.save(tmp_path / "vae/00000/img-mean-std-00000004.npy", np.array([{"a": 1}]), allow_pickle=True)
    plan = plan_latents(str(tmp_path / "vae"), None, 10)
    loaded = read_unit(plan.source, plan.units[0], 16)
    words = [reason.partition(":")[0] for _, reason in loaded.skipped]
    assert words == ["not finite", "negative std", "shape", "broken"] and len(loaded.names) == 1


@pytest.mark.parametrize("name", ["../other.npy", "/etc/other.npy", "a/../../b.npy", "00000/x.txt"])
def test_lists_may_not_leave_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[name, 0]]}))
    with pytest.raises(UserError, match="in its folder"):
        plan_latents(str(tmp_path), None, 10)


def test_pictures_of_other_latents_are_refused(tmp_path: Path) -> None:
    write_edm2(tmp_path / "a")
    write_edm2(tmp_path / "b", first=1)
    with pytest.raises(UserError, match=r"img00000001.png is not the picture of .*00000000.npy"):
        plan_latents(str(tmp_path / "a/vae"), str(tmp_path / "b/images"), 10)
    write_edm2(tmp_path / "c", count=4)
    with pytest.raises(UserError, match=r"4 pictures, .* 5 latents"):
        plan_latents(str(tmp_path / "a/vae"), str(tmp_path / "c/images"), 10)
