"""Measures of every block, from one pass over real and generated images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.config import TrialConfig
from gat_sweep.data.condition import condition
from gat_sweep.data.dataset import Dataset
from gat_sweep.data.tokenizer import Tokenizer
from gat_sweep.gat.condition import Condition
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.mng import make_perturb
from gat_sweep.inspection.cknna import cknna
from gat_sweep.inspection.probes import discriminator_tokens, generator_tokens, without_block
from gat_sweep.language.encoder import TextEncoder
from gat_sweep.vision.perceptual import Distance
from gat_sweep.vision.teacher import Teacher

CHUNK = 32  # images from one seed
SHOWN = 6  # images in the figures of features


@dataclass(frozen=True)
class Subject:
    """A trained trial on a device: its EMA generator, its discriminator, its data set and its text encoder."""

    config: TrialConfig
    generator: Generator
    discriminator: Discriminator
    dataset: Dataset
    tokenizer: Tokenizer
    device: torch.device
    encoder: TextEncoder | None = None


@dataclass(frozen=True)
class Row:
    """One measured value of one block."""

    network: str  # G or D
    block: int  # from 1
    data: str  # real or fake
    measure: str
    value: float | None  # None if it is not defined
    standard_error: float | None  # None if the measure has none
    n: int  # images


@dataclass
class Findings:
    """Values, features and pictures, collected chunk by chunk. A key is (network, block, data, measure)."""

    values: dict[tuple[str, int, str, str], list[Tensor]] = field(default_factory=dict)  # [B] each
    features: dict[tuple[str, int, str, str], list[Tensor]] = field(default_factory=dict)  # [B, W] each
    teacher: dict[str, list[Tensor]] = field(default_factory=dict)  # by data, [B, W] each
    shown: Tensor | None = None  # indices of the images of the first chunk that figures show
    # For those images: the tokens of each block by (network, data), and the pictures by data.
    shown_tokens: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    shown_pictures: dict[str, Tensor] = field(default_factory=dict)

    def show(self, network: str, data: str, tokens: list[Tensor]) -> None:
        """Keeps the tokens [B, T, W] of each block for the figures, only for the first chunk."""
        if (network, data) not in self.shown_tokens:
            self.shown_tokens[network, data] = [out[self.shown] for out in tokens]

    def rows(self, k: int, step: Callable[[], None]) -> list[Row]:
        """Every measure of every block; `step` is called after each of the `len(features)` CKNNA values."""
        rows = []
        for (network, block, data, measure), parts in self.values.items():
            x = torch.cat(parts).double()
            error = (x.std() / math.sqrt(len(x))).item()
            rows.append(Row(network, block, data, measure, x.mean().item(), error, len(x)))
        for (network, block, data, measure), parts in self.features.items():
            a, b = torch.cat(parts), torch.cat(self.teacher[data])
            value = cknna(a, b, k)
            rows.append(Row(network, block, data, measure, None if math.isnan(value) else value, None, len(a)))
            step()
        return rows


def look(
    subject: Subject, distance: Distance, teacher: Teacher, images: int, seed: int, step: Callable[[], None]
) -> Findings:
    """Collects values and features of `images` real and `images` generated images.

    A seed gives the same images on every device. Generated images have the classes, or the first captions, of the real
    ones. `step` is called after each of the ceil(images / CHUNK) chunks.
    """
    found = Findings()
    order = np.random.default_rng(seed).permutation(len(subject.dataset))[:images]
    for start in range(0, images, CHUNK):
        random = torch.Generator().manual_seed(seed * 1_000_003 + start)
        index = order[start : start + CHUNK]
        y = _look_at_real(subject, teacher, index, random, found)
        _look_at_fake(subject, distance, teacher, y, len(index), random, found)
        step()
    return found


@torch.no_grad()
def _look_at_real(
    subject: Subject, teacher: Teacher, index: np.ndarray, random: torch.Generator, found: Findings
) -> Condition:
    """Collects features of real images with the given indices; returns their classes [B] or captions."""
    first = np.zeros(len(index)) if subject.encoder else None  # captions
    rows = subject.dataset.rows(index, pictures=subject.dataset.has_pictures, captions=first)
    real = rows.latents(random).to(subject.device)
    pictures = subject.tokenizer.decode(real) if rows.pictures is None else rows.pictures.to(subject.device)
    levels = real.expand(subject.config.generator_spec.levels, *real.shape)
    y = condition(subject.config, rows.each(lambda column: column.to(subject.device)), subject.encoder)
    if found.shown is None:
        label = rows.labels
        earlier = (label[:, None] == label).tril(-1).sum(dim=1)  # earlier images of the same class
        found.shown = earlier.argsort(stable=True)[:SHOWN].to(subject.device)  # shows as many classes as possible
    _look_with_discriminator(subject, levels, y, "real", random, found)
    _keep_pictures(teacher, pictures, "real", found)
    return y


@torch.no_grad()
def _look_at_fake(
    subject: Subject,
    distance: Distance,
    teacher: Teacher,
    y: Condition,
    images: int,
    random: torch.Generator,
    found: Findings,
) -> None:
    """Collects values and features of generated images with classes or captions y."""
    generator = subject.generator
    z, other = torch.randn(2, images, subject.config.model.z_dim, generator=random).to(subject.device)
    w = generator.style(z, y)
    levels, tokens = generator_tokens(generator, w, y)
    others = generator_tokens(generator, generator.style(other, y), y)[1]
    pictures = subject.tokenizer.decode(levels[-1])

    changed = []
    for i in range(len(generator.blocks)):
        with without_block(generator, i):
            changed.append(subject.tokenizer.decode(generator.synthesize(w, y)[-1]))
    influence = distance(pictures, torch.stack(changed))

    for i, (x, out, out_other) in enumerate(zip(tokens, tokens[1:], others[1:], strict=False), start=1):
        values = {
            f"influence_{distance.name}": influence[i - 1],
            "similarity_input_output": similarity(x, out),
            "similarity_other_z": similarity(out, out_other),
        }
        for measure, value in values.items():
            found.values.setdefault(("G", i, "fake", measure), []).append(value.cpu())
        found.features.setdefault(("G", i, "fake", "cknna_patches"), []).append(out.mean(dim=1))
    found.show("G", "fake", tokens[1:])
    _look_with_discriminator(subject, levels, y, "fake", random, found)
    _keep_pictures(teacher, pictures, "fake", found)


def _look_with_discriminator(
    subject: Subject, levels: Tensor, y: Condition, data: str, random: torch.Generator, found: Findings
) -> None:
    """Collects D's features of image levels [K, B, C, Y, X], perturbed as in training (Eq. 2 and 3), not augmented."""
    config = subject.config
    perturb = make_perturb(config.mng.schedule, len(levels), config.mng.mixing, subject.device)
    noise = torch.randn(levels.shape, generator=random).to(subject.device)
    tokens = discriminator_tokens(subject.discriminator, perturb(levels, noise), y)
    for i, out in enumerate(tokens, start=1):
        found.features.setdefault(("D", i, data, "cknna_patches"), []).append(out[:, 1:].mean(dim=1))
        found.features.setdefault(("D", i, data, "cknna_cls"), []).append(out[:, 0])
    found.show("D", data, [out[:, 1:] for out in tokens])


