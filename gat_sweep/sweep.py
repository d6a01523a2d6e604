"""A sweep file to its list of trials, and the record of a run.

A sweep file says only what varies and how it is paired; the numbers live in the recipe:

    about: "Fig 3a, Table 3: model sizes"
    set: {model.patch: 2}                                     # the same for every trial
    zip: {model.generator: [S, B], model.discriminator: [S, B]}  # paired, first with first
    product: {model.patch: [2, 4]}                            # every combination
    points: [{...}, {...}]                                    # spelled out, one by one
    seeds: [0, 1, 2]

Each block is optional; together they multiply.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gat_sweep.config import PLACES, PRESETS, TrialConfig, check_key, flatten, load_recipe, locate, resolve
from gat_sweep.errors import UserError
from gat_sweep.storage import Place, children, write
from gat_sweep.yamlfile import nearest, read_yaml


class SweepFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    set: dict[str, Any] = {}
    zip: dict[str, list[Any]] = {}
    product: dict[str, list[Any]] = {}
    points: list[dict[str, Any]] = Field(default=[{}], min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)


@dataclass(frozen=True)
class Sweep:
    """Trials by id, in the order of the file."""

    name: str
    about: str
    recipe: str
    trials: dict[str, TrialConfig]


def load_sweep(
    path: Path,
    recipe_name: str,
    preset: str = "paper",
    overrides: Mapping[str, Any] | None = None,
    seeds: list[int] | None = None,
) -> Sweep:
    """Every trial of a sweep file at a recipe's scale.

    overrides: dotted keys (`--set`), stronger than recipe, preset and the file's `set`; they may not name
    what the sweep varies. seeds: instead of the file's.
    Raises UserError, one line, naming file, line and key.
    """
    overrides = overrides or {}
    file = _read(path)
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; {nearest(preset, PRESETS)}")
    varied = {key for block in (file.zip, file.product, *file.points) for key in block} | {"seed"}
    for key in overrides:
        check_key(key)
        if key in varied:
            hint = "use --seeds" if key == "seed" else "edit the sweep file to change it"
            raise UserError(f"--set {key}: {path} varies this key; {hint}")
    recipe = load_recipe(recipe_name)
    trials: dict[str, TrialConfig] = {}
    for point in _points(file, path):
        for seed in seeds or file.seeds:
            config = resolve(recipe, PRESETS[preset], file.set, overrides, point, {"seed": seed})
            name = trial_id(config)
            if name in trials:
                raise UserError(
                    f"{path}: two points are the same trial, {name}, or differ in train.steps alone; keep one, the "
                    "longer (its rows hold the shorter's)"
                )
            trials[name] = config
    return Sweep(path.stem, file.about, recipe_name, trials)


def trial_id(config: TrialConfig) -> str:
    """Stable and readable: sizes, patch and seed, then the hash of everything that makes the trial."""
    g, d = config.model.generator, config.model.discriminator
    sizes = g if g == d else f"G{g}-D{d}"
    return f"{sizes}-p{config.model.patch}-s{config.seed}-{config.digest()[:8]}"


def open_run(home: Place, name: str, sweep: Sweep, extend: bool = False) -> None:
    """Records a run's trials in <home>/<name>/run.json.

    A run may get more trials, and with `extend` more steps; what is recorded is never changed otherwise.
    Raises UserError, with the difference, when a recorded trial is not the sweep's.
    """
    path = home / name / "run.json"
    record: dict[str, Any] = {"sweep": sweep.name, "recipe": sweep.recipe}
    if path.exists():
        record = read_run(home, name)
        for trial, old in record["trials"].items():
            _check_same(home, name, trial, old, sweep, extend)
    trials = {trial: config.model_dump(mode="json") for trial, config in sweep.trials.items()}
    write(path, json.dumps({**record, "trials": trials}, indent=1).encode())


def read_run(home: Place, name: str) -> dict[str, Any]:
    """The record of a run. Raises UserError when there is none."""
    path = home / name / "run.json"
    if not path.exists():
        runs = [folder.name for folder in children(home) if (folder / "run.json").exists()]
        raise UserError(f"no run '{name}' in {home}; " + (nearest(name, runs) if runs else "it holds no runs yet"))
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _check_same(home: Place, name: str, trial: str, old: dict[str, Any], sweep: Sweep, extend: bool) -> None:
    now = sweep.trials.get(trial)
    if now is None:
        difference = _difference(old, sweep)
        raise UserError(
            f"run '{name}' exists in {home} with another config, in trial {trial} {difference}; choose another --name, "
            "or the settings it was made with"
        )
    before, after = old["train"]["steps"], now.train.steps
    if after < before or (after > before and not extend):
        more = "add --extend to train it on" if after > before else "steps that were trained are not taken back"
        raise UserError(
            f"run '{name}' exists in {home} with another config, in trial {trial} train.steps: {before} -> {after}; "
            f"{more}, or choose another --name"
        )


def _read(path: Path) -> SweepFile:
    values, lines = read_yaml(path)
    unknown = [key for key in values if key not in SweepFile.model_fields]
    if unknown:
        hint = nearest(unknown[0], SweepFile.model_fields)
        raise UserError(f"{path}:{lines[(unknown[0],)]}: unknown key '{unknown[0]}'; {hint}")
    try:
        file = SweepFile.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{locate(path, lines, key)}: {key}: {first['msg']}") from None
    for block in ("set", "zip", "product"):
        for key in getattr(file, block):
            check_key(key, where=f"{path}:{lines.get((block, key), lines.get((block,), 1))}")
    for key in {key for point in file.points for key in point}:
        check_key(key, where=f"{path}:{lines.get(('points',), 1)}")
    lengths = {key: len(values) for key, values in file.zip.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}:{lines[('zip',)]}: zipped lists differ in length: {lengths}")
    return file


def _points(file: SweepFile, path: Path) -> list[dict[str, Any]]:
    zipped = [dict(zip(file.zip, values, strict=True)) for values in zip(*file.zip.values(), strict=True)] or [{}]
    product = [dict(zip(file.product, values, strict=True)) for values in itertools.product(*file.product.values())]
    if not product:
        raise UserError(f"{path}: a list of `product` is empty")
    return [{**a, **b, **c} for a in file.points for b in zipped for c in product]


def _difference(old: dict[str, Any], sweep: Sweep) -> str:
    """The keys in which a recorded trial differs from its nearest relative in the sweep."""
    places = {f"{section}.{key}" for section, keys in PLACES.items() for key in keys}
    before = {k: v for k, v in flatten(old).items() if not k.startswith("workers.") and k not in places}
    candidates: list[list[str]] = []
    for config in sweep.trials.values():
        now = flatten(config.identity())
        keys = [key for key in sorted({**before, **now}) if before.get(key) != now.get(key)]
        candidates.append([f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys])
    fewest = min(candidates, key=len)
    return ", ".join(fewest) or "that the sweep has no more"
