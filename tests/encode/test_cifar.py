"""CIFAR's batches, as Python 2 pickled them: read as what they are, and nothing in them is run."""

import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pictures import PHOTO, photographs

from gat_sweep.encode import cifar
from gat_sweep.encode.cifar import parsed
from gat_sweep.encode.sources import plan_images, read_unit
from gat_sweep.errors import UserError

CLASSES = [f"class {i}" for i in range(10)]
HEAD = b"\x80\x02"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"  # then shape, dtype, order
UINT8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


class Raw(bytes):
    """Opcodes, put into a file as they are."""


def opcodes(value: Any) -> bytes:
    """A value as Python 2's cPickle writes it in protocol 2: its strings are bytes."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, str):
        text = value.encode()
        return b"U" + bytes([len(text)]) + text
    if isinstance(value, int):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(part) for item in value.items() for part in item) + b"u"
    shape = b"".join(map(opcodes, value.shape)) + {1: b"\x85", 2: b"\x86"}[value.ndim]
    order = b"\x88" if np.isfortran(value) else b"\x89"
    content = value.tobytes(order="A")
    return ARRAY + shape + UINT8 + order + b"T" + struct.pack("<i", len(content)) + content + b"tb"


def python2(value: Any) -> bytes:
    return HEAD + opcodes(value) + b"."


def python3(value: Any) -> bytes:
    return pickle.dumps({key.encode(): item for key, item in value.items()}, protocol=2)


def batch(pictures: np.ndarray, labels: list[int], **more: Any) -> dict[str, Any]:
    names = [f"{i}.png" for i in range(len(labels))]
    return {
        "batch_label": "training batch",
        "labels": labels,
        "data": pictures.reshape(-1, 3072),
        "filenames": names,
        **more,
    }


def write_cifar(
    folder: Path, count: int = 4, write: Callable[[Any], bytes] = python2
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The six batches of CIFAR-10 with photographs, and its meta; by file, what is in it."""
    folder.mkdir(parents=True)
    held = {}
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        held[name] = photographs(count, 32, seed=i), [(3 * i + j) % 10 for j in range(count)]
        (folder / name).write_bytes(write(batch(*held[name])))
    (folder / "batches.meta").write_bytes(
        write({"num_cases_per_batch": count, "label_names": CLASSES, "num_vis": 3072})
    )
    return held


def loaded(images: Path, shard_size: int = 3) -> tuple[list[str], np.ndarray, list[int]]:
    plan = plan_images(str(images), shard_size)
    assert plan.classes == tuple(CLASSES)
    parts = [read_unit(plan.source, unit, 32) for unit in plan.units]
    assert [label for unit in plan.units for label in unit.labels] == [label for part in parts for label in part.labels]
    names = [name for part in parts for name in part.names]
    return names, np.concatenate([part.pictures for part in parts]), [label for part in parts for label in part.labels]


@pytest.mark.parametrize("write", [python2, python3])
def test_pictures_come_out_as_they_went_in(tmp_path: Path, write: Callable[[Any], bytes]) -> None:
    held = write_cifar(tmp_path / "cifar-10-batches-py", write=write)
    names, pictures, labels = loaded(tmp_path / "cifar-10-batches-py")
    train = [held[f"data_batch_{i}"] for i in range(1, 6)]
    np.testing.assert_array_equal(pictures, np.concatenate([pictures for pictures, _ in train]))
    assert labels == [label for _, labels in train for label in labels]
    assert names[3:5] == ["data_batch_1:3", "data_batch_2:0"] and len(names) == 20
    for images, file in ((tmp_path, None), (tmp_path / "cifar-10-batches-py/test_batch", "test_batch")):
        again = loaded(images)
        expected = pictures if file is None else held[file][0]
        np.testing.assert_array_equal(again[1], expected)
    assert again[0][0] == "test_batch:0" and again[2] == held["test_batch"][1]


def test_the_crafted_files_are_pickles_of_python_2() -> None:
    """Python's own unpickler reads from them what went in, strings as bytes."""
    pictures, labels = photographs(3, 32), [0, 1, 2]
    for order in ("C", "F"):
        value = batch(pictures, labels)
        value["data"] = np.asarray(value["data"], order=order)  # type: ignore[call-overload]
        found = pickle.loads(python2(value), encoding="bytes")
        np.testing.assert_array_equal(found[b"data"], value["data"])
        assert found[b"labels"] == labels and found[b"filenames"] == [b"0.png", b"1.png", b"2.png"]
        np.testing.assert_array_equal(parsed(python2(value))["data"].values, value["data"])
    memo = HEAD + b"}q\x01(U\x06labelsq\x02]q\x03(K\x06K\x09eU\x05againr\x00\x01\x00\x00h\x03U\x01nj\x00\x01\x00\x00u."
    value = {"labels": [6, 9], "again": [6, 9], "n": b"again"}
    assert parsed(memo) == value
    assert pickle.loads(memo, encoding="bytes") == {key.encode(): item for key, item in value.items()}


