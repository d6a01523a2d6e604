"""The text encoder that a name, or a config, asks for."""

import torch

from gat_sweep.config import Text
from gat_sweep.errors import UserError
from gat_sweep.language.encoder import TextEncoder
from gat_sweep.language.wordllama import WORDLLAMA, WordLlama
from gat_sweep.text import nearest


def load_text_encoder(
    name: str, tokens: int | None = None, folder: str | None = None, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The text encoder that `name` names.

    name: "wordllama" (comes with the installation), or the hub id or local folder of a CLIP of transformers.
    tokens: the most of a caption (default: the encoder's own number). folder: where the CLIP lies now.
    Raises UserError when it is not there or incomplete, or does not have so many tokens.
    """
    if name == WORDLLAMA:
        return WordLlama(tokens, device)
    if "/" not in name and folder is None:
        raise UserError(
            f"unknown text encoder '{name}'; {nearest(name, [WORDLLAMA])}, or give the hub id or the folder of a CLIP"
        )
    from gat_sweep.language.clip import ClipText  # imports transformers, which takes seconds

    return ClipText(name, tokens, folder, device)


def trial_encoder(settings: Text, device: torch.device | str = "cpu") -> TextEncoder:
    """The text encoder of a config. Raises UserError as load_text_encoder does, and when text.width is another."""
    found = load_text_encoder(settings.name, settings.tokens, settings.folder, device)
    if found.identity.width != settings.width:
        raise UserError(
            f"text encoder '{settings.name}' has states of width {found.identity.width}, not text.width "
            f"{settings.width}; set text.width={found.identity.width}"
        )
    return found
