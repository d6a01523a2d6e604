"""Strict YAML: plain data only, no aliases, no duplicate keys, and a line number for every key."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from gat_sweep.errors import UserError

Lines = dict[tuple[str, ...], int]


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in `path`, and the line of every key by its path of keys.

    Raises UserError on unreadable files, syntax errors, aliases, duplicate keys and custom tags.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        node = yaml.compose(text, Loader=_NoAliases)
        lines: Lines = {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: expected a mapping of keys to values")
        _collect(node, (), lines, path)
        return yaml.safe_load(text), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: {getattr(error, 'problem', None) or error}") from None


def parse_scalar(text: str) -> Any:
    """The value of a `--set key=value`, read as YAML."""
    try:
        yaml.compose(text, Loader=_NoAliases)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is not a value ({getattr(error, 'problem', error)})") from None


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for a mistyped name, or the list of what there is."""
    known = sorted(known)
    tail = [k for k in known if k.split(".")[-1] == word.split(".")[-1]]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5) or tail
    return f"did you mean '{close[0]}'?" if close else "there are: " + ", ".join(known)


class _NoAliases(yaml.SafeLoader):
    """SafeLoader that refuses aliases: nobody needs them here, and they can blow up."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)


def _collect(node: yaml.MappingNode, prefix: tuple[str, ...], lines: Lines, path: Path) -> None:
    for key_node, value_node in node.value:
        key = (*prefix, str(key_node.value))
        line = key_node.start_mark.line + 1
        if key in lines:
            raise UserError(f"{path}:{line}: key '{'.'.join(key)}' stands twice, first on line {lines[key]}")
        lines[key] = line
        if isinstance(value_node, yaml.MappingNode):
            _collect(value_node, key, lines, path)
