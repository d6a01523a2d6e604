"""Sweep files, which become trials with stable ids.

A sweep file says only what varies and how values are combined; all other values are in the recipe:

    about: "Fig 3a, Table 3: model sizes"
    set: {train.steps: x0.5}                                  # for every trial; x0.5 halves the recipe's value
    sizes: [S, B]                                             # of both networks; `all`: every size of the recipe
    zip: {train.batch: [32, 64], train.steps: [x2, x1]}       # pairs: first with first, second with second
    product: {model.patch: [2, 4]}                            # every combination
    points: [{...}, {...}]                                    # a list of overrides, one by one
    seeds: [0, 1, 2]
    parts:                                                    # several designs in one sweep
      aligned: {set: {objective.align_weight: 1.0}}
      removed: {after: aligned, set: {objective.align_weight: 0.0, train.steps: x1.2}}

Each block is optional. The blocks multiply with each other and with each part; parts do not multiply with each other.
A key has one place, unless its later values are factors of the earlier one.
A part with `after: OTHER` has one trial for every trial of that part. It continues from the last checkpoint of that
trial, with the changes that the part sets; its steps count from the beginning of the first trial.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from gat_sweep.config import Start, TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.yamlfile import Lines, read_yaml
from gat_sweep.recipe import (
    PRESETS,
    check_continues,
    check_key,
    flatten,
    is_key,
    is_relative,
    load_recipe,
    locate,
    resolve,
)
from gat_sweep.text import nearest

NETWORKS = ("model.generator", "model.discriminator")
# What the reader of a sweep file misses, by pydantic's kind of error.
SHAPES = {
    "list_type": "write a list, such as [S] or [0, 1]",
    "dict_type": "write keys with values, such as {train.batch: 32}",
    "model_type": "write a block, such as {sizes: [S]}, or {}",
    "int_type": "write a whole number",
    "string_type": "write a text",
}


class Block(BaseModel):
    """Values that vary, and how they are combined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: dict[str, Any] = {}
    sizes: list[StrictStr] | Literal["all"] = []  # of both networks alike; all: every size of the recipe's ladder
    zip: dict[str, list[Any]] = {}
    product: dict[str, list[Any]] = {}
    points: list[dict[str, Any]] = Field(default=[{}], min_length=1)

    def values(self) -> list[tuple[str, Any]]:
        """Every key that varies, with each of its values; `set` is not included."""
        lists = [*self.zip.items(), *self.product.items(), *((key, list(self.sizes)) for key in NETWORKS)]
        return [(key, value) for key, values in lists for value in values] + [
            pair for point in self.points for pair in point.items()
        ]

    def combinations(self, ladder: Iterable[str]) -> list[dict[str, Any]]:
        """Every combination of points, sizes, pairs and products, as dotted overrides. ladder: sizes of the recipe."""
        sizes = [dict.fromkeys(NETWORKS, size) for size in (ladder if self.sizes == "all" else self.sizes)] or [{}]
        zipped = [dict(zip(self.zip, values, strict=True)) for values in zip(*self.zip.values(), strict=True)] or [{}]
        product = [dict(zip(self.product, values, strict=True)) for values in itertools.product(*self.product.values())]
        return [{**a, **b, **c, **d} for a in self.points for b in sizes for c in zipped for d in product]


class Part(Block):
    """One of several designs in a sweep file."""

    after: str | None = None  # an earlier part, whose trials this part continues


class SweepFile(Block):
    """Content of a sweep file, as written."""

    about: str
    seeds: list[StrictInt] = Field(default=[0], min_length=1)
    parts: dict[str, Part] = Field(default={"all": Part()}, min_length=1)


@dataclass(frozen=True)
class Sweep:
    """Trials by id, in the order of the file."""

    name: str
    about: str
    recipe: str
    trials: dict[str, TrialConfig]


SHIPPED = (Path(__file__).parent / "sweeps", Path(__file__).parents[1] / "sweeps")  # in a wheel; in a clone


