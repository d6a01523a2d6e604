"""Recipes and their overrides (--set keys, factors, variants, presets), which together become a config."""

import json
import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from gat_sweep.compute import step_flops
from gat_sweep.config import COUNT_TAGS, Data, Elastic, Size, Teacher, Text, Train, TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_config
from gat_sweep.files.yamlfile import Lines, read_yaml
from gat_sweep.gat.spec import OFFICIAL_OBJECTIVE
from gat_sweep.language.flops import WORDLLAMA, WORDLLAMA_WIDTH
from gat_sweep.text import nearest

# Named sets of overrides: `paper` is the default, `official` has the conventions of the released code.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {
        "mng.mixing": "official",
        "objective.gp_weight": OFFICIAL_OBJECTIVE.gp_weight,
        "objective.align_reduction": OFFICIAL_OBJECTIVE.align_reduction,
        "objective.align_view": OFFICIAL_OBJECTIVE.align_view,
        "augment.color_means": "before",
        "model.positions": "trained",
        "eval.null": "official",
    },
}


# What train.steps may be beside a number.
STEPS = "expected a number of steps, a factor such as x0.5, {flops: 3e15}, or {compute_of: XL}"
# What pydantic says of a wrong kind of value, in other words.
KINDS = {
    "missing": "needs a value",
    "tuple_type": "write a list, such as [kernel_distance]",
    "int_parsing": "write a whole number, or a factor such as x0.5",
    "int_type": "write a whole number, or a factor such as x0.5",
    "float_parsing": "write a number, or a factor such as x0.5",
    "float_type": "write a number, or a factor such as x0.5",
}
SMALLEST = 1.05  # ratio of two evaluations
FACTOR = re.compile(r"x(\d+\.?\d*|\.\d+)")


def recipe_names() -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in files("gat_sweep.recipes").iterdir() if ".yaml" in f.name)


def built_in(reference: str) -> str | None:
    """The built-in data set that a reference such as `digits:1797:314b97e8b73b` names; None for encoded data."""
    names = [name for name in get_args(Data.model_fields["dataset"].annotation) if name != "encoded"]
    return next((name for name in names if reference.startswith(name)), None)


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
                elif key == "train.steps" and is_relative(new):
                    new = _relative_steps(values["train"]["steps"], new)
                _assign(values, key, deepcopy(new))  # a later override may reach into it
    values.pop("variants", None)
    check_config(flatten(values))
    asked, values = values["train"], _unsolved(values)
    config = _checked(values)
    if isinstance(asked["steps"], Mapping):
        values["train"]["steps"] = _steps(asked["steps"], values, config)
    if isinstance(asked.get("eval_at"), Mapping):
        values["train"]["eval_at"] = _spread(asked["eval_at"], _checked(values))
    return _checked(values)


def _unsolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with any number in place of those that are yet to be computed."""
    numbers = {"steps": 1, "eval_at": ()}
    asked = {key for key in numbers if isinstance(values["train"].get(key), Mapping)}
    return {**values, "train": values["train"] | {key: numbers[key] for key in asked}}


def _checked(values: dict[str, Any]) -> TrialConfig:
    """The config of a recipe's values. Raises UserError where they do not fit together."""
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
    if config.train.batch < config.workers.most:
        raise UserError(f"workers.count {config.workers.most} is more than train.batch, {config.train.batch} images")
    if config.text is not None and config.text.name == WORDLLAMA and config.text.width != WORDLLAMA_WIDTH:
        width = WORDLLAMA_WIDTH
        raise UserError(f"text encoder '{WORDLLAMA}' has states of width {width}; set text.width={width}")
    for extra in set(config.eval.extras) & {"retrieval", "clip_score"}:
        if config.text is None:
            raise UserError(f"{extra} needs captions, and this trial has none; remove it from eval.extras")
    if "retrieval" in config.eval.extras and config.eval.reference:
        raise UserError("retrieval needs real pictures of the captions; remove it from eval.extras, or eval.reference")
    if ("clip_score" in config.eval.extras) != (config.eval.clip is not None):
        raise UserError("clip_score and eval.clip belong together; set eval.clip to a CLIP, or remove both")
    if config.mng.schedule == "linear" and config.mng.levels == 2:
        # 1/2 and 1 either way: two trials would train the same networks under two names.
        raise UserError(
            "mng.schedule linear is exp where there are 2 levels; for a linear one give more, such as mng.levels=4 "
            f"and ladder.{config.model.generator}.depth=4"
        )
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


def is_relative(value: Any) -> bool:
    """Whether an override depends on the present value, as "x0.5" and {compute_of: XL} do."""
    return is_factor(value) or (isinstance(value, Mapping) and "compute_of" in value)


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
    if parts[0] == "ladder" and len(parts) == 2:
        raise UserError(f"{where}: '{dotted}' is a size; name one of its values, such as {dotted}.width")
    if dotted not in known:
        if below := sorted(key for key in known if key.startswith(f"{dotted}.")):
            raise UserError(f"{where}: '{dotted}' is a section; name one of its values, such as {below[0]}")
        raise UserError(f"{where}: unknown key '{dotted}'; {nearest(dotted, known)}")


def is_key(dotted: str) -> bool:
    """Whether `dotted` names a value of TrialConfig."""
    return dotted in _known_keys()


