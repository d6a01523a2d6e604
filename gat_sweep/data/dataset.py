"""The data set of a config: latents for training, and real pictures to compare generated ones with."""

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
    """Some images of a data set, as stored; n images, on any device."""

    mean: Tensor  # [n, C, Y, X] float32, in the units of training: shifted and scaled
    std: Tensor | None  # the same shape and units; None without a posterior
    labels: Tensor  # [n] int64
    pictures: Tensor | None = None  # uint8 [n, 3, h, w]
    teacher: Tensor | None = None  # [n, 1+T, W] float16, cached features

    def each(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """Rows with `change` applied to every column."""
        columns: list[Any] = [getattr(self, field.name) for field in fields(self)]
        changed: Any = (None if column is None else change(column) for column in columns)
        return Rows(*changed)

    @staticmethod
    def joined(parts: "list[Rows]") -> "Rows":
        """Rows of all parts, in order."""
        columns: list[Any] = [[getattr(part, field.name) for part in parts] for field in fields(Rows)]
        joined: Any = (None if column[0] is None else torch.cat(column) for column in columns)
        return Rows(*joined)

    def latents(self, random: torch.Generator) -> Tensor:
        """Latents [n, C, Y, X], sampled anew from the posterior at each call."""
        if self.std is None:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=random, device=self.mean.device)
        return self.mean + self.std * noise


class Dataset(Protocol):
    """A data set that several threads may read at the same time."""

    name: str
    digest: str  # of the content, 12 hex digits
    labels: Tensor  # [N] int64, zeros when there are no classes
    classes: int
    identity: TokenizerIdentity
    cached_teacher: CachedTeacher | None
    has_pictures: bool  # original pictures; pictures decoded by a VAE are not the real data

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int] | np.ndarray, pictures: bool = False, teacher: bool = False) -> Rows:
        """Images by index, in the order given, with their pictures or cached teacher tokens if asked for."""


class Digits:
    """The 1,797 handwritten digits of scikit-learn, 17 grey levels, as pixels in [-1, 1] or as cosine coefficients.

    They are 8x8. For studies of resolution and tokenizers they are enlarged to a larger side (bilinear).
    """

    classes = 10
    has_pictures = True
    cached_teacher: CachedTeacher | None = None
    tokens: Tensor | None = None  # of the cached teacher, [N, 1+T, W] float16

    def __init__(self, side: int = 8, channels: int = 1):
        """Loads the digits as latents of `channels` x `side` x `side`.

        channels: 1 for pixels; more for that many cosine coefficients of each 4x4 block.
        Raises UserError when the side is not a whole multiple of the digits' side.
        """
        from sklearn.datasets import load_digits  # takes half a second, which commands without data should not pay

        self.tokenizer: Tokenizer = Pixels(channels=1) if channels == 1 else Dct(channels, colours=1)
        pixels = side * self.tokenizer.identity.factor
        if pixels % 8:
            raise UserError(
                f"data.side {side} with {channels} channels needs digits of {pixels}x{pixels} pixels; use 8, 16 or 32"
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
        """A copy of this data set with a teacher's tokens [N, 1+T, W] of every picture."""
        other = copy.copy(self)
        other.cached_teacher, other.tokens = teacher, tokens
        return other


class Encoded:
    """A data set that `gat-sweep encode` wrote, memory-mapped."""

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


@lru_cache(maxsize=2)  # trials of a pack share a data set
def _open(dataset: str, path: str | None, side: int, channels: int) -> Dataset:
    return Digits(side, channels) if dataset == "digits" else Encoded(path or "")


def load_dataset(config: Data) -> Dataset:
    """The data set that a config names.

    Raises UserError when it is missing or does not fit the config's side, channels and classes.
    """
    if config.dataset == "encoded" and not config.path:
        raise UserError("data.path is not set; write a data set with `gat-sweep encode` and add --set data.path=FOLDER")
    dataset = _open(config.dataset, config.path, config.side, config.channels)
    first = dataset.rows([0])
    found = {
        "data.side": first.mean.shape[2],
        "data.channels": first.mean.shape[1],
        "data.classes": dataset.classes if config.classes else 0,  # an unconditional trial ignores the labels
    }
    asked = {"data.side": config.side, "data.channels": config.channels, "data.classes": config.classes}
    wrong = [f"{key}={found[key]}, the config says {asked[key]}" for key in asked if asked[key] != found[key]]
    if wrong:
        raise UserError(f"data set '{dataset.name}' has {'; '.join(wrong)}; set the values of the data set")
    return dataset


def check_teacher(config: TrialConfig, dataset: Dataset) -> None:
    """Raises UserError when the data set lacks the pictures or tokens that the trial's teacher needs."""
    teacher = config.teacher
    if teacher is None or config.discriminator_spec.teacher_width == 0:
        return
    if not teacher.cached:
        if not dataset.has_pictures:
            raise UserError(
                f"teacher '{teacher.name}' needs pictures, which data set '{dataset.name}' lacks; encode it with "
                "--store-images, or set teacher=null"
            )
        return
    if isinstance(dataset, Digits):
        return  # the tokens of so few images are computed and kept in memory (vision/teacher.py)
    grid = config.data.side // config.model.patch
    asked = (teacher.name, 1 + grid**2, teacher.width)
    stored = dataset.cached_teacher
    if stored is None or (stored.name, stored.tokens, stored.width) != asked:
        has = f"{stored.name} with {stored.tokens} tokens of width {stored.width}" if stored else "none"
        raise UserError(
            f"teacher.cached needs {asked[1]} stored tokens of width {asked[2]} of {asked[0]}, but data set "
            f"'{dataset.name}' has {has}; encode with --teacher {teacher.name} --teacher-grid {grid}, or set "
            "teacher.cached=false"
        )


def dataset_decoder(config: TrialConfig, dataset: Dataset, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer that a data set was encoded with. Raises UserError when data.tokenizer is another one."""
    whose = f"data set '{dataset.name}'"
    return load_decoder(dataset.identity, config.data.tokenizer, config.data.channels, whose, "data.tokenizer", device)
