"""Safe reading of NumPy's files: the header is read first, then only the expected amount of data.

No pickle is loaded: arrays of objects are refused.
"""

import tokenize
import zipfile
import zlib
from typing import IO

import numpy as np

# Errors for damaged archives and headers; the functions here raise no others.
BAD_ARRAY = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape and type of the array that follows, and whether it is stored column by column (Fortran order).

    Raises ValueError for anything but an array of numbers.
    """
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"unsupported npy format {version}")
    try:
        shape, fortran, dtype = read(file)
    except (SyntaxError, TypeError, tokenize.TokenError):
        raise ValueError("not a NumPy header") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    return shape, dtype, fortran


def read_array(file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """Floating-point or integer array of the given shape. Raises ValueError when the file contains another array."""
    found, dtype, fortran = read_header(file)
    if found != shape or dtype.kind not in "fiu":
        raise ValueError(f"{dtype} {list(found)} instead of {list(shape)}")
    count = int(np.prod(shape))
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ValueError(f"it ends after {len(content)} of {count * dtype.itemsize} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
