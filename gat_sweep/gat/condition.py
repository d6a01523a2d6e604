"""What an image is generated from: its class, its caption, or nothing."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Captions:
    """B captions, as states of a frozen text encoder (A.9): N tokens of width W each."""

    words: Tensor  # [B, N, W] states of the tokens
    present: Tensor  # [B, N] bool; False for padding, which nothing attends to
    sentence: Tensor  # [B, W] state of the whole caption

    def __len__(self) -> int:
        return len(self.sentence)

    def __getitem__(self, which: slice | Tensor) -> "Captions":
        """Some of the captions."""
        return Captions(self.words[which], self.present[which], self.sentence[which])


Condition = Tensor | Captions | None  # classes [B], captions, or None when unconditional
