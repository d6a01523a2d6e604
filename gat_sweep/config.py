"""The config of one trial: validated, frozen, and everything a result depends on.

A recipe (gat_sweep/recipes/*.yaml) holds the numbers of one data set and scale, and under `variants` other numbers for
studies that change the data (`variant: NAME`); a sweep file says what varies; `--preset` and `--set` override.
`resolve` puts them together.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gat_sweep.gat.scaling import BatchRule, DepthRule, adapted_learning_rate, batch_factor, depth_factor
from gat_sweep.gat.spec import Augmentation, DiscriminatorSpec, GeneratorSpec, Objective

# Where files lie, which may change between two launches of the same trial.
PLACES: dict[str, Any] = {
    "data": {"path", "tokenizer"},
    "teacher": {"checkpoint"},
    "eval": {"weights", "reference"},
}


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


def metric_name(extractor: str) -> str:
    """The name of the Frechet distance in an extractor's features; FID is Inception's alone."""
    return "fid" if extractor == "inception_v3" else f"fd_{extractor}"


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

    @property
    def metric(self) -> str:
        return metric_name(self.extractor)


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
