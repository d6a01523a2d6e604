"""What an image is generated from: its class, its caption, or nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Captions:
    """B captions, as states of a frozen text encoder (A.9): N tokens of width W each."""

    words: Tensor  # [B, N, W] states of the tokens
    weight: Tensor  # [B, N] factor of a token in every softmax: 1, or 0 for padding, which nothing attends to
    sentence: Tensor  # [B, W] state of the whole caption

    def __len__(self) -> int:
        return len(self.sentence)

    def __getitem__(self, which: slice | Tensor) -> "Captions":
        """Some of the captions."""
        return Captions(self.words[which], self.weight[which], self.sentence[which])

    def to(self, device: torch.device) -> "Captions":
        return Captions(self.words.to(device), self.weight.to(device), self.sentence.to(device))


Condition = Tensor | Captions | None  # classes [B], captions, or None when unconditional


def joined(parts: list[Captions]) -> Captions:
    """All captions of the parts, in order."""
    columns = ([getattr(part, name) for part in parts] for name in ("words", "weight", "sentence"))
    return Captions(*map(torch.cat, columns))


def mixed(start: Captions, end: Captions, part_B: Tensor) -> Captions:
    """Captions between two, with 2N tokens: those of the start weigh 1 - part, those of the end weigh part."""
    part_B1 = part_B[:, None]
    return Captions(
        torch.cat([start.words, end.words], dim=1),
        torch.cat([(1 - part_B1) * start.weight, part_B1 * end.weight], dim=1),
        torch.lerp(start.sentence, end.sentence, part_B1),
    )
