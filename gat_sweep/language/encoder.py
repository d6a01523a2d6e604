"""Frozen text encoders: captions to token ids, and ids to states (A.9)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from gat_sweep.gat.condition import Captions

PADDING = -1  # in ids, behind the tokens of a caption


@dataclass(frozen=True)
class TextIdentity:
    """Record of a text encoder, so that captions are read by the one that made their ids."""

    name: str  # wordllama, or the hub id or folder of a CLIP
    tokenizer: str  # digest of the tokenizer, 12 hex digits
    digest: str  # of the weights, 12 hex digits
    tokens: int  # N, the most tokens of a caption
    width: int  # W, of a state


class TextEncoder(Protocol):
    """A frozen text encoder on a device."""

    identity: TextIdentity
    flops: int  # of one caption
    params: int

    def ids(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of captions, int32 [n, N] with PADDING behind them, and [n] bool: True where tokens were cut."""

    def encode(self, ids: Tensor) -> Captions:
        """States of captions by their ids [n, N]."""


def padded_ids(tokens: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids as TextEncoder.ids returns them: the first `most` of each caption."""
    ids = np.full((len(tokens), most), PADDING, np.int32)
    for row, found in zip(ids, tokens, strict=True):
        kept = found[:most]
        row[: len(kept)] = kept
    return ids, np.array([len(found) > most for found in tokens], bool)