def _keep_pictures(teacher: Teacher, pictures: Tensor, data: str, found: Findings) -> None:
    found.teacher.setdefault(data, []).append(teacher.tokens(pictures)[:, 0])
    if data not in found.shown_pictures:
        found.shown_pictures[data] = pictures[found.shown]


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine [B] of tokens [B, T, W] at the same position; exactly 1 if a equals b."""
    gap = F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)
    return (1 - gap.square().sum(dim=-1) / 2).mean(dim=1)


def pca_maps(tokens: Tensor) -> np.ndarray:
    """Colours [B, rows, columns, 3] in [0, 1] of tokens [B, T, W] on a square grid.

    The colours are the three largest principal components over the tokens of all B images, with signs that make the
    largest entry of each positive. Their 1st to 99th percentile is scaled to [0, 1].
    """
    x = tokens.double().flatten(0, 1)
    x = x - x.mean(dim=0)
    vectors = torch.linalg.eigh(x.T @ x)[1][:, -3:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    projected = x @ (vectors * largest.sign())
    low, high = projected.quantile(torch.tensor([0.01, 0.99], dtype=x.dtype, device=x.device), dim=0)
    colours = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    side = math.isqrt(tokens.shape[1])
    return colours.view(len(tokens), side, side, 3).cpu().numpy()
