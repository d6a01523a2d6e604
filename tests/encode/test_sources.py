"""What is found to encode, how a picture is cropped, and which are left out."""

import io
import json
import warnings
import zipfile
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
        "not read: 4 other files (2 .txt, 1 .gif, 1 without suffix)",
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


def zipped(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def test_a_zip_of_class_folders_is_read_as_the_folder(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": p["bytes"] for i, p in enumerate(pictures(6)) for name in ["ab"[i % 2]]}
    for name, content in files.items():
        save(tmp_path / "folder" / name, content)
    archive = zipped(tmp_path / "train.zip", files | {"a/notes.txt": b"", "__MACOSX/a/._0.png": b"", "a/.x.png": b""})
    ours, theirs = (plan_images(images, 10) for images in (archive, str(tmp_path / "folder")))
    assert (ours.classes, names(ours), ours.digest) == (theirs.classes, names(theirs), theirs.digest)
    assert ours.notes[1:] == ("not read: 1 other file (1 .txt)",)
    pixels = [read_unit(plan.source, plan.units[0], 16).pictures for plan in (ours, theirs)]
    assert pixels[0] is not None and np.array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize("place", ["folder", "archive.zip"])
def test_pictures_of_edm2s_tool_have_the_labels_of_its_list(tmp_path: Path, place: str) -> None:
    """Its folders hold a thousand files each; they are not classes."""
    content = [p["bytes"] for p in pictures(4)]
    files = {f"0000{i // 2}/img0000000{i}.png": data for i, data in enumerate(content)}
    labels = [[name, 2 - i % 3] for i, name in enumerate(files)]
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    if place == "folder":
        for name, data in files.items():
            save(tmp_path / place / name, data)
    else:
        zipped(tmp_path / place, files)
    plan = plan_images(str(tmp_path / place), 10)
    assert plan.classes == ("0", "1", "2") and plan.units[0].labels == [2, 1, 0, 2]
    assert read_unit(plan.source, plan.units[0], 16).skipped == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"../a.png": b""}, "outside it"),
        ({"a/b.txt": b""}, "no pictures in class folder 'a'; remove it .*1 .txt"),
        ({"notes.txt": b""}, "has no pictures"),
        ({"train/a/1.png": b"", "val/a/1.png": b""}, "has the splits train, val"),
        ({"dataset.json": b'{"labels": [["0.npy", 0]]}', "0.npy": b""}, "give it to --latents"),
        (None, "not a whole zip archive"),
    ],
)
def test_archives_that_cannot_be_read_as_pictures(tmp_path: Path, content: dict[str, bytes] | None, says: str) -> None:
    if content is None:
        save(tmp_path / "a.zip", b"PK cut off")
    else:
        zipped(tmp_path / "a.zip", content)
    with pytest.raises(UserError, match=says):
        plan_images(str(tmp_path / "a.zip"), 10)


def test_a_damaged_file_in_a_zip_is_named(tmp_path: Path) -> None:
    archive = Path(zipped(tmp_path / "a.zip", {"a/1.png": pictures(1)[0]["bytes"]}))
    content = bytearray(archive.read_bytes())
    content[60] ^= 255
    archive.write_bytes(content)
    plan = plan_images(str(archive), 10)
    with pytest.raises(UserError, match=r"cannot read .*a\.zip/a/1\.png \(.*; write the archive again"):
        read_unit(plan.source, plan.units[0], 16)


def test_parquet_below_a_folder_of_pictures_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "cats" / "1.png", b"")
    (tmp_path / "meta").mkdir()
    write_parquet(tmp_path / "meta" / "t.parquet", {"image": pictures(1)})
    with pytest.raises(UserError, match=r"has parquet files and pictures, such as cats/1\.png"):
        plan_images(str(tmp_path), 10)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["c0.zip"], r"no pictures .*not read: 1 other file \(1 \.zip\)"),
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
    with pytest.raises(UserError, match="width, cls; choose with --label-column"):
        plan_images(str(path), 10)
    assert plan_images(str(path), 10, "cls").classes == ("0", "1", "2")
    with pytest.raises(UserError, match="no column of labels 'clz'; did you mean"):
        plan_images(str(path), 10, "clz")
    write_parquet(path, {"a": plain, "b": plain})
    with pytest.raises(UserError, match=r"2 image columns \['a', 'b'\]"):
        plan_images(str(path), 10)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (pa.array(["b", "a", "c", "a"]), ("a", "b", "c"), [1, 0, 2, 0]),
        (pa.array(["b", "a", "c", "a"]).dictionary_encode(), ("a", "b", "c"), [1, 0, 2, 0]),
        (pa.array(["10", "9", "0", "9"]), ("0", "9", "10"), [2, 1, 0, 1]),
        (pa.array([True, False, True, True]), ("False", "True"), [1, 0, 1, 1]),
        (pa.array([2.0, 0.0, 1.0, 1.0]), ("0", "1", "2"), [2, 0, 1, 1]),
        (pa.array([2, 0, 1, 1], pa.uint8()), ("0", "1", "2"), [2, 0, 1, 1]),
    ],
    ids=["text", "dictionary", "numbers as text", "bool", "float", "uint8"],
)
def test_labels_of_any_type_become_classes(
    tmp_path: Path, labels: pa.Array, classes: tuple[str, ...], numbers: list[int]
) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, {"image": pictures(4), "id": pa.array([0, 1, 2, 3]), "label": labels})
    plan = plan_images(str(path), 10)
    assert (plan.classes, plan.units[0].labels) == (classes, numbers)
    assert plan.notes[0].endswith(f"in this order: {', '.join(classes)}")


