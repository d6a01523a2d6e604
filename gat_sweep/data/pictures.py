"""Squares of pixels from the bytes of pictures, and the rules for unusable pictures."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # not all formats of PIL: for EPS it would run Ghostscript
SMALLEST = 8  # pixels; least length of the shorter side
# Errors that Pillow's decoders raise on invalid data.
BAD_DATA = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, struct.error, zlib.error)


class Unusable(Exception):
    """Raised for a picture or latent that is skipped; the message begins with a fixed word."""


@contextmanager
def decoding() -> Iterator[None]:
    """Silences Pillow's warnings around load_square, and turns the one about huge pictures into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def load_square(data: bytes, size: int) -> np.ndarray:
    """The picture in `data`, as uint8 [3, size, size], scaled and cropped as in ADM.

    Other modes are converted to RGB (see rgb). EXIF rotation is not applied, as in ADM.
    Raises Unusable.
    """
    if not data:
        raise Unusable("empty: 0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, size)
            image.load()
            return center_crop(rgb(image), size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable(f"large: its header claims more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise Unusable("no picture: not in a supported format") from None
    except BAD_DATA as error:
        word = "truncated" if "truncated" in str(error).lower() else "broken"
        raise Unusable(f"{word}: {' '.join(str(error).split())[:120]}") from None


def rgb(image: Image.Image) -> Image.Image:
    """The image in RGB. Grey values of 16 bits are scaled; Pillow would cut them off at 255.

    Raises Unusable when the scale is not known: integers of 32 bits, floating point, and values that use fewer bits
    than their file has.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image)
        if values.max(initial=0) < 2**12:
            raise Unusable(f"depth: 16 bits, but no value above {values.max(initial=0)}; scale it to 8 bits")
        image = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "integers of 32 bits" if image.mode == "I" else "floating point"
        raise Unusable(f"depth: {kind}, of an unknown scale; scale it to 8 bits")
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Scaled and cropped RGB image, uint8 [3, size, size], as ADM does it (image_datasets.py, center_crop_arr)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image)[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def png(picture: np.ndarray) -> bytes:
    """PNG file of a picture, uint8 [3, h, w]."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_png(data: bytes, side: int) -> np.ndarray:
    """Square picture, uint8 [3, side, side], from a file that png() wrote. Raises Unusable for any other file."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if (image.size, image.mode) != ((side, side), "RGB"):
                raise Unusable(f"different: {image.width}x{image.height}, {image.mode}")
            return np.asarray(image).transpose(2, 0, 1)
    except (Image.DecompressionBombError, *BAD_DATA) as error:
        raise Unusable(f"broken: {' '.join(str(error).split())[:120]}") from None


def _check_header(image: Image.Image, size: int) -> None:
    """Checks size and mode before any pixel is decoded. Raises Unusable."""
    short, long = min(image.size), max(image.size)
    if image.mode == "CMYK":
        raise Unusable("cmyk: CMYK colours need a colour profile")
    if short < SMALLEST:
        raise Unusable(f"small: {image.width}x{image.height}")
    # The crop scales the short side to `size` first; a strip of 8 x 1,000,000 would become gigabytes.
    limit = Image.MAX_IMAGE_PIXELS
    if limit and size * size * long / short > limit:
        raise Unusable(f"large: {image.width}x{image.height} is a strip too long to scale")