def changed_settings(config: TrialConfig, left_out: Collection[str]) -> dict[str, str]:
    """What `--set` needs to make a config from its recipe, as text by key, without the keys that are left out."""
    usual, own = (flatten(c.model_dump(mode="json")) for c in (resolve(load_recipe(config.recipe)), config))
    changed = {key: value for key, value in own.items() if usual.get(key) != value and key not in left_out}
    # JSON is YAML, which --set reads.
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in changed.items()}


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
    given = {key: value for key, value in values.items() if key != "variants"}
    try:
        config = TrialConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"] if part not in COUNT_TAGS)
        raise UserError(f"{key}: {KINDS.get(first['type'], first['msg'])} (got {first['input']!r})") from None
    # pydantic takes true for 1 and "100" for 100.
    taken = flatten(config.model_dump(mode="json"))
    for key, value in flatten(given).items():
        if any(isinstance(value, kind) != isinstance(taken[key], kind) for kind in (bool, str)):
            raise UserError(f"{key}: write {json.dumps(taken[key])} (got {value!r})")
    return config


def _variant(values: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """The values of a recipe's variant."""
    known: dict[str, dict[str, Any]] = values.get("variants", {})
    if not isinstance(name, str) or name not in known:
        have = [other for other in recipe_names() if str(name) in load_recipe(other).get("variants", {})]
        hint = f"recipes that have it: {', '.join(have)}" if have else nearest(str(name), known)
        raise UserError(f"recipe '{values['recipe']}' has no variant '{name}'; {hint}")
    return known[name]


def _multiplied(values: Mapping[str, Any], dotted: str, factor: str) -> Any:
    """A number of the config (or its default) times a factor; the factor itself if the value is not a number."""
    if dotted == "train.steps" and isinstance(asked := values["train"]["steps"], Mapping):
        key = "steps" if "compute_of" in asked else "flops"
        product = asked[key] * float(factor[1:])
        return {**asked, key: max(1, round(product)) if key == "steps" else product}
    current: Any = _validated(_unsolved(values)).model_dump()
    for part in dotted.split("."):
        current = current.get(part) if isinstance(current, dict) else None
    if isinstance(current, bool) or not isinstance(current, int | float):
        return factor
    product = current * float(factor[1:])
    return max(1, round(product)) if isinstance(current, int) else product


def _relative_steps(present: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """{compute_of: SIZE} with the steps that it is about."""
    steps = present.get("steps") if isinstance(present, Mapping) else present
    if set(asked) != {"compute_of"} or steps is None:
        raise UserError(f"train.steps: {STEPS}; got {dict(asked)} after {present}")
    return {**asked, "steps": steps}


def _steps(asked: Mapping[str, Any], values: dict[str, Any], config: TrialConfig) -> int:
    """The steps of a trial that {flops: 3e15} or {compute_of: SIZE} asks for."""
    budget = asked.get("flops")
    if "compute_of" in asked:
        size = asked["compute_of"]
        model = values["model"] | {"generator": size, "discriminator": size}
        other = _checked(values | {"model": model, "train": values["train"] | {"steps": asked["steps"]}})
        budget = other.train.steps * step_flops(other)
    elif set(asked) != {"flops"} or isinstance(budget, bool) or not isinstance(budget, int | float) or budget <= 0:
        raise UserError(f"train.steps: {STEPS}; got {dict(asked)}")
    assert budget is not None
    steps = round(budget / step_flops(config))
    if steps < 1:
        raise UserError(
            f"train.steps: {budget:.3g} FLOP do not pay for one step of {config.model.generator} and "
            f"{config.model.discriminator}, which costs {step_flops(config):.3g}; give more"
        )
    return steps


def _spread(asked: Mapping[str, Any], config: TrialConfig) -> tuple[int, ...]:
    """The steps of {ratio: 2}: the last one divided by it, again and again."""
    ratio = asked.get("ratio")
    if set(asked) != {"ratio"} or isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio < SMALLEST:
        raise UserError(
            f"train.eval_at: expected a list of steps, or {{ratio: R}} with R at least {SMALLEST}; got {dict(asked)}"
        )
    return spread_evenly(config.train, config.train.steps, ratio)


def spread_evenly(train: Train, steps: int, ratio: float) -> tuple[int, ...]:
    """The last step, divided by the ratio again and again, until the average has not forgotten the beginning."""
    found: list[int] = []
    while (step := round(steps / ratio ** len(found))) >= train.averaged or not found:
        found.append(step)
    return tuple(sorted(found))


@cache  # the schemas take a tenth of a second
def _known_keys() -> set[str]:
    keys: set[str] = {"variant"}
    for name, field in TrialConfig.model_fields.items():
        if name == "start":  # set only by `after` of a sweep file
            continue
        annotation = {"teacher": Teacher, "text": Text}.get(name, field.annotation)
        if get_origin(annotation) is dict:
            keys.add(name)
        elif isinstance(annotation, type) and annotation not in (str, int, float):
            properties = TypeAdapter(annotation).json_schema()["properties"]
            keys.update(f"{name}.{leaf}" for leaf in properties)
            if name in ("teacher", "text"):
                keys.add(name)
            if name == "workers":
                keys.update(f"workers.count.{end}" for end in Elastic.model_fields)
        else:
            keys.add(name)
    return keys
