"""Pictures and labels in parquet files."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.pictures import (
    PHOTO,
    picture_rows,
    save,
    write_parquet,
)

from gat_sweep.encode.sources import plan_images, read_unit
from gat_sweep.errors import UserError


def test_parquet_below_a_folder_of_pictures_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "cats" / "1.png", b"")
    (tmp_path / "meta").mkdir()
    write_parquet(tmp_path / "meta" / "t.parquet", {"image": picture_rows(1)})
    with pytest.raises(UserError, match=r"has parquet files and pictures, such as cats/1\.png"):
        plan_images(str(tmp_path), 10)


def test_parquet_rows_are_read_across_row_groups(tmp_path: Path) -> None:
    images = picture_rows(22)
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
    plain = [image["bytes"] for image in picture_rows(4)]
    write_parquet(path, {"jpg": plain, "cls": [1, 0, 1, 0]})
    plan = plan_images(str(path), 10)
    assert plan.source.column == "jpg" and plan.classes == ("0", "1") and plan.units[0].labels == [1, 0, 1, 0]
    write_parquet(path, {"jpg": plain})
    assert plan_images(str(path), 10).classes == ()
    write_parquet(path, {"jpg": plain, "width": [16] * 4, "cls": [0, 1, 2, 0]})
    with pytest.raises(UserError, match="width, cls; choose with --label-column, or say --label-column none"):
        plan_images(str(path), 10)
    assert plan_images(str(path), 10, "none").classes == ()
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
    write_parquet(path, {"image": picture_rows(4), "id": pa.array([0, 1, 2, 3]), "label": labels})
    plan = plan_images(str(path), 10)
    assert (plan.classes, plan.units[0].labels) == (classes, numbers)
    assert plan.notes[0].endswith(f"in this order: {', '.join(classes)}")


def test_text_labels_have_one_numbering_over_all_files(tmp_path: Path) -> None:
    for part, words in enumerate((["b", "c"], ["a", "c"])):
        write_parquet(
            tmp_path / f"train-{part:05d}-of-00002.parquet", {"image": picture_rows(2), "label": pa.array(words)}
        )
    plan = plan_images(str(tmp_path), 10)
    assert plan.classes == ("a", "b", "c") and [unit.labels for unit in plan.units] == [[1, 2], [0, 2]]


@pytest.mark.parametrize("name", ["id", "image_id", "idx", "__index_level_0__"])
def test_an_identifier_is_no_label(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, {"image": picture_rows(3), name: pa.array([0, 1, 2])})
    plan = plan_images(str(path), 10)
    assert plan.classes == ()
    assert plan.notes == (f"no column of labels: encoded without classes (--label-column takes {name})",)
    assert plan_images(str(path), 10, name).classes == ("0", "1", "2")


def test_a_clone_from_hugging_face_is_read_below_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    save(tmp_path / "README.md", b"")
    save(tmp_path / ".git" / "x.parquet", b"")
    write_parquet(
        tmp_path / "data" / "train-00000-of-00001.parquet", {"image": picture_rows(2), "label": pa.array([1, 0])}
    )
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
    write_parquet(path, {"image": picture_rows(4), "label": pa.array(labels)}, named)
    with pytest.raises(UserError, match=says):
        plan_images(str(path), 10)


def test_rows_without_bytes_are_bad_pictures(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    images = [*picture_rows(2), None, {"bytes": None, "path": "x"}]
    write_parquet(path, {"image": images})
    plan = plan_images(str(path), 10)
    loaded = read_unit(plan.source, plan.units[0], 16)
    assert loaded.names == ["t.parquet:0", "t.parquet:1"]
    assert loaded.skipped == [("t.parquet:2", "empty: 0 bytes"), ("t.parquet:3", "empty: 0 bytes")]
