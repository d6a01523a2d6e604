"""Strict YAML: anything but plain data ends in one error line, soon, with nothing built."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gat_sweep.commands.options import parse_settings
from gat_sweep.errors import UserError
from gat_sweep.files.yamlfile import LONGEST, parse_scalar, read_yaml
from gat_sweep.sweep import load_sweep

pytestmark = pytest.mark.reliability
SOON_S = 5.0  # on a slow core that others use as well


def bad_values(marker: Path) -> dict[str, str]:
    """YAML of one value; each is refused for what it is, whatever key it stands at."""
    run = f"!!python/object/apply:os.mkdir ['{marker}']"
    laughs = (
        "{" + ", ".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'] * 9)}]" for i in range(9)) + "}"
    )
    return {
        # objects
        "apply": run,
        "new": run.replace("apply", "new"),
        "apply in a list": f"[1, {{a: {run}}}]",
        "apply as a key": f"{{? {run} : 1}}",
        "name": "!!python/name:os.system",
        "module": "!!python/module:os",
        "tuple": "!!python/tuple [1]",
        "own tag": "!sweep 1",
        "set": "!!set {a, b}",
        "binary": "!!binary aGVsbG8=",
        "omap": "!!omap [a: 1]",
        "pairs": "!!pairs [a: 1]",
        "timestamp": "!!timestamp 2001-01-01",
        "int of a list": "!!int [1]",
        "int of text": "!!int abc",
        "bool of text": "!!bool abc",
        "text of a mapping": "!!str {a: 1}",
        # aliases, merges, depth
        "laughs": laughs,
        "itself": "&a [*a]",
        "merge": "{<<: {a: 1}}",
        "tagged merge": "{!!merge x: {a: 1}}",
        "value key": "{=: 1}",
        "open brackets": "[" * 20_000,
        "brackets": "[" * 20_000 + "]" * 20_000,
        "braces": "{a: " * 20_000,
        # not numbers, or numbers that versions of YAML read differently
        "long int": "9" * 5000,
        "long hex": "0x" + "f" * 90_000,
        "hex": "0x10",
        "binary number": "0b1",
        "octal": "010",
        "octal 1.2": "0o10",
        "sexagesimal": "1:30",
        "sexagesimal float": "1:30.5",
        "long sexagesimal": "1" + ":10" * 30_000,
        "inf": ".inf",
        "-inf": "-.inf",
        "nan": ".nan",
        "1e999": "1e999",
        "1.0e+999": "1.0e+999",
        "underscore": "1_000",
        "date": "2001-01-01",
        "no date": "2001-99-99",
        **{word: word for word in ("yes", "no", "on", "off", "Yes", "NO", "On", "OFF")},
        # keys
        "twice": "{a: 1, a: 2}",
        "twice in a list": '[{a: 1, "a": 2}]',
        "int key": "{1: 2}",
        "null key": "{~: 1}",
        "bool key": "{on: 1}",
        "list key": "{[1]: 2}",
        "mapping key": "{{a: 1}: 2}",
        # characters and syntax
        "NUL": "a\0b",
        "escape": "\x1b[31m",
        "quoted NUL": '"\\0"',
        "quoted escape": '"\\e[31m"',
        "surrogate": '"\\ud800"',
        "right to left": "a\u202eb",
        "escaped key": '{"a\\0": 1}',
        "unclosed": "[1",
        "quote": "'x",
        "colons": "a:" * 10_000,
        "commas": "{" + "a," * 10_000,
        "tags": "!" * 50_000,
        "ampersands": "& " * 40_000,
    }


def soon(action: Callable[[], object]) -> str:
    """The one UserError line that an action ends in."""
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        action()
    said = str(error.value)
    assert time.monotonic() - began < SOON_S, said
    assert "\n" not in said and said.isprintable() and len(said) < 500, said
    return said


def test_sweep_files_and_settings_hold_plain_data_only(tmp_path: Path, figures: Callable[..., None]) -> None:
    """YAML constructs no objects and blows up through no alias: files and --set values end in one line, soon."""
    marker, path = tmp_path / "executed", tmp_path / "s.yaml"
    yaml.unsafe_load(bad_values(marker)["apply"])  # the bad one works
    marker.rmdir()
    refused = 0
    for value in bad_values(marker).values():
        path.write_bytes(f"about: x\nset:\n  data.path: {value}\n".encode("utf-8", "surrogatepass"))
        assert "s.yaml" in soon(lambda: load_sweep(path, "digits"))
        soon(lambda value=value: parse_settings((f"data.path={value}",)))
        refused += 2
    for text in [
        *("", "- 1\n", "hello", "about: a\n---\nabout: b\n", "about: a\n...\nabout: b\n", ": 1\n", "a:\n\tb: 1\n"),
        *("%YAML 9.9\n---\nabout: a\n", "%TAG ! tag:x,2000:\n---\na: !b 1\n", "about: &x 1\nset: &x {}\n"),
        *("- " * 30_000, "? " * 30_000, "\n".join(" " * i + "a:" for i in range(400)), "#\n" * 49_000),
    ]:
        path.write_text(text)
        soon(lambda: read_yaml(path))
        refused += 1
    assert not marker.exists() and sorted(tmp_path.iterdir()) == [path]
    figures(bad_yaml_tried=refused, refused=refused, objects_built=0, limit_s=SOON_S)


def test_what_is_no_text_file_is_refused(tmp_path: Path, figures: Callable[..., None]) -> None:
    """A sweep file that is a device, a pipe, a folder, 100 MB or no UTF-8 ends in one line, soon."""
    contents = {
        "utf16": "about: a\n".encode("utf-16"),
        "utf16 bare": "about: a\n".encode("utf-16-le"),
        "utf32": "about: a\n".encode("utf-32"),
        "latin1": b"about: \xff\n",
        "large": b"a: 1\n" * (LONGEST // 5 + 1),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with open(tmp_path / "100 MB", "wb") as file:
        file.truncate(100_000_000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to itself").symlink_to(tmp_path / "to itself")
    paths = [*sorted(tmp_path.iterdir()), *map(Path, ("/dev/zero", "/dev/stdin", "absent"))]
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.extend(soon(lambda p=p: read_yaml(p)) for p in paths), daemon=True)
    thread.start()
    thread.join(len(paths) * SOON_S)  # a pipe without a writer would hold it forever
    assert len(done) == len(paths)
    soon(lambda: parse_scalar("a" * (LONGEST + 1)))
    figures(no_sweep_files=len(paths), refused=len(done))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1", 1), ("-7", -7), ("+3", 3), ("0", 0), ("999999999999999999", 999999999999999999)),
        *(("1e-3", 1e-3), ("2E5", 2e5), ("1.5e+2", 150.0), ("-2.5", -2.5), (".5", 0.5), ("1.", 1.0), ("0.10", 0.1)),
        *(("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("none", "none")),
        *(("'yes'", "yes"), ('"010"', "010"), ("s3://b/c", "s3://b/c"), ("a b", "a b"), ("[S, 2]", ["S", 2])),
        *(("{a: [1, {b: c}]}", {"a": [1, {"b": "c"}]}), ("'caf\u00e9'", "caf\u00e9")),
    ],
)
def test_plain_values_are_what_they_look_like(text: str, value: Any, tmp_path: Path) -> None:
    assert parse_scalar(text) == value and type(parse_scalar(text)) is type(value)
    (tmp_path / "x.yaml").write_text(f"\ufeffkey: {text}\n", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == ({"key": value}, {("key",): 1} | read_yaml(tmp_path / "x.yaml")[1])


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\nb:\n  - c: 2\n    d.e: 3\n  - {f: 4}\n")
    lines = read_yaml(tmp_path / "x.yaml")[1]
    assert lines == {("a",): 1, ("b",): 2, ("b", "0", "c"): 3, ("b", "0", "d.e"): 4, ("b", "1", "f"): 5}
