"""The text encoder that a name asks for."""

import torch

from gat_sweep.errors import UserError
from gat_sweep.language.encoder import TextEncoder, TextIdentity
from gat_sweep.language.flops import WORDLLAMA
from gat_sweep.text import nearest


def load_text_encoder(
    name: str, tokens: int | None = None, folder: str | None = None, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The text encoder that `name` names.

    name: "wordllama" (comes with the installation), or the hub id or local folder of a CLIP of transformers.
    tokens: the most of a caption (default: the encoder's own number). folder: where the CLIP lies now.
    Raises UserError when it is not there or incomplete, or does not have so many tokens.
    """
    # Imported when asked for: what trains without captions needs neither tokenizers nor transformers.
    if name == WORDLLAMA:
        if folder is not None:
            raise UserError(f"text encoder '{WORDLLAMA}' comes with its package; leave out the folder {folder}")
        from gat_sweep.language.wordllama import WordLlama

        return WordLlama(tokens, device)
    if "/" not in name and folder is None:
        raise UserError(
            f"unknown text encoder '{name}'; {nearest(name, [WORDLLAMA])}, or give the hub id or the folder of a CLIP"
        )
    from gat_sweep.language.clip import ClipText

    return ClipText(name, tokens, folder, device)


def load_same_encoder(
    identity: TextIdentity, folder: str | None, setting: str, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The recorded text encoder. folder: where it lies now. setting: words for the error, what names the folder.

    Raises UserError as load_text_encoder does, and when it is another one.
    """
    found = load_text_encoder(identity.name, identity.tokens, folder, device)
    own = found.identity
    if (own.tokenizer, own.digest) != (identity.tokenizer, identity.digest):
        raise UserError(
            f"text encoder '{folder or identity.name}' ({own.tokenizer}, {own.digest}) is not the recorded one "
            f"({identity.tokenizer}, {identity.digest}); set {setting} to that one"
        )
    return found
