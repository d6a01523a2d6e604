"""Recipes and their overrides (--set keys, factors, variants, presets), which together become a config."""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, get_origin

from pydantic import TypeAdapter, ValidationError

from gat_sweep.config import Size, Teacher, TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_config
from gat_sweep.files.yamlfile import Lines, read_yaml
from gat_sweep.gat.spec import OFFICIAL_OBJECTIVE
from gat_sweep.text import nearest

# Named sets of overrides: `paper` is the default, `official` has the conventions of the released code.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {
        "mng.mixing": "official",
        "objective.gp_weight": OFFICIAL_OBJECTIVE.gp_weight,
        "objective.align_reduction": OFFICIAL_OBJECTIVE.align_reduction,
    },
}


FACTOR = re.compile(r"x(\d+\.?\d*|\.\d+)")


def recipe_names() -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in files("gat_sweep.recipes").iterdir() if ".yaml" in f.name)


def load_recipe(name: str) -> dict[str, Any]:
    """Values of a recipe, checked against the schema of TrialConfig.

    Raises UserError for an unknown name or key.
    """
    if name not in recipe_names():
        raise UserError(f"unknown recipe '{name}'; {nearest(name, recipe_names())}")
    path = Path(str(files("gat_sweep.recipes").joinpath(f"{name}.yaml")))
    values, lines = read_yaml(path)
    for dotted in flatten(values):
        check_key(dotted, where=locate(path, lines, dotted))
    return {"recipe": name, **values}


def resolve(recipe: Mapping[str, Any], *overrides: Mapping[str, Any]) -> TrialConfig:
    """The config of a recipe with dotted overrides, applied in order and validated, shapes of the networks included.

    The override "variant" stands for the recipe's values of that name. A text such as "x0.5" multiplies the value
    that a number has without it, rounded for whole numbers.
    Raises UserError, one line, which names the wrong key.
    """
    values: dict[str, Any] = json.loads(json.dumps(recipe))
    for override in overrides:
        for dotted, value in override.items():
            if dotted.startswith("variants."):
                _variant(values, dotted.split(".")[1])
            given = flatten(_variant(values, value)) if dotted == "variant" else {dotted: value}
            for key, new in given.items():
                if is_factor(new):
                    new = _multiplied(values, key, new)
                _assign(values, key, deepcopy(new))  # a later override may reach into it
    values.pop("variants", None)
    check_config(flatten(values))
    config = _validated(values)
    for size in (config.model.generator, config.model.discriminator, config.train.rate_of):
        if size is not None and size not in config.ladder:
            raise UserError(f"recipe '{config.recipe}' has no size '{size}'; {nearest(size, config.ladder)}")
    if config.train.rate_of == config.model.generator == config.model.discriminator:
        values["train"]["rate_of"] = None  # this is the default, and one trial has one id
        config = _validated(values)
    try:
        _ = config.generator_spec, config.discriminator_spec
    except ValueError as error:
        raise UserError(str(error)) from None
    if config.train.batch % config.workers.count:
        raise UserError(f"train.batch {config.train.batch} is not divisible by workers.count {config.workers.count}")
    return config


def check_continues(config: TrialConfig, before: TrialConfig, where: str) -> None:
    """Raises UserError, beginning with `where`, unless a trial can continue from the last step of another.

    It needs more steps and the same networks; only the alignment projector may be left out.
    """
    if config.train.steps <= before.train.steps:
        raise UserError(
            f"{where}: train.steps is {config.train.steps}, but the trial starts at step {before.train.steps} of "
            "another; steps count from that trial's beginning, so set more, such as x1.5"
        )
    now, then = asdict(config.discriminator_spec), asdict(before.discriminator_spec)
    if not config.discriminator_spec.teacher_width:
        then["teacher_width"] = 0
    for old, new in [(asdict(before.generator_spec), asdict(config.generator_spec)), (then, now)]:
        for key in old:
            if old[key] != new[key]:
                raise UserError(f"{where}: {key} {old[key]} -> {new[key]}; a trial that continues keeps its networks")


def is_factor(value: Any) -> bool:
    """Whether an override multiplies the present value, such as "x0.5"."""
    return isinstance(value, str) and FACTOR.fullmatch(value) is not None


def check_key(dotted: str, where: str = "--set") -> None:
    """Raises UserError unless `dotted` names a value of TrialConfig."""
    known = _known_keys()
    parts = dotted.split(".")
    if parts[0] == "ladder" and len(parts) == 3 and parts[2] in Size.model_fields:
        return
    if parts[0] == "variants" and len(parts) > 2:
        check_key(".".join(parts[2:]), where)
        return
    if dotted not in known:
        raise UserError(f"{where}: unknown key '{dotted}'; {nearest(dotted, known)}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key, from nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def locate(path: Path, lines: Lines, dotted: str) -> str:
    """Place of a key, as path:line, or of its nearest parent that is in the file."""
    parts = tuple(dotted.split("."))
    while parts and parts not in lines:
        parts = parts[:-1]
    return f"{path}:{lines[parts]}" if parts else str(path)


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[leaf] = value


def _validated(values: Mapping[str, Any]) -> TrialConfig:
    try:
        return TrialConfig.model_validate({key: value for key, value in values.items() if key != "variants"})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{key}: {first['msg']} (got {first['input']!r})") from None


def _variant(values: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """The values of a recipe's variant."""
    known: dict[str, dict[str, Any]] = values.get("variants", {})
    if name not in known:
        there_are = nearest(str(name), known) if known else "it has no variants"
        raise UserError(f"recipe '{values['recipe']}' has no variant '{name}'; {there_are}")
    return known[name]


def _multiplied(values: Mapping[str, Any], dotted: str, factor: str) -> Any:
    """A number of the config (or its default) times a factor; the factor itself if the value is not a number."""
    current: Any = _validated(values).model_dump()
    for part in dotted.split("."):
        current = current.get(part) if isinstance(current, dict) else None
    if isinstance(current, bool) or not isinstance(current, int | float):
        return factor
    product = current * float(factor[1:])
    return max(1, round(product)) if isinstance(current, int) else product


def _known_keys() -> set[str]:
    keys: set[str] = {"variant"}
    for name, field in TrialConfig.model_fields.items():
        if name == "start":  # set only by `after` of a sweep file
            continue
        annotation = Teacher if name == "teacher" else field.annotation
        if get_origin(annotation) is dict:
            keys.add(name)
        elif isinstance(annotation, type) and annotation not in (str, int, float):
            properties = TypeAdapter(annotation).json_schema()["properties"]
            keys.update(f"{name}.{leaf}" for leaf in properties)
            if name == "teacher":
                keys.add(name)
        else:
            keys.add(name)
    return keys
