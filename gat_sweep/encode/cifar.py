"""CIFAR-10 and CIFAR-100 as their authors and torchvision lay them out: batches that Python 2 pickled.

Unpickling runs what a file says, and even a restricted `pickle.Unpickler` takes gigabytes at a ten-byte file's word. So
none is used: `parsed` knows the few opcodes that such files are made of, and calls nothing for them.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gat_sweep.encode.units import Plan, Source, Unit, divide, read_file
from gat_sweep.errors import UserError

SIDE = 32
VALUES = 3 * SIDE**2  # of a picture: red, green, blue, row by row each
MOST_OPCODES = 1_000_000  # CIFAR-100's train needs a quarter of that; each may take some hundred bytes of memory
LONGEST_TEXT = 200  # of a key or a class name
BAD_BATCH = (ValueError, LookupError, TypeError)


class Layout(NamedTuple):
    """One of the two data sets; files and keys."""

    folder: str  # inside the archive
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str


LAYOUTS = (
    Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
    ),
    Layout("cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
)


def cifar_files(images: str) -> tuple[str, Layout, tuple[str, ...]] | None:
    """(folder, its layout, files to read): the train split of a folder or of its parent, or the one file named, such as
    FOLDER/test_batch. None when there is nothing of CIFAR's.

    Raises UserError when files are missing, or both data sets are there.
    """
    path = Path(images)
    if path.is_file():
        for layout in LAYOUTS:
            if path.name in (*layout.train, layout.test):
                _check_there(path.parent, layout, [layout.meta])
                return str(path.parent), layout, (path.name,)
        return None
    inside = [layout for layout in LAYOUTS if (path / layout.folder).is_dir()]
    if len(inside) > 1:
        raise UserError(f"--images {images} holds {' and '.join(layout.folder for layout in inside)}; name one of them")
    for layout in LAYOUTS:
        folder = path / layout.folder if layout in inside else path
        files = [*layout.train, layout.meta]
        if layout in inside or sum((folder / name).is_file() for name in files) > 1:
            _check_there(folder, layout, files)
            return str(folder), layout, layout.train
    return None


def _check_there(folder: Path, layout: Layout, files: list[str]) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)} of {layout.folder}'s pickles; unpack its archive again")


def plan_cifar(folder: str, layout: Layout, files: tuple[str, ...], shard_size: int) -> Plan:
    """The pictures of some files in that order; a unit is of one file. Raises UserError when one is damaged."""
    classes = _class_names(folder, layout)
    units: list[Unit] = []
    for name in files:
        labels = _batch(folder, name, layout.labels)[1]
        if not labels or not 0 <= min(labels) <= max(labels) < len(classes):
            raise UserError(f"{folder}/{name} has labels beyond its {len(classes)} classes, or none; fetch it again")
        units += divide([f"{name}:{i}" for i in range(len(labels))], labels, shard_size, first=len(units))
    return Plan(Source("cifar", folder, layout.labels), classes, units)  # type: ignore[arg-type]


def cifar_rows(source: Source, unit: Unit) -> Iterator[bytes]:
    """The unit's pictures as PPM files, which hold the pixels as they are."""
    name, _, first = unit.names[0].rpartition(":")
    pixels, _ = _batch(source.root, name, source.column)
    for row in pixels[int(first) : int(first) + len(unit.names)]:
        yield b"P6 %d %d 255\n" % (SIDE, SIDE) + row.reshape(3, SIDE, SIDE).transpose(1, 2, 0).tobytes()


def _batch(folder: str, name: str, labels_key: str) -> tuple[np.ndarray, list[int]]:
    """Pixels uint8 [N, 3072] and labels [N] of a file."""
    values = _values(folder, name)
    pixels, labels = values.get("data"), values.get(labels_key)
    if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (VALUES,):
        raise _damaged(folder, name, f"its 'data' are no pictures of {VALUES} bytes")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != len(pixels):
        raise _damaged(folder, name, f"its '{labels_key}' are no {len(pixels)} numbers")
    return pixels, labels


def _class_names(folder: str, layout: Layout) -> tuple[str, ...]:
    names = _values(folder, layout.meta).get(layout.names)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise _damaged(folder, layout.meta, f"its '{layout.names}' are no names")
    return tuple(_text(name) for name in names)


def _values(folder: str, name: str) -> dict[str, Any]:
    """What a file holds. Raises UserError for anything but a dictionary of plain values and pictures."""
    content = read_file(folder, name)
    try:
        values = parsed(content)
    except Refused as refusal:
        raise UserError(f"{folder}/{name} {refusal}; nothing of it was run, fetch it from another place") from None
    except BAD_BATCH as error:
        raise _damaged(folder, name, " ".join(str(error).split())[:120] or type(error).__name__) from None
    if not isinstance(values, dict):
        raise _damaged(folder, name, "it holds no dictionary")
    return {key: value.values if isinstance(value, Array) else value for key, value in values.items()}


def _damaged(folder: str, name: str, why: str) -> UserError:
    return UserError(f"{folder}/{name} is no file of CIFAR's ({why}); fetch it again")


# ---------------------------------------------------------------- the opcodes of protocol 2


class Refused(Exception):
    """A file asks for something that no file of CIFAR's does."""


class Name(NamedTuple):
    """Something in a module of Python's, as a file names it. It is never looked up."""

    module: str
    name: str


