"""An encoded data set on disk: memory-mapped Arrow IPC files, and a manifest that describes them.

Nothing is compressed, except PNG pictures stored with latents, so any image is read by index without reading others.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gat_sweep.data.captions import CaptionColumns, OpenCaptions, caption_fields, picked
from gat_sweep.data.pictures import Unusable, read_png
from gat_sweep.data.tokenizer import PIXELS, TokenizerIdentity
from gat_sweep.errors import UserError
from gat_sweep.files.storage import write
from gat_sweep.language.encoder import TextIdentity

FORMAT = 1
MANIFEST = "manifest.json"
SHARDS = "shards"  # folder of the Arrow files


class Record(BaseModel):
    """A record in one of our JSON files; unknown keys, missing keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(Record):
    """One Arrow file of a data set."""

    file: str = Field(pattern=r"^shards/[0-9]+\.arrow$")  # so that it cannot be outside the folder of the data set
    count: int = Field(gt=0)
    bytes: int = Field(gt=0)
    digest: str  # sha256 of the file


class Skipped(Record):
    """An input that was skipped and is not in the data set."""

    source: str
    reason: str


class CachedTeacher(Record):
    """A teacher whose tokens are stored."""

    name: str
    digest: str  # of its weights
    tokens: int = Field(gt=0)  # 1 + grid * grid: the class token, then the patches row by row
    width: int = Field(gt=0)


class StoredText(Record):
    """How the captions of a data set are stored: as text, as token ids, and possibly as states."""

    encoder: TextIdentity  # whose tokenizer made the ids
    states: bool  # whether its states are stored

    @property
    def state_width(self) -> int | None:
        """W of the stored states; None without them."""
        return self.encoder.width if self.states else None


