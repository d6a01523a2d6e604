"""A sweep file becomes trials with stable ids.

A sweep file says only what varies and how it is paired; the numbers live in the recipe:

    about: "Fig 3a, Table 3: model sizes"
    set: {train.steps: x0.5}                                  # the same for every trial; x0.5: times the recipe's
    zip: {model.generator: [S, B], model.discriminator: [S, B]}  # paired, first with first
    product: {model.patch: [2, 4]}                            # every combination
    points: [{...}, {...}]                                    # spelled out, one by one
    seeds: [0, 1, 2]
    parts:                                                    # designs side by side
      aligned: {set: {objective.align_weight: 1.0}}
      removed: {after: aligned, set: {objective.align_weight: 0.0, train.steps: x1.2}}

Each block is optional; together they multiply, and each part multiplies with all of them but other parts. A part that
comes `after` another has a trial for every trial of that one, which goes on from its last checkpoint with the changes
that the part names; steps count from the beginning of the first.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gat_sweep.config import Start, TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.yamlfile import Lines, read_yaml
from gat_sweep.recipe import PRESETS, check_continues, check_key, flatten, is_factor, load_recipe, locate, resolve
from gat_sweep.text import nearest


class Block(BaseModel):
    """What varies, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: dict[str, Any] = {}
    zip: dict[str, list[Any]] = {}
    product: dict[str, list[Any]] = {}
    points: list[dict[str, Any]] = Field(default=[{}], min_length=1)

    def values(self) -> list[tuple[str, Any]]:
        """Every key with every value that it takes; not those of `set`."""
        lists = [*self.zip.items(), *self.product.items()]
        return [(key, value) for key, values in lists for value in values] + [
            pair for point in self.points for pair in point.items()
        ]

    def combinations(self) -> list[dict[str, Any]]:
        """Points, pairs and products multiplied."""
        zipped = [dict(zip(self.zip, values, strict=True)) for values in zip(*self.zip.values(), strict=True)] or [{}]
        product = [dict(zip(self.product, values, strict=True)) for values in itertools.product(*self.product.values())]
        return [{**a, **b, **c} for a in self.points for b in zipped for c in product]


class Part(Block):
    after: str | None = None  # an earlier part


class SweepFile(Block):
    about: str
    seeds: list[int] = Field(default=[0], min_length=1)
    parts: dict[str, Part] = Field(default={"all": Part()}, min_length=1)


@dataclass(frozen=True)
class Sweep:
    """Trials by id, in the order of the file."""

    name: str
    about: str
    recipe: str
    trials: dict[str, TrialConfig]


SHIPPED = (Path(__file__).parent / "sweeps", Path(__file__).parents[1] / "sweeps")  # of a wheel; of a clone


