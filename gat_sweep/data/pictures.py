"""A picture's bytes to a square of pixels, and which pictures are no good."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # not all of PIL's: EPS would be run by Ghostscript
SMALLEST = 8  # shorter side
# What Pillow's decoders raise on data that is not what it claims to be.
BAD_DATA = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, struct.error, zlib.error)


class Unusable(Exception):
    """A picture or latent that is left out; the message begins with a fixed word."""


@contextmanager
def decoding() -> Iterator[None]:
    """Around load_square: Pillow's complaints about odd files are not news, but for one that we act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def load_square(data: bytes, size: int) -> np.ndarray:
    """A picture file's content as uint8 [3, size, size], scaled and cropped as ADM does.

    Pillow converts other modes to RGB; EXIF rotation is not applied (ADM does not).
    Raises Unusable.
    """
    if not data:
        raise Unusable("empty: 0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, size)
            image.load()
            return center_crop(image.convert("RGB"), size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable(f"large: its header claims more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise Unusable("no picture: of none of the formats that are read") from None
    except BAD_DATA as error:
        word = "truncated" if "truncated" in str(error).lower() else "broken"
        raise Unusable(f"{word}: {' '.join(str(error).split())[:120]}") from None


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's (guided_diffusion/image_datasets.py, center_crop_arr): uint8 [3, size, size] of an RGB image."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image)[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [3, h, w], without loss."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_png(data: bytes, side: int) -> np.ndarray:
    """What png() wrote, of a square picture: uint8 [3, side, side]. Raises Unusable when it is anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if (image.size, image.mode) != ((side, side), "RGB"):
                raise Unusable(f"another: {image.width}x{image.height}, {image.mode}")
            return np.asarray(image).transpose(2, 0, 1)
    except (Image.DecompressionBombError, *BAD_DATA) as error:
        raise Unusable(f"broken: {' '.join(str(error).split())[:120]}") from None


def _check_header(image: Image.Image, size: int) -> None:
    """Before anything is decoded."""
    short, long = min(image.size), max(image.size)
    if image.mode == "CMYK":
        raise Unusable("cmyk: four inks, whose colours need a profile")
    if short < SMALLEST:
        raise Unusable(f"small: {image.width}x{image.height}")
    # The crop scales the short side to `size` first; a strip of 8 x 1,000,000 would become gigabytes.
    limit = Image.MAX_IMAGE_PIXELS
    if limit and size * size * long / short > limit:
        raise Unusable(f"large: {image.width}x{image.height} is too long a strip to scale")
