"""Comparison with the authors' released code, for two kinds of reference file (docs/parity.md).

A step: outputs of both networks, and losses and gradients of one D step and one G step with the same weights, without
augmentation. An iteration: losses, gradient norms, clipped gradients and the running mean of w of one iteration of the
engine with preset official, in which D moves before the G step, with augmentation, learned positions and a teacher.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from gat_sweep.compute import TEACHER_SIDE
from gat_sweep.config import TrialConfig
from gat_sweep.data.rows import Rows
from gat_sweep.errors import UserError
from gat_sweep.gat.augment import AugmentDraws
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.losses import Draws, discriminator_losses, generator_loss
from gat_sweep.gat.mng import make_perturb
from gat_sweep.gat.spec import OFFICIAL_OBJECTIVE, DiscriminatorSpec, GeneratorSpec
from gat_sweep.pretrained.official import OFFICIAL_NAMES_D, OFFICIAL_NAMES_G, official_name
from gat_sweep.recipe import PRESETS, load_recipe, resolve
from gat_sweep.train.batch import Batch
from gat_sweep.train.engine import Engine
from gat_sweep.vision.teacher import Teacher, teacher_tokens

# How much rounding may change, relatively, what comes after a step of D: AdamW makes a whole step of a gradient that is
# only rounding. Seen with three instruction sets: 9e-5 (loss of G) and 2.4e-4 (its gradients). A rate that is 1 % off
# changes the two by 2e-2.
MOVED = 5e-4
LIMITS = {"max_abs_output": 1e-5, "max_rel_loss": 1e-5, "max_rel_grad": 1e-4}


@dataclass(frozen=True)
class Parity:
    """Largest differences from the reference."""

    max_abs_output: float
    max_rel_loss: float
    max_rel_grad: float

    @property
    def passed(self) -> bool:
        return all(value <= LIMITS[name] for name, value in asdict(self).items())


def check_parity(path: Path, device: torch.device) -> Parity:
    """Runs our networks and losses, or the engine, with the weights, inputs and random numbers of a reference file.

    On CUDA with the products' precision that torch is set to; its default is float32.
    Raises UserError when the file cannot be read or does not have the layout of a reference.
    """
    tensors, config, extra = _read(path)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        compare = _compare_iteration if "after.w_avg" in tensors else _compare_step
        return compare(tensors, config, extra, device)
    except KeyError as error:
        raise UserError(f"{path}: the reference lacks {error}; see docs/parity.md for the layout") from None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, int], dict[str, int]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a reference file (.safetensors)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    if "config" not in metadata or "d_extra" not in metadata:
        raise UserError(f"{path}: metadata lacks 'config' or 'd_extra'; see docs/parity.md for the layout")
    return tensors, json.loads(metadata["config"]), json.loads(metadata["d_extra"])


def _compare_step(
    ref: dict[str, Tensor], config: dict[str, int], extra: dict[str, int], device: torch.device
) -> Parity:
    shared: dict[str, Any] = {
        "width": config["hidden_size"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "side": config["input_size"],
        "channels": config["in_channels"],
        "patch": config["patch_size"],
        "classes": config["num_classes"],
        "levels": ref["G.levels"].shape[0],
    }
    generator = Generator(GeneratorSpec(**shared, z_dim=ref["z"].shape[1])).to(device)
    discriminator = Discriminator(
        DiscriminatorSpec(
            **shared,
            class_width=extra["cmap_dim"],
            projector_width=extra["projector_dim"],
            teacher_width=extra["teacher_dim"],
        )
    ).to(device)
    _load(generator, ref, "G.param.", OFFICIAL_NAMES_G)
    _load(discriminator, ref, "D.param.", OFFICIAL_NAMES_D)
    z, y, real = ref["z"], ref["y"], ref["real"]

    # Outputs
    fake_levels, w = generator(z, y)
    guided = generator.sample(z, y, guidance=1.5, null="official")
    levels_in = ref["D.input_levels"]
    with torch.no_grad():
        logits, projected = discriminator(levels_in.transpose(0, 1).flatten(1, 2), y, len(y))
    assert projected is not None
    outputs = [
        (w, ref["G.w"]),
        (fake_levels, ref["G.levels"]),
        (guided, ref["G.guided_s1.5.final"]),
        (logits, ref["D.logits"][:, 0]),
        (projected[:, :1], ref["D.proj_cls"]),
        (projected[:, 1:], ref["D.proj_patch"]),
    ]
    max_abs_output = max((ours - theirs).abs().max().item() for ours, theirs in outputs)

    perturb = make_perturb("exp", shared["levels"], "official", device)

    def same(x: Tensor, _: object) -> Tensor:
        return x

    # D step
    teacher = torch.cat([ref["teacher_cls"][:, None], ref["teacher_patch"]], dim=1)
    penalty_real = ref["D_step.gp_eps_real"].expand_as(fake_levels)
    draws = Draws(
        mng=torch.stack([ref["D_step.noise_real_levels"], ref["D_step.noise_fake_levels"]]),
        penalty=torch.stack([penalty_real, ref["D_step.gp_eps_fake_levels"]]),
    )
    terms = discriminator_losses(
        discriminator, real, fake_levels.detach(), y, teacher, draws, same, perturb, OFFICIAL_OBJECTIVE
    )
    terms["loss_d"].mean().backward()
    losses = _losses_d(terms, ref)
    gradients_d = _gradients(discriminator, ref, "D_step.grad.", OFFICIAL_NAMES_D)

    # G step, with D's weights unchanged, as in the reference
    discriminator.requires_grad_(False)
    draws = Draws(mng=torch.stack([ref["G_step.noise_real_levels"], ref["G_step.noise_fake_levels"]]))
    loss_g = generator_loss(discriminator, real, fake_levels, y, draws, same, perturb)
    loss_g.mean().backward()
    losses.append((loss_g, ref["G_step.loss"], 0.0))
    gradients = [gradients_d, _gradients(generator, ref, "G_step.grad.", OFFICIAL_NAMES_G)]

    max_rel_loss = max(_relative(*pair) for pair in losses)
    max_rel_grad = max(_relative_gradients(pairs) for pairs in gradients)
    return Parity(max_abs_output, max_rel_loss, max_rel_grad)


class _Teacher(nn.Module):
    """The network of the reference's teacher: the mean colours of 4x4 patches, times a matrix."""

    weight: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens [B, 1 + 16, W] of pictures [B, 3, 224, 224]; the first is their mean."""
        tokens = F.avg_pool2d(x, TEACHER_SIDE // 4).flatten(2).transpose(1, 2) @ self.weight.T
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


def _iteration_config(config: dict[str, int], extra: dict[str, int], batch: int) -> TrialConfig:
    """The paper's recipe with preset official, at the sizes of a reference."""
    size = {"width": config["hidden_size"], "depth": config["depth"], "heads": config["num_heads"]}
    changes = {
        "ladder": {"reference": size},
        "model.generator": "reference",
        "model.discriminator": "reference",
        "model.patch": config["patch_size"],
        "model.class_width": extra["cmap_dim"],
        "model.projector_width": extra["projector_dim"],
        "teacher.width": extra["teacher_dim"],
        "data.side": config["input_size"],
        "data.channels": config["in_channels"],
        "data.classes": config["num_classes"],
        "train.batch": batch,
        "train.precision": "float32",
        "workers.count": 1,
        "workers.compile": False,  # for one iteration it would take two minutes
    }
    return resolve(load_recipe("imagenet256"), PRESETS["official"], changes)