def sweep_file(name: str) -> Path:
    """The sweep file of that path; where there is none, the one of that name that ships with the package.

    Raises UserError when there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for folder in SHIPPED for file in sorted(folder.glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    if path.stem in shipped and path.suffix in ("", ".yaml"):
        raise UserError(f"no sweep file {name} here; '{path.stem}' is one that ships with gat-sweep, give that name")
    raise UserError(f"no sweep file {name}, and none of that name ships with gat-sweep; {nearest(path.stem, shipped)}")


def load_sweep(
    path: Path,
    recipe_name: str,
    preset: str = "paper",
    overrides: Mapping[str, Any] | None = None,
    seeds: list[int] | None = None,
) -> Sweep:
    """Every trial of a sweep file at a recipe's scale; a trial stands behind the one that it starts from.

    overrides: dotted keys (`--set`), stronger than recipe, preset and the file's own `set`; they may not name what the
    sweep varies, unless it varies it by factors. seeds: instead of the file's.
    Raises UserError, one line, naming file, line and key.
    """
    overrides = overrides or {}
    file = _read(path)
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; {nearest(preset, PRESETS)}")
    varied = [pair for part in file.parts.values() for pair in (*part.set.items(), *part.values())] + file.values()
    fixed = {key for key, value in varied if not is_factor(value)} | {"seed"}
    for key in overrides:
        check_key(key)
        if key in fixed:
            hint = "use --seeds" if key == "seed" else "edit the sweep file to change it"
            raise UserError(f"--set {key}: {path} varies this key; {hint}")
    recipe = load_recipe(recipe_name)
    for name in dict.fromkeys(str(value) for key, value in varied if key == "variant"):
        for key, value in flatten(recipe.get("variants", {}).get(name, {})).items():
            if key in overrides and not is_factor(value):
                raise UserError(f"--set {key}: variant '{name}' sets this key; use --set variants.{name}.{key}=VALUE")
    common = {key: value for key, value in file.set.items() if is_factor(value) or key not in overrides}
    # What is put on the recipe in turn for a trial, and the trial that it goes on from.
    roots: list[tuple[list[Mapping[str, Any]], TrialConfig | None]] = [
        ([PRESETS[preset], overrides, common, {"seed": seed}, point], None)
        for point in file.combinations()
        for seed in seeds or file.seeds
    ]
    trials: dict[str, TrialConfig] = {}
    found: dict[str, list[tuple[list[Mapping[str, Any]], TrialConfig | None]]] = {}  # by part
    for name, part in file.parts.items():
        found[name], own = [], set[str]()
        for before, parent in found[part.after] if part.after else roots:
            for point in part.combinations():
                stack = [*before, part.set, point]
                config = resolve(recipe, *stack)
                if parent:
                    config = config.model_copy(update={"start": Start(trial=trial_id(parent), step=parent.train.steps)})
                    check_continues(config, parent, where=f"{path}: part '{name}'")
                trial = trial_id(config)
                if trial in own or trials.get(trial, config) != config:
                    raise UserError(
                        f"{path}: two points are the same trial, {trial}, or differ in train.steps alone; keep one, "
                        "the longer (its rows hold the shorter's)"
                    )
                own.add(trial)
                trials[trial] = config
                found[name].append((stack, config))
    return Sweep(path.stem, file.about, recipe_name, trials)


def differences(trials: Mapping[str, TrialConfig]) -> dict[str, dict[str, Any]]:
    """For each trial the config values in which not all of them agree, but where files lie and what they run on."""
    flat = {trial: flatten(config.identity()) for trial, config in trials.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    varied = [key for key in keys if len({json.dumps(values.get(key)) for values in flat.values()}) > 1]
    return {trial: {key: values.get(key) for key in varied} for trial, values in flat.items()}


def trial_id(config: TrialConfig) -> str:
    """Stable and readable: sizes, patch and seed, then the hash of everything that makes the trial."""
    g, d = config.model.generator, config.model.discriminator
    sizes = g if g == d else f"G{g}-D{d}"
    return f"{sizes}-p{config.model.patch}-s{config.seed}-{config.digest()[:8]}"


def _read(path: Path) -> SweepFile:
    values, lines = read_yaml(path)
    try:
        file = SweepFile.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        *above, leaf = (str(part) for part in first["loc"])
        where = locate(path, lines, ".".join([*above, leaf]))
        if first["type"] == "extra_forbidden":
            known = (Part if above else SweepFile).model_fields
            raise UserError(f"{where}: unknown key '{leaf}'; {nearest(leaf, known)}") from None
        raise UserError(f"{where}: {'.'.join([*above, leaf])}: {first['msg']}") from None
    _check_block(path, lines, (), file)
    earlier: list[str] = []
    for name, part in file.parts.items():
        _check_block(path, lines, ("parts", name), part)
        if part.after and part.after not in earlier:
            hint = nearest(part.after, earlier) if earlier else "it is the first"
            raise UserError(
                f"{locate(path, lines, f'parts.{name}.after')}: no part '{part.after}' stands before '{name}'; {hint}"
            )
        earlier.append(name)
    return file


def _check_block(path: Path, lines: Lines, above: tuple[str, ...], block: Block) -> None:
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
    lengths = {key: len(values) for key, values in block.zip.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}:{line('zip')}: zipped lists differ in length: {lengths}")


def varied_text(varied: dict[str, Any]) -> str:
    """Config values in short, but those that a trial's id names."""
    known = {"model.generator", "model.discriminator", "model.patch", "seed", "start.step"}
    return ", ".join(
        f"{key.rpartition('.')[2] if key != 'start.trial' else 'after'}={value if value is not None else '-'}"
        for key, value in varied.items()
        if key not in known and not (key.startswith("start") and value is None)
    )
