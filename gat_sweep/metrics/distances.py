"""Distances between sets of feature vectors: ours where torch-fidelity has none or is slow, its own elsewhere."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from gat_sweep.errors import UserError

SUBSETS, SUBSET = 100, 1000  # of the kernel distance (Binkowski et al. 2018)
NEIGHBOURS = 3  # of precision and recall (Kynkaanniemi et al. 2019)
MANIFOLD = 10_000  # at most so many of each side in precision and recall: every pair of them is compared
BLOCKS = 20  # of the jackknife
SPLITS = 5  # of the blocks into halves
# Generated pictures per feature: with fewer, what a parabola in 1/n leaves of the bias exceeds the standard error.
ENOUGH = 7


@dataclass(frozen=True)
class Moments:
    """n feature vectors summed up in float64: mean [F], and scatter [F, F] about it."""

    n: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Of features [n, F]."""
        x = features.double()
        mean = x.sum(dim=0) / max(len(x), 1)
        centred = x - mean
        return Moments(len(x), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets together (Chan et al. 1983)."""
        n = max(self.n + other.n, 1)
        shift = other.mean - self.mean
        between = torch.outer(shift, shift) * (self.n * other.n / n)
        return Moments(n, self.mean + shift * (other.n / n), self.scatter + other.scatter + between)

    def __sub__(self, other: "Moments") -> "Moments":
        """Of this set without the vectors of `other`, which are among its own."""
        n = self.n - other.n
        mean = (self.mean * self.n - other.mean * other.n) / n
        shift = other.mean - mean
        between = torch.outer(shift, shift) * (n * other.n / self.n)
        return Moments(n, mean, self.scatter - other.scatter - between)

    def statistics(self) -> "Statistics":
        return Statistics(self.mean, self.scatter / (self.n - 1), self.n)


@dataclass(frozen=True)
class Statistics:
    """Mean [F] and covariance [F, F] of n feature vectors, float64."""

    mu: Tensor
    sigma: Tensor
    n: int


def feature_statistics(features: Tensor) -> Statistics:
    """Statistics of features [n, F]; the covariance is divided by n - 1."""
    return Moments.of(features).statistics()


def covariance_root(sigma: Tensor) -> Tensor:
    """The symmetric root of a covariance [F, F]; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(sigma)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: Statistics, b: Statistics, root: Tensor | None = None) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017).

    The trace of the root is taken through the symmetric product S_a^(1/2) S_b S_a^(1/2), which has the same
    eigenvalues as S_a S_b, none of them negative or complex but by rounding.
    root: of S_a, to be computed once where `a` stays the same: then this takes 0.31 s at F = 1280 and 1.24 s at 2048,
    where torch-fidelity's fid_statistics_to_metric took 0.68 and 3.06 s (one CPU thread).
    """
    root = covariance_root(a.sigma) if root is None else root
    cross = torch.linalg.eigvalsh(root @ b.sigma @ root).clamp(min=0).sqrt().sum()
    distance = (a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace() - 2 * cross
    return distance.item()


def frechet_infinity(real: Statistics, generated: Tensor, root: Tensor | None = None) -> tuple[float, float]:
    """(Frechet distance for infinitely many generated pictures, its standard error), after Chong & Forsyth 2020.

    A distance of n features [n, F] is too large by a/n + b/n^2 + ...; the intercept of a parabola in 1/n is taken,
    through the distance of all n, the mean distance without one of 20 blocks, and the mean distance of halves (5 splits
    of the blocks). Each mean uses every picture equally often, so their errors cancel in the intercept instead of
    adding up as those of independently drawn subsets would. The standard error is the block jackknife's, of the
    generated pictures alone: the reference is taken as given.

    Measured on 64 of EfficientNet-Lite0's features of CIFAR-10, at n = 7 F and 25 F, 200 trials each of planted
    Gaussians (at no, a small and a large distance) and of resampled features: two standard errors held the truth in
    91 to 98 %, and no bias was left beyond the noise, of the 1.2 to 4.7 that the plain distance had.
    Raises UserError for fewer than ENOUGH * F features.
    """
    check_enough(len(generated), generated.shape[1])
    known_root = covariance_root(real.sigma) if root is None else root
    random = np.random.default_rng(0)
    order = torch.from_numpy(random.permutation(len(generated)))
    blocks = [Moments.of(generated[block]) for block in order.tensor_split(BLOCKS)]
    whole = sum(blocks[1:], blocks[0])

    def distance(moments: Moments) -> float:
        return frechet_distance(real, moments.statistics(), known_root)

    at_n = distance(whole)
    without_one = np.array([distance(whole - block) for block in blocks])
    of_halves = []
    for _ in range(SPLITS):
        chosen = [blocks[i] for i in random.permutation(BLOCKS)[: BLOCKS // 2]]
        half = sum(chosen[1:], chosen[0])
        of_halves += [distance(half), distance(whole - half)]
    inverse_n = np.array([1, BLOCKS / (BLOCKS - 1), 2])  # in units of 1/n
    means = [at_n, without_one.mean(), np.mean(of_halves)]
    intercept = np.linalg.solve(np.vander(inverse_n, increasing=True), means)[0]
    error = (BLOCKS - 1) * without_one.std(ddof=1) / BLOCKS**0.5
    return float(intercept), float(error)


def check_enough(count: int, width: int) -> None:
    """Raises UserError when so many pictures are too few for `frechet_infinity` in features of that width."""
    if count < ENOUGH * width:
        raise UserError(
            f"fd_infinity needs at least {ENOUGH * width:,} pictures, {ENOUGH} per feature, and there are {count:,}; "
            "raise eval.samples or leave it out of eval.extras"
        )


def kernel_distance(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """(mean, standard deviation over subsets) of the cubic kernel's MMD^2 between features [n, F] and [m, F].

    Unbiased; with Inception's features it is KID. Computed by torch-fidelity on the CPU, the subsets drawn from a fixed
    seed.
    """
    size = min(SUBSET, len(generated), len(real))
    found = kid_features_to_metric(generated, real, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False)
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Improved precision and recall of features [n, F] against [m, F] (Kynkaanniemi et al. 2019), by torch-fidelity."""
    found = prc_features_to_metric(
        generated[:MANIFOLD], real[:MANIFOLD], prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]
