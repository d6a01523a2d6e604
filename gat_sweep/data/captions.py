"""Captions in the shards of an encoded data set: those of an image as a list, as text, token ids, and possibly states.

The lists are read through their offsets, so that no caption of another image is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class CaptionColumns:
    """Captions of some images as a shard stores them: M captions of n images, those of an image side by side."""

    texts: Sequence[Sequence[str]]  # of each image, at least one
    ids: np.ndarray  # [M, N] int32, as TextEncoder.ids returns them
    words: np.ndarray | None = None  # [M, N, W] float16, states of the tokens
    sentence: np.ndarray | None = None  # [M, W] float16; None where words are

    def arrays(self) -> dict[str, pa.Array]:
        """Arrow columns by name, of n lists each."""
        counts = [len(texts) for texts in self.texts]
        assert min(counts) > 0 and sum(counts) == len(self.ids)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        columns = {"captions": pa.array(chain.from_iterable(self.texts), pa.string())}
        for name, values in (("caption_ids", self.ids), ("words", self.words), ("sentence", self.sentence)):
            if values is not None:
                flat = np.ascontiguousarray(values).reshape(-1)
                columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), len(flat) // len(values))
        return {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}


def caption_fields(tokens: int, width: int | None) -> list[pa.Field]:
    """Arrow fields of captions of N tokens, and of their states of width W if they are stored."""
    fields = [pa.field("captions", pa.list_(pa.string()))]
    fields.append(pa.field("caption_ids", pa.list_(pa.list_(pa.int32(), tokens))))
    if width is not None:
        fields.append(pa.field("words", pa.list_(pa.list_(pa.float16(), tokens * width))))
        fields.append(pa.field("sentence", pa.list_(pa.list_(pa.float16(), width))))
    return fields


class OpenCaptions:
    """Captions of open shards, as views of the mapped files; an image is a shard and a row in it."""

    def __init__(self, batches: Sequence[pa.RecordBatch], tokens: int, width: int | None):
        columns = [batch.column("captions") for batch in batches]
        self._offsets = [column.offsets.to_numpy() for column in columns]
        self._texts = [column.values for column in columns]
        shapes: dict[str, tuple[int, ...]] = {"caption_ids": (tokens,)}
        if width is not None:
            shapes |= {"words": (tokens, width), "sentence": (width,)}
        self._views = {
            name: [batch.column(name).values.values.to_numpy().reshape(-1, *shape) for batch in batches]
            for name, shape in shapes.items()
        }

    def choose(self, shards: np.ndarray, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Row of one caption of each image among the captions of its shard, int64 [n].

        draws: numbers [n] in [0, 1); u chooses caption floor(u * count) of the image.
        """
        draws = np.asarray(draws, np.float64)
        assert draws.shape == rows.shape and ((draws >= 0) & (draws < 1)).all()
        starts = picked(self._offsets, shards, rows, np.int64)
        counts = picked(self._offsets, shards, rows + 1, np.int64) - starts
        return np.asarray(starts + np.floor(draws * counts).astype(np.int64))

    def ids(self, shards: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Token ids of chosen captions, int32 [n, N]."""
        return picked(self._views["caption_ids"], shards, chosen, np.int32)

    def states(self, shards: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Words [n, N, W] and sentences [n, W] of chosen captions, float16; None where states are not stored."""
        if "words" not in self._views:
            return None
        words, sentence = (picked(self._views[name], shards, chosen, np.float16) for name in ("words", "sentence"))
        return words, sentence

    def texts(self, shards: np.ndarray, chosen: np.ndarray) -> list[str]:
        """Chosen captions."""
        return [self._texts[shard][int(row)].as_py() for shard, row in zip(shards, chosen, strict=True)]


def picked(views: Sequence[np.ndarray], shards: np.ndarray, rows: np.ndarray, dtype: type) -> np.ndarray:
    """Rows [n] of the views of shards [n], in the order given, as a new array [n, ...] of a type."""
    values = np.empty((len(rows), *views[0].shape[1:]), dtype)
    for shard in np.unique(shards):
        here = shards == shard
        values[here] = views[shard][rows[here]]
    return values
