"""Differentiable augmentation of latents (Zhao et al. 2020; A.1), for all levels and passes in one call."""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.gat.spec import Augmentation


@dataclass(frozen=True)
class AugmentDraws:
    """Random parameters of every image, [S, B] each (S: real, fake); all levels and passes share them."""

    colored: Tensor  # bool
    brightness: Tensor  # added
    saturation: Tensor  # factor on the distance to the mean over channels
    contrast: Tensor  # factor on the distance to the mean over the image
    shift_y: Tensor  # int64, rows
    shift_x: Tensor  # int64, columns
    flipped: Tensor  # bool
    cut_y: Tensor  # int64, first erased row (may lie outside)
    cut_x: Tensor  # int64, first erased column

    def part(self, images: slice) -> "AugmentDraws":
        """The draws of some of the B images."""
        return AugmentDraws(**{field.name: getattr(self, field.name)[:, images] for field in fields(self)})

    def of_real(self) -> "AugmentDraws":
        """The draws of the real images, [B] each."""
        return AugmentDraws(**{field.name: getattr(self, field.name)[0] for field in fields(self)})


def draw_augmentation(
    config: Augmentation, shape: tuple[int, int], side: int, generator: torch.Generator
) -> AugmentDraws:
    """Random parameters for `shape` = (S, B) images of side x side."""
    device = generator.device

    def uniform() -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def integer(low: int, high: int) -> Tensor:
        """Random integers from low to high, both included."""
        return torch.randint(low, high + 1, shape, generator=generator, device=device)

    shift = int(side * config.translation + 0.5)
    cut = int(side * config.cutout + 0.5)
    # The centre of the square is uniform over the image, so squares may cross the edge, as in DiffAugment.
    first, last = -(cut // 2), side - cut % 2 - cut // 2
    return AugmentDraws(
        colored=uniform() < config.color,
        brightness=uniform() - 0.5,
        saturation=uniform() * 2,
        contrast=uniform() + 0.5,
        shift_y=integer(-shift, shift),
        shift_x=integer(-shift, shift),
        flipped=uniform() < config.flip,
        cut_y=integer(first, last),
        cut_x=integer(first, last),
    )


def augment(x: Tensor, config: Augmentation, draws: AugmentDraws) -> Tensor:
    """Applies the draws to x [P, S, K, B, C, Y, X]: every pass and level of an image changes in the same way.

    Saturation and contrast use the means of the clean pass's final level, so the transform is one fixed
    affine map per image, at every level.
    """
    side = x.shape[-1]
    color = _color_map(x[0, :, -1], draws, config.color_means)
    gain, offset = (t.unsqueeze(1) for t in color)  # over levels
    x = x * gain + offset

    # Translation and flip are one gather; the area outside the image and the cutout are one mask.
    index, inside = _moved(draws, side)
    index = index.flatten(2)[None, :, None, :, None]  # [1, S, 1, B, 1, Y*X]
    x = x.flatten(-2).gather(-1, index.expand(*x.shape[:-2], -1)).unflatten(-1, (side, side))

    position = torch.arange(side, device=x.device)
    cut = int(side * config.cutout + 0.5)
    below, right = position.view(-1, 1) - draws.cut_y[..., None, None], position - draws.cut_x[..., None, None]
    erased = (below >= 0) & (below < cut) & (right >= 0) & (right < cut)
    return x * (inside & ~erased)[:, None, :, None].to(x.dtype)


def move(pictures: Tensor, draws: AugmentDraws, scale: int) -> Tensor:
    """Translates and flips pictures [B, C, Y, X] with the draws [B] of latents whose side is `scale` times smaller."""
    side = pictures.shape[-1]
    index, inside = _moved(draws, side, scale)
    index = index.flatten(1)[:, None].expand(-1, pictures.shape[1], -1)
    moved = pictures.flatten(2).gather(2, index).unflatten(2, (side, side))
    return moved * inside[:, None].to(pictures.dtype)


def move_tokens(tokens: Tensor, draws: AugmentDraws, patch: float) -> Tensor:
    """Translates and flips a teacher's tokens [B, 1+T, W] ([cls] first, unchanged); T is a square grid of patches.

    patch: side of a patch, in units of the shifts.

    A shift that is not a whole number of patches interpolates between tokens. Tokens from outside the picture
    are 0, which gives the student no direction to follow.
    """
    grid = int((tokens.shape[1] - 1) ** 0.5)
    map_BWYX = tokens[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
    position = torch.arange(grid, device=tokens.device, dtype=tokens.dtype)
    row = position + draws.shift_y[:, None] / patch  # [B, Y]
    column = position + draws.shift_x[:, None] / patch
    column = torch.where(draws.flipped[:, None], grid - 1 - column, column)
    row, column = ((2 * at + 1) / grid - 1 for at in (row, column))  # to [-1, 1] over the map
    where = torch.stack(
        [column[:, None, :].expand(-1, grid, -1), row[:, :, None].expand(-1, -1, grid)], dim=-1
    )  # [B, Y, X, (x, y)]
    moved = F.grid_sample(map_BWYX, where, mode="bilinear", padding_mode="zeros", align_corners=False)
    return torch.cat([tokens[:, :1], moved.flatten(2).transpose(1, 2)], dim=1)


def _moved(draws: AugmentDraws, side: int, scale: int = 1) -> tuple[Tensor, Tensor]:
    """Source of each pixel: its flat index [..., Y, X], and whether it lies inside the image."""
    position = torch.arange(side, device=draws.shift_y.device)
    row = position.view(-1, 1) + scale * draws.shift_y[..., None, None]  # [..., Y, 1]
    column = position + scale * draws.shift_x[..., None, None]  # [..., 1, X]
    column = torch.where(draws.flipped[..., None, None], side - 1 - column, column)
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return row.clamp(0, side - 1) * side + column.clamp(0, side - 1), inside


def _color_map(final: Tensor, draws: AugmentDraws, means: str) -> tuple[Tensor, Tensor]:
    """Gain and offset of brightness, then saturation, then contrast (x -> gain x + offset); final [S, B, C, Y, X].

    m is the mean over channels, M the mean over the image; b, s, c are the draws:
    c (s (x - m) + m - M) + M + b = (c s) x + c (1 - s) m + (1 - c) M + b.
    With the means of the image before brightness (`means` is "before"), the last b is c s b.
    """
    b, s, c = (t[..., None, None, None] for t in (draws.brightness, draws.saturation, draws.contrast))
    over_channels = final.mean(dim=-3, keepdim=True)
    over_image = over_channels.mean(dim=(-2, -1), keepdim=True)
    colored = draws.colored[..., None, None, None]
    gain = torch.where(colored, c * s, 1.0)
    shift = b if means == "after" else c * s * b
    offset = torch.where(colored, c * (1 - s) * over_channels + (1 - c) * over_image + shift, 0.0)
    return gain, offset
