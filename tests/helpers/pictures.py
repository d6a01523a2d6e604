"""Pictures, data sets of them, and networks that encode them."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import Dataset

from gat_sweep.config import TrialConfig
from gat_sweep.data.pictures import decoding, load_square
from gat_sweep.data.shards import CachedTeacher, Columns, float16, write_manifest, write_shard
from gat_sweep.data.tokenizer import Pixels, TokenizerIdentity
from gat_sweep.encode.units import Plan
from gat_sweep.recipe import resolve
from gat_sweep.vision.teacher import EFFICIENTNET, load_teacher
from helpers.trials import recipe

PHOTO = load_sample_images().images[0]  # uint8 [427, 640, 3]


def photographs(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Squares out of scikit-learn's two photographs, in turn; uint8 [count, 3, side, side]."""
    random, images = np.random.default_rng(seed), load_sample_images().images
    corners = [random.integers(0, [427 - side + 1, 640 - side + 1]) for _ in range(count)]
    squares = [images[i % 2][y : y + side, x : x + side] for i, (y, x) in enumerate(corners)]
    return np.stack(squares).transpose(0, 3, 1, 2)


class Photographs(Dataset[torch.Tensor]):
    """Pictures as torch-fidelity takes them."""

    def __init__(self, pictures: np.ndarray):
        self.pictures = torch.from_numpy(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pictures[index]


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def square(data: bytes, size: int) -> np.ndarray:
    with decoding():
        return load_square(data, size)


def png_that_claims(width: int, height: int) -> bytes:
    """A header, and no pixels to go with it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bad_pictures() -> dict[str, bytes]:
    """By the word that the reason begins with."""
    tile = Image.fromarray(PHOTO[:64, :64])
    return {
        "empty": b"",
        "truncated": encoded(tile)[: len(encoded(tile)) // 2],
        "cmyk": encoded(tile.convert("CMYK")),
        "small": encoded(tile.resize((1, 1)), "PNG"),
        "large": png_that_claims(60_000, 60_000),
        "no picture": b"This is a text.\n" * 20,
    }


def save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def names(plan: Plan) -> list[tuple[str, int]]:
    return [item for unit in plan.units for item in zip(unit.names, unit.labels, strict=True)]


def write_parquet(path: Path, columns: dict[str, Any], names: list[str] | None = None, rows: int = 4) -> None:
    """In the layout of Hugging Face's image data sets, `rows` to a row group."""
    table = pa.table(columns)
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=rows)


def write_edm2(folder: Path, count: int = 5, first: int = 0) -> list[np.ndarray]:
    """Latents and pictures as edm2's dataset tool lays them out."""
    random, latents = np.random.default_rng(0), []
    lists: dict[str, list[Any]] = {"vae": [], "images": []}
    for i in range(first, first + count):
        latent = np.concatenate([random.normal(size=(4, 8, 8)), random.random((4, 8, 8))]).astype(np.float32)
        save(folder / f"images/00000/img{i:08d}.png", encoded(Image.fromarray(PHOTO[i : i + 16, :16]), "PNG"))
        path = folder / f"vae/00000/img-mean-std-{i:08d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, latent)
        lists["vae"].append([f"00000/img-mean-std-{i:08d}.npy", i % 2])
        lists["images"].append([f"00000/img{i:08d}.png", i % 2])
        latents.append(latent)
    for name, labels in lists.items():
        (folder / name / "dataset.json").write_text(json.dumps({"labels": labels}))
    return latents


def encoded_pixels(folder: Path, count: int, side: int, grid: int | None = None) -> np.ndarray:
    """A data set of photographs in two classes, in shards of 7; returns its pictures.

    grid: EfficientNet-Lite0's tokens are stored beside them, so many to a side.
    """
    pictures = photographs(count, side)
    parts = [{"pixels": part} for part in _split(pictures)]
    teacher = None
    if grid:
        network = load_teacher(EFFICIENTNET, None, grid)
        for part in parts:
            part["teacher"] = network.tokens(torch.from_numpy(part["pixels"])).half().numpy()
        teacher = CachedTeacher(name=EFFICIENTNET, digest=network.digest, tokens=1 + grid**2, width=network.width)
    _write(folder, Pixels(3).identity, side, "uint8", parts, teacher)
    return pictures


def encoded_latents(
    folder: Path, count: int, side: int, channels: int, scale: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A data set of Gaussian posteriors without pictures; returns their means and standard deviations, float32."""
    random = np.random.default_rng(1)
    mean, std = float16(random.normal(size=(2, count, channels, side, side)))[0]
    std = np.abs(std)
    identity = TokenizerIdentity("nowhere", "0" * 12, channels, 8, scale, shift)
    parts = [{"mean": m, "std": s} for m, s in zip(_split(mean), _split(std), strict=True)]
    _write(folder, identity, side, "float16", parts)
    return mean.astype(np.float32), std.astype(np.float32)


def _split(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + 7] for start in range(0, len(values), 7)]


def _write(
    folder: Path,
    tokenizer: TokenizerIdentity,
    side: int,
    dtype: str,
    parts: list[dict[str, np.ndarray]],
    teacher: CachedTeacher | None = None,
) -> None:
    shards, start = [], 0
    for number, part in enumerate(parts):
        count = len(next(iter(part.values())))
        index = np.arange(start, start := start + count)
        columns = Columns((index % 2).astype(np.int32), [str(i) for i in index], **part)
        shards.append(write_shard(folder / "shards" / f"{number:05d}.arrow", columns))
    write_manifest(
        folder,
        name="photographs",
        count=start,
        side=side,
        channels=tokenizer.channels,
        picture_side=side * tokenizer.factor,
        dtype=dtype,
        has_pictures=dtype == "uint8",
        tokenizer=tokenizer,
        teacher=teacher,
        classes=("palace", "flower"),
        shards=tuple(shards),
        skipped=(),
    )


def save_vae(folder: Path, seed: int = 0, **config: Any) -> Any:
    """A small AutoencoderKL of diffusers with random weights; the model."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    blocks = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    given = {"block_out_channels": (16, 32), "latent_channels": 4, "norm_num_groups": 8, **config}
    model = AutoencoderKL(down_block_types=blocks[0], up_block_types=blocks[1], **given).eval()
    model.save_pretrained(folder)
    return model


EXTRAS = ["kernel_distance", "precision_recall"]


def photo_config(path: Path, **overrides: Any) -> TrialConfig:
    """Photographs of 32x32 as the extractor sees them, unscaled."""
    values = {"data.path": str(path), "data.classes": 2, "eval.resize": 32, "eval.samples": 150, "eval.extras": EXTRAS}
    return resolve(recipe("cifar10"), values, {k.replace("__", "."): v for k, v in overrides.items()})


def write_npz(path: Path, shown: np.ndarray, **arrays: np.ndarray) -> Path:
    """As ADM's evaluator takes them: pictures uint8 [N, h, w, 3] in arr_0."""
    np.savez(path, arr_0=shown.transpose(0, 2, 3, 1), **arrays)
    return path


def picture_rows(count: int) -> list[dict[str, Any]]:
    """Pictures as Hugging Face's Image keeps them in parquet."""
    tiles = [PHOTO[8 * i : 8 * i + 16, :16] for i in range(count)]
    return [{"bytes": encoded(Image.fromarray(tile), "PNG"), "path": f"{i}.png"} for i, tile in enumerate(tiles)]


def zipped(path: Path, files: dict[str, bytes]) -> str:
    """A zip archive with the files; returns its path."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)
