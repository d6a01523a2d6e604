"""Images of a data set as they are stored, and their latents."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Some images of a data set, as stored; n images, on any device."""

    mean: Tensor  # [n, C, Y, X] float32, in the units of training: shifted and scaled
    std: Tensor | None  # the same shape and units; None without a posterior
    labels: Tensor  # [n] int64
    pictures: Tensor | None = None  # uint8 [n, 3, h, w]
    teacher: Tensor | None = None  # [n, 1+T, W] float16, cached features
    # One caption of each image: token ids [n, N] int32 (language.encoder.PADDING behind them), or states [n, N, W] and
    # [n, W] float16 where they are stored.
    ids: Tensor | None = None
    words: Tensor | None = None
    sentence: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """Rows with `change` applied to every column."""
        columns: list[Any] = [getattr(self, field.name) for field in fields(self)]
        changed: Any = (None if column is None else change(column) for column in columns)
        return Rows(*changed)

    @staticmethod
    def joined(parts: "list[Rows]") -> "Rows":
        """Rows of all parts, in order."""
        columns: list[Any] = [[getattr(part, field.name) for part in parts] for field in fields(Rows)]
        joined: Any = (None if column[0] is None else torch.cat(column) for column in columns)
        return Rows(*joined)

    def latents(self, random: torch.Generator, batch: int | None = None, mine: slice = slice(None)) -> Tensor:
        """Latents [n, C, Y, X], sampled anew from the posterior at each call.

        batch, mine: where these rows are a part of a batch, its size and their place in it (default: they are all). The
        noise is drawn for the whole batch.
        """
        if self.std is None:
            return self.mean
        shape = len(self.mean) if batch is None else batch, *self.mean.shape[1:]
        return self.mean + self.std * torch.randn(shape, generator=random, device=self.mean.device)[mine]