def test_text_labels_have_one_numbering_over_all_files(tmp_path: Path) -> None:
    for part, words in enumerate((["b", "c"], ["a", "c"])):
        write_parquet(tmp_path / f"train-{part:05d}-of-00002.parquet", {"image": pictures(2), "label": pa.array(words)})
    plan = plan_images(str(tmp_path), 10)
    assert plan.classes == ("a", "b", "c") and [unit.labels for unit in plan.units] == [[1, 2], [0, 2]]


@pytest.mark.parametrize("name", ["id", "image_id", "idx", "__index_level_0__"])
def test_an_identifier_is_no_label(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, {"image": pictures(3), name: pa.array([0, 1, 2])})
    plan = plan_images(str(path), 10)
    assert plan.classes == ()
    assert plan.notes == (f"no column of labels: encoded without classes (--label-column takes {name})",)
    assert plan_images(str(path), 10, name).classes == ("0", "1", "2")


def test_a_clone_from_hugging_face_is_read_below_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    save(tmp_path / "README.md", b"")
    save(tmp_path / ".git" / "x.parquet", b"")
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", {"image": pictures(2), "label": pa.array([1, 0])})
    plan = plan_images(str(tmp_path), 10)
    assert plan.units[0].names == ["train-00000-of-00001.parquet:0", "train-00000-of-00001.parquet:1"]


def test_a_table_of_paths_is_named_for_what_it_is(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", {"image": [{"bytes": None, "path": f"/data/{i}.png"} for i in range(2)]})
    with pytest.raises(UserError, match=r"has no pictures, only their paths, such as /data/0\.png"):
        plan_images(str(tmp_path / "t.parquet"), 10)


@pytest.mark.parametrize(
    ("labels", "named", "says"),
    [
        ([0, 1, 3, 3], None, "0 to 3 without 2"),
        ([1, 2, 1, 2], None, "1 to 2 without 0"),
        ([-1, -1, -1, -1], ["a", "b"], "labels are -1 to -1, but there are 2 classes"),
        ([0, 1, 2, 0], ["a", "b"], "labels are 0 to 2, but there are 2 classes"),
        ([0, 1, None, 0], None, "row 2 has no label"),
        ([0.5, 1.0, 0.0, 0.0], None, "the label 0.5 in 'label' is not a class"),
    ],
)
def test_parquet_labels_have_to_be_classes(
    tmp_path: Path, labels: list[Any], named: list[str] | None, says: str
) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, {"image": pictures(4), "label": pa.array(labels)}, named)
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


def test_a_list_without_labels_and_one_of_windows(tmp_path: Path) -> None:
    latents = write_edm2(tmp_path)
    path = tmp_path / "vae" / "dataset.json"
    listed = json.loads(path.read_text())["labels"]
    path.write_text(json.dumps({"labels": [[name.replace("/", "\\"), label] for name, label in listed]}))
    plan = plan_latents(str(tmp_path / "vae"), None, 10)
    np.testing.assert_array_equal(read_unit(plan.source, plan.units[0], 16).moments, latents)
    assert plan.classes == ("0", "1")
    path.write_text('{"labels": null}')
    plan = plan_latents(str(tmp_path / "vae"), None, 10)
    np.testing.assert_array_equal(read_unit(plan.source, plan.units[0], 16).moments, latents)
    assert plan.classes == () and plan.notes == ("dataset.json has no labels: encoded without classes",)
    path.write_text(json.dumps({"labels": [listed[0], listed[0]]}))
    with pytest.raises(UserError, match="twice"):
        plan_latents(str(tmp_path / "vae"), None, 10)


def test_latents_in_a_zip_are_read_as_in_their_folder(tmp_path: Path) -> None:
    latents = write_edm2(tmp_path)
    folder = tmp_path / "vae"
    archive = zipped(tmp_path / "v.zip", {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")})
    plan = plan_latents(archive, str(tmp_path / "images"), 10)
    loaded = read_unit(plan.source, plan.units[0], 16)
    np.testing.assert_array_equal(loaded.moments, latents)
    assert loaded.pictures is not None and len(loaded.pictures) == len(latents)


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
