"""The objective (paper section 2.5): one D step and one G step on the same real batch and the same fakes.

Every random number is an argument (`Draws`), so a step can be compared exactly with a reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.gat.augment import AugmentDraws
from gat_sweep.gat.condition import Condition
from gat_sweep.gat.mng import Perturb
from gat_sweep.gat.spec import Objective

Discriminate = Callable[..., tuple[Tensor, Tensor | None]]
Augment = Callable[[Tensor, AugmentDraws], Tensor]


@dataclass(frozen=True)
class Draws:
    """Random numbers of one step, all N(0, 1) except the augmentation; S is (real, fake)."""

    mng: Tensor  # [S, K, B, C, Y, X], level index from the clean end (see mng.py)
    penalty: Tensor | None = None  # [S, K, B, C, Y, X]; the real side has the same noise at every level
    augment: AugmentDraws | None = None

    def part(self, images: slice) -> "Draws":
        """The draws of some of the B images."""
        return Draws(
            mng=self.mng[:, :, images],
            penalty=None if self.penalty is None else self.penalty[:, :, images],
            augment=None if self.augment is None else self.augment.part(images),
        )


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Loss f(worse - better), f = softplus, over same-index pairs (Eq. 5 and 6): low when `better` scores higher."""
    return F.softplus(worse - better)


def approximate_penalty(logits: Tensor, noised_logits: Tensor, sigma: float) -> Tensor:
    """Finite-difference gradient penalty, ((D(x) - D(x + e)) / sigma)^2 (Eq. 7 and 8)."""
    return ((logits - noised_logits) / sigma).square()


def alignment_loss(student: Tensor, teacher: Tensor, reduction: str) -> Tensor:
    """1 - cosine between projected and teacher tokens [B, 1+T, W], [cls] first, reduced to [B] (Eq. 9)."""
    distance = 1 - F.cosine_similarity(student.float(), teacher, dim=-1)
    if reduction == "official":
        return distance[:, 0] + distance[:, 1:].mean(dim=1)
    return distance.mean(dim=1)


def discriminator_losses(
    discriminator: Discriminate,
    real: Tensor,
    fake_levels: Tensor,
    y: Condition,
    teacher: Tensor | None,
    draws: Draws,
    augment: Augment,
    perturb: Perturb,
    objective: Objective,
) -> dict[str, Tensor]:
    """Terms of L_D (Eq. 6 to 10), [B] each; "loss_d" is their weighted sum.

    real [B, C, Y, X]; fake_levels [K, B, C, Y, X], detached from G; teacher [B, 1+T, W] or None.
    The order is: penalty noise, augmentation, MNG perturbation (A.1). One call of D scores all four inputs.
    """
    assert draws.penalty is not None
    clean = torch.stack([real.expand_as(fake_levels), fake_levels])  # [S, K, B, C, Y, X]
    x = torch.stack([clean, clean + objective.gp_sigma * draws.penalty])  # [P, S, K, B, C, Y, X]
    x = perturb(_augmented(x, draws, augment), draws.mng)
    align_first = len(real) if teacher is not None else 0
    logits, projected = discriminator(_channels(x), y, align_first)
    (real_clean, fake_clean), (real_noised, fake_noised) = logits.unflatten(0, (2, 2, -1))
    terms = {
        "adversarial_d": relativistic_loss(real_clean, fake_clean),
        "penalty_real": approximate_penalty(real_clean, real_noised, objective.gp_sigma),
        "penalty_fake": approximate_penalty(fake_clean, fake_noised, objective.gp_sigma),
    }
    loss = terms["adversarial_d"] + objective.gp_weight * (terms["penalty_real"] + terms["penalty_fake"])
    if teacher is not None:
        assert projected is not None
        terms["alignment"] = alignment_loss(projected, teacher, objective.align_reduction)
        loss = loss + objective.align_weight * terms["alignment"]
    return {"loss_d": loss, **terms, "logit_real": real_clean, "logit_fake": fake_clean}


def generator_loss(
    discriminator: Discriminate,
    real: Tensor,
    fake_levels: Tensor,
    y: Condition,
    draws: Draws,
    augment: Augment,
    perturb: Perturb,
) -> Tensor:
    """L_G (Eq. 5), [B]. Gradients reach G through fake_levels; the caller must freeze D's weights."""
    x = torch.stack([real.expand_as(fake_levels), fake_levels])[None]  # [1, S, K, B, C, Y, X]
    x_real, x_fake = perturb(_augmented(x, draws, augment), draws.mng)[0]
    with torch.no_grad():
        real_logits, _ = discriminator(_channels(x_real.detach()), y)
    fake_logits, _ = discriminator(_channels(x_fake), y)
    return relativistic_loss(fake_logits, real_logits)


def _augmented(x: Tensor, draws: Draws, augment: Augment) -> Tensor:
    return x if draws.augment is None else augment(x, draws.augment)


def _channels(x: Tensor) -> Tensor:
    """Concatenates the levels of an image on channels (Eq. 3): [..., K, B, C, Y, X] -> [N, K*C, Y, X]."""
    return x.movedim(-5, -4).flatten(-4, -3).flatten(0, -4)
