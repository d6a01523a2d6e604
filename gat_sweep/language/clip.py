"""CLIP's text tower as a text encoder, and what loads a CLIP of transformers (Radford et al. 2021).

Importing this file takes seconds, as it imports transformers.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedConfig
from transformers.utils import logging

from gat_sweep.errors import UserError
from gat_sweep.files.weights import check_finite, weights_digest
from gat_sweep.gat.condition import Captions
from gat_sweep.language.encoder import TextIdentity, padded_ids
from gat_sweep.language.flops import clip_text_flops
from gat_sweep.precision import exactly

EXAMPLE = "openai/clip-vit-large-patch14"
IMAGE_PARTS = ("vision_model.", "visual_projection.", "logit_scale")  # weights of a whole CLIP beside its text tower
DIGESTED_FIELDS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "eos_token_id")  # not in names and shapes
LEGACY_END = 2  # eos_token_id of OpenAI's configs, with which transformers looks for the highest id instead


class ClipText:
    """The text tower of a CLIP: words are its last states, after the final norm, a sentence is its embedding.

    The sentence is the state of the end-of-text token, projected as for the comparison with pictures, not normalised.
    """

    def __init__(
        self, name: str, tokens: int | None = None, folder: str | None = None, device: torch.device | str = "cpu"
    ):
        """The text encoder `name`, a hub id or a local folder, in float32 and frozen.

        tokens: the most of a caption, with start and end (default: the positions of the model, 77 for OpenAI's).
        folder: where it lies now (default: `name`).
        Raises UserError when it cannot be loaded, is not a CLIP, or has fewer positions than `tokens`.
        """
        place = folder or name
        model = load_clip(CLIPTextModelWithProjection, place, ("clip", "clip_text_model"), IMAGE_PARTS)
        config = model.config
        if config.projection_dim != config.hidden_size:
            raise UserError(
                f"the CLIP '{place}' projects sentences to width {config.projection_dim}, but its words have width "
                f"{config.hidden_size}; give one with equal widths, such as {EXAMPLE}"
            )
        self.tokenizer = ClipTokens(place, config, tokens)
        self.model = model.to(device)
        self.params = sum(p.numel() for p in model.parameters())
        self.identity = TextIdentity(
            name=name,
            tokenizer=self.tokenizer.digest,
            digest=clip_digest(model, [config]),
            tokens=self.tokenizer.most,
            width=config.hidden_size,
        )
        self.flops = clip_text_flops(
            config.hidden_size, config.num_hidden_layers, config.intermediate_size, self.identity.tokens
        )

    def ids(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See TextEncoder. A caption that is cut still ends in the end-of-text token."""
        return self.tokenizer.ids(captions)

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Captions:
        """See TextEncoder. Words are zero where there is padding."""
        present = ids >= 0
        with exactly(ids.device):
            # Attention is causal, so padding, which is behind, changes nothing. With a mask, transformers would wait
            # for the device. Id 0 is never the highest.
            out = self.model(input_ids=ids.clamp(min=0).long())
        weight = present.float()
        return Captions(out.last_hidden_state * weight[..., None], weight, out.text_embeds)


class ClipTokens:
    """The tokenizer of a CLIP: captions to ids between start-of-text and end-of-text."""

    def __init__(self, place: str, config: Any, most: int | None):
        """The tokenizer in a folder or of a hub id, for a text tower of `config`. most: tokens of a caption.

        Raises UserError when it is missing or is another tower's, or when `most` does not fit the positions.
        """
        positions = config.max_position_embeddings
        self.most = positions if most is None else most
        if not 2 <= self.most <= positions:
            raise UserError(
                f"the CLIP '{place}' reads 2 to {positions} tokens of a caption, not {most}; set {positions}"
            )
        found = _load_tokenizer(place)
        self._tokenizer = found.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.end: int = found.eos_token_id
        # Without its files, transformers makes a tokenizer of two tokens and says nothing.
        if len(found) != config.vocab_size:
            raise UserError(
                f"the tokenizer of the CLIP '{place}' has {len(found)} tokens, and its weights have "
                f"{config.vocab_size}; copy tokenizer.json, or vocab.json and merges.txt, of the same model there"
            )
        expected = config.vocab_size - 1 if config.eos_token_id == LEGACY_END else config.eos_token_id
        if self.end != expected or self._tokenizer.encode("a").ids[-1] != self.end:
            raise UserError(
                f"the tokenizer of the CLIP '{place}' ends texts with token {self.end}, and its weights expect "
                f"{expected}; copy the tokenizer of the same model there"
            )
        self.digest = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:12]

    def ids(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As TextEncoder.ids."""
        found = [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions))]
        ids, cut = padded_ids(found, self.most)
        ids[cut, -1] = self.end
        return ids, cut


def load_clip(kind: Any, place: str, types: tuple[str, ...] = ("clip",), ignored: tuple[str, ...] = ()) -> Any:
    """A model of transformers in float32, frozen, in eval mode, from safetensors alone.

    kind: its class. place: hub id or local folder. types: model_type of its config.json. ignored: beginnings of names
    of weights that it does not need.
    Raises UserError when it is not there, is not a CLIP, or its weights are incomplete, superfluous or not finite.
    """
    folder = Path(place)
    if (folder / "model_index.json").is_file():
        raise UserError(
            f"'{place}' is a whole pipeline; name its CLIP's folder, {folder / 'text_encoder'}, and copy the files of "
            f"{folder / 'tokenizer'} there"
        )
    if not folder.is_dir() and (folder.is_absolute() or place.startswith(".") or place.count("/") != 1):
        raise UserError(f"the CLIP '{place}' is not a folder; give a hub id such as {EXAMPLE}, or a CLIP's folder")
    with loading(place):
        written: Any = PreTrainedConfig.get_config_dict(place)[0]
    if not isinstance(written, dict) or not written:
        raise UserError(f"the CLIP '{place}' has no config.json with values; give a CLIP's folder")
    found = written.get("model_type") or written.get("_class_name")
    if found not in types:
        raise UserError(f"'{place}' is of type {found}, not {' or '.join(types)}; give a CLIP, such as {EXAMPLE}")
    with loading(place):
        model, info = kind.from_pretrained(
            place,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    absent = sorted(info["missing_keys"])
    absent += sorted(name for name, *_ in info["mismatched_keys"])
    absent += sorted(name for name in info["unexpected_keys"] if not name.startswith(ignored))
    if absent:
        raise UserError(
            f"the CLIP '{place}' has missing or unexpected weights (first: {absent[0]}); download it again, or give "
            f"one with its projections, such as {EXAMPLE}"
        )
    check_finite(model.state_dict(), f"the CLIP '{place}'")
    return model.eval().requires_grad_(False)


def clip_digest(model: Any, configs: Sequence[Any]) -> str:
    """Digest of all weights and of the config fields that do not show in the names and shapes of the weights."""
    shown = [{key: getattr(config, key, None) for key in DIGESTED_FIELDS} for config in configs]
    content = json.dumps([shown, weights_digest(model)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _load_tokenizer(place: str) -> Any:
    folder = Path(place)
    if folder.is_dir():
        names = ["tokenizer.json"] if (folder / "tokenizer.json").exists() else ["vocab.json", "merges.txt"]
        for name in names:
            if not (folder / name).is_file():
                raise UserError(
                    f"the CLIP '{place}' has no tokenizer; copy tokenizer.json, or vocab.json and merges.txt, of the "
                    "same model there"
                )
    with loading(place):
        try:
            return CLIPTokenizer.from_pretrained(place)
        except Exception as error:
            if type(error) is not Exception:  # which is what the library of tokenizers raises for a damaged file
                raise
            raise ValueError(str(error)) from None


@contextmanager
def loading(place: str) -> Iterator[None]:
    """Context that turns errors of loading into a UserError, and keeps transformers from writing to the terminal."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if Path(place).is_dir():  # a download shows its progress
        logging.disable_progress_bar()
    try:
        yield
    except OSError as error:  # no such id, no network, no safetensors
        said = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load the CLIP '{place}': {said}; download it once, then give its folder") from None
    except (SafetensorError, StrictDataclassError, RuntimeError, ValueError, LookupError, TypeError) as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(f"the CLIP '{place}' is damaged ({type(error).__name__}: {said}); download it again") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