def sweep_file(name: str) -> Path:
    """Path of a sweep file: an existing path, or the name of a file that is part of the package.

    Raises UserError when there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for folder in SHIPPED for file in sorted(folder.glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    if path.stem in shipped and path.suffix in ("", ".yaml"):
        raise UserError(f"no sweep file {name} here; for the one that ships with gat-sweep, give '{path.stem}'")
    raise UserError(f"no sweep file {name}, and gat-sweep ships none of that name; {nearest(path.stem, shipped)}")


def load_sweep(
    path: Path,
    recipe_name: str,
    preset: str = "paper",
    overrides: Mapping[str, Any] | None = None,
    seeds: list[int] | None = None,
) -> Sweep:
    """The trials of a sweep file with a recipe; a trial comes after the trial that it continues.

    overrides: values by dotted key (`--set`), stronger than the recipe, the preset and the file's `set`. They may not
    name a key that the sweep varies, unless it varies it by factors. seeds: replace the seeds of the file.
    Raises UserError, one line, which names file, line and key.
    """
    overrides = overrides or {}
    file, lines = _read(path)
    if seeds is not None and _varies_seed(file):
        raise UserError(f"--seeds: {path} gives each of its points a seed; edit the file to change them")
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; {nearest(preset, PRESETS)}")
    varied = [pair for part in file.parts.values() for pair in (*part.set.items(), *part.values())] + file.values()
    fixed = {key for key, value in varied if not is_relative(value)} | {"seed"}
    for key in overrides:
        check_key(key)
        if key in fixed:
            hint = "use --seeds" if key == "seed" else "edit the sweep file to change it"
            raise UserError(f"--set {key}: {path} varies this key; {hint}")
    recipe = load_recipe(recipe_name)
    for name in dict.fromkeys(str(value) for key, value in varied if key == "variant"):
        for key, value in flatten(recipe.get("variants", {}).get(name, {})).items():
            if key in overrides and not is_relative(value):
                raise UserError(f"--set {key}: variant '{name}' sets this key; use --set variants.{name}.{key}=VALUE")
    common = {key: value for key, value in file.set.items() if is_relative(value) or key not in overrides}
    # For each trial: the overrides on the recipe, in order, and the trial that it continues.
    roots: list[tuple[list[Mapping[str, Any]], TrialConfig | None]] = [
        ([PRESETS[preset], overrides, common, {"seed": seed}, point], None)
        for point in file.combinations(recipe["ladder"])
        for seed in seeds or file.seeds
    ]
    trials: dict[str, TrialConfig] = {}
    found: dict[str, list[tuple[list[Mapping[str, Any]], TrialConfig | None]]] = {}  # by part
    for name, part in file.parts.items():
        found[name], own = [], set[str]()
        for before, parent in found[part.after] if part.after else roots:
            for point in part.combinations(recipe["ladder"]):
                stack = [*before, part.set, point]
                try:
                    config = resolve(recipe, *stack)
                except UserError as error:
                    said = _of_overrides(str(error), recipe, [PRESETS[preset], overrides])
                    raise UserError(said or f"{_place(path, lines, str(error))}: {error}") from None
                if parent:
                    config = config.model_copy(update={"start": Start(trial=trial_id(parent), step=parent.train.steps)})
                    check_continues(config, parent, where=f"{path}: part '{name}'")
                trial = trial_id(config)
                if trial in own or trials.get(trial, config) != config:
                    raise UserError(
                        f"{path}: two points are the same trial, {trial}, or differ only in train.steps; keep only the "
                        "longer one, which has the rows of both"
                    )
                own.add(trial)
                trials[trial] = config
                found[name].append((stack, config))
    return Sweep(path.stem, file.about, recipe_name, trials)


def _of_overrides(error: str, recipe: Mapping[str, Any], stack: list[Mapping[str, Any]]) -> str:
    """The error as one of --set, if it names a key given there, or is there without the sweep file; else empty."""
    if error.partition(":")[0] in stack[-1]:
        return f"--set {error}"
    try:
        resolve(recipe, *stack)
    except UserError as without:
        if str(without) == error:
            return f"--set: {error}"
    return ""


def differences(trials: Mapping[str, TrialConfig]) -> dict[str, dict[str, Any]]:
    """Config values that differ between the trials, by trial; places of files, machines, and the
    steps of evaluations are left out.
    """
    flat = {trial: flatten(config.identity()) for trial, config in trials.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values if key != "train.eval_at")
    varied = [key for key in keys if len({json.dumps(values.get(key)) for values in flat.values()}) > 1]
    return {trial: {key: values.get(key) for key in varied} for trial, values in flat.items()}


def trial_id(config: TrialConfig) -> str:
    """Stable, readable id of a trial: sizes, patch and seed, then a hash of its identity."""
    g, d = config.model.generator, config.model.discriminator
    sizes = g if g == d else f"G{g}-D{d}"
    return f"{sizes}-p{config.model.patch}-s{config.seed}-{config.digest()[:8]}"


def _place(path: Path, lines: Lines, error: str) -> str:
    """The line of the key that an error begins with, where the file has that key once; else the file."""
    key = error.partition(":")[0]
    found = [line for where, line in lines.items() if where[-1] == key]
    return f"{path}:{found[0]}" if len(found) == 1 else str(path)


def _read(path: Path) -> tuple[SweepFile, Lines]:
    values, lines = read_yaml(path)
    try:
        file = SweepFile.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        *above, leaf = (str(part) for part in first["loc"])
        where = locate(path, lines, ".".join([*above, leaf]))
        if first["type"] == "extra_forbidden":
            known = (Part if above else SweepFile).model_fields
            hint = f"write set: {{{leaf}: VALUE}}" if is_key(leaf) else nearest(leaf, known)
            raise UserError(f"{where}: unknown key '{leaf}'; {hint}") from None
        key = [*above, leaf]
        while len(key) > 1 and tuple(key) not in lines:  # pydantic adds the kind of value that it tried
            key.pop()
        says = SHAPES.get(first["type"], first["msg"])
        raise UserError(f"{where}: {'.'.join(key)}: {says} (got {first['input']!r})") from None
    if twice := sorted({seed for seed in file.seeds if file.seeds.count(seed) > 1}):
        raise UserError(f"{path}:{lines[('seeds',)]}: seed {twice[0]} is given twice; keep one")
    everywhere = _check_block(path, lines, (), file)
    earlier: list[str] = []
    for name, part in file.parts.items():
        own = _check_block(path, lines, ("parts", name), part)
        if (both := sorted(own & everywhere)) and not part.after:
            raise UserError(
                f"{locate(path, lines, f'parts.{name}')}: {both[0]} is given for every part and by part '{name}'; "
                "remove one"
            )
        if part.after and part.after not in earlier:
            hint = nearest(part.after, earlier) if earlier else f"'{name}' is the first part"
            raise UserError(
                f"{locate(path, lines, f'parts.{name}.after')}: no part '{part.after}' comes before '{name}'; {hint}"
            )
        earlier.append(name)
    if "seeds" in file.model_fields_set and _varies_seed(file):
        raise UserError(f"{path}:{lines[('seeds',)]}: seed is given by 'seeds' and by another block; remove one")
    return file, lines


def _varies_seed(file: SweepFile) -> bool:
    """Whether the points of a file have seeds of their own, as those of a design have."""
    return any(key == "seed" for block in (file, *file.parts.values()) for key, _ in block.values())


def _check_block(path: Path, lines: Lines, above: tuple[str, ...], block: Block) -> set[str]:
    """Checks the keys of a block; returns those that it gives values, and not factors of values."""

    def line(*keys: str) -> int:
        found = (*above, *keys)
        while found not in lines:
            found = found[:-1]
        return lines[found]

    for name in ("set", "zip", "product"):
        for key in getattr(block, name):
            check_key(key, where=f"{path}:{line(name, key)}")
            if name != "set" and not getattr(block, name)[key]:
                raise UserError(f"{path}:{line(name, key)}: the list of {key} is empty; give it a value or remove it")
    for number, point in enumerate(block.points):
        for key in point:
            check_key(key, where=f"{path}:{line('points', str(number), key)}")
    if "sizes" in block.model_fields_set and not block.sizes:
        raise UserError(f"{path}:{line('sizes')}: the list of sizes is empty; give it a size or remove it")
    given = {"sizes": set(NETWORKS if block.sizes else ()), "zip": set(block.zip), "product": set(block.product)}
    given["points"] = {key for point in block.points for key in point}
    for (one, keys), (other, more) in itertools.combinations(given.items(), 2):
        if twice := sorted(keys & more):
            raise UserError(f"{path}:{line(other)}: {twice[0]} is given by '{one}' and by '{other}'; remove one")
    values = {key for key, value in block.values() if not is_relative(value)}
    for name, keys in given.items():
        if twice := sorted(keys & set(block.set) & values):
            raise UserError(f"{path}:{line(name)}: {twice[0]} is given by 'set' and by '{name}'; remove one")
    # A part that continues trials may give them another seed.
    if "seed" in block.set and not (isinstance(block, Part) and block.after):
        raise UserError(f"{path}:{line('set')}: seed has a block of its own, such as seeds: [0, 1]")
    lengths = {key: len(values) for key, values in block.zip.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}:{line('zip')}: zipped lists differ in length: {lengths}")
    return values | {key for key, value in block.set.items() if not is_relative(value)}


def varied_text(varied: dict[str, Any]) -> str:
    """Config values in short, without those that the id of a trial shows."""
    known = {"model.generator", "model.discriminator", "model.patch", "seed", "start.step"}
    return ", ".join(
        f"{key.rpartition('.')[2] if key != 'start.trial' else 'after'}={value if value is not None else '-'}"
        for key, value in varied.items()
        if key not in known and not (key.startswith("start") and value is None)
    )
