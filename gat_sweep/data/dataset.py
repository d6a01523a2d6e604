"""One data set in memory: latents to train on, and the real pictures that generated ones are compared with."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from gat_sweep.config import Data, TrialConfig
from gat_sweep.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """latents [N, C, Y, X] float32 and labels [N] int64; digest identifies the content."""

    name: str
    latents: Tensor
    labels: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures, uint8 [N, 3, height, width]."""
        pictures = ((latents.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pictures.expand(-1, 3, -1, -1)


def load_dataset(config: Data) -> Dataset:
    """The data set a config names.

    Raises UserError when it is missing or does not fit the config's side, channels and classes.
    """
    if config.dataset != "digits":
        where = f"'{config.path}'" if config.path else "data.path (not set)"
        raise UserError(
            f"data set '{config.dataset}' not found at {where}; encoded latents cannot be read by this version, "
            "use --recipe digits"
        )
    dataset = _digits()
    found = (dataset.latents.shape[2], dataset.latents.shape[1], int(dataset.labels.max()) + 1)
    asked = (config.side, config.channels, config.classes or found[2])
    if found != asked:
        raise UserError(
            f"data set '{config.dataset}' has (side, channels, classes) = {found}, the recipe says {asked}; "
            "set data.side, data.channels and data.classes to what the data has"
        )
    return dataset


def check_dataset(config: TrialConfig) -> Dataset:
    """load_dataset, and what a trial needs of it."""
    dataset = load_dataset(config.data)
    if config.teacher is not None and config.objective.align_weight:
        raise UserError(
            f"teacher '{config.teacher.name}' needs stored images, which data set '{config.data.dataset}' lacks; "
            "set teacher=null"
        )
    return dataset


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels, as pixels in [-1, 1]."""
    from sklearn.datasets import load_digits  # half a second that commands without data need not pay

    bunch = load_digits()
    latents = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    digest = hashlib.sha256(latents.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:12]
    return Dataset("digits", latents, labels, digest)
