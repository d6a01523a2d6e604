"""The data set a config names: latents to train on, and the real pictures that generated ones are compared with."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.config import Data, TrialConfig
from gat_sweep.data.shards import CachedTeacher, open_shards
from gat_sweep.data.tokenizer import PIXELS, Dct, Pixels, Tokenizer, TokenizerIdentity, load_decoder
from gat_sweep.errors import UserError


@dataclass(frozen=True)
class Rows:
    """Some images of a data set, as stored; n of them, on any device."""

    mean: Tensor  # [n, C, Y, X] float32, as training sees latents: shifted and scaled
    std: Tensor | None  # the same; None where there is no posterior
    labels: Tensor  # [n] int64
    pictures: Tensor | None = None  # uint8 [n, 3, h, w]
    teacher: Tensor | None = None  # [n, 1+T, W] float16, cached features

    def each(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """The same with every column changed."""
        columns: list[Any] = [getattr(self, field.name) for field in fields(self)]
        changed: Any = (None if column is None else change(column) for column in columns)
        return Rows(*changed)

    @staticmethod
    def joined(parts: "list[Rows]") -> "Rows":
        """Parts end to end."""
        columns: list[Any] = [[getattr(part, field.name) for part in parts] for field in fields(Rows)]
        joined: Any = (None if column[0] is None else torch.cat(column) for column in columns)
        return Rows(*joined)

    def latents(self, random: torch.Generator) -> Tensor:
        """[n, C, Y, X]: the posterior sampled afresh at each visit."""
        if self.std is None:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=random, device=self.mean.device)
        return self.mean + self.std * noise


class Dataset(Protocol):
    """Read from several threads at once."""

    name: str
    digest: str  # of the content, 12 hex digits
    labels: Tensor  # [N] int64, zeros when there are no classes
    classes: int
    identity: TokenizerIdentity
    cached_teacher: CachedTeacher | None
    has_pictures: bool  # the originals; what a VAE makes of its latents is not the real data

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int] | np.ndarray, pictures: bool = False, teacher: bool = False) -> Rows:
        """Images by index, in that order, with their pictures or cached teacher tokens where asked for."""


class Digits:
    """scikit-learn's 1,797 handwritten digits, 17 grey levels, as pixels in [-1, 1] or as cosine coefficients.

    They are 8x8; a larger side is theirs enlarged (bilinear), for studies of resolution and tokenizers.
    """

    classes = 10
    has_pictures = True
    cached_teacher: CachedTeacher | None = None
    tokens: Tensor | None = None  # of the cached teacher, [N, 1+T, W] float16

    def __init__(self, side: int = 8, channels: int = 1):
        """side, channels: of the latents. One channel: pixels; more: as many coefficients of each 4x4 pixels.

        Raises UserError for a side that is no enlargement by a whole factor.
        """
        from sklearn.datasets import load_digits  # half a second that commands without data need not pay

        self.tokenizer: Tokenizer = Pixels(channels=1) if channels == 1 else Dct(channels, colours=1)
        pixels = side * self.tokenizer.identity.factor
        if pixels % 8:
            raise UserError(
                f"data.side {side} of {channels} channels: digits of {pixels}x{pixels} pixels; use 8, 16, 32"
            )
        bunch = load_digits()
        self.labels = torch.tensor(bunch.target, dtype=torch.int64)
        self.latents = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
        if pixels > 8:
            self.latents = F.interpolate(self.latents, size=(pixels, pixels), mode="bilinear")
        self.pictures = Pixels(channels=1).decode(self.latents)
        if channels > 1:
            self.latents = self.tokenizer.encode(self.pictures)[0] * self.tokenizer.identity.scale
        content = self.latents.numpy().tobytes() + self.labels.numpy().tobytes()
        self.name = "digits" if (side, channels) == (8, 1) else f"digits{pixels}-{self.tokenizer.identity.source}"
        self.digest = hashlib.sha256(content).hexdigest()[:12]
        self.identity = self.tokenizer.identity

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: Sequence[int] | np.ndarray, pictures: bool = False, teacher: bool = False) -> Rows:
        index = torch.as_tensor(np.asarray(indices))
        tokens = self.tokens[index] if teacher and self.tokens is not None else None
        return Rows(self.latents[index], None, self.labels[index], self.pictures[index] if pictures else None, tokens)

    def taught(self, teacher: CachedTeacher, tokens: Tensor) -> "Digits":
        """The same with a teacher's tokens of every picture."""
        other = copy.copy(self)
        other.cached_teacher, other.tokens = teacher, tokens
        return other


