"""What is found in folders to encode, how a picture is cropped, and which are left out."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import (
    PHOTO,
    bad_pictures,
    encoded,
    names,
    png_that_claims,
    save,
    square,
)
from PIL import Image

from gat_sweep.data.pictures import Unusable, center_crop
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
    for image in (tile.convert(mode) for mode in ("L", "P", "RGBA", "LA", "1")):
        expected = center_crop(image.convert("RGB"), 40)
        np.testing.assert_array_equal(square(encoded(image, "PNG"), 40), expected)
    grey = square(encoded(tile.convert("L"), "PNG"), 40)
    assert (grey[0] == grey[1]).all() and grey.std() > 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_values_of_16_bits_are_scaled(kind: str) -> None:
    deep = np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40  # 0 to 63,960
    picture = square(encoded(Image.fromarray(deep), kind), 40)
    np.testing.assert_array_equal(picture, np.broadcast_to(np.round(deep / 257).astype(np.uint8), (3, 40, 40)))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((16, 16), 4095, np.uint16), "depth: 16 bits, but no value above 4095"),
        (np.full((16, 16), 70_000, np.int32), "depth: integers of 32 bits"),
        (np.full((16, 16), 0.5, np.float32), "depth: floating point"),
    ],
)
def test_values_of_an_unknown_scale_are_left_out(values: np.ndarray, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        square(encoded(Image.fromarray(values), "TIFF"), 16)


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


def test_class_folders_with_numbers_sort_as_numbers_and_the_order_is_said(tmp_path: Path) -> None:
    for i in (10, 9, 2, 0, 1, 11, 3, 4, 5, 6, 7, 8):
        save(tmp_path / str(i) / "x.png", b"")
    plan = plan_images(str(tmp_path), 20)
    assert plan.classes == tuple(str(i) for i in range(12)) and names(plan)[10] == ("10/x.png", 10)
    assert plan.notes == ("12 classes, numbered from 0 in this order: 0, 1, 2, ..., 11",)
    save(tmp_path / "n1" / "x.png", b"")  # one is not a number: all sort as text
    assert plan_images(str(tmp_path), 20).classes[:3] == ("0", "1", "10")


def test_what_a_folder_holds_besides_is_counted(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere / "deep" / "3.png", b"")
    root = tmp_path / "root"
    for name in ("a/1.png", "a/1.txt", "a/2.txt", "b/2.jpg", "b/1.GIF", "a/noend", "a/.hidden"):
        save(root / name, b"")
    (root / "a" / "more").symlink_to(elsewhere)
    plan = plan_images(str(root), 10)
    assert plan.classes == ("a", "b")
    assert plan.notes[1:] == (
        "not pictures: 4 other files (2 .txt, 1 .gif, 1 without suffix)",
        "not read: 1 link to folders, such as a/more (--follow-links reads them)",
    )
    (root / "c").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"c is a link to .*elsewhere, outside .*; give --follow-links"):
        plan_images(str(root), 10)
    (root / "a" / "more").unlink()
    followed = plan_images(str(root), 10, links=True)
    assert followed.classes == ("a", "b", "c") and names(followed)[2] == ("c/deep/3.png", 2)
    save(elsewhere / "deep" / "3.png", encoded(Image.fromarray(PHOTO[:16, :16]), "PNG"))
    loaded = read_unit(followed.source, followed.units[0], 16)
    assert loaded.names == ["c/deep/3.png"]


def test_links_that_lead_back_are_refused_and_links_of_files_are_followed_on_request(tmp_path: Path) -> None:
    root = tmp_path / "root"
    save(root / "a" / "1.png", b"")
    save(tmp_path / "2.png", encoded(Image.fromarray(PHOTO[:16, :16]), "PNG"))
    (root / "a" / "2.png").symlink_to(tmp_path / "2.png")
    with pytest.raises(UserError, match=r"2\.png is a link to .* outside .*; give --follow-links, or copy"):
        plan_images(str(root), 10)
    plan = plan_images(str(root), 10, links=True)
    assert read_unit(plan.source, plan.units[0], 16).names == ["a/2.png"]
    (root / "a" / "back").symlink_to(root)
    with pytest.raises(UserError, match="back is a link to a folder that it is in"):
        plan_images(str(root), 10, links=True)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["c0.zip"], r"no pictures .*not pictures: 1 other file \(1 \.zip\)"),
        (["data/a.parquet", "other/b.parquet"], "has parquet files in .*data, .*other; name one"),
        (["data/a.parquet", "cover.png"], "has parquet files and pictures, such as cover.png"),
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
