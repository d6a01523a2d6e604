"""The Frechet distance between two sets of features."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean [F] and covariance [F, F] of n feature vectors, float64."""

    mu: Tensor
    sigma: Tensor
    n: int


def feature_statistics(features: Tensor) -> Statistics:
    """Statistics of features [n, F]; the covariance is divided by n - 1."""
    x = features.double()
    return Statistics(x.mean(dim=0), torch.cov(x.T), len(x))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017).

    The trace of the root is taken through the symmetric product S_a^(1/2) S_b S_a^(1/2), which has the same
    eigenvalues as S_a S_b, none of them negative or complex but by rounding.
    """
    values, vectors = torch.linalg.eigh(a.sigma)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.sigma @ root).clamp(min=0).sqrt().sum()
    distance = (a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace() - 2 * cross
    return distance.item()


def split_half_distance(features: Tensor, seed: int = 0) -> float:
    """Distance between two random halves of the real features: the floor of what a distance can mean here."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features)))
    half = len(order) // 2
    return frechet_distance(
        feature_statistics(features[order[:half]]), feature_statistics(features[order[half : 2 * half]])
    )
