"""The config of one trial: validated, frozen, with everything that a result depends on.

A recipe (gat_sweep/recipes/*.yaml) holds the values for one data set and scale. Its `variants` hold other values, for
studies that change the data (`variant: NAME`). A sweep file says what varies; `--preset` and `--set` override values.
`recipe.resolve` combines them.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from gat_sweep.gat.scaling import BatchRule, DepthRule, adapted_learning_rate, batch_factor, depth_factor
from gat_sweep.gat.spec import Augmentation, DiscriminatorSpec, GeneratorSpec, NullStyle, Objective

# Places of files, which may change between two launches of the same trial.
PLACES: dict[str, Any] = {
    "data": {"path", "tokenizer"},
    "teacher": {"checkpoint"},
    "text": {"folder"},
    "eval": {"weights", "reference", "data", "clip"},
}
# Config values that came after version 0.1, each with what the code did before. At this value they are not in the hash
# of a trial, so a run that is older than the value goes on under its own trial ids.
ADDED: dict[tuple[str, str], str] = {
    ("model", "positions"): "fixed",
    ("augment", "color_means"): "after",
    ("objective", "align_view"): "paper",
    ("objective", "penalty_precision"): "trained",
    ("eval", "null"): "paper",
    ("eval", "decoder"): "float32",
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Size(_Section):
    """One row of a ladder (Table 2)."""

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)


class Data(_Section):
    """The data to generate: latents (or pixels) of side x side x channels."""

    # Digits of scikit-learn or of MNIST, or emoji, which come with a dependency, or what `gat-sweep encode` wrote.
    dataset: Literal["digits", "mnist", "emoji", "encoded"]
    path: str | None = None  # folder that `gat-sweep encode` wrote; only for encoded data
    tokenizer: str | None = None  # place of the VAE (default: the place in the folder's manifest)
    side: int = Field(gt=0)  # rows and columns of a latent
    channels: int = Field(gt=0)  # of a latent
    classes: int = Field(ge=0)  # 0: unconditional


class Model(_Section):
    """Sizes of both networks, and the widths that they share."""

    generator: str  # a size of the ladder
    discriminator: str  # the same
    patch: int = Field(gt=0)  # side of the square that one token holds
    # Tables of positions of both networks: constants, or parameters that start as these (the released code).
    positions: Literal["fixed", "trained"] = "fixed"
    z_dim: int = Field(64, gt=0)  # width of the latent code
    class_width: int = Field(2048, gt=0)  # width of the class vector of D
    projector_width: int = Field(2048, gt=0)  # hidden width of the alignment projector


class Mng(_Section):
    """Multi-level noise-perturbed guidance (section 2.3); `none` gives one level."""

    # Signal over the levels: doubling, in even steps, one level only, or MSG-GAN's resizing.
    schedule: Literal["exp", "linear", "none", "msg"] = "exp"
    levels: int = Field(4, gt=1)  # K of Eq. 1; the depth is a multiple of it
    mixing: Literal["paper", "official"] = "paper"  # noise of Eq. 2, or of the released code


class Teacher(_Section):
    """The vision foundation model of Eq. 9."""

    name: str  # efficientnet_lite0, or a vision transformer of timm
    width: int = Field(gt=0)  # of its tokens
    checkpoint: str | None = None  # file of local weights (default: download from timm's hub)
    # Use tokens stored by `gat-sweep encode --teacher` and move them on their grid. Otherwise run the network on the
    # moved pictures.
    cached: bool = False


class Text(_Section):
    """The frozen text encoder of text-to-image (A.9)."""

    name: str  # wordllama, or the hub id of a CLIP such as openai/clip-vit-large-patch14
    width: int = Field(gt=0)  # of its states
    tokens: int = Field(gt=0)  # of a caption; a longer one is cut
    folder: str | None = None  # local folder of a CLIP (default: download it)
    # Use states stored by `gat-sweep encode --store-text`. Otherwise run the encoder in the step.
    cached: bool = False


class Train(_Section):
    """Optimisation and its schedule."""

    # Iterations: a D step and a G step each. `{flops: 3e15}` stands for the steps that these FLOPs pay for,
    # `{compute_of: XL}` for those that cost what the recipe's steps cost at that size.
    steps: int = Field(gt=0)
    batch: int = Field(gt=1)  # images per step, over all workers
    base_lr: float = Field(gt=0)  # Eq. 4, at base_width (and at base_depth and base_batch, if a rule uses them)
    base_width: int = Field(gt=0)  # width for which base_lr is given
    base_depth: int = Field(gt=0)  # depth for which base_lr is given, for depth_rule
    base_batch: int = Field(gt=0)  # batch for which base_lr is given, for batch_rule
    rate_of: str | None = None  # size whose width sets both rates (default: each network's own size)
    rate_g: float = Field(1.0, gt=0)  # factor on the adapted rate of G
    rate_d: float = Field(1.0, gt=0)  # factor on the adapted rate of D
    depth_rule: DepthRule = "none"  # sqrt: divides the rate by the root of depth / base_depth (A.12)
    batch_rule: BatchRule = "none"  # multiplies the rate by batch / base_batch, or by its root (A.12)
    beta1: float = Field(0.0, ge=0, lt=1)  # of AdamW
    beta2: float = Field(0.99, ge=0, lt=1)  # of AdamW
    eps: float = Field(1e-8, gt=0)  # of AdamW
    clip: float = Field(1.0, gt=0)  # largest gradient norm; the paper does not give one, the released code has 1
    ema_decay: float = Field(0.999, ge=0, lt=1)  # of the running average of G's weights, per step
    precision: Literal["float32", "bfloat16"] = "float32"  # of forward and backward; weights stay in float32
    eval_every: int = Field(gt=0)  # steps between evaluations, where eval_at is empty
    # Steps at which to evaluate, beside the last one. `{ratio: 2}` stands for the last step / 2, / 4, ..., as long as
    # the running average has forgotten its beginning.
    eval_at: tuple[int, ...] = ()
    log_every: int = Field(gt=0)  # steps

    @property
    def averaged(self) -> int:
        """Steps after which less than 1 % of the running average is from the beginning: 5 time constants."""
        return math.ceil(5 / (1 - self.ema_decay))

    def evaluates(self, step: int) -> bool:
        """Whether a trial is evaluated after this step."""
        asked = step in self.eval_at if self.eval_at else step % self.eval_every == 0
        return asked or step == self.steps


def metric_name(extractor: str) -> str:
    """Name of the Frechet distance in the features of an extractor; only Inception's is called FID."""
    return "fid" if extractor == "inception_v3" else f"fd_{extractor}"


