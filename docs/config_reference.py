"""Writes docs/config.md, the reference of every config value, from the schema and the recipes: `make docs`.

A field's type, bounds and default come from the schema, its description from the comment beside it in the source.
"""

import io
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from inspect import getdoc, getsourcefile
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from gat_sweep.config import Size, TrialConfig
from gat_sweep.recipe import PRESETS, flatten, load_recipe, recipe_names

TARGET = Path(__file__).with_name("config.md")
INTRODUCTION = """\
# Config reference

`make docs` writes this file from `gat_sweep/config.py`, `gat_sweep/gat/spec.py` and `gat_sweep/recipes/`. Do not edit
it.

Set a value with `--set KEY=VALUE`, or in a sweep file ([studies.md](studies.md)). "required" means that the schema has
no default, so every recipe sets the value. The column of a recipe is empty where the recipe keeps the default.
"""
PRESETS_TEXT = """\
`--preset official` takes these conventions of the authors' released code instead of the paper's (`--preset paper`, the
default)."""
VARIANTS_TEXT = """\
`variant: NAME` in a sweep file takes these values. `--set variants.NAME.KEY=VALUE` changes one of them."""
LADDER_TEXT = """\
A recipe names its sizes. `--set ladder.S.width=16` changes one (`width`, `depth`, `heads`)."""
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


class Value(NamedTuple):
    """A config value as the reference shows it."""

    key: str
    kind: str
    default: str
    about: str


def comments(path: Path) -> dict[int, str]:
    """The comments of a source file by line number, without the `#`."""
    source = path.read_text(encoding="utf-8")
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = token.string.lstrip("# ")
    return found


def about_fields(section: type) -> dict[str, str]:
    """The description of each field: the comment on its line, or the comment lines right above it."""
    path = Path(str(getsourcefile(section)))
    lines, said = path.read_text(encoding="utf-8").splitlines(), comments(path)
    first = next(
        i
        for i, line in enumerate(lines)
        if line.startswith(f"class {section.__name__}(") or line.startswith(f"class {section.__name__}:")
    )
    found: dict[str, str] = {}
    above: list[str] = []
    for number, line in enumerate(lines[first + 1 :], start=first + 2):
        if line and not line.startswith(" "):
            break
        name, colon, _ = line.strip().partition(":")
        if line.strip().startswith("#"):
            above.append(said[number])
            continue
        if colon and name.isidentifier():
            found[name] = said.get(number) or " ".join(above)
        above = []
    return found


def kind_of(annotation: Any, bounds: list[Any]) -> str:
    """A type in words, with its bounds: "int > 0", "`exp`, `linear`", "list of `a`, `b`"."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, UnionType):
        return ", or ".join(kind_of(part, bounds if part is not NoneType else []) for part in inside)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = (f"{key}: {kind_of(field.annotation, [])}" for key, field in annotation.model_fields.items())
        return f"{{{', '.join(inner)}}}"
    if origin is Annotated:
        return kind_of(inside[0], [bound for part in inside[1:] for bound in getattr(part, "metadata", [])])
    if origin is tuple:
        return f"list of {kind_of(inside[0], [])}"
    limits = [
        f"{sign} {value:g}"
        for bound in bounds
        for name, sign in SIGNS.items()
        if (value := getattr(bound, name, None)) is not None
    ]
    named = {NoneType: "null", str: "text", bool: "`true`, `false`", int: "int", float: "float"}[annotation]
    return " ".join([named, *([" and ".join(limits)] if limits else [])])


def shown(value: Any) -> str:
    """A value as YAML spells it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def values_of(section: type, name: str) -> Iterator[Value]:
    """The values of a section of TrialConfig, in the order of the source."""
    said = about_fields(section)
    if is_dataclass(section):
        hints = get_type_hints(section)
        for item in fields(section):
            default = "required" if item.default is MISSING else f"`{shown(item.default)}`"
            yield Value(f"{name}.{item.name}", kind_of(hints[item.name], []), default, said[item.name])
        return
    assert issubclass(section, BaseModel)
    for key, field in section.model_fields.items():
        default = "required" if field.is_required() else f"`{shown(field.default)}`"
        yield Value(f"{name}.{key}", kind_of(field.annotation, list(field.metadata)), default, said[key])


def sections() -> Iterator[tuple[str, type]]:
    """The sections of TrialConfig that --set reaches, by name."""
    for name, field in TrialConfig.model_fields.items():
        candidates = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)]
        for part in candidates:
            if name not in ("start", "ladder") and (is_dataclass(part) or issubclass(part, BaseModel)):
                yield name, part


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in [header, ["---"] * len(header), *rows]:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def reference() -> str:
    """The text of docs/config.md."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    flat = {name: flatten(values) for name, values in recipes.items()}
    heads = [f"`{name}`" for name in recipes]
    lines = [INTRODUCTION, "## Top level", ""]
    seed = TrialConfig.model_fields["seed"]
    top = [["`seed`", kind_of(seed.annotation, list(seed.metadata)), f"`{seed.default}`", "Usually set by `--seeds`."]]
    lines += table(["key", "values", "default", "what it is"], top)
    lines += ["## ladder", "", str(getdoc(Size)), "", LADDER_TEXT, ""]
    for name, values in recipes.items():
        sizes = [[f"`{size}`", *map(str, row.values())] for size, row in values["ladder"].items()]
        lines += table([f"size in `{name}`", *next(iter(values["ladder"].values()))], sizes)
    for name, section in sections():
        lines += [f"## {name}", ""]
        own = section.__doc__
        if own and not own.startswith(f"{section.__name__}("):
            lines += [str(getdoc(section)).partition("\n")[0], ""]
        rows = []
        for value in values_of(section, name):
            set_by = [f"`{shown(found[value.key])}`" if value.key in found else "" for found in flat.values()]
            rows.append([f"`{value.key}`", value.kind, value.default, *set_by, value.about])
        lines += table(["key", "values", "default", *heads, "what it is"], rows)
    lines += ["## Presets", "", PRESETS_TEXT, ""]
    lines += table(["key", "`official`"], [[f"`{k}`", f"`{shown(v)}`"] for k, v in PRESETS["official"].items()])
    lines += ["## Variants", "", VARIANTS_TEXT, ""]
    rows = [
        [f"`{variant}`", f"`{name}`", ", ".join(f"`{key}: {shown(value)}`" for key, value in flatten(changes).items())]
        for name, values in recipes.items()
        for variant, changes in values.get("variants", {}).items()
    ]
    lines += table(["variant", "recipe", "values"], sorted(rows, key=lambda row: row[0]))
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