class Manifest(Record):
    """Content of manifest.json."""

    format: Literal[1]
    name: str
    digest: str  # of shards and their meaning, without names and places; 12 hex digits
    count: int = Field(gt=0)
    side: int = Field(gt=0)  # of a latent
    channels: int = Field(gt=0)
    picture_side: int = Field(gt=0)
    dtype: Literal["float16", "uint8"]  # float16 for latents, uint8 for pixels
    has_pictures: bool
    tokenizer: TokenizerIdentity
    teacher: CachedTeacher | None
    classes: tuple[str, ...]  # names; empty for unlabelled data
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...]
    text: StoredText | None = None  # absent in the file, and not part of the digest, without captions

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.count != sum(shard.count for shard in self.shards):
            raise ValueError("count is not the sum of the shards' counts")
        if (self.dtype == "uint8") != (self.tokenizer.source == PIXELS):
            raise ValueError("dtype does not fit the tokenizer")
        if self.digest != self.content_digest():
            raise ValueError("digest does not fit the rest")
        return self

    def content_digest(self) -> str:
        """The value that `digest` must have."""
        meaning = self.model_dump(mode="json", exclude={"name", "digest", "shards", "skipped"})
        del meaning["tokenizer"]["source"]
        if self.text is None:
            del meaning["text"]
        else:
            del meaning["text"]["encoder"]["name"]
        meaning["shards"] = [[shard.count, shard.digest] for shard in self.shards]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of each shard."""
        return _schema(
            moments=None if self.dtype == "uint8" else self.channels * self.side**2,
            pixels=3 * self.picture_side**2 if self.dtype == "uint8" else None,
            images=self.dtype != "uint8" and self.has_pictures,
            teacher=self.teacher.tokens * self.teacher.width if self.teacher else None,
            captions=caption_fields(self.text.encoder.tokens, self.text.state_width) if self.text else [],
        )


@dataclass(frozen=True)
class Columns:
    """Some images as a shard stores them, n images with either pixels or moments."""

    labels: np.ndarray  # [n] int32
    sources: list[str]
    mean: np.ndarray | None = None  # [n, C, Y, X] float16, raw: not shifted, not scaled
    std: np.ndarray | None = None  # same shape and type as mean
    pixels: np.ndarray | None = None  # [n, 3, h, w] uint8
    images: list[bytes] | None = None  # PNG
    teacher: np.ndarray | None = None  # [n, 1+T, W] float16
    captions: CaptionColumns | None = None


def float16(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values [n, ...] as float16, and [n] bool: True for rows that are finite and did not overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
    return half, np.asarray(np.isfinite(half).all(axis=tuple(range(1, half.ndim))))


def write_shard(path: Path, columns: Columns) -> Shard:
    """Writes <data set>/shards/<number>.arrow and returns its record. The same columns give the same bytes."""
    arrays: dict[str, pa.Array] = {}
    for name in ("mean", "std", "pixels", "teacher"):
        values = getattr(columns, name)
        if values is not None:
            flat = np.ascontiguousarray(values).reshape(-1)
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), len(flat) // len(values))
    if columns.images is not None:
        arrays["image"] = pa.array(columns.images, pa.binary())
    arrays["label"] = pa.array(columns.labels, pa.int32())
    arrays["source"] = pa.array(columns.sources, pa.string())
    sizes = {name: array.type.list_size for name, array in arrays.items() if pa.types.is_fixed_size_list(array.type)}
    captions: list[pa.Field] = []
    if columns.captions is not None:
        lists = columns.captions.arrays()
        captions = [pa.field(name, array.type) for name, array in lists.items()]
        arrays |= lists
    schema = _schema(sizes.get("mean"), sizes.get("pixels"), "image" in arrays, sizes.get("teacher"), captions)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(pa.record_batch([arrays[name] for name in schema.names], schema=schema))
    content = stream.getvalue()
    write(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return Shard(file=f"{SHARDS}/{path.name}", count=len(columns.labels), bytes=content.size, digest=digest)


class Shards:
    """An open encoded data set; several threads may read images by index, in any order."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        batches = [_open_shard(folder, shard, manifest.schema) for shard in manifest.shards]
        labels = [batch.column("label").to_numpy() for batch in batches]
        self.labels = np.concatenate(labels).astype(np.int64)
        self._ends = np.cumsum([shard.count for shard in manifest.shards])
        latent = (manifest.channels, manifest.side, manifest.side)
        picture = (3, manifest.picture_side, manifest.picture_side)
        teacher = (manifest.teacher.tokens, manifest.teacher.width) if manifest.teacher else ()
        shapes = {"mean": latent, "std": latent, "pixels": picture, "teacher": teacher}
        # Views of the mapped files, a list over shards for each column.
        self._views = {
            name: [batch.column(name).values.to_numpy(zero_copy_only=True).reshape(-1, *shape) for batch in batches]
            for name, shape in shapes.items()
            if name in manifest.schema.names
        }
        self._images = [batch.column("image") for batch in batches] if "image" in manifest.schema.names else None
        text = manifest.text
        self._captions = OpenCaptions(batches, text.encoder.tokens, text.state_width) if text else None

    def __len__(self) -> int:
        return self.manifest.count

    def moments(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std of the raw posterior, float32 [n, C, Y, X] each; not for a data set of pixels."""
        return self._gather("mean", indices, np.float32), self._gather("std", indices, np.float32)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Pictures, uint8 [n, 3, h, w]; only if the manifest has pictures. Raises UserError for a damaged one."""
        if self._images is None:
            return self._gather("pixels", indices, np.uint8)
        side = self.manifest.picture_side
        pictures = np.empty((len(indices), 3, side, side), np.uint8)
        for i, (shard, row) in enumerate(zip(*self._locate(indices), strict=True)):
            try:
                pictures[i] = read_png(self._images[shard][row].as_py(), side)
            except Unusable as error:
                path = self.folder / self.manifest.shards[shard].file
                raise UserError(f"{path}: picture {row} is {error}; copy the data set again") from None
        return pictures

    def teacher(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens of the teacher, float16 [n, 1+T, W]; only if the manifest has a teacher."""
        return self._gather("teacher", indices, np.float16)

    def captions(
        self, indices: Sequence[int] | np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
        """Token ids [n, N] int32 of a caption of each image, and its states; only if the manifest has text.

        draws: numbers [n] in [0, 1); u chooses caption floor(u * count) of the image.
        The states are words [n, N, W] and sentences [n, W], float16, or None where they are not stored.
        """
        captions, shards, chosen = self._chosen(indices, draws)
        return captions.ids(shards, chosen), captions.states(shards, chosen)

    def caption_texts(self, indices: Sequence[int] | np.ndarray, draws: np.ndarray) -> list[str]:
        """The words of the captions that the same draws choose in `captions`."""
        captions, shards, chosen = self._chosen(indices, draws)
        return captions.texts(shards, chosen)

    def _chosen(
        self, indices: Sequence[int] | np.ndarray, draws: np.ndarray
    ) -> tuple[OpenCaptions, np.ndarray, np.ndarray]:
        assert self._captions is not None
        shards, rows = self._locate(indices)
        return self._captions, shards, self._captions.choose(shards, rows, draws)

    def verify(self) -> None:
        """Reads all bytes of every file and compares digests.

        Raises UserError, which names the first file whose bytes differ from those that were written.
        """
        for shard in self.manifest.shards:
            with open(self.folder / shard.file, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.digest:
                    raise UserError(
                        f"{self.folder / shard.file} has changed since it was written; delete the folder, encode again"
                    )

    def _gather(self, column: str, indices: Sequence[int] | np.ndarray, dtype: type) -> np.ndarray:
        return picked(self._views[column], *self._locate(indices), dtype)

    def _locate(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = np.asarray(indices, dtype=np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"indices {index.min()} to {index.max()} of {len(self)} images")
        shard = np.searchsorted(self._ends, index, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        return shard, index - starts[shard]


def open_shards(folder: str | Path) -> Shards:
    """The data set that `gat-sweep encode` wrote into a folder.

    Raises UserError when the encoding is unfinished, or a file differs from the manifest in schema, rows or size
    (Shards.verify also compares the bytes).
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / SHARDS).is_dir():
            raise UserError(f"{folder}: encoding did not finish; run the same `gat-sweep encode` command again")
        raise UserError(f"{folder} has no {MANIFEST}; give the --out folder of `gat-sweep encode`")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key or 'manifest'}: {first['msg']}; encode again into another folder") from None
    shards = Shards(folder, manifest)
    lowest, highest = shards.labels.min(), shards.labels.max()
    if lowest < 0 or highest >= max(1, len(manifest.classes)):
        raise UserError(
            f"{folder}: labels are {lowest} to {highest}, but there are {len(manifest.classes)} classes; encode again"
        )
    return shards


