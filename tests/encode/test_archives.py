"""Lists and zips of other tools: latents with their pictures, and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import (
    PHOTO,
    names,
    picture_rows,
    save,
    write_edm2,
    zipped,
)

from gat_sweep.encode.latents import plan_latents
from gat_sweep.encode.sources import plan_images, read_unit
from gat_sweep.errors import UserError


def test_a_zip_of_class_folders_is_read_as_the_folder(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": p["bytes"] for i, p in enumerate(picture_rows(6)) for name in ["ab"[i % 2]]}
    for name, content in files.items():
        save(tmp_path / "folder" / name, content)
    archive = zipped(tmp_path / "train.zip", files | {"a/notes.txt": b"", "__MACOSX/a/._0.png": b"", "a/.x.png": b""})
    ours, theirs = (plan_images(images, 10) for images in (archive, str(tmp_path / "folder")))
    assert (ours.classes, names(ours), ours.digest) == (theirs.classes, names(theirs), theirs.digest)
    assert ours.notes[1:] == ("not pictures: 1 other file (1 .txt)",)
    pixels = [read_unit(plan.source, plan.units[0], 16).pictures for plan in (ours, theirs)]
    assert pixels[0] is not None and np.array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize("place", ["folder", "archive.zip"])
def test_pictures_of_edm2s_tool_have_the_labels_of_its_list(tmp_path: Path, place: str) -> None:
    """Its folders hold a thousand files each; they are not classes."""
    content = [p["bytes"] for p in picture_rows(4)]
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
    archive = Path(zipped(tmp_path / "a.zip", {"a/1.png": picture_rows(1)[0]["bytes"]}))
    content = bytearray(archive.read_bytes())
    content[60] ^= 255
    archive.write_bytes(content)
    plan = plan_images(str(archive), 10)
    with pytest.raises(UserError, match=r"cannot read .*a\.zip/a/1\.png \(.*; write the archive again"):
        read_unit(plan.source, plan.units[0], 16)


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
