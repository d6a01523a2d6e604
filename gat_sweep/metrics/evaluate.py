"""A trial's evaluation: fixed-seed samples of the EMA generator against the real data, and the protocol."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import Dataset, load_dataset
from gat_sweep.gat.generator import Generator
from gat_sweep.metrics.features import make_extractor
from gat_sweep.metrics.frechet import (
    Statistics,
    feature_statistics,
    frechet_distance,
    split_half_distance,
)

CHUNK = 64  # samples drawn from one seed; part of the protocol, and the unit shared out over the workers


@dataclass(frozen=True)
class Evaluation:
    metric: str
    value: float
    n: int
    reference: str
    protocol: str  # JSON


@dataclass(frozen=True)
class Reference:
    """The real data as the extractor sees it."""

    metric: str
    reference: str  # data set, number of images, content digest
    statistics: Statistics
    halves: float  # distance between two random halves of the real data


def load_reference(config: TrialConfig, home: Path, device: torch.device | str = "cpu") -> Reference:
    """Reference statistics of a config's data set, computed once per home and kept in <home>/cache."""
    dataset = load_dataset(config.data)
    metric = make_extractor(config.eval.extractor, config.eval.resize)
    name = f"{dataset.name}:{len(dataset)}:{dataset.digest}"
    path = home / "cache" / f"{metric.metric}-{config.eval.resize}-{dataset.digest}.safetensors"
    if not path.exists():
        metric = metric.to(device)
        chunks = dataset.latents.split(CHUNK)
        features = torch.cat([metric(dataset.decode(chunk.to(device))) for chunk in chunks]).cpu()
        real = feature_statistics(features)
        halves = torch.tensor(split_half_distance(features), dtype=torch.float64)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial{os.getpid()}")
        save_file({"mu": real.mu, "sigma": real.sigma, "halves": halves}, partial)
        os.replace(partial, path)
    kept = load_file(path)
    statistics = Statistics(kept["mu"], kept["sigma"], len(dataset))
    return Reference(metric.metric, name, statistics, kept["halves"].item())


class Evaluator:
    """Holds the extractor and the reference statistics of one trial.

    Args:
        rank, world: this worker's share. The samples, and so the number, do not depend on `world`.
    """

    def __init__(self, config: TrialConfig, dataset: Dataset, home: Path, device: torch.device, rank: int, world: int):
        self.config, self.dataset, self.device = config, dataset, device
        self.rank, self.world = rank, world
        self.extractor = make_extractor(config.eval.extractor, config.eval.resize).to(device)
        self.reference = load_reference(config, home, device)
        # Class labels of the samples: the data's own frequencies, shuffled once.
        order = np.random.default_rng(config.eval.seed).permutation(len(dataset))
        self.labels = dataset.labels[torch.from_numpy(np.resize(order, config.eval.samples))]
        self.protocol = {
            "extractor": config.eval.extractor,
            "n": config.eval.samples,
            "reference": self.reference.reference,
            "resize": f"bicubic-{config.eval.resize}",
            "seed": config.eval.seed,
            "psi": 1.0,
            "guidance": 1.0,
            "ema": config.train.ema_decay,
        }

    def distance(self, ema: Generator) -> Evaluation:
        """Frechet distance of `eval.samples` images of `ema` to the whole data set; the same on every rank."""
        chunks = list(range(0, self.config.eval.samples, CHUNK))
        mine = [self.extractor(self.samples(ema, start)).cpu() for start in chunks[self.rank :: self.world]]
        features = torch.cat(self._gathered(mine))
        return Evaluation(
            metric=self.extractor.metric,
            value=frechet_distance(self.reference.statistics, feature_statistics(features)),
            n=self.config.eval.samples,
            reference=self.reference.reference,
            protocol=json.dumps(self.protocol, sort_keys=True),
        )

    def samples(self, ema: Generator, start: int, count: int = CHUNK) -> Tensor:
        """Pictures `start` .. `start + count` of the fixed set, uint8 [n, 3, h, w] on the device."""
        labels = self.labels[start : start + count].to(self.device)
        generator = torch.Generator().manual_seed(self.config.eval.seed * 1_000_003 + start)
        z = torch.randn(len(labels), self.config.model.z_dim, generator=generator).to(self.device)
        return self.dataset.decode(ema.sample(z, labels if self.config.data.classes else None))

    def _gathered(self, mine: list[Tensor]) -> list[Tensor]:
        """The chunks of all ranks in the order of their seeds."""
        if self.world == 1:
            return mine
        shares: list[list[Tensor]] = [[] for _ in range(self.world)]
        dist.all_gather_object(shares, mine)
        longest = max(len(share) for share in shares)
        return [share[i] for i in range(longest) for share in shares if i < len(share)]