class Eval(_Section):
    """The evaluation protocol, the same for every measured number (see metrics/)."""

    extractor: Literal["efficientnet_lite0", "inception_v3", "dinov2_vitl14"]  # FID needs inception_v3
    weights: str | None = None  # local file of the extractor's weights (default: download them)
    reference: str | None = None  # an ADM npz with mu and sigma (default: the pictures of the data set)
    # Folder of another encoded data set that gives the real pictures and the captions of an evaluation, such as a
    # validation split (default: the data that is trained on).
    data: str | None = None
    clip: str | None = None  # hub id or local folder of the CLIP of the extra clip_score
    samples: int = Field(gt=1)  # generated pictures per evaluation
    resize: int = Field(gt=0)  # side of the pictures that the extractor sees
    seed: int = 0  # seed of the generated samples
    # Products of the VAE's decoder. TF32, which torch takes for convolutions unless told otherwise, is 7 times as fast.
    decoder: Literal["float32", "tf32"] = "float32"
    psi: float = Field(1.0, ge=0)  # truncation, 1 = off
    guidance: float = Field(1.0, ge=0)  # 1 = off
    null: NullStyle = "paper"  # style that guidance leads away from (Generator.null_style)
    # Metrics that the last evaluation of a trial measures in addition to the Frechet distance.
    # retrieval and clip_score need captions.
    extras: tuple[Literal["kernel_distance", "precision_recall", "fd_infinity", "retrieval", "clip_score"], ...] = ()

    @property
    def metric(self) -> str:
        return metric_name(self.extractor)


