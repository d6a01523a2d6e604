"""Captions of `gat-sweep encode`: from every source the right ones to the right picture, and no bad one among them."""

import codecs
import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from encode.test_job import SCRIPT, content, here, run
from helpers.pictures import PHOTO, bad_pictures, encoded, picture_rows, save, write_edm2, write_parquet, zipped
from PIL import Image

from gat_sweep.data.dataset import Encoded
from gat_sweep.encode.captions import LONGEST, cleaned, with_captions
from gat_sweep.encode.job import EncodeJob
from gat_sweep.encode.latents import plan_latents
from gat_sweep.encode.sources import plan_images, read_unit
from gat_sweep.errors import UserError
from gat_sweep.language.load import load_text_encoder

WORDS = ["a palace by a lake", "people walk to a temple", "the sky above a roof", "stairs", "a tree", "red walls"]


def write_pictures(folder: Path, names: list[str]) -> str:
    for i, name in enumerate(names):
        save(folder / name, encoded(Image.fromarray(PHOTO[8 * i : 8 * i + 32, :32]), "PNG"))
    return str(folder)


def write_coco(path: Path, captions: list[tuple[int, Any]], count: int = 4, **changes: Any) -> str:
    """A file as COCO's captions_train2014.json; the annotation ids do not rise, as in COCO's own."""
    images = [{"id": 100 + i, "file_name": f"COCO_{i}.png", "height": 32, "license": 1} for i in range(count)]
    said = [{"image_id": 100 + i, "id": 900 - at, "caption": text} for at, (i, text) in enumerate(captions)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": said, **changes}))
    return str(path)


def by_image(images: str, captions: str, column: str | None = None, size: int = 3) -> dict[str, list[str]]:
    plan = with_captions(plan_images(images, size), captions, column)
    return {name: list(texts) for unit in plan.units for name, texts in zip(unit.names, unit.captions, strict=True)}


def stored(folder: Path) -> list[list[str]]:
    """All captions of each image, read through draws in the middle of each caption's part of [0, 1)."""
    dataset = Encoded(str(folder))
    assert dataset.shards._captions is not None
    counts = np.concatenate([np.diff(offsets) for offsets in dataset.shards._captions._offsets])
    return [
        dataset.caption_texts([i] * count, (np.arange(count) + 0.5) / count) for i, count in enumerate(counts.tolist())
    ]


@pytest.fixture
def coco(tmp_path: Path) -> EncodeJob:
    images = write_pictures(tmp_path / "train", [f"COCO_{i}.png" for i in range(4)])
    order = [(2, WORDS[0]), (0, WORDS[1]), (2, WORDS[2]), (1, WORDS[3]), (3, WORDS[4]), (0, WORDS[5]), (2, WORDS[0])]
    captions = write_coco(tmp_path / "captions_train.json", order)
    return EncodeJob(tmp_path / "set", "pixels", images, size=32, shard_size=3, captions=captions)


def test_cocos_captions_are_stored_as_text_and_ids_in_the_order_of_the_file(coco: EncodeJob) -> None:
    said = io.StringIO()
    manifest = run(coco, said)
    assert manifest.text is not None and not manifest.text.states and manifest.classes == ()
    assert manifest.text.encoder == load_text_encoder("wordllama").identity
    assert stored(coco.out) == [[WORDS[1], WORDS[5]], [WORDS[3]], [WORDS[0], WORDS[2], WORDS[0]], [WORDS[4]]]
    assert "7 captions of 4 images" in said.getvalue() and "cut" not in said.getvalue()
    rows = Encoded(str(coco.out)).rows([3, 2], captions=np.array([0.9, 0.5]))
    expected, _ = load_text_encoder("wordllama").ids([WORDS[4], WORDS[2]])
    assert rows.ids is not None and rows.ids.dtype == torch.int32 and rows.words is None and rows.sentence is None
    np.testing.assert_array_equal(rows.ids, expected)
    assert Encoded(str(coco.out)).rows([3, 2]).ids is None


def test_stored_states_are_the_encoders_in_half_precision(coco: EncodeJob) -> None:
    manifest = run(replace(coco, store_text=True, text_tokens=5, batch=2))
    assert manifest.text is not None and manifest.text.states and manifest.text.encoder.tokens == 5
    encoder = load_text_encoder("wordllama", 5)
    draws = np.array([0.99, 0.0, 0.4])
    rows = Encoded(str(coco.out)).rows([0, 1, 2], captions=draws)
    ids, _ = encoder.ids([WORDS[5], WORDS[3], WORDS[2]])
    exact = encoder.encode(torch.from_numpy(ids))
    assert rows.ids is not None and rows.words is not None and rows.sentence is not None
    assert rows.words.dtype == rows.sentence.dtype == torch.float16
    assert rows.words.shape == (3, 5, 256) and rows.sentence.shape == (3, 256)
    np.testing.assert_array_equal(rows.ids, ids)
    torch.testing.assert_close(rows.words.float(), exact.words, rtol=2**-11, atol=2**-25)
    torch.testing.assert_close(rows.sentence.float(), exact.sentence, rtol=2**-11, atol=2**-25)


def test_states_that_do_not_fit_are_refused(coco: EncodeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from gat_sweep.language.wordllama import WordLlama

    real = WordLlama.encode

    def huge(self: WordLlama, ids: torch.Tensor) -> Any:
        found = real(self, ids)
        found.words[0, 0, 7] = 1e5
        return found

    monkeypatch.setattr(WordLlama, "encode", huge)
    with pytest.raises(UserError, match="states of 'wordllama' do not fit into float16; leave out --store-text"):
        run(replace(coco, store_text=True))


BAD = {
    "empty": ["", "  \t\n ", "\u200b\u200b", "\u2028"],
    "not text": [7, ["a", "b"], {"raw": "a"}, True, "a\0b"],
    "not UTF-8": ["lone \ud800 surrogate"],
}


def test_bad_captions_are_dropped_counted_and_named(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "in", [f"COCO_{i}.png" for i in range(4)])
    captions = [(0, WORDS[0]), (1, "two\r\nlines\tand\x07 a bell"), (3, "ends early"), (1, "  caf\u00e9 \U0001f3ef ")]
    planted = [(i % 3, text) for i, text in enumerate(bad for values in BAD.values() for bad in values)]
    path = Path(write_coco(tmp_path / "c.json", [*planted, *captions]))
    path.write_bytes(path.read_bytes().replace(b"ends early", b"not \xff utf-8"))
    plan = with_captions(plan_images(images, 10), str(path))
    assert plan.units[0].captions == [[WORDS[0]], ["two lines and a bell", "caf\u00e9 \U0001f3ef"], [], []]
    shown = "(COCO_0.png, COCO_1.png, COCO_2.png)"
    assert plan.notes[1:] == (
        "3 captions of 2 images",
        f"captions dropped because they are empty: 4 {shown}",
        "captions dropped because they are not UTF-8: 2 (COCO_0.png, COCO_3.png)",
        "captions dropped because they are not text: 5 (COCO_0.png, COCO_1.png, COCO_2.png)",
        "images without a caption, which are skipped: 2 (COCO_2.png, COCO_3.png)",
    )
    for reason, values in BAD.items():
        assert [cleaned(value) for value in values] == [("", reason)] * len(values)

    save(tmp_path / "in/COCO_2.png", bad_pictures()["empty"])  # without a caption, it is not even decoded
    said = io.StringIO()
    job = EncodeJob(tmp_path / "set", "pixels", images, size=32, captions=str(path))
    manifest = run(job, said)
    assert stored(job.out) == [[WORDS[0]], ["two lines and a bell", "caf\u00e9 \U0001f3ef"]]
    assert [(s.source, s.reason) for s in manifest.skipped] == [
        ("COCO_2.png", "no caption"),
        ("COCO_3.png", "no caption"),
    ]
    assert "2 skipped (COCO_2.png has no caption; COCO_3.png has no caption)" in said.getvalue()


def test_pictures_without_captions_count_as_bad_before_any_is_read(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "in", [f"COCO_{i}.png" for i in range(5)])  # the last is not in the file
    captions = write_coco(tmp_path / "c.json", [(0, "a"), (2, "b"), (3, "c")])
    job = EncodeJob(tmp_path / "set", "pixels", images, size=32, captions=captions, max_bad=1)
    with pytest.raises(UserError, match=r"2 of 5 images have no caption, such as COCO_1\.png.*--max-bad 1000"):
        run(job, by=lambda *_: pytest.fail("it read pictures"))
    assert not job.out.exists()


def test_a_caption_of_100_000_words_is_cut_at_once(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "in", [f"COCO_{i}.png" for i in range(4)])
    long = " ".join(["palace"] * 100_000)
    captions = [(0, long), (1, "x" * 1_000_000), (2, "a " * 16), (3, "a " * 17)]
    said = io.StringIO()
    job = EncodeJob(
        tmp_path / "set", "pixels", images, size=32, captions=write_coco(tmp_path / "c.json", captions), text_tokens=16
    )
    began = time.monotonic()
    run(job, said)
    assert time.monotonic() - began < 20
    texts = stored(job.out)
    assert texts[0] == [long[:LONGEST]] and texts[1] == ["x" * LONGEST] and texts[3] == ["a " * 16 + "a"]
    assert "captions cut after 10,000 characters: 2 (COCO_0.png, COCO_1.png)" in said.getvalue()
    assert said.getvalue().endswith("captions cut to their first 16 tokens: 3\n")
    ids, cut = load_text_encoder("wordllama", 512).ids([long, long[:LONGEST]])
    assert cut.all() and (ids[0] == ids[1]).all()  # more characters would not change the ids of the most tokens


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "is not a COCO file of captions"),
        ("[1, 2", "is not a COCO file of captions"),
        ("[" * 100_000, "is not a COCO file of captions"),
        ('{"images": [{"id": 1, "file_name": 3}], "annotations": []}', "is not a COCO file of captions"),
        ('{"images": [{"id": [], "file_name": "a"}], "annotations": []}', "is not a COCO file of captions"),
        ('{"images": [], "annotations": [{"image_id": 1, "bbox": []}]}', r"give captions_\*\.json"),
        ('{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}], "annotations": []}', "twice"),
        ('{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}], "annotations": []}', "twice"),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": "1", "caption": "x"}]}',
            "has 1 captions of images that it does not list, such as image_id '1'",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "\\udc00\\n"}], "annotations": []}',
            r"names 1 pictures that are not in --images, such as '\\udc00\\n'; add them, or remove them",
        ),
    ],
)
def test_what_is_not_cocos_file_of_these_pictures_is_refused(tmp_path: Path, text: str, says: str) -> None:
    images = write_pictures(tmp_path / "in", ["a.png"])
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=says) as raised:
        by_image(images, str(tmp_path / "c.json"))
    assert "\n" not in str(raised.value)


