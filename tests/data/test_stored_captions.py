"""Stored captions: draws choose each of them equally often, and a data set without them is as before."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gat_sweep.data.captions import CaptionColumns
from gat_sweep.data.dataset import Encoded
from gat_sweep.data.sampler import caption_draws
from gat_sweep.data.shards import Columns, Manifest, Shard, StoredText, open_shards, write_manifest, write_shard
from gat_sweep.data.tokenizer import PIXELS, TokenizerIdentity
from gat_sweep.errors import UserError
from gat_sweep.language.encoder import PADDING, TextIdentity

TOKENS, WIDTH = 3, 2
COUNTS = [[1, 5, 2], [3], [4, 1, 1, 7]]  # captions of the images of each shard
TOTAL = sum(map(len, COUNTS))
ENCODER = TextIdentity(name="some/clip", tokenizer="0" * 12, digest="1" * 12, tokens=TOKENS, width=WIDTH)
IDENTITY = TokenizerIdentity(PIXELS, "", channels=3, factor=1, scale=1.0, shift=0.0)


def fields(shards: tuple[Shard, ...], count: int, text: StoredText | None) -> dict[str, Any]:
    fixed = {"name": "set", "side": 4, "channels": 3, "picture_side": 4, "dtype": "uint8", "has_pictures": True}
    varying = {"count": count, "tokenizer": IDENTITY, "shards": shards, "text": text}
    return {**fixed, **varying, "teacher": None, "classes": (), "skipped": ()}


def write_captions(folder: Path, states: bool = False, encoder: TextIdentity = ENCODER, **changes: Any) -> None:
    """A data set whose caption j of image i is the text "i j", with the ids i, j and padding, and those as states."""
    shards, first = [], 0
    for number, counts in enumerate(COUNTS):
        pairs = [(first + at, j) for at, count in enumerate(counts) for j in range(count)]
        ids = np.array([[i, j, PADDING] for i, j in pairs], np.int32)
        words = np.stack([ids, ids * 2], axis=2).astype(np.float16)
        texts = [[f"{first + at} {j}" for j in range(count)] for at, count in enumerate(counts)]
        captions = CaptionColumns(texts, ids, *((words, words[:, 0] + 0.5) if states else ()))
        pixels = np.full((len(counts), 3, 4, 4), number, np.uint8)
        columns = Columns(np.zeros(len(counts), np.int32), [str(n) for n in counts], pixels=pixels, captions=captions)
        shards.append(write_shard(folder / "shards" / f"{number:05d}.arrow", columns))
        first += len(counts)
    given = fields(tuple(shards), TOTAL, StoredText(encoder=encoder, states=states))
    write_manifest(folder, **{**given, **changes})


@pytest.mark.parametrize("states", [False, True])
def test_ids_states_and_words_are_of_the_same_caption_of_the_right_image(tmp_path: Path, states: bool) -> None:
    write_captions(tmp_path, states)
    dataset = Encoded(str(tmp_path))
    assert dataset.text == StoredText(encoder=ENCODER, states=states)
    random = np.random.default_rng(0)
    for index in (random.integers(0, TOTAL, 500), [7, 0, 3, 7], []):
        draws = random.random(len(index))
        rows, texts = dataset.rows(index, captions=draws), dataset.caption_texts(index, draws)
        assert rows.ids is not None and rows.ids.shape == (len(index), TOKENS)
        assert texts == [f"{i} {j}" for i, j, _ in rows.ids.tolist()]
        assert rows.ids[:, 0].tolist() == list(index)
        counts = np.concatenate(COUNTS)[np.asarray(index, int)]
        assert rows.ids[:, 1].tolist() == np.floor(draws * counts).astype(int).tolist()
        if not states:
            assert rows.words is None and rows.sentence is None
            continue
        assert rows.words is not None and rows.sentence is not None
        assert (rows.words[:, :, 0] == rows.ids).all() and (rows.words[:, :, 1] == 2 * rows.ids).all()
        assert rows.words.shape == (len(index), TOKENS, WIDTH)
        assert (rows.sentence == rows.words[:, 0] + 0.5).all()


def test_the_samplers_draws_choose_each_caption_equally_often(tmp_path: Path) -> None:
    write_captions(tmp_path)
    dataset = Encoded(str(tmp_path))
    batch, steps = TOTAL * 20, 50
    index, seen = np.tile(np.arange(TOTAL), 20), []
    for step in range(steps):
        ids = dataset.rows(index, captions=caption_draws(batch, seed=1, step=step)).ids
        assert ids is not None
        seen.append(ids.numpy())
    images, captions, _ = np.concatenate(seen).T
    for image, count in enumerate(np.concatenate(COUNTS)):
        found = np.bincount(captions[images == image], minlength=count)
        expected = 20 * steps / count
        assert len(found) == count and (np.abs(found - expected) <= 4 * np.sqrt(expected)).all(), (image, found)


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_draws_are_the_first_and_the_last_caption(tmp_path: Path, draw: float) -> None:
    write_captions(tmp_path)
    last = np.concatenate(COUNTS) - 1
    expected = [f"{i} {j if draw else 0}" for i, j in enumerate(last)]
    assert Encoded(str(tmp_path)).caption_texts(range(TOTAL), np.full(TOTAL, draw)) == expected


@pytest.mark.parametrize("draws", [[1.0, 0.0], [-0.1, 0.0], [np.nan, 0.0], [0.0], [0.0, 0.0, 0.0]])
def test_draws_outside_or_of_other_images_are_not_rounded(tmp_path: Path, draws: list[float]) -> None:
    write_captions(tmp_path)
    with pytest.raises(AssertionError):
        Encoded(str(tmp_path)).rows([0, 1], captions=np.array(draws))


def test_threads_read_what_one_reads_and_nothing_is_copied_on_opening(tmp_path: Path) -> None:
    write_captions(tmp_path, states=True)
    shards = open_shards(tmp_path)
    assert shards._captions is not None
    for views in shards._captions._views.values():
        assert not any(view.flags.owndata or view.flags.writeable for view in views)
    draws = [np.random.default_rng(i).random(TOTAL) for i in range(32)]
    with ThreadPoolExecutor(8) as pool:
        for draw, texts in zip(draws, pool.map(lambda d: shards.caption_texts(range(TOTAL), d), draws), strict=True):
            assert texts == shards.caption_texts(range(TOTAL), draw)


def test_an_image_without_a_caption_or_ids_without_texts_are_not_written(tmp_path: Path) -> None:
    ids = np.zeros((2, TOKENS), np.int32)
    for texts in ([["a", "b"], []], [["a"], ["b", "c"]]):
        with pytest.raises(AssertionError):
            CaptionColumns(texts, ids).arrays()


def test_the_digest_is_of_the_text_encoders_content_not_of_its_name(tmp_path: Path) -> None:
    moved = replace(ENCODER, name="/elsewhere/clip")
    other = replace(ENCODER, digest="2" * 12)
    digests = []
    for name, encoder in (("a", ENCODER), ("b", moved), ("c", other)):
        write_captions(tmp_path / name, encoder=encoder)
        digests.append(open_shards(tmp_path / name).manifest.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_manifest_that_does_not_fit_its_captions_is_refused(tmp_path: Path) -> None:
    write_captions(tmp_path)
    longer = StoredText(encoder=replace(ENCODER, tokens=TOKENS + 1), states=False)
    for text in (longer, StoredText(encoder=ENCODER, states=True), None):
        write_captions(tmp_path, text=text)
        with pytest.raises(UserError, match="does not have the columns and rows"):
            open_shards(tmp_path)


def test_without_captions_a_manifest_and_its_digest_are_as_before(tmp_path: Path) -> None:
    """The digest was computed before there were captions; the ids of trials and caches depend on it."""
    shard = Shard(file="shards/00000.arrow", count=3, bytes=1000, digest="ab" * 32)
    manifest = write_manifest(tmp_path, **fields((shard,), 3, None))
    assert manifest.digest == "fc23ca8728b4" and manifest.text is None
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert list(written)[-1] == "skipped" and "text" not in written
    assert Manifest.model_validate_json((tmp_path / "manifest.json").read_bytes()) == manifest