def write_manifest(folder: Path, **fields: object) -> Manifest:
    """Writes manifest.json, which exists only if the data set is complete. fields: all but format and digest."""
    unchecked = Manifest.model_construct(format=FORMAT, digest="", **fields)  # type: ignore[arg-type]
    values = {**unchecked.model_dump(), "digest": unchecked.content_digest()}
    manifest = Manifest.model_validate_json(json.dumps(values))
    absent = {"text"} if manifest.text is None else set()
    write(folder / MANIFEST, (manifest.model_dump_json(indent=1, exclude=absent) + "\n").encode())
    return manifest


def _schema(
    moments: int | None, pixels: int | None, images: bool, teacher: int | None, captions: list[pa.Field]
) -> pa.Schema:
    fields = []
    if moments is not None:
        fields += [pa.field(name, pa.list_(pa.float16(), moments)) for name in ("mean", "std")]
    if pixels is not None:
        fields.append(pa.field("pixels", pa.list_(pa.uint8(), pixels)))
    if images:
        fields.append(pa.field("image", pa.binary()))
    if teacher is not None:
        fields.append(pa.field("teacher", pa.list_(pa.float16(), teacher)))
    return pa.schema([*fields, *captions, pa.field("label", pa.int32()), pa.field("source", pa.string())])


def _open_shard(folder: Path, shard: Shard, schema: pa.Schema) -> pa.RecordBatch:
    """The only batch of a shard, memory-mapped. Raises UserError when the file does not match the manifest."""
    path = folder / shard.file
    again = "encode again into another folder, or copy the data set again"
    try:
        if path.stat().st_size != shard.bytes:
            raise UserError(f"{path} has {path.stat().st_size} bytes, but its manifest says {shard.bytes}; {again}")
        with pa.memory_map(str(path)) as file:  # closing frees the descriptor; the mapping stays as long as the batch
            reader = pa.ipc.open_file(file)
            batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {again}") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a complete Arrow file ({error}); {again}") from None
    if batch is None or batch.num_rows != shard.count or not batch.schema.equals(schema):
        raise UserError(f"{path} does not have the columns and rows that its manifest says; {again}")
    return batch