class Encoded:
    """What `gat-sweep encode` wrote, memory-mapped."""

    def __init__(self, folder: str):
        self.shards = open_shards(folder)
        manifest = self.shards.manifest
        self.name, self.digest, self.identity = manifest.name, manifest.digest, manifest.tokenizer
        self.cached_teacher = manifest.teacher
        self.has_pictures, self.classes = manifest.has_pictures, len(manifest.classes)
        self.labels = torch.from_numpy(self.shards.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: Sequence[int] | np.ndarray, pictures: bool = False, teacher: bool = False) -> Rows:
        index = np.asarray(indices)
        std: Tensor | None = None
        if self.identity.source == PIXELS:
            mean, _ = Pixels(3).encode(torch.from_numpy(self.shards.pictures(index)))
        else:
            raw_mean, raw_std = (torch.from_numpy(part) for part in self.shards.moments(index))
            mean = (raw_mean - self.identity.shift) * self.identity.scale
            std = raw_std * self.identity.scale
        return Rows(
            mean,
            std,
            self.labels[index],
            torch.from_numpy(self.shards.pictures(index)) if pictures else None,
            torch.from_numpy(self.shards.teacher(index)) if teacher else None,
        )


@lru_cache(maxsize=2)  # trials of a pack share it
def _open(dataset: str, path: str | None, side: int, channels: int) -> Dataset:
    return Digits(side, channels) if dataset == "digits" else Encoded(path or "")


def load_dataset(config: Data) -> Dataset:
    """The data set a config names.

    Raises UserError when it is missing or does not fit the config's side, channels and classes.
    """
    if config.dataset == "encoded" and not config.path:
        raise UserError("data.path is not set; write a data set with `gat-sweep encode` and add --set data.path=FOLDER")
    dataset = _open(config.dataset, config.path, config.side, config.channels)
    first = dataset.rows([0])
    found = {
        "data.side": first.mean.shape[2],
        "data.channels": first.mean.shape[1],
        "data.classes": dataset.classes if config.classes else 0,  # labels may go unused
    }
    asked = {"data.side": config.side, "data.channels": config.channels, "data.classes": config.classes}
    wrong = [f"{key}={found[key]}, the config says {asked[key]}" for key in asked if asked[key] != found[key]]
    if wrong:
        raise UserError(f"data set '{dataset.name}' has {'; '.join(wrong)}; set what the data has")
    return dataset


def check_dataset(config: TrialConfig) -> Dataset:
    """load_dataset, and what a trial's teacher needs of it.

    Raises UserError when the teacher has neither stored pictures nor stored tokens to work on.
    """
    dataset = load_dataset(config.data)
    teacher = config.teacher
    if teacher is None or config.discriminator_spec.teacher_width == 0:
        return dataset
    if not teacher.cached:
        if not dataset.has_pictures:
            raise UserError(
                f"teacher '{teacher.name}' needs pictures, which data set '{dataset.name}' lacks; encode it with "
                "--store-images, or set teacher=null"
            )
        return dataset
    if isinstance(dataset, Digits):
        return dataset  # few enough for tokens in memory (teacher.py)
    grid = config.data.side // config.model.patch
    asked = (teacher.name, 1 + grid**2, teacher.width)
    stored = dataset.cached_teacher
    if stored is None or (stored.name, stored.tokens, stored.width) != asked:
        has = f"{stored.name} with {stored.tokens} tokens of width {stored.width}" if stored else "none"
        raise UserError(
            f"teacher.cached asks for stored tokens of {asked[0]} with {asked[1]} tokens of width {asked[2]}, data set "
            f"'{dataset.name}' has {has}; encode with --teacher {teacher.name} --teacher-grid {grid}, or set "
            "teacher.cached=false"
        )
    return dataset


def dataset_decoder(config: TrialConfig, dataset: Dataset, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer that a data set was encoded with. Raises UserError when data.tokenizer is another."""
    whose = f"data set '{dataset.name}'"
    return load_decoder(dataset.identity, config.data.tokenizer, config.data.channels, whose, "data.tokenizer", device)
