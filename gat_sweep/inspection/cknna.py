"""Alignment of two representations of the same pictures."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cknna(a: Tensor, b: Tensor, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment of a [n, F] and b [n, G] (Huh et al. 2024; k = 10 as in REPA).

        CKNNA(K, L) = HSIC(a o K, a o L) / sqrt(HSIC(b o K, b o K) HSIC(c o L, c o L))

    K and L are the inner products of the features, each scaled to length 1. In row i, mask b keeps the k nearest
    neighbours of i in K, mask c those in L, and mask a those in both; o multiplies entry by entry. HSIC is the
    unbiased estimator of Song et al. (2012, Eq. 5), which centres both kernels:

        HSIC(K, L) = (tr(K L) + sum(K) sum(L) / ((n-1)(n-2)) - 2 sum(K L) / (n-2)) / (n (n-3)), diagonals zero.

    As in the authors' code (minyoungg/platonic-rep, metrics.py), the kernels are first masked and then centred, so
    exchanging a and b changes the value slightly. It is computed in float64 on the device of the features. The value
    is 1 for equal neighbours and similarities, about 0 for unrelated ones, and nan if a representation has no
    structure (all pictures alike). Raises ValueError when a and b differ in length, or n is at most k + 1.
    """
    n = len(a)
    if len(b) != n or not 1 < k < n - 1:
        raise ValueError(f"cknna of {n} and {len(b)} features with k={k}: give equal numbers, more than k + 1")
    kernels = []
    for features in (a, b):
        unit = F.normalize(features.double(), dim=1)
        kernels.append((unit @ unit.T).fill_diagonal_(-math.inf))
    kept = [torch.zeros_like(x).scatter_(1, x.topk(k, dim=1).indices, 1.0) for x in kernels]
    (mask_a, mask_b), (kernel_a, kernel_b) = kept, [x.fill_diagonal_(0.0) for x in kernels]
    both = mask_a * mask_b
    cross = _hsic(both * kernel_a, both * kernel_b)
    own = _hsic(mask_a * kernel_a, mask_a * kernel_a) * _hsic(mask_b * kernel_b, mask_b * kernel_b)
    return cross / math.sqrt(own) if own > 0 else math.nan


def _hsic(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC of two [n, n] kernels with zero diagonals."""
    n = len(x)
    product = x.sum(dim=0) @ y.sum(dim=1)  # the sum over x @ y, without computing x @ y
    total = (x * y.T).sum() + x.sum() * y.sum() / ((n - 1) * (n - 2)) - 2 * product / (n - 2)
    return total.item() / (n * (n - 3))
