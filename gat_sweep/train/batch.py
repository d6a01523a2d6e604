"""The input of one iteration."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from gat_sweep.gat.condition import Condition
from gat_sweep.gat.losses import Draws


@dataclass(frozen=True)
class Batch:
    """Input of one iteration, with all its random numbers."""

    real: Tensor  # [B, C, Y, X]
    y: Condition  # classes [B] or captions; None: unconditional
    z: Tensor  # [B, z_dim] latent codes of G
    teacher: Tensor | None  # [B, 1+T, W] tokens that D's tokens of `real` are aligned with; None: no alignment
    draws_d: Draws
    draws_g: Draws

    def __len__(self) -> int:
        return len(self.real)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the batch, in one order."""
        found: list[Tensor] = []
        parts: list[Any] = [self]
        while parts:
            values = [getattr(part, field.name) for part in parts for field in fields(part)]
            found += [value for value in values if isinstance(value, Tensor)]
            parts = [value for value in values if is_dataclass(value)]
        return found

    def part(self, images: slice) -> "Batch":
        """The part of the batch that belongs to a slice of the B images."""
        return Batch(
            self.real[images],
            None if self.y is None else self.y[images],
            self.z[images],
            None if self.teacher is None else self.teacher[images],
            self.draws_d.part(images),
            self.draws_g.part(images),
        )
