"""Captions of a trial's images, from token ids to what the networks are given."""

import torch

from gat_sweep.config import TrialConfig
from gat_sweep.data.builtin import BuiltIn
from gat_sweep.data.dataset import Dataset
from gat_sweep.data.rows import Rows
from gat_sweep.errors import UserError
from gat_sweep.gat.condition import Captions, Condition
from gat_sweep.language.encoder import TextEncoder
from gat_sweep.language.load import load_text_encoder


def trial_encoder(config: TrialConfig, device: torch.device | str = "cpu") -> TextEncoder | None:
    """The text encoder of a trial; None without captions.

    Raises UserError as load_text_encoder does, and when its states have another width than text.width.
    """
    if config.text is None:
        return None
    text = config.text
    found = load_text_encoder(text.name, text.tokens, text.folder, device)
    if found.identity.width != text.width:
        width = found.identity.width
        raise UserError(f"text encoder '{text.name}' has states of width {width}; set text.width={width}")
    return found


def captioned(dataset: Dataset, encoder: TextEncoder | None) -> Dataset:
    """The data set with token ids of this encoder; for built-in pictures they are computed here.

    Raises UserError when the ids of an encoded data set are another tokenizer's, or its states another network's.
    """
    if encoder is None:
        return dataset
    if isinstance(dataset, BuiltIn):
        return dataset.read_by(encoder)
    stored, own = dataset.text, encoder.identity
    assert stored is not None
    if stored.encoder.tokenizer != own.tokenizer or (stored.states and stored.encoder.digest != own.digest):
        raise UserError(
            f"the captions of data set '{dataset.name}' were encoded by another '{own.name}' "
            f"({stored.encoder.tokenizer}, {stored.encoder.digest}; here {own.tokenizer}, {own.digest}); set "
            "text.folder to that one, or encode the data again"
        )
    return dataset


def condition(config: TrialConfig, rows: Rows, encoder: TextEncoder | None) -> Condition:
    """What the images of `rows` are generated from: captions, classes [n], or nothing."""
    if encoder is None:
        return rows.labels if config.data.classes else None
    assert config.text is not None and rows.ids is not None
    if config.text.cached:
        assert rows.words is not None and rows.sentence is not None
        return Captions(rows.words.float(), (rows.ids >= 0).float(), rows.sentence.float())
    return encoder.encode(rows.ids)