class Type:
    """NumPy's dtype uint8, the only one there is here."""


class Array:
    """NumPy's array, whose values come after it is made."""

    values: np.ndarray | None = None


MARK = object()
NDARRAY, DTYPE, ENCODE = Name("numpy", "ndarray"), Name("numpy", "dtype"), Name("_codecs", "encode")
RECONSTRUCT = (Name("numpy.core.multiarray", "_reconstruct"), Name("numpy._core.multiarray", "_reconstruct"))
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
INTEGERS = {b"K": (1, False), b"M": (2, False), b"J": (4, True)}  # bytes, signed
STRINGS = {b"U": 1, b"T": 4, b"X": 4}  # bytes of the length; U and T are Python 2's
PUTS, GETS = {b"q": 1, b"r": 4}, {b"h": 1, b"j": 4}  # bytes of the number
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


def parsed(data: bytes) -> Any:
    """What a pickle of protocol 2 describes: dictionaries, lists, tuples, numbers, texts, bytes and uint8 arrays.

    Raises Refused when it names anything to be called, ValueError, LookupError or TypeError when it is broken.
    """
    file, stack, memo = io.BytesIO(data), list[Any](), dict[int, Any]()
    room = len(data)  # for bytes that are made of other values again and again
    if _read(file, 2) != b"\x80\x02":
        raise ValueError("no pickle of protocol 2")
    for _ in range(MOST_OPCODES):
        code = _read(file, 1)
        if code == b".":
            return stack.pop()
        if code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in INTEGERS:
            size, signed = INTEGERS[code]
            stack.append(int.from_bytes(_read(file, size), "little", signed=signed))
        elif code in STRINGS:
            text = _read(file, int.from_bytes(_read(file, STRINGS[code]), "little"))
            stack.append(text.decode() if code == b"X" else text)
        elif code in PUTS:
            memo[int.from_bytes(_read(file, PUTS[code]), "little")] = stack[-1]
        elif code in GETS:
            stack.append(memo[int.from_bytes(_read(file, GETS[code]), "little")])
        elif code in (b"}", b"]", b")"):
            stack.append({b"}": dict, b"]": list, b")": tuple}[code]())
        elif code == b"(":
            stack.append(MARK)
        elif code in TUPLES:
            if len(stack) < TUPLES[code]:
                raise ValueError("a tuple of nothing")
            stack[-TUPLES[code] :] = [tuple(stack[-TUPLES[code] :])]
        elif code == b"t":
            items = _since_mark(stack)
            stack.append(tuple(items))
        elif code in (b"a", b"e"):
            items = [stack.pop()] if code == b"a" else _since_mark(stack)
            _top(stack, list).extend(items)
        elif code in (b"s", b"u"):
            items = _since_mark(stack) if code == b"u" else [stack.pop(-2), stack.pop()]
            for key, value in zip(items[::2], items[1::2], strict=True):
                _top(stack, dict)[_text(key)] = value
        elif code == b"c":
            stack.append(Name(_line(file), _line(file)))
        elif code == b"R":
            arguments = stack.pop()
            stack.append(_called(stack.pop(), arguments))
            room -= len(stack[-1]) if isinstance(stack[-1], bytes) else 0
            if room < 0:
                raise ValueError("it describes more than it holds")
        elif code == b"b":
            _build(stack.pop(), stack[-1])
        else:
            raise Refused(f"has opcode {code!r}, which no file of CIFAR's has")
    raise ValueError("it does not end")


def _called(what: Any, arguments: Any) -> Any:
    """What NumPy's three callables would give; nothing is called."""
    if not isinstance(what, Name):
        raise ValueError("a call of nothing")
    if what in RECONSTRUCT and arguments[:1] == (NDARRAY,):
        return Array()
    if what == DTYPE and arguments[0] in ("u1", b"u1"):
        return Type()
    if what == ENCODE and isinstance(arguments[0], str) and arguments[1] == "latin1":  # bytes, as Python 3 writes them
        return arguments[0].encode("latin1")
    raise Refused(f"would call {what.module[:30]!r}.{what.name[:30]!r}")


def _build(state: Any, target: Any) -> None:
    if isinstance(target, Type):
        return  # byte order and the like, of which single bytes have none
    if not isinstance(target, Array):
        raise Refused("would set attributes")
    _, shape, kind, columns_first, content = state
    if not isinstance(kind, Type) or not isinstance(content, bytes):
        raise ValueError("an array of something else than bytes")
    if not isinstance(shape, tuple) or not all(type(side) is int for side in shape):
        raise ValueError("an array without shape")
    target.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns_first else "C")


def _text(value: Any) -> str:
    if not isinstance(value, bytes | str) or len(value) > LONGEST_TEXT:
        raise TypeError("a key or name that is no short text")
    return value.decode("latin1") if isinstance(value, bytes) else value


def _top(stack: list[Any], kind: type) -> Any:
    if type(stack[-1]) is not kind:
        raise TypeError(f"an item for something else than a {kind.__name__}")
    return stack[-1]


def _since_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (item := stack.pop()) is not MARK:
        items.append(item)
    return items[::-1]


def _read(file: io.BytesIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ValueError("it ends early")
    return content


def _line(file: io.BytesIO) -> str:
    line = file.readline()
    if not line.endswith(b"\n"):
        raise ValueError("it ends early")
    return line[:-1].decode("ascii")