def write_lines(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_json_lines_as_imagefolder_has_them(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "in", ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"])
    path = write_lines(
        tmp_path / "in/metadata.jsonl",
        {"file_name": "cat\\2.png", "text": ["one", 2, "three"], "id": 1},
        {"file_name": "dog/1.png", "text": None},
        {"file_name": "./cat/1.png", "text": "alone"},
        {"file_name": "cat/2.png", "text": "and once more"},
        {"file_name": "dog/2.png", "id": 3},
    )
    expected = {
        "cat/1.png": ["alone"],
        "cat/2.png": ["one", "three", "and once more"],
        "dog/1.png": [],
        "dog/2.png": [],
    }
    assert by_image(images, path) == expected
    Path(path).write_bytes(codecs.BOM_UTF8 + Path(path).read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert by_image(images, path) == by_image(images, path, "text") == expected
    Path(path).write_bytes(Path(path).read_bytes().replace(b"alone", b"a\xfflone"))
    assert by_image(images, path)["cat/1.png"] == []
    plan = with_captions(plan_images(images, 9), path)
    assert plan.classes == ("cat", "dog") and plan.units[0].labels == [0, 0, 1, 1]  # the labels stay as they are


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        ({"text": "a", "caption": "b", "id": 1}, None, "could have its captions in 'caption', 'id', 'text'; choose"),
        ({"title": "a", "id": 1}, None, "could have its captions in 'id', 'title'; choose with --caption-column"),
        ({}, None, "could have its captions in no column"),
        ({"title": "a", "id": 1}, "titel", r"has no column 'titel' \(columns: 'id', 'title'\)"),
        ({"file_name": "b.png", "text": "a"}, None, "names 1 pictures that are not in --images, such as 'b.png'"),
        ({"file_name": None, "text": "a"}, None, "line 2 is not a JSON object with a file_name"),
    ],
)
def test_json_lines_that_are_not_clear_are_refused(
    tmp_path: Path, row: dict[str, Any], column: str | None, says: str
) -> None:
    images = write_pictures(tmp_path / "in", ["a.png"])
    path = write_lines(tmp_path / "c.jsonl", {"file_name": "a.png"}, {"file_name": "a.png", **row})
    with pytest.raises(UserError, match=says):
        by_image(images, path, column)


@pytest.mark.parametrize("line", ["[1]", "{", "null", '"file_name"', "[" * 100_000])
def test_a_line_that_is_not_an_object_is_named(tmp_path: Path, line: str) -> None:
    images = write_pictures(tmp_path / "in", ["a.png"])
    (tmp_path / "c.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n\n' + line)
    with pytest.raises(UserError, match="line 3 is not a JSON object"):
        by_image(images, str(tmp_path / "c.jsonl"))


@pytest.mark.parametrize("archived", [False, True])
def test_text_files_beside_the_pictures(tmp_path: Path, archived: bool) -> None:
    texts = {
        "cat/1.b.txt": b"one\r\ntwo\n",
        "cat/2.txt": codecs.BOM_UTF8 + b"good\n\nb\xffd\nlast",
        "dog/3.txt": "an old notepad\nwrote this".encode("utf-16"),
        "dog/unused.txt": b"no picture",
    }
    pictures = ["cat/1.b.png", "cat/2.jpg", "dog/3.png", "dog/4.png"]
    images = write_pictures(tmp_path / "in", pictures)
    for name, text in texts.items():
        save(tmp_path / "in" / name, text)
    if archived:
        images = zipped(tmp_path / "in.zip", {n: (tmp_path / "in" / n).read_bytes() for n in [*pictures, *texts]})
    assert by_image(images, "txt") == {
        "cat/1.b.png": ["one", "two"],
        "cat/2.jpg": ["good", "last"],
        "dog/3.png": [],
        "dog/4.png": [],
    }
    notes = with_captions(plan_images(images, 9), "txt").notes
    assert notes[1:3] == ("not pictures: 4 other files (4 .txt)", "4 captions of 2 images")


def test_no_text_file_at_all_is_another_folder(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "in", ["a.png"])
    with pytest.raises(UserError, match=r"no picture of .* has a \.txt file beside it"):
        by_image(images, "txt")
    save(tmp_path / "secret", b"not yours")
    (tmp_path / "in/a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"a\.txt is a link to .*secret, outside"):
        by_image(images, "txt")


def not_utf8() -> pa.Array:
    """Four texts, the second of which is not UTF-8."""
    _, offsets, data = pa.array([b"a", b"\xff", b"c", b"d"]).buffers()
    return pa.StringArray.from_buffers(4, offsets, data)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", None, " ", "d"]), [["a"], [], [], ["d"]]),
        (pa.array(["a", "a", None, "d"], pa.large_string()), [["a"], ["a"], [], ["d"]]),
        (pa.array(["a", "b", "a", None]).dictionary_encode(), [["a"], ["b"], ["a"], []]),
        (pa.array([["a", "b"], None, [], ["", "d", None]]), [["a", "b"], [], [], ["d"]]),
        (pa.array([["a"], ["b"], ["c"], ["d"]], pa.large_list(pa.large_string())), [["a"], ["b"], ["c"], ["d"]]),
        (not_utf8(), [["a"], [], ["c"], ["d"]]),
        (pa.ListArray.from_arrays([0, 2, 3, 4, 4], not_utf8()), [["a"], ["c"], ["d"], []]),
    ],
    ids=["text", "large", "dictionary", "lists", "large lists", "bad bytes", "bad bytes in lists"],
)
def test_a_column_of_parquet_files(tmp_path: Path, column: pa.Array, expected: list[list[str]]) -> None:
    """Over two files, several row groups and units that do not end with them; the label stays the label."""
    for part in range(2):
        columns = {"image": picture_rows(4), "label": pa.array([1, 0, 1, 0]), "said": column}
        write_parquet(tmp_path / f"train-{part:05d}-of-00002.parquet", columns, rows=3)
    found = by_image(str(tmp_path), "said")
    assert list(found.values()) == expected * 2
    assert list(found)[4] == "train-00001-of-00002.parquet:0"
    plan = with_captions(plan_images(str(tmp_path), 3), "said")
    assert plan.classes == ("0", "1")
    loaded = [read_unit(plan.source, unit, 16) for unit in plan.units]
    assert [texts for unit in loaded for texts in unit.captions] == [texts for texts in expected * 2 if texts]
    assert [reason for unit in loaded for _, reason in unit.skipped] == ["no caption"] * 2 * expected.count([])


def test_a_column_that_another_file_lacks(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", {"image": picture_rows(2), "said": ["a", "b"]})
    write_parquet(tmp_path / "train-00001-of-00002.parquet", {"image": picture_rows(2), "said": [1, 2]})
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet has no column of text 'said'"):
        by_image(str(tmp_path), "said")


def test_what_means_two_things_or_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = str(tmp_path / "t.parquet")
    write_parquet(
        Path(table), {"image": picture_rows(2), "caption": ["a", "b"], "txt": ["c", "d"], "image_id": [16, 16]}
    )
    folder = write_pictures(tmp_path / "in", ["a.png"])
    save(tmp_path / "in/a.txt", b"a")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert by_image(table, "txt") == {"t.parquet:0": ["c"], "t.parquet:1": ["d"]}  # no files lie beside rows
    assert by_image(folder, "txt") == {"a.png": ["a"]}
    for name in ("caption", "txt", "c.json"):
        write_lines(Path(name), {})
    for images, what, says in [
        (table, "caption", r"--captions caption is a file here and also a column of t\.parquet; rename the file"),
        (folder, "txt", r"is a file here and also the word for \.txt files beside the pictures; rename the file"),
        (table, "captoin", r"is not a column of text in t\.parquet; did you mean 'caption'\?"),
        (table, "image_id", "is not a column of text .*known: caption, txt"),
        (table, "c.json", "is not a column of text"),
        (folder, "nowhere.json", "the file does not exist; give a COCO .json, a .jsonl, or the word txt"),
        (folder, "caption", "has an unknown suffix"),
    ]:
        with pytest.raises(UserError, match=says):
            by_image(images, what)
    with pytest.raises(UserError, match=r"--caption-column names a column of a \.jsonl file"):
        by_image(folder, "c.json", "text")


def test_options_that_need_captions_or_pictures(tmp_path: Path, coco: EncodeJob) -> None:
    for options in ({"store_text": True}, {"text_tokens": 3}, {"text_encoder": "wordllama"}, {"caption_column": "a"}):
        option = next(iter(options)).replace("_", "-")
        with pytest.raises(UserError, match=f"--{option} needs captions"):
            run(replace(coco, captions=None, **options))
    with pytest.raises(UserError, match="unknown text encoder 'wordlama'; did you mean 'wordllama'"):
        run(replace(coco, text_encoder="wordlama"))
    write_edm2(tmp_path / "edm2")
    with pytest.raises(UserError, match="not CIFAR or --latents"):
        with_captions(plan_latents(str(tmp_path / "edm2/vae"), None, 3), "txt")


def test_captions_are_part_of_what_a_folder_holds(tmp_path: Path, coco: EncodeJob) -> None:
    """Other captions are another data set; the same ones give the same bytes, whoever comes first."""
    run(coco)
    before = Path(str(coco.captions)).read_text()
    Path(str(coco.captions)).write_text(before.replace("stairs", "a stair"))
    for other, says in [
        (coco, "inputs was"),
        (replace(coco, captions=None), "inputs was"),
        (replace(coco, text_tokens=4), "text was"),
        (replace(coco, store_text=True), "text was"),
    ]:
        with pytest.raises(UserError, match=f"has another encoding: .*{says}"):
            run(other)
    Path(str(coco.captions)).write_text(before)
    bare = replace(coco, captions=None, out=tmp_path / "bare/set")
    assert "captions" not in run(bare).schema.names
    assert '"text"' not in (bare.out / "encode.jsonl").read_text() + (bare.out / "manifest.json").read_text()
    with pytest.raises(UserError, match="text was None, is"):
        run(replace(bare, captions=coco.captions))

    def backwards(encoding: Any, units: Any, *machines: object) -> Any:
        for unit in reversed(units):
            yield from here(encoding, [unit])

    whole = [replace(coco, out=tmp_path / name / "set", store_text=True) for name in ("one", "two")]
    run(whole[0])
    run(whole[1], by=backwards)
    assert content(whole[0].out) == content(whole[1].out) != content(coco.out)


@pytest.mark.ray
@pytest.mark.slow
def test_captions_on_ray_end_as_without(tmp_path: Path, coco: EncodeJob) -> None:
    said = io.StringIO()
    run(replace(coco, store_text=True, text_tokens=4), said)
    job = {"out": str(tmp_path / "ray/set"), "tokenizer": "pixels", "images": coco.images, "size": 32, "shard_size": 3}
    job |= {"captions": coco.captions, "store_text": True, "text_tokens": 4, "cpus": 1, "gpus": 0}
    command = [sys.executable, "-c", SCRIPT, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "ray/set") == content(coco.out)
    assert done.stdout.splitlines()[-1] == said.getvalue().splitlines()[-1] == "captions cut to their first 4 tokens: 4"