def test_cifar_100_has_fine_labels(tmp_path: Path) -> None:
    pictures, names = photographs(3, 32), [f"class {i}" for i in range(100)]
    value = batch(pictures, [0, 1, 1], fine_labels=[99, 0, 7], coarse_labels=[1, 1, 1])
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(python2(value))
    (tmp_path / "meta").write_bytes(python2({"fine_label_names": names, "coarse_label_names": ["a", "b"]}))
    plan = plan_images(str(tmp_path), 10)
    assert plan.classes == tuple(names) and list(plan.units[0].labels) == [99, 0, 7]
    np.testing.assert_array_equal(read_unit(plan.source, plan.units[0], 32).pictures, pictures)


# ---------------------------------------------------------------- what may not be


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def programs(marker: Path) -> dict[str, bytes]:
    """Pickles that run something, in every way that the format has."""
    code = f"__import__('os').mkdir({str(marker)!r})"
    text = b"X" + struct.pack("<I", len(code)) + code.encode()
    run = Raw(pickle.dumps(Payload(marker), protocol=2)[2:-1])
    pictures, labels = photographs(2, 32), [0, 1]
    objects = Raw(pickle.dumps(np.array([Payload(marker)] * 2, dtype=object), protocol=2)[2:-1])
    dtype = Raw(UINT8.replace(b"U\x02u1", run))
    state = Raw(ARRAY + b"K\x02M\x00\x0c\x86" + UINT8 + b"\x89" + run + b"tb")
    return {
        "alone": HEAD + run + b".",
        "eval": HEAD + b"cbuiltins\neval\n" + text + b"\x85R.",
        "Python 2's eval": HEAD + b"c__builtin__\neval\n" + text + b"\x85R.",
        "exec": HEAD + b"cbuiltins\nexec\n" + text + b"\x85R.",
        "os.system": HEAD + b"cos\nsystem\n" + opcodes(f"mkdir {marker}") + b"\x85R.",
        "subprocess": HEAD + b"csubprocess\nPopen\n](" + opcodes("mkdir") + opcodes(str(marker)) + b"e\x85R.",
        "numpy's runstring": HEAD + b"cnumpy.testing._private.utils\nrunstring\n" + text + b"}\x86R.",
        "numpy's load": HEAD + b"cnumpy\nload\n" + opcodes(str(marker)) + b"\x85R.",
        "dotted name": HEAD + b"cnumpy\nndarray.__init__\n)R.",
        "another type": HEAD + ARRAY.replace(b"cnumpy\nndarray\n", b"cos\nsystem\n") + b".",
        "copyreg": HEAD + b"ccopyreg\n_reconstructor\ncbuiltins\nobject\nh\x00N\x87R.",
        "extension": HEAD + b"\x82\x01.",
        "instance": HEAD + b"(" + text + b"ibuiltins\neval\n.",
        "object": HEAD + b"(cbuiltins\neval\n" + text + b"o.",
        "new": HEAD + b"cbuiltins\nobject\n)\x81.",
        "persistent": HEAD + b"Pname\n.",
        "attributes": HEAD + b"cos\nsystem\n}(" + opcodes("a") + b"K\x01ub.",
        "as a label": python2(batch(pictures, [run, 1])),
        "as labels": python2(batch(pictures, labels) | {"labels": run}),
        "as data": python2(batch(pictures, labels) | {"data": run}),
        "beside": python2(batch(pictures, labels, more=run)),
        "as a key": HEAD + b"}(" + run + b"K\x01u.",
        "array of objects": python2(batch(pictures, labels) | {"data": objects}),
        "dtype": python2(batch(pictures, labels) | {"data": dtype}),
        "array's state": python2(batch(pictures, labels) | {"data": state}),
        "array's subtype": HEAD + ARRAY.replace(b"cnumpy\nndarray\n", run) + b".",
        **{f"protocol {p}": pickle.dumps(batch(pictures, labels, more=Payload(marker)), p) for p in (0, 1, 3, 4, 5)},
    }


