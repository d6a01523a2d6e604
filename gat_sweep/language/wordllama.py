"""WordLlama's table of word embeddings as a text encoder: word tokens are its rows, a sentence is their mean."""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from gat_sweep.errors import UserError
from gat_sweep.gat.condition import Captions
from gat_sweep.language.encoder import TextIdentity, padded_ids
from gat_sweep.language.flops import WORDLLAMA

TABLE = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
TOKENS = 16  # of a caption, unless asked otherwise


class WordLlama:
    """The table of 32,000 tokens with 256 numbers each that comes with the package wordllama.

    Unlike a transformer's states, its words do not know their neighbours or their order.
    Raises UserError when the package is missing.
    """

    flops = 0  # it looks up and adds

    def __init__(self, tokens: int | None = None, device: torch.device | str = "cpu"):
        found = find_spec("wordllama")  # its own code is not needed, and would look for a network
        if found is None or not found.submodule_search_locations:
            raise UserError("text encoder 'wordllama' needs its package; pip install wordllama")
        folder = Path(found.submodule_search_locations[0])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        table = load_file(folder / TABLE)["embedding.weight"]
        self.table = table.float().to(device)
        self.params = self.table.numel()
        self.identity = TextIdentity(
            name=WORDLLAMA,
            tokenizer=_digest((folder / TOKENIZER).read_bytes()),
            digest=_digest((folder / TABLE).read_bytes()),
            tokens=tokens or TOKENS,
            width=self.table.shape[1],
        )

    def ids(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See TextEncoder."""
        found = self._tokenizer.encode_batch(list(captions), add_special_tokens=False)
        return padded_ids([encoding.ids for encoding in found], self.identity.tokens)

    def encode(self, ids: Tensor) -> Captions:
        """See TextEncoder."""
        weight = (ids >= 0).float()
        words = self.table[ids.clamp(min=0)] * weight[..., None]
        total = words.sum(dim=1)
        return Captions(words, weight, total / torch.linalg.vector_norm(total, dim=1, keepdim=True).clamp(min=1e-12))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
