"""A whole CLIP: embeddings of pictures, with gradients, and of texts, and the CLIP score.

Importing this file takes seconds, as it imports transformers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel

from gat_sweep.errors import UserError
from gat_sweep.language.clip import ClipTokens, clip_digest, load_clip, loading
from gat_sweep.precision import exactly

HOW = ("preprocessor_config.json", "processor_config.json")  # how it prepares pictures; one of them is there
BICUBIC = 3  # PIL's number, in preprocessor_config.json


class Clip:
    """A CLIP of transformers with its preparation of pictures, in float32 and frozen (Radford et al. 2021)."""

    def __init__(self, source: str, device: torch.device | str = "cpu"):
        """The CLIP `source`, a hub id or a local folder.

        Raises UserError when it cannot be loaded, or prepares pictures otherwise than CLIP does: resized on the short
        side (bicubic), cropped in the centre, scaled to [0, 1], then by mean and std.
        """
        self.model = load_clip(CLIPModel, source).to(device)
        config = self.model.config
        self.tokens = ClipTokens(source, config.text_config, None)
        folder = Path(source)
        if folder.is_dir() and not any((folder / name).is_file() for name in HOW):
            raise UserError(f"the CLIP '{source}' has no {HOW[0]}; copy the file of the same model there")
        with loading(source):
            how: Any = CLIPImageProcessor.from_pretrained(source)
        self.side: int = config.vision_config.image_size
        crops = how.do_center_crop and (how.crop_size.height, how.crop_size.width) == (self.side, self.side)
        resizes = how.do_resize and how.resample == BICUBIC and (how.size.shortest_edge or 0) >= self.side
        if not (crops and resizes and how.do_rescale and how.do_normalize):
            raise UserError(
                f"the CLIP '{source}' prepares pictures in a way that is not supported; its preprocessor_config.json "
                f"should resize the short side (bicubic) and crop to {self.side}x{self.side}"
            )
        self.short: int = how.size.shortest_edge
        mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (how.image_mean, how.image_std))
        self.mean, self.std = mean / how.rescale_factor, std / how.rescale_factor
        self.digest = clip_digest(self.model, [config.text_config, config.vision_config])

    def prepared(self, pictures: Tensor) -> Tensor:
        """Pictures as the network reads them, [N, 3, side, side], of pictures [N, 3, h, w] with values 0 to 255."""
        least = min(pictures.shape[2:])
        size = tuple(self.short if side == least else int(self.short * side / least) for side in pictures.shape[2:])
        x = pictures.float()
        for now in ((x.shape[2], size[1]), size):  # Pillow resizes one side after the other, and clips in between
            x = F.interpolate(x, size=now, mode="bicubic", antialias=True).clamp(0, 255)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        x = x[:, :, top : top + self.side, left : left + self.side]
        return (x - self.mean) / self.std

    def pictures(self, pictures: Tensor) -> Tensor:
        """Embeddings of length 1, [N, E], of pictures [N, 3, h, w] with values 0 to 255; with gradients to them."""
        with exactly(pictures.device):
            found = self.model.get_image_features(pixel_values=self.prepared(pictures)).pooler_output
        return F.normalize(found, dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of length 1, [N, E], of texts. One that is too long is cut, which `tokens.ids` tells."""
        device = self.mean.device
        ids = torch.from_numpy(self.tokens.ids(texts)[0]).to(device)
        with exactly(device):  # attention is causal, so padding changes nothing
            found = self.model.get_text_features(input_ids=ids.clamp(min=0).long()).pooler_output
        return F.normalize(found, dim=1)


def clip_scores(pictures: Tensor, texts: Tensor) -> Tensor:
    """CLIP scores [N] of pairs of a picture and its text: 100 max(cosine, 0).

    pictures, texts: embeddings of one CLIP, [N, E] with length 1. As commonly reported; Hessel et al. 2021 scale by
    2.5. The score in other features than CLIP's is not a CLIP score.
    """
    assert pictures.shape == texts.shape
    return 100 * (pictures * texts).sum(dim=1).clamp(min=0)