def refuses(folder: Path, content: bytes) -> bool:
    """Whether a batch, and a meta, ends in one UserError line; what else it raises is a failure of the test."""
    refused = []
    for name in ("data_batch_2", "batches.meta"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        try:
            plan_images(str(folder), 10)
            refused.append(False)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 500, error
            refused.append(name in str(error))
        (folder / name).write_bytes(whole)
    return all(refused)


def test_nothing_in_a_batch_is_run(tmp_path: Path) -> None:
    folder, marker = tmp_path / "cifar-10-batches-py", tmp_path / "executed"
    write_cifar(folder)
    found = programs(marker)
    for name in ("alone", "eval", "os.system", "as a label", "array of objects", "instance", "protocol 4"):
        try:
            pickle.loads(found[name], encoding="bytes")  # these would
        except Exception as error:
            raise AssertionError(name) from error
        marker.rmdir()
    for name, content in found.items():
        assert refuses(folder, content), name
        assert not marker.exists(), name
    with pytest.raises(UserError, match=r"data_batch_1 would call 'posix'\.'mkdir'; no code was run"):
        (folder / "data_batch_1").write_bytes(found["alone"])
        plan_images(str(folder), 10)


def test_claims_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that would fill the memory, and values that are not pictures or labels."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    pictures, labels = photographs(4, 32), [0, 1, 2, 3]
    good = batch(pictures, labels)

    def array(shape: bytes, content: bytes = b"U\x02ab", dtype: bytes = UINT8) -> Raw:
        return Raw(ARRAY + shape + dtype + b"\x89" + content + b"tb")

    vast = b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
    encode = b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R"
    many = b"](" + b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x01" + encode * 1000 + b"e"
    bad = {
        "vast array": good | {"data": array(vast)},
        "vast empty array": good | {"data": Raw(ARRAY.replace(b"K\x00\x85", vast)[:-3])},
        "negative": good | {"data": array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86")},
        "no shape": good | {"data": array(b"N")},
        "half a picture": good | {"data": array(b"K\x01K\x02\x86")},
        "content of numbers": good | {"data": array(b"K\x01K\x02\x86", b"](K\x01K\x02e")},
        "floats": good | {"data": array(b"K\x01K\x02\x86", dtype=UINT8.replace(b"u1", b"f8"))},
        "objects": good | {"data": array(b"K\x01K\x02\x86", b"](NNe", UINT8.replace(b"u1", b"O8"))},
        "one row": good | {"data": pictures[0].reshape(-1)},
        "unfinished array": good | {"data": Raw(ARRAY.removesuffix(b"(K\x01"))},
        "too few labels": good | {"labels": labels[:3]},
        "label of no class": good | {"labels": [0, 1, 2, 10]},
        "label of text": good | {"labels": [0, 1, 2, "3"]},
        "label that is true": good | {"labels": [0, 1, 2, Raw(b"\x88")]},
        "no labels": {"data": good["data"]},
        "no picture": batch(pictures[:0], []),
        "made of itself": good | {"labels": Raw(b"]q\x09h\x09a")},
        "encoded again and again": good | {"more": Raw(many)},
        "long key": good | {"more": Raw(b"}(X" + struct.pack("<I", 201) + b"k" * 201 + b"Nu")},
    }
    files = {name: python2(value) for name, value in bad.items()}
    files["string of 2 GiB"] = HEAD + b"T\xff\xff\xff\x7fabc."
    files["negative string"] = HEAD + b"T\xff\xff\xff\xffabc."
    files["a list"] = python2(labels)
    files["no key"] = HEAD + b"}(]K\x01u."
    files["key of a tuple"] = HEAD + b")" + b"q\x00h\x00\x86" * 60 + b"q\x01}h\x01K\x00s."  # 2^60 steps to hash
    files["deep"] = HEAD + b")" + b"\x85" * 100_000 + b"."
    monkeypatch.setattr(cifar, "MOST_OPCODES", 150_000)
    files["endless"] = HEAD + b"N" * 150_000 + b"."
    files["empty"] = b""
    for name, content in files.items():
        start = time.process_time()
        assert refuses(folder, content), name
        assert time.process_time() - start < 10, name
    # Where a file would have a memory of 64 GiB, which pickle.Unpickler provides.
    (folder / "data_batch_2").write_bytes(HEAD + opcodes(good) + b"r\xff\xff\xff\xff.")
    assert len(plan_images(str(folder), 10)) == 20


def test_damage_raises_nothing_else(tmp_path: Path) -> None:
    folder, random = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    write_cifar(folder, count=1)
    whole = (folder / "data_batch_1").read_bytes()
    outcomes = {True: 0, False: 0}
    where = [i for i in range(len(whole)) if i < 200 or i > len(whole) - 200]  # between them are pixels
    damaged = [whole[:end] for end in where]
    for _ in range(300):
        data = bytearray(whole)
        for at in random.choice(where, 3):
            data[at] = random.integers(256)
        damaged.append(bytes(data))
    for content in [*damaged, *(HEAD + random.bytes(60) for _ in range(300))]:
        (folder / "data_batch_1").write_bytes(content)
        try:
            outcomes[len(plan_images(str(folder), 10)) == 5] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 500, error
            outcomes[False] += 1
    assert outcomes[False] > 400 and outcomes[True] > 50


def test_unclear_places_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "data_batch_4").rename(tmp_path / "elsewhere")
    for images in (folder, tmp_path):
        with pytest.raises(UserError, match=r"lacks data_batch_4 of cifar-10-batches-py; unpack"):
            plan_images(str(images), 10)
    (folder / "data_batch_4").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is a link to .*, outside"):
        plan_images(str(folder), 10)
    (folder / "batches.meta").unlink()
    with pytest.raises(UserError, match=r"lacks batches\.meta"):
        plan_images(str(folder / "test_batch"), 10)
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(UserError, match="has cifar-10-batches-py and cifar-100-python; name one"):
        plan_images(str(tmp_path), 10)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/meta").write_text("notes")  # no CIFAR-100
    from PIL import Image

    Image.fromarray(PHOTO[:32, :32]).save(tmp_path / "pictures/a.png")
    assert len(plan_images(str(tmp_path / "pictures"), 10)) == 1
