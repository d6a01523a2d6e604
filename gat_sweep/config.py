"""The config of one trial: validated, frozen, and everything a result depends on.

A recipe (gat_sweep/recipes/*.yaml) holds the numbers of one data set and scale, and under `variants` other numbers for
studies that change the data (`variant: NAME`); a sweep file says what varies; `--preset` and `--set` override.
`resolve` puts them together.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gat_sweep.credentials import check_config
from gat_sweep.errors import UserError
from gat_sweep.gat.augment import Augmentation
from gat_sweep.gat.losses import OFFICIAL, Objective
from gat_sweep.gat.scaling import BatchRule, DepthRule, adapted_learning_rate, batch_factor, depth_factor
from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec
from gat_sweep.yamlfile import Lines, nearest, read_yaml

# Named bundles of overrides: the paper is the default, `official` the conventions of the released code.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {
        "mng.mixing": "official",
        "objective.gp_weight": OFFICIAL.gp_weight,
        "objective.align_reduction": OFFICIAL.align_reduction,
    },
}


# Where files lie, which may change between two launches of the same trial.
PLACES: dict[str, Any] = {
    "data": {"path", "tokenizer"},
    "teacher": {"checkpoint"},
    "eval": {"weights", "reference"},
}

FACTOR = re.compile(r"x(\d+\.?\d*|\.\d+)")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Size(_Section):
    """One row of a ladder (Table 2)."""

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)


class Data(_Section):
    """What is generated: latents (or pixels) of side x side x channels."""

    dataset: Literal["digits", "encoded"]
    path: str | None = None  # folder that `gat-sweep encode` wrote; digits come with scikit-learn
    tokenizer: str | None = None  # where the VAE lies now, if not where the folder's manifest says
    side: int = Field(gt=0)
    channels: int = Field(gt=0)
    classes: int = Field(ge=0)  # 0: unconditional


class Model(_Section):
    generator: str  # a size of the ladder
    discriminator: str
    patch: int = Field(gt=0)
    z_dim: int = Field(64, gt=0)
    class_width: int = Field(2048, gt=0)
    projector_width: int = Field(2048, gt=0)


class Mng(_Section):
    """Multi-level noise-perturbed guidance (section 2.3); `none` gives one level."""

    schedule: Literal["exp", "linear", "none", "msg"] = "exp"
    levels: int = Field(4, gt=1)
    mixing: Literal["paper", "official"] = "paper"


class Teacher(_Section):
    """The vision foundation model of Eq. 9."""

    name: str  # efficientnet_lite0, or a vision transformer of timm's
    width: int = Field(gt=0)
    checkpoint: str | None = None  # local weights; timm's hub unless given
    # Tokens stored by `gat-sweep encode --teacher`, moved on their grid, instead of the network run on moved pictures.
    cached: bool = False


class Train(_Section):
    steps: int = Field(gt=0)
    batch: int = Field(gt=1)  # images per step, over all workers
    base_lr: float = Field(gt=0)  # Eq. 4, at base_width (and base_depth and base_batch, where a rule looks at them)
    base_width: int = Field(gt=0)
    base_depth: int = Field(gt=0)
    base_batch: int = Field(gt=0)
    rate_of: str | None = None  # a size whose width both rates are adapted to; each network's own unless given
    rate_g: float = Field(1.0, gt=0)  # times the adapted rate of G
    rate_d: float = Field(1.0, gt=0)
    depth_rule: DepthRule = "none"
    batch_rule: BatchRule = "none"
    beta1: float = Field(0.0, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip: float = Field(1.0, gt=0)  # gradient norm; the paper is silent, the released code clips at 1
    ema_decay: float = Field(0.999, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    eval_every: int = Field(gt=0)  # steps
    log_every: int = Field(gt=0)  # steps


class Eval(_Section):
    """The protocol of every number (see metrics/)."""

    extractor: Literal["efficientnet_lite0", "inception_v3", "dinov2_vitl14"]
    weights: str | None = None  # the extractor's, as a local file; its own download unless given
    reference: str | None = None  # an ADM npz with mu and sigma; the data set's own pictures unless given
    samples: int = Field(gt=1)
    resize: int = Field(gt=0)  # side of the pictures the extractor sees
    seed: int = 0  # of the generated samples
    psi: float = Field(1.0, ge=0)  # truncation, 1 = off
    guidance: float = Field(1.0, ge=0)  # 1 = off
    # What the last evaluation of a trial measures besides the Frechet distance.
    extras: tuple[Literal["kernel_distance", "precision_recall", "fd_infinity"], ...] = ()


class Workers(_Section):
    """What a trial runs on; not part of what it is (results do not name it)."""

    count: int = Field(1, gt=0)
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    save_minutes: float = Field(15, gt=0)  # between checkpoints; one is written before each evaluation, too
    hang_minutes: float = Field(10, gt=0)  # without a move until a worker is named and the trial restarted
    memory_gib: float | None = Field(None, gt=0)  # of a worker for training; the device's own unless given
    compile: bool = False  # torch.compile the blocks: about a minute once, then a faster step; needs a compiler


class Start(_Section):
    """The trial of the same run whose training state a trial begins with, and after how many of its steps."""

    trial: str
    step: int = Field(gt=0)


class TrialConfig(_Section):
    recipe: str
    seed: int = Field(0, ge=0)
    start: Start | None = None
    ladder: dict[str, Size]
    data: Data
    model: Model
    mng: Mng = Mng()
    objective: Objective = Objective()
    augment: Augmentation = Augmentation()
    teacher: Teacher | None = None
    train: Train
    eval: Eval
    workers: Workers = Workers()

    @property
    def generator_spec(self) -> GeneratorSpec:
        return GeneratorSpec(**self._network(self.model.generator), z_dim=self.model.z_dim)

    @property
    def discriminator_spec(self) -> DiscriminatorSpec:
        return DiscriminatorSpec(
            **self._network(self.model.discriminator),
            class_width=self.model.class_width,
            projector_width=self.model.projector_width,
            teacher_width=self.teacher.width if self.teacher and self.objective.align_weight else 0,
        )

    @property
    def lr_g(self) -> float:
        return self.train.rate_g * self._rate(self.model.generator)

    @property
    def lr_d(self) -> float:
        return self.train.rate_d * self._rate(self.model.discriminator)

    def identity(self) -> dict[str, Any]:
        """What makes two trials the same trial: everything but the machines and where files lie on them.

        Which data, tokenizer and reference were used is told by digests, in checkpoints and protocols.
        """
        return self.model_dump(mode="json", exclude={"workers": True, **PLACES})

    def digest(self) -> str:
        """Stable hash of the identity, 12 hex digits.

        Without the number of steps: nothing before the last depends on it, so a trial can be trained on.
        """
        values = self.identity()
        del values["train"]["steps"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def placed(self) -> "TrialConfig":
        """The same with absolute paths, for workers that start in other folders; hub ids stay as they are."""
        values = self.model_dump()
        for section, keys in PLACES.items():
            for key in keys if values[section] else ():
                place = values[section][key]
                if place is not None and Path(place).expanduser().exists():
                    values[section][key] = str(Path(place).expanduser().absolute())
        return TrialConfig.model_validate(values)

    def _rate(self, size: str) -> float:
        """Learning rate of a network of that size."""
        t = self.train
        rate = adapted_learning_rate(t.base_lr, t.base_width, self.ladder[t.rate_of or size].width)
        rate *= depth_factor(t.depth_rule, t.base_depth, self.ladder[size].depth)
        return rate * batch_factor(t.batch_rule, t.base_batch, t.batch)

    def _network(self, size: str) -> dict[str, int]:
        return {
            **self.ladder[size].model_dump(),
            "side": self.data.side,
            "channels": self.data.channels,
            "patch": self.model.patch,
            "classes": self.data.classes,
            "levels": 1 if self.mng.schedule == "none" else self.mng.levels,
        }


def recipe_names() -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in files("gat_sweep.recipes").iterdir() if ".yaml" in f.name)


def load_recipe(name: str) -> dict[str, Any]:
    """A recipe's values, checked against the schema of TrialConfig.

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
    """A recipe with dotted overrides applied in turn, validated down to the networks' arithmetic.

    An override "variant" stands for the recipe's values of that name; a text such as "x0.5" for a number means times
    the value that it would have otherwise, rounded where it has to be whole.
    Raises UserError, one line, naming the key at fault.
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
        values["train"]["rate_of"] = None  # its own: one id for one trial
        config = _validated(values)
    try:
        _ = config.generator_spec, config.discriminator_spec
    except ValueError as error:
        raise UserError(str(error)) from None
    if config.train.batch % config.workers.count:
        raise UserError(f"train.batch {config.train.batch} is not divisible by workers.count {config.workers.count}")
    return config


def check_continues(config: TrialConfig, before: TrialConfig, where: str) -> None:
    """Raises UserError, beginning with `where`, unless a trial can go on from the end of another: more steps, and the
    same networks, or all but the projector of the alignment."""
    if config.train.steps <= before.train.steps:
        raise UserError(
            f"{where}: train.steps {config.train.steps} are over before it begins, steps count from the beginning of "
            f"what it starts from ({before.train.steps}); set train.steps, such as x1.5"
        )
    now, then = asdict(config.discriminator_spec), asdict(before.discriminator_spec)
    if not config.discriminator_spec.teacher_width:
        then["teacher_width"] = 0
    for old, new in [(asdict(before.generator_spec), asdict(config.generator_spec)), (then, now)]:
        for key in old:
            if old[key] != new[key]:
                raise UserError(f"{where}: {key} {old[key]} -> {new[key]}; a trial goes on with the networks it has")


def is_factor(value: Any) -> bool:
    """Whether an override multiplies what is there: "x0.5"."""
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
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def locate(path: Path, lines: Lines, dotted: str) -> str:
    """path:line of a key, or of its nearest parent that the file spells out."""
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
        there_are = nearest(str(name), known) if known else "it has none"
        raise UserError(f"recipe '{values['recipe']}' has no variant '{name}'; {there_are}")
    return known[name]


def _multiplied(values: Mapping[str, Any], dotted: str, factor: str) -> Any:
    """A number of the config, defaults included, times a factor; the factor itself where there is no number."""
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
        if name == "start":  # what `after` of a sweep file sets
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
