"""Strict YAML: only plain data that all versions of YAML read in the same way, and a line number for every key."""

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from gat_sweep.errors import UserError
from gat_sweep.files.credentials import without_credentials

Lines = dict[tuple[str, ...], int]
LONGEST = 100_000  # bytes, a hundred times the size of a sweep file
DEEPEST = 20  # levels of nested mappings and lists
DIGITS = 18  # of a whole number, which then fits in 64 bits
NUMBER = re.compile(rf"[-+]?(0|[1-9][0-9]{{0,{DIGITS - 1}}}|[0-9]+\.[0-9]*|\.[0-9]+)")
EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
TAG = "tag:yaml.org,2002:"


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in `path`, and the line of every key by its path of keys (and positions in lists, from "0").

    Raises UserError when the file is missing, unreadable or too long, on syntax errors, and on all but plain data:
    tags, aliases, keys that are not text or occur twice, and values that versions of YAML read differently.
    """
    if not path.is_file():
        raise UserError(f"{path}: " + ("is not a file; name a YAML file" if path.exists() else "no such file"))
    try:
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if len(content) > LONGEST:
        raise UserError(f"{path}: longer than {LONGEST:,} bytes; split it")
    try:
        value, lines = _load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: {_message(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    return value, lines


def parse_scalar(text: str) -> Any:
    """Value of a `--set key=value`, read as YAML. Raises UserError as read_yaml does."""
    if len(text) > LONGEST:
        raise UserError(f"{text[:20]!r}... is not a value (longer than {LONGEST:,} characters)")
    try:
        return _load(text)[0]
    except yaml.YAMLError as error:
        raise UserError(f"{without_credentials(text)[:60]!r} is not a value ({_message(error)})") from None


class _Plain(yaml.SafeLoader):
    """SafeLoader without aliases, which can expand to a huge size, and without the ambiguous values of YAML 1.1."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _error("aliases (*name) are not allowed", event)
        if self.depth == DEEPEST:
            raise _error(f"more than {DEEPEST} levels deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _number(loader: _Plain, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    if NUMBER.fullmatch(text) or EXPONENT.fullmatch(text):
        value = float(text) if set(text) & set(".eE") else int(text)
        if math.isfinite(value):
            return value
    raise _error(
        f"{_short(text)} is not a decimal number of at most {DIGITS} digits; write one, or quote it as text", node
    )


def _flag(loader: _Plain, node: yaml.ScalarNode) -> bool:
    text = loader.construct_scalar(node)
    if text.lower() not in ("true", "false"):
        raise _error(f"{_short(text)} is ambiguous in YAML (text or boolean); write true or false, or quote it", node)
    return bool(text.lower() == "true")


def _date(loader: _Plain, node: yaml.ScalarNode) -> None:
    raise _error(f"{_short(loader.construct_scalar(node))} is a date; quote it if it is text", node)


_Plain.yaml_constructors = {
    **{TAG + kind: yaml.SafeLoader.yaml_constructors[TAG + kind] for kind in ("null", "str", "seq", "map")},
    TAG + "int": _number,
    TAG + "float": _number,
    TAG + "bool": _flag,
    TAG + "timestamp": _date,
    None: yaml.SafeLoader.yaml_constructors[None],  # refuses every other tag
}
_Plain.add_implicit_resolver(TAG + "float", EXPONENT, list("-+.0123456789"))  # makes 1e-4 a number, as in YAML 1.2
_Plain.add_implicit_resolver(TAG + "int", re.compile("0o[0-7]+"), ["0"])  # makes 0o10 refused, like 010


def _load(text: str) -> tuple[Any, Lines]:
    """Value of a YAML text, and the line of every key. Raises YAMLError."""
    loader = _Plain(text)
    try:
        node = loader.get_single_node()
        lines: Lines = {}
        if node is None:
            return None, lines
        _collect(node, (), lines)
        return loader.construct_document(node), lines
    finally:
        loader.dispose()


def _collect(node: yaml.Node, prefix: tuple[str, ...], lines: Lines) -> None:
    """Checks keys and characters, and collects the lines of the keys."""
    if isinstance(node, yaml.ScalarNode) and not node.value.replace("\n", "").replace("\t", "").isprintable():
        raise _error("characters that cannot be printed", node)
    if isinstance(node, yaml.SequenceNode):
        for i, value_node in enumerate(node.value):
            _collect(value_node, (*prefix, str(i)), lines)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if key_node.tag != TAG + "str" or not key_node.value.isprintable():
                raise _error("a key has to be text; quote it", key_node)
            key = (*prefix, key_node.value)
            if key in lines:
                raise _error(f"key '{'.'.join(key)}' occurs twice, first on line {lines[key]}", key_node)
            lines[key] = key_node.start_mark.line + 1
            _collect(value_node, key, lines)


def _error(problem: str, where: Any) -> ConstructorError:
    """Error at the position of a node or event."""
    return ConstructorError(None, None, problem, where.start_mark)


def _message(error: yaml.YAMLError) -> str:
    """Message of an error, in one line."""
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return " ".join((", ".join(part for part in parts if part) or str(error)).split())[:200]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
