"""NumPy's files, which may not be what they claim: the header is read first, the data only as far as it is expected.

Never a pickle: arrays of objects are refused.
"""

import tokenize
import zipfile
import zlib
from typing import IO

import numpy as np

# What damaged archives and headers raise; of this module's functions nothing else.
BAD_ARRAY = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape and type of the array that follows, and whether it lies column by column (Fortran's order).

    Raises ValueError for anything but an array of numbers.
    """
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"npy format {version}")
    try:
        shape, fortran, dtype = read(file)
    except (SyntaxError, TypeError, tokenize.TokenError):
        raise ValueError("a header that is none") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    return shape, dtype, fortran


def read_array(file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """The floating-point or integer array of that shape. Raises ValueError when the file holds another."""
    found, dtype, fortran = read_header(file)
    if found != shape or dtype.kind not in "fiu":
        raise ValueError(f"{dtype} {list(found)} instead of {list(shape)}")
    count = int(np.prod(shape))
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ValueError(f"it ends after {len(content)} of {count * dtype.itemsize} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