def _augment_draws(ref: dict[str, Tensor], step: str, config: TrialConfig) -> AugmentDraws:
    """A reference's augmentation in our terms. It moves and cuts before it flips, we do so after."""

    def drawn(name: str) -> Tensor:
        return torch.stack([ref[f"{step}.{part}.{name}"] for part in ("real", "fake")])

    side = config.data.side
    cut = int(side * config.augment.cutout + 0.5)
    flipped = drawn("flip").bool()
    shift_x, cut_x = drawn("translation_x"), drawn("cutout_x") - cut // 2
    return AugmentDraws(
        colored=drawn("colored").bool(),
        brightness=drawn("brightness") - 0.5,
        saturation=drawn("saturation") * 2,
        contrast=drawn("contrast") + 0.5,
        shift_y=drawn("translation_y"),
        shift_x=torch.where(flipped, -shift_x, shift_x),
        flipped=flipped,
        cut_y=drawn("cutout_y") - cut // 2,
        cut_x=torch.where(flipped, side - cut - cut_x, cut_x),
    )


def _compare_iteration(
    ref: dict[str, Tensor], config: dict[str, int], extra: dict[str, int], device: torch.device
) -> Parity:
    trial = _iteration_config(config, extra, len(ref["z"]))
    engine = Engine(trial, device)
    generator, discriminator = engine.generator, engine.discriminator
    _load(generator, ref, "G.param.", OFFICIAL_NAMES_G)
    _load(discriminator, ref, "D.param.", OFFICIAL_NAMES_D)
    generator.style_mean.copy_(ref["G.param.w_avg"])

    def draws(step: str) -> Draws:
        penalty = None
        if f"{step}.gp_eps_real" in ref:
            fake = ref[f"{step}.gp_eps_fake_levels"]
            penalty = torch.stack([ref[f"{step}.gp_eps_real"].expand_as(fake), fake])
        mng = torch.stack([ref[f"{step}.noise_real_levels"], ref[f"{step}.noise_fake_levels"]])
        return Draws(mng, penalty, _augment_draws(ref, step, trial))

    draws_d, draws_g = draws("D_step"), draws("G_step")
    assert draws_d.augment is not None
    mean, std = (
        torch.tensor(value, device=device).view(3, 1, 1) for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    teacher = Teacher(
        _Teacher(ref["teacher.weight"]), extra["teacher_dim"], 1, mean, std, 4, trial.objective.align_view
    )
    rows = Rows(ref["real"], None, ref["y"], pictures=ref["pictures"])
    tokens = teacher_tokens(teacher, trial, rows, draws_d.augment)
    terms = engine.iterate(Batch(ref["real"], ref["y"], ref["z"], tokens, draws_d, draws_g))
    losses = [
        *_losses_d(terms, ref),
        (terms["grad_norm_d"], ref["D_step.norm"], 0.0),
        (terms["loss_g"], ref["G_step.loss"], MOVED * ref["G_step.loss"]),
        (terms["grad_norm_g"], ref["G_step.norm"], MOVED * ref["G_step.norm"]),
    ]
    # Without momentum (beta1 0), AdamW's first moment is the clipped gradient.
    gradients = []
    for step, module, optimizer, rules in [
        ("D_step", discriminator, engine.optimizer_d, OFFICIAL_NAMES_D),
        ("G_step", generator, engine.optimizer_g, OFFICIAL_NAMES_G),
    ]:
        for parameter in module.parameters():
            parameter.grad = optimizer.state[parameter]["exp_avg"]
        gradients.append(_gradients(module, ref, f"{step}.grad.", rules))
    of_d, of_g = (_relative_gradients(pairs) for pairs in gradients)
    return Parity(
        max_abs_output=(generator.style_mean - ref["after.w_avg"]).abs().max().item(),
        max_rel_loss=max(_relative(*pair) for pair in losses),
        max_rel_grad=max(of_d, of_g - MOVED),
    )


def _losses_d(terms: dict[str, Tensor], ref: dict[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor | float]]:
    """(ours, reference, difference that rounding explains) of every loss term of D's step."""
    return [
        (terms["loss_d"], ref["D_step.loss"], 0.0),
        (terms["adversarial_d"], ref["D_step.disc_loss"], 0.0),
        (terms["penalty_real"], ref["D_step.r1_loss"], _penalty_rounding(terms["penalty_real"], terms)),
        (terms["penalty_fake"], ref["D_step.r2_loss"], _penalty_rounding(terms["penalty_fake"], terms)),
        (terms["alignment"], ref["D_step.z_kd_cls"] + ref["D_step.z_kd_patch"], 0.0),
    ]


def _relative(ours: Tensor, theirs: Tensor, rounding: Tensor | float) -> float:
    """Largest relative difference that rounding does not explain."""
    return (((ours - theirs).abs() - rounding).clamp(min=0) / theirs.abs()).max().item()


def _penalty_rounding(penalty: Tensor, terms: dict[str, Tensor]) -> Tensor:
    """Largest effect of rounding in float32 logits (16 ulp through the network) on a finite-difference penalty.

    p = (delta / sigma)^2 subtracts two nearly equal logits, so in every implementation, also the reference, its last
    digits are rounding: dp = 2 sqrt(p) d/sigma + (d/sigma)^2.
    """
    logit = torch.maximum(terms["logit_real"].abs().max(), terms["logit_fake"].abs().max())
    d = 16 * torch.finfo(torch.float32).eps * logit / OFFICIAL_OBJECTIVE.gp_sigma
    return (2 * penalty.sqrt() * d + d.square()).detach()


def _relative_gradients(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Largest difference over tensors, relative to the largest entry of each tensor.

    A gradient that is zero by construction (D's head bias cancels between real and fake) is only rounding. So the
    difference is relative to at least 1e-3 of the network's largest gradient.
    """
    floor = 1e-3 * max(theirs.abs().max().item() for _, theirs in pairs)
    return max((ours - theirs).abs().max().item() / max(theirs.abs().max().item(), floor) for ours, theirs in pairs)


def _load(module: nn.Module, ref: dict[str, Tensor], prefix: str, rules: list[tuple[str, str]]) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(ref[prefix + official_name(name, rules)])


def _gradients(
    module: nn.Module, ref: dict[str, Tensor], prefix: str, rules: list[tuple[str, str]]
) -> list[tuple[Tensor, Tensor]]:
    """Pairs (ours, reference) of gradients for every parameter. Raises UserError when the reference has others."""
    pairs = []
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        pairs.append((parameter.grad, ref[prefix + official_name(name, rules)]))
    theirs = sum(name.startswith(prefix) for name in ref)
    if theirs != len(pairs):
        raise UserError(
            f"the reference has {theirs} gradients under {prefix}*, but our network has {len(pairs)}; give another file"
        )
    return pairs