class Elastic(_Section):
    """Bounds of a number of workers that follows the machines."""

    min: int = Field(gt=0)
    max: int = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min >= self.max:
            raise ValueError("give a min below max, or one number")
        return self


# In an error, pydantic puts the tag of the kind behind the name of the value.
COUNT_TAGS = ("one number", "bounds")
WorkerCount = Annotated[
    Annotated[int, Field(gt=0), Tag(COUNT_TAGS[0])] | Annotated[Elastic, Tag(COUNT_TAGS[1])],
    Discriminator(lambda value: COUNT_TAGS[isinstance(value, dict | Elastic)]),
]


class Workers(_Section):
    """The machines that a trial runs on; not part of its identity or of its results."""

    # Workers of a trial, which share each batch. `{min: 2, max: 8}`: as many as there is room for, more or fewer later.
    count: WorkerCount = 1
    cpus: float = Field(1, gt=0)  # per worker
    gpus: float = Field(0, ge=0)  # per worker
    save_minutes: float = Field(15, gt=0)  # between checkpoints; each evaluation also writes one before it starts
    hang_minutes: float = Field(10, gt=0)  # a trial without progress for this time names its worker and restarts
    memory_gib: float | None = Field(None, gt=0)  # memory of a worker for training (default: that of its device)
    # torch.compile the blocks: a minute or two once, then faster steps; needs a C++ compiler. Default: on CUDA.
    compile: bool | None = None
    # Triton kernel for qk-norm and RoPE: same numbers up to rounding. Off: no GPU has timed it yet. On CUDA only.
    qk_kernel: bool = False
    cuda_graph: bool = True  # replay the iteration as one CUDA graph: same numbers; on CUDA with one worker per trial
    system_metrics: bool = True  # record the load of each worker's machine and GPU, every 10 s at most, for MLflow

    @property
    def elastic(self) -> bool:
        return isinstance(self.count, Elastic)

    @property
    def least(self) -> int:
        """The number of workers with which a trial begins at the latest."""
        return self.count.min if isinstance(self.count, Elastic) else self.count

    @property
    def most(self) -> int:
        return self.count.max if isinstance(self.count, Elastic) else self.count

    def of(self, count: int) -> "Workers":
        """These, in that number."""
        return self.model_copy(update={"count": count})


class Start(_Section):
    """The trial of the same run that a trial continues, and the step at which it does."""

    trial: str
    step: int = Field(gt=0)


class TrialConfig(_Section):
    """Everything that one trial depends on, with the sections above."""

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
    text: Text | None = None  # captions in place of classes
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
        """The values that make two trials the same trial: all but the machines and the places of files.

        Checkpoints and protocols record the data, tokenizer and reference that were used by their digests.
        """
        return self.model_dump(mode="json", exclude={"workers": True, **PLACES})

    def digest(self) -> str:
        """Stable hash of the identity, 12 hex digits.

        It excludes the number of steps and those of the evaluations: no step depends on them, so a trial can be
        trained for longer later. Of the ladder it includes the sizes in use: a recipe may get more sizes. A value that
        is newer than version 0.1 counts where it is not what the code did before (ADDED).
        """
        values = self.identity()
        del values["train"]["steps"], values["train"]["eval_at"]
        if self.text is None:  # newer than version 0.1 as well
            del values["text"]
        for (section, key), before in ADDED.items():
            if values[section][key] == before:
                del values[section][key]
        used = {self.model.generator, self.model.discriminator, self.train.rate_of}
        values["ladder"] = {size: row for size, row in values["ladder"].items() if size in used}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def placed(self) -> "TrialConfig":
        """This config with absolute paths, for workers that start in other folders; hub ids are unchanged."""
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

    def _network(self, size: str) -> dict[str, Any]:
        return {
            **self.ladder[size].model_dump(),
            "side": self.data.side,
            "channels": self.data.channels,
            "patch": self.model.patch,
            "positions": self.model.positions,
            "classes": self.data.classes,
            "levels": 1 if self.mng.schedule == "none" else self.mng.levels,
            "text_width": self.text.width if self.text else 0,
            "text_tokens": self.text.tokens if self.text else 0,
        }
