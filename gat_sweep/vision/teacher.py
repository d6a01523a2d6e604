"""The vision foundation model that D is aligned with (paper section 2.5, Eq. 9); it maps pictures to tokens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gat_sweep.compute import EFFICIENTNET, TEACHER_SIDE, check_teacher_name
from gat_sweep.config import TrialConfig
from gat_sweep.data.builtin import BuiltIn
from gat_sweep.data.dataset import Dataset
from gat_sweep.data.rows import Rows
from gat_sweep.data.shards import CachedTeacher
from gat_sweep.errors import UserError
from gat_sweep.files.weights import weights_digest
from gat_sweep.gat.augment import AugmentDraws, move, move_tokens
from gat_sweep.vision.extractors import EfficientNetLite0, vision_transformer


class Teacher:
    """A frozen network on a device, whose tokens D learns to predict.

    Attributes:
        width: of a token.
        view: picture that the network sees (objective.align_view).
        digest: of the weights, 12 hex digits.
    """

    def __init__(
        self, network: nn.Module, width: int, prefix: int, mean: Tensor, std: Tensor, grid: int, view: str = "paper"
    ):
        self.network: Any = network.eval().requires_grad_(False)
        self.width, self.prefix, self.grid, self.view = width, prefix, grid, view
        self.mean, self.std = mean, std
        self.digest = weights_digest(network)

    @torch.no_grad()
    def tokens(self, pictures: Tensor, draws: AugmentDraws | None = None, side: int = 0) -> Tensor:
        """Tokens, float32 [N, 1 + grid * grid, width], of pictures [N, 3, h, w], 0 to 255; [cls] comes first.

        draws: of latents with `side` rows and columns; each picture is translated and flipped like its latent.
        For a network without a [cls] token it is the mean of the map. A map with another grid is resized (bicubic).
        """
        pictures, official = pictures.float(), self.view == "official"
        if draws and not official:
            # A shift fills latents with zeros; in a picture zero is middle grey.
            pictures = move(pictures - 127.5, draws, pictures.shape[-1] // side) + 127.5
        x = F.interpolate(pictures / 255, size=(TEACHER_SIDE,) * 2, mode="bicubic", antialias=not official)
        x = (x if official else x.clamp(0, 1)).sub(self.mean).div(self.std)
        if draws and official:
            x = move(x, official_shifts(draws, side), 1)
        features = self.network.forward_features(x).float()
        if features.ndim == 4:  # [N, W, y, x]
            grid, first = features, features.mean(dim=(2, 3))
        else:  # [N, prefix + y * x, W]; register tokens are between [cls] and the patches
            patches = features[:, self.prefix :]
            side = int(patches.shape[1] ** 0.5)
            grid, first = patches.transpose(1, 2).unflatten(2, (side, side)), features[:, 0]
        if grid.shape[-1] != self.grid:
            grid = F.interpolate(grid, size=(self.grid, self.grid), mode="bicubic", antialias=not official)
        return torch.cat([first[:, None], grid.flatten(2).transpose(1, 2)], dim=1)


def official_shifts(draws: AugmentDraws, side: int) -> AugmentDraws:
    """Draws [B] of latents with `side` rows, as the released code applies them to the teacher's picture.

    It means to scale a shift t of the latent by TEACHER_SIDE / side, and computes t * side // TEACHER_SIDE instead:
    0, or one pixel for negative t. It translates before it flips; our shift of columns is after the flip.
    """
    sign = 1 - 2 * draws.flipped.long()
    shift_y, shift_x = (t * side // TEACHER_SIDE for t in (draws.shift_y, sign * draws.shift_x))
    return replace(draws, shift_y=shift_y, shift_x=sign * shift_x)


def load_teacher(
    name: str, checkpoint: str | None, grid: int, device: torch.device | str = "cpu", view: str = "paper"
) -> Teacher:
    """The teacher of the given name, with grid x grid patch tokens; view: as Teacher.view.

    name: "efficientnet_lite0" (comes with the installation) or a vision transformer of timm.
    checkpoint: local weights for timm, read weights-only (default: timm's hub).
    Raises UserError for an unknown name, and when the weights are not available.
    """
    if name == EFFICIENTNET:
        network: Any = EfficientNetLite0(TEACHER_SIDE).network
        half = torch.full((3, 1, 1), 0.5, device=device)
        return Teacher(network.to(device), network.num_features, 0, half, half, grid, view)
    check_teacher_name(name)
    network = vision_transformer(name, checkpoint, TEACHER_SIDE, "teacher.checkpoint")
    mean, std = (torch.tensor(network.pretrained_cfg[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
    return Teacher(network.to(device), network.num_features, network.num_prefix_tokens, mean, std, grid, view)


def trial_teacher(config: TrialConfig, device: torch.device) -> Teacher | None:
    """The teacher that a trial runs in training; None without alignment, or if tokens are stored.

    Raises UserError as load_teacher does, and when the width of its tokens is not teacher.width.
    """
    teacher = config.teacher
    if teacher is None or config.discriminator_spec.teacher_width == 0 or teacher.cached:
        return None
    network = _teacher(config, device)
    if network.width != teacher.width:
        raise UserError(f"teacher '{teacher.name}' has tokens of width {network.width}; set teacher.width to that")
    return network


def _teacher(config: TrialConfig, device: torch.device) -> Teacher:
    assert config.teacher is not None
    grid = config.data.side // config.model.patch
    return load_teacher(config.teacher.name, config.teacher.checkpoint, grid, device, config.objective.align_view)


def taught(config: TrialConfig, dataset: Dataset, device: torch.device, say: Callable[[str], None]) -> Dataset:
    """Data set of a trial with the stored tokens that its config needs; for built-in pictures they are computed here.

    say: gets one line when that takes a while.
    """
    teacher = config.teacher
    if teacher is None or not teacher.cached or config.discriminator_spec.teacher_width == 0:
        return dataset
    if not isinstance(dataset, BuiltIn) or dataset.tokens is not None:
        return dataset
    say(f"computing the tokens of {len(dataset):,} pictures of {dataset.name} with {teacher.name}, a minute for 1,800")
    network = _teacher(config, device)
    tokens = [network.tokens(part.to(device)).half().cpu() for part in dataset.pictures.split(64)]
    stored = CachedTeacher(name=teacher.name, digest=network.digest, tokens=1 + network.grid**2, width=network.width)
    return dataset.taught(stored, torch.cat(tokens))


def teacher_tokens(teacher: Teacher | None, config: TrialConfig, rows: Rows, draws: AugmentDraws) -> Tensor | None:
    """Tokens of the teacher for the real images, [B, 1 + T, W], which D is aligned with; None without alignment.

    The teacher gets each picture translated and flipped like its latent (A.1), or as objective.align_view says. Stored
    tokens are moved on their grid instead, and their [cls] is unchanged.
    """
    if config.discriminator_spec.teacher_width == 0:
        return None
    real = draws.of_real()
    side = config.data.side
    if rows.teacher is not None:
        if config.objective.align_view == "official":
            return move_tokens(
                rows.teacher.float(), official_shifts(real, side), config.model.patch * TEACHER_SIDE / side
            )
        return move_tokens(rows.teacher.float(), real, config.model.patch)
    assert teacher is not None and rows.pictures is not None
    return teacher.tokens(rows.pictures, real, side)
