"""Tokenizers between pictures and latents: a VAE of diffusers, a cosine transform of blocks, or plain pixels."""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.errors import UserError
from gat_sweep.files.weights import check_finite, weights_digest
from gat_sweep.precision import exactly

PIXELS = "pixels"  # the trivial tokenizer
DECODED_PIXELS = 2**19  # most pixels to decode at once, such as 8 pictures of 256x256
# Their config.json has no scaling_factor. It is 0.18215, the default of diffusers.
SCALED_AS_DEFAULT = ("stabilityai/sd-vae-ft-mse", "stabilityai/sd-vae-ft-ema")
DIGESTED_FIELDS = (
    *("act_fn", "norm_num_groups", "block_out_channels", "down_block_types", "up_block_types", "layers_per_block"),
    *("latent_channels", "scaling_factor", "shift_factor"),
)


@dataclass(frozen=True)
class TokenizerIdentity:
    """A manifest's record of a tokenizer, so that latents are decoded by the tokenizer that made them."""

    source: str  # hub id, local folder, or "pixels"
    digest: str  # of config and weights; empty for pixels
    channels: int
    factor: int  # picture side / latent side
    scale: float  # training uses the latents (raw - shift) * scale
    shift: float


class Tokenizer(Protocol):
    """Encoder of pictures to latents, and decoder back."""

    identity: TokenizerIdentity

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the raw posterior, float32 [N, C, Y, X] each, of pictures uint8 [N, 3, h, w]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, uint8 [N, 3, h, w], of latents [N, C, Y, X] in the units of training."""

    def decode_values(self, latents: Tensor) -> Tensor:
        """The same before rounding: values from 0 to 255, with gradients to the latents."""


class Pixels:
    """Pixels in [-1, 1] as latents, without noise."""

    def __init__(self, channels: int):
        self.identity = TokenizerIdentity(PIXELS, "", channels, factor=1, scale=1.0, shift=0.0)

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        mean = pictures.float() / 127.5 - 1
        return mean, torch.zeros_like(mean)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_values(latents.detach()).round().to(torch.uint8)

    def decode_values(self, latents: Tensor) -> Tensor:
        return _values(latents).expand(-1, 3, -1, -1)


class Dct:
    """Blocks of 4x4 pixels, as the leading coefficients of their cosine transform.

    A small tokenizer for trials without a VAE: linear, orthonormal, without weights. With few channels it loses
    detail; with all channels it loses nothing.
    """

    block = 4

    def __init__(self, channels: int, colours: int = 3):
        """Tokenizer of `channels` coefficients. colours: 3, or 1 for grey pictures, whose three channels are equal.

        Raises UserError when a block has fewer coefficients than `channels`.
        """
        most = colours * self.block**2
        if not 1 <= channels <= most:
            raise UserError(f"tokenizer 'dct{channels}': a block has {most} coefficients; use dct1 to dct{most}")
        name = f"dct{channels}" + ("grey" if colours == 1 else "")
        self.identity = TokenizerIdentity(name, name, channels, factor=self.block, scale=0.25, shift=0.0)
        wave = np.cos(np.pi * np.outer(np.arange(self.block), np.arange(self.block) + 0.5) / self.block)
        wave *= np.where(np.arange(self.block) == 0, 1, np.sqrt(2))[:, None] / np.sqrt(self.block)
        # Luminance comes first, then two colour differences, which vary less in photographs.
        colour = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]]) if colours == 3 else np.eye(1)
        numbers = [(c, u, v) for c in range(colours) for u in range(self.block) for v in range(self.block)]
        numbers.sort(key=lambda n: (n[1] + n[2] + 2 * n[0], -n[0], n[1]))
        self.basis = torch.tensor(
            np.stack([np.einsum("c,y,x->cyx", colour[c], wave[u], wave[v]) for c, u, v in numbers[:channels]]),
            dtype=torch.float32,
        )  # [C, colours, 4, 4]

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """See Tokenizer. Raises UserError when the pictures' sides are not multiples of the block."""
        if pictures.shape[2] % self.block or pictures.shape[3] % self.block:
            sides = f"{pictures.shape[2]}x{pictures.shape[3]}"
            raise UserError(f"pictures of {sides} do not fit '{self.identity.source}'; give a --size divisible by 4")
        basis = self.basis.to(pictures.device)
        x = pictures[:, : basis.shape[1]].float() / 127.5 - 1
        with exactly(x.device):
            mean = F.conv2d(x, basis, stride=self.block)
        return mean, torch.zeros_like(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """See Tokenizer."""
        return self.decode_values(latents.detach()).round().to(torch.uint8)

    def decode_values(self, latents: Tensor) -> Tensor:
        """See Tokenizer."""
        raw = latents.float() / self.identity.scale
        with exactly(raw.device):
            decoded = F.conv_transpose2d(raw, self.basis.to(raw.device), stride=self.block)
        return _values(decoded).expand(-1, 3, -1, -1)


class Vae:
    """An AutoencoderKL of diffusers, in float32, because half precision overflows in the encoders of some VAEs.

    tf32: decode with products in TF32, where a GPU has them: on an H200 5 ms instead of 38 for a picture of 256x256.
    """

    def __init__(self, model: Any, source: str, tf32: bool = False):
        # What cuDNN's TF32 kernels read without copying it first.
        self.model = model.to(memory_format=torch.channels_last) if tf32 else model
        self.tf32 = tf32
        config = model.config
        self.identity = TokenizerIdentity(
            source,
            _digest(model),
            channels=config.latent_channels,
            factor=2 ** (len(config.block_out_channels) - 1),
            scale=float(config.scaling_factor),
            shift=float(config.shift_factor or 0),
        )

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """See Tokenizer.

        Raises UserError when the pictures' sides are not multiples of the factor.
        """
        height, width = pictures.shape[2:]
        if height % self.identity.factor or width % self.identity.factor:
            raise UserError(
                f"pictures of {height}x{width} do not fit the VAE '{self.identity.source}'; "
                f"give a --size that is a multiple of {self.identity.factor}"
            )
        with torch.no_grad(), exactly(self.model.device):
            posterior = self.model.encode(pictures.to(self.model.device).float() / 127.5 - 1).latent_dist
            return posterior.mean, posterior.std

    def decode(self, latents: Tensor) -> Tensor:
        """See Tokenizer."""
        side = latents.shape[-1] * self.identity.factor
        with torch.no_grad():
            parts = latents.split(max(1, DECODED_PIXELS // side**2))
            return torch.cat([self.decode_values(part).round().to(torch.uint8) for part in parts])

    def decode_values(self, latents: Tensor) -> Tensor:
        """See Tokenizer. All pictures are decoded at once. The backward pass has the caller's precision of products."""
        raw = latents.to(self.model.device).float() / self.identity.scale + self.identity.shift
        with exactly(self.model.device, self.tf32):
            return _values(self.model.decode(raw).sample)


def load_tokenizer(source: str, device: torch.device | str = "cpu", channels: int = 3, tf32: bool = False) -> Tokenizer:
    """The tokenizer that `source` names.

    source: "pixels" (with `channels` channels), "dct4" (or another number of coefficients), or the hub id or local
    folder of an AutoencoderKL. tf32: how a VAE decodes (see Vae).
    Raises UserError when there is no such VAE, or its weights are incomplete.
    """
    if source == PIXELS:
        return Pixels(channels)
    if match := re.fullmatch(r"dct([0-9]{1,3})(grey)?", source):
        return Dct(int(match[1]), colours=1 if match[2] else 3)
    from diffusers import AutoencoderKL  # takes seconds, which commands without a VAE should not pay

    folder = Path(source)
    if (folder / "model_index.json").is_file():
        raise UserError(f"tokenizer '{source}' is a whole pipeline; name its VAE's folder, {folder / 'vae'}")
    if not folder.is_dir() and (folder.is_absolute() or source.startswith(".") or source.count("/") != 1):
        raise UserError(
            f"tokenizer '{source}' is not a folder; give 'pixels', 'dct4', a hub id, or a VAE's save_pretrained folder"
        )
    with warnings.catch_warnings():
        # diffusers calls huggingface_hub in a deprecated way, which a user cannot fix.
        warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument", UserWarning)
        try:
            written = AutoencoderKL.load_config(source)
            kind = written.get("_class_name")
            if kind != "AutoencoderKL":
                raise UserError(f"tokenizer '{source}' is a {kind}, not an AutoencoderKL; name the VAE's own folder")
            model, loading = AutoencoderKL.from_pretrained(
                source,
                use_safetensors=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except OSError as error:  # no such id, no network, no config.json, no safetensors
            said = " ".join(str(error).split())[:200]
            raise UserError(f"cannot load the VAE '{source}': {said}; download it once, then give its folder") from None
    absent = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if absent:
        raise UserError(f"the VAE '{source}' has missing or unexpected weights (first: {absent[0]}); download it again")
    if model.config.latents_mean is not None or model.config.latents_std is not None:
        raise UserError(
            f"the VAE '{source}' is normalised by channel (latents_mean), which is not supported; give another"
        )
    # Without a scale in the file, diffusers takes that of Stable Diffusion 1, whatever the VAE.
    if "scaling_factor" not in written and source not in SCALED_AS_DEFAULT:
        raise UserError(
            f"the VAE '{source}' has no scaling_factor in its config.json; add it there: the number that its latents "
            "are multiplied by, 0.18215 for the VAEs of Stable Diffusion 1 and 2"
        )
    check_finite(model.state_dict(), f"the VAE '{source}'")
    return Vae(model.to(device).eval().requires_grad_(False), source, tf32)


def load_decoder(
    identity: TokenizerIdentity | None,
    source: str | None,
    channels: int,
    whose: str,
    setting: str,
    device: torch.device | str = "cpu",
    tf32: bool = False,
) -> Tokenizer:
    """The tokenizer that made latents with `channels` channels.

    source: its place now (default: the one in `identity`). whose, setting: words for the error, the owner of the
    latents and the setting that names their tokenizer. tf32: how a VAE decodes (see Vae).
    Raises UserError when the tokenizer is not known, or is another one.
    """
    source = source or (identity.source if identity else None)
    if source is None:
        raise UserError(f"the tokenizer of {whose} is not recorded; give it with {setting}")
    decoder = load_tokenizer(source, device, channels, tf32)
    found = decoder.identity
    if found.channels != channels:
        raise UserError(
            f"tokenizer '{source}' has {found.channels} channels instead of the {channels} of {whose}; give another"
        )
    if identity is not None and found.digest != identity.digest:
        raise UserError(
            f"tokenizer '{source}' ({found.digest or 'pixels'}) is not the one of {whose}, '{identity.source}' "
            f"({identity.digest or 'pixels'}); set {setting} to that one"
        )
    return decoder


def _values(pictures: Tensor) -> Tensor:
    """Values from 0 to 255 of pictures in [-1, 1]."""
    return (pictures.clamp(-1, 1) + 1) * 127.5


def _digest(model: Any) -> str:
    """Digest of all weights and of the config fields that do not show in the names and shapes of the weights."""
    shown = {key: model.config[key] for key in DIGESTED_FIELDS} | {"weights": weights_digest(model)}
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:12]
