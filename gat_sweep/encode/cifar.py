"""CIFAR-10 and CIFAR-100 in the layout of their authors and of torchvision: batches that Python 2 pickled.

Unpickling runs code that a file names, and a file of ten bytes can make even a restricted `pickle.Unpickler` take
gigabytes. So no unpickler is used: `parsed` knows only the few opcodes in such files, and calls nothing for them.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gat_sweep.encode.archive import read_file
from gat_sweep.encode.units import Plan, Source, Unit, divide
from gat_sweep.errors import UserError

SIDE = 32
VALUES = 3 * SIDE**2  # bytes of a picture: red, green, blue, each row by row
MOST_OPCODES = 1_000_000  # four times the need of CIFAR-100's train; each may take a few hundred bytes of memory
LONGEST_TEXT = 200  # bytes of a key or a class name
BAD_BATCH = (ValueError, LookupError, TypeError)


class Layout(NamedTuple):
    """Names of the files and keys of one of the two data sets."""

    folder: str  # name of the folder in the archive
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
    """Folder, layout and files to read, or None when `images` is not CIFAR.

    images: the folder of a data set or its parent, which gives the train split, or one file, such as
    FOLDER/test_batch.
    Raises UserError when files are missing, or when both data sets are present.
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
        raise UserError(f"--images {images} has {' and '.join(layout.folder for layout in inside)}; name one of them")
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
        raise UserError(f"{folder} lacks {', '.join(missing)} of {layout.folder}; unpack the archive again")


def plan_cifar(folder: str, layout: Layout, files: tuple[str, ...], shard_size: int) -> Plan:
    """Plan of the pictures of some files, in that order; each unit is from one file.

    Raises UserError when a file is damaged.
    """
    classes = _class_names(folder, layout)
    units: list[Unit] = []
    for name in files:
        labels = _batch(folder, name, layout.labels)[1]
        if not labels or not 0 <= min(labels) <= max(labels) < len(classes):
            raise UserError(f"{folder}/{name} has no labels, or labels of no class; download it again")
        units += divide([f"{name}:{i}" for i in range(len(labels))], labels, shard_size, first=len(units))
    return Plan(Source("cifar", folder, layout.labels), classes, units)


def cifar_rows(source: Source, unit: Unit) -> Iterator[bytes]:
    """Pictures of a unit, as PPM files, which contain the unchanged pixels."""
    name, _, first = unit.names[0].rpartition(":")
    pixels, _ = _batch(source.root, name, source.column)
    for row in pixels[int(first) : int(first) + len(unit.names)]:
        yield b"P6 %d %d 255\n" % (SIDE, SIDE) + row.reshape(3, SIDE, SIDE).transpose(1, 2, 0).tobytes()


def _batch(folder: str, name: str, labels_key: str) -> tuple[np.ndarray, list[int]]:
    """Pixels, uint8 [N, 3072], and labels [N] of a file."""
    values = _values(folder, name)
    pixels, labels = values.get("data"), values.get(labels_key)
    if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (VALUES,):
        raise _damaged(folder, name, f"its 'data' are not pictures of {VALUES} bytes")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != len(pixels):
        raise _damaged(folder, name, f"its '{labels_key}' are not {len(pixels)} numbers")
    return pixels, labels


def _class_names(folder: str, layout: Layout) -> tuple[str, ...]:
    names = _values(folder, layout.meta).get(layout.names)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise _damaged(folder, layout.meta, f"its '{layout.names}' are not names")
    return tuple(_text(name) for name in names)


def _values(folder: str, name: str) -> dict[str, Any]:
    """Dictionary in a file. Raises UserError for anything but a dictionary of plain values and pictures."""
    content = read_file(folder, name)
    try:
        values = parsed(content)
    except Refused as refusal:
        raise UserError(f"{folder}/{name} {refusal}; no code was run; download it from another source") from None
    except BAD_BATCH as error:
        raise _damaged(folder, name, " ".join(str(error).split())[:120] or type(error).__name__) from None
    if not isinstance(values, dict):
        raise _damaged(folder, name, "not a dictionary")
    return {key: value.values if isinstance(value, Array) else value for key, value in values.items()}


def _damaged(folder: str, name: str, why: str) -> UserError:
    return UserError(f"{folder}/{name} is not a CIFAR file ({why}); download it again")


# ---------------------------------------------------------------- the opcodes of protocol 2


class Refused(Exception):
    """Raised for a file that asks for something that no CIFAR file asks for."""


class Name(NamedTuple):
    """An object of a Python module, as a file names it; it is never looked up."""

    module: str
    name: str


class Type:
    """Stands for NumPy's dtype uint8, the only dtype in these files."""


class Array:
    """Stands for NumPy's array, whose values follow after it is created."""

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
    """Content of a pickle of protocol 2: dictionaries, lists, tuples, numbers, texts, bytes and uint8 arrays.

    Raises Refused when the pickle wants to call anything else, and ValueError, LookupError or TypeError when it is
    damaged.
    """
    file, stack, memo = io.BytesIO(data), list[Any](), dict[int, Any]()
    room = len(data)  # limits bytes that are created again and again from the same values
    if _read(file, 2) != b"\x80\x02":
        raise ValueError("not a pickle of protocol 2")
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
                raise ValueError("a tuple without values")
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
                raise ValueError("it describes more data than it contains")
        elif code == b"b":
            _build(stack.pop(), stack[-1])
        else:
            raise Refused(f"has opcode {code!r}, which no CIFAR file has")
    raise ValueError("it does not end")


def _called(what: Any, arguments: Any) -> Any:
    """Result that one of three known callables would give; nothing is called. Raises Refused for others."""
    if not isinstance(what, Name):
        raise ValueError("a call without a name")
    if what in RECONSTRUCT and arguments[:1] == (NDARRAY,):
        return Array()
    if what == DTYPE and arguments[0] in ("u1", b"u1"):
        return Type()
    if what == ENCODE and isinstance(arguments[0], str) and arguments[1] == "latin1":  # bytes, as Python 3 writes them
        return arguments[0].encode("latin1")
    raise Refused(f"would call {what.module[:30]!r}.{what.name[:30]!r}")


def _build(state: Any, target: Any) -> None:
    if isinstance(target, Type):
        return  # byte order and the like, which single bytes do not have
    if not isinstance(target, Array):
        raise Refused("would set attributes")
    _, shape, kind, columns_first, content = state
    if not isinstance(kind, Type) or not isinstance(content, bytes):
        raise ValueError("an array of anything but bytes")
    if not isinstance(shape, tuple) or not all(type(side) is int for side in shape):
        raise ValueError("an array without shape")
    target.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns_first else "C")


def _text(value: Any) -> str:
    if not isinstance(value, bytes | str) or len(value) > LONGEST_TEXT:
        raise TypeError("a key or name that is not a short text")
    return value.decode("latin1") if isinstance(value, bytes) else value


def _top(stack: list[Any], kind: type) -> Any:
    if type(stack[-1]) is not kind:
        raise TypeError(f"an item for anything but a {kind.__name__}")
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
