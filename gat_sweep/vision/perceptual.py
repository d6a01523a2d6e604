"""Perceptual distance of two pictures: LPIPS if its network is available, otherwise a distance with its own name."""

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.errors import UserError
from gat_sweep.files.weights import read_weights
from gat_sweep.precision import exactly
from gat_sweep.vision.extractors import EfficientNetLite0

LPIPS_SIDE = 64  # smaller pictures are enlarged to this side, because AlexNet's strides would reduce them to nothing


class Distance(Protocol):
    """A distance between a picture and a changed picture."""

    name: str  # in tables: lpips_alex, efficientnet_lite0
    label: str  # in figures

    def __call__(self, pictures: Tensor, changed: Tensor) -> Tensor:
        """Distances [V, B] of pictures, uint8 [B, 3, h, w], to V variants of each, [V, B, 3, h, w]; 0 if unchanged."""


class FeatureDistance:
    """1 - cosine of EfficientNet-Lite0's pooled features (half the squared distance of the normalised features).

    One vector per picture describes what distinguishes the classes of ImageNet; LPIPS compares position by position.
    """

    name = "efficientnet_lite0"
    label = "EfficientNet-Lite0 feature distance"

    def __init__(self, resize: int, device: torch.device):
        self.extractor = EfficientNetLite0(resize).to(device)

    def __call__(self, pictures: Tensor, changed: Tensor) -> Tensor:
        own = F.normalize(self.extractor(pictures), dim=1)
        others = [F.normalize(self.extractor(variant), dim=1) for variant in changed]
        return torch.stack([(other - own).square().sum(dim=1) / 2 for other in others])


class Lpips:
    """LPIPS (Zhang et al. 2018), version 0.1 with AlexNet, as in the package lpips.

    backbone: a state dict of torchvision's alexnet; the heads come with the package. Nothing is downloaded, and only
    tensors are read from the files.
    Raises UserError when the weights are missing or do not fit.
    """

    name = "lpips_alex"
    label = "LPIPS (AlexNet)"

    def __init__(self, backbone: Path, device: torch.device):
        import lpips  # imports torchvision's models, which other distances do not need

        with warnings.catch_warnings():
            # lpips calls torchvision in a deprecated way, which a user cannot fix.
            warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
            warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
            network: Any = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
        heads = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
        weights = read_weights(backbone, "--lpips-backbone")
        try:
            # lpips keeps torchvision's layer numbers, in five slices.
            own = network.net.state_dict()
            network.net.load_state_dict({key: weights["features." + key.partition(".")[2]] for key in own})
        except (KeyError, RuntimeError) as error:
            text = str(error).partition("\n")[0]
            raise UserError(f"--lpips-backbone {backbone} is not torchvision's alexnet: {text}") from None
        network.load_state_dict(read_weights(heads, "lpips' own"), strict=False)
        self.network = network.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, changed: Tensor) -> Tensor:
        own = _enlarged(pictures)
        with exactly(own.device):
            return torch.stack([self.network(own, _enlarged(variant)).flatten() for variant in changed])


def _enlarged(pictures: Tensor) -> Tensor:
    x = pictures.float() / 127.5 - 1
    if min(x.shape[2:]) < LPIPS_SIDE:
        x = F.interpolate(x, size=(LPIPS_SIDE, LPIPS_SIDE), mode="bicubic").clamp(-1, 1)
    return x
