"""Evaluation of a trial: samples of the EMA generator with a fixed seed against real pictures, in one protocol."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gat_sweep.config import TrialConfig
from gat_sweep.data.condition import captioned, condition, trial_encoder
from gat_sweep.data.dataset import Dataset, check_text, dataset_decoder
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place
from gat_sweep.gat.condition import Condition
from gat_sweep.gat.generator import Generator
from gat_sweep.language.encoder import TextEncoder
from gat_sweep.metrics import distances
from gat_sweep.metrics.reference import Reference, check_reference, compared_dataset, load_reference
from gat_sweep.metrics.retrieval import NEAREST, POOL, retrieval_score
from gat_sweep.text import Eta, Say, silent
from gat_sweep.vision.extractors import WIDTHS, Extractor, check_extractor, make_extractor

if TYPE_CHECKING:
    from gat_sweep.vision.clip import Clip

CHUNK = 64  # samples from one seed; part of the protocol, and the unit of work for workers


@dataclass(frozen=True)
class Evaluation:
    """One row of results, with the column names of the run table; None means not measured."""

    metric: str
    value: float  # Frechet distance at n
    n: int
    reference: str
    protocol: str  # JSON
    kernel_distance: float | None = None
    kernel_distance_std: float | None = None  # over subsets
    precision: float | None = None
    recall: float | None = None
    fd_infinity: float | None = None
    fd_infinity_se: float | None = None
    retrieval: float | None = None  # share of captions whose real picture is among the nearest (metrics/retrieval.py)
    retrieval_low: float | None = None  # ends of its 95 % interval
    retrieval_high: float | None = None
    retrieval_chance: float | None = None
    clip_score: float | None = None
    clip_score_se: float | None = None
    split_half: float | None = None  # distance of two random halves of the real pictures, the lowest value to expect

    def journal(self) -> dict[str, float]:
        """The numbers by names that include the extractor; only Inception's are called fid and kid."""
        fid = self.metric == "fid"
        name = "" if fid else "_" + self.metric.removeprefix("fd_")
        kernel = "kid" if fid else f"kd{name}"
        found = {
            self.metric: self.value,
            kernel: self.kernel_distance,
            f"{kernel}_std": self.kernel_distance_std,
            f"precision{name}": self.precision,
            f"recall{name}": self.recall,
            f"{self.metric}_infinity": self.fd_infinity,
            f"{self.metric}_infinity_se": self.fd_infinity_se,
            **{f"retrieval{end}{name}": getattr(self, f"retrieval{end}") for end in ("", "_low", "_high", "_chance")},
            "clip_score": self.clip_score,
            "clip_score_se": self.clip_score_se,
        }
        return {key: value for key, value in found.items() if value is not None}


def check_evaluation(config: TrialConfig, dataset: Dataset | None) -> None:
    """Checks all that an evaluation needs, before anything runs.

    dataset: that of training, or None as for check_reference.
    Raises UserError when the extractor's weights, the real pictures, the captions or the classes for guidance are
    missing, or when eval.samples is too small for eval.extras.
    """
    check_extractor(config.eval)
    check_reference(config, dataset)
    if config.eval.data is not None:
        check_text(config, compared_dataset(config, dataset))
    _check_options(config)


def check_decoder(config: TrialConfig, device: torch.device) -> None:
    """Raises UserError when the device has no TF32 to decode with."""
    if config.eval.decoder == "tf32" and device.type != "cuda":
        raise UserError("eval.decoder tf32 needs a CUDA device; set eval.decoder=float32")


def _check_options(config: TrialConfig) -> None:
    if "fd_infinity" in config.eval.extras:
        distances.check_enough(config.eval.samples, WIDTHS[config.eval.extractor])
    if config.eval.guidance != 1 and not config.generator_spec.conditional:
        raise UserError("eval.guidance needs classes or captions, and this trial has neither; set eval.guidance=1")
    if config.text and config.eval.null == "official":
        raise UserError("eval.null=official is about classes, and this trial has captions; set eval.null=paper")


class Evaluator:
    """Measures the networks of one trial; it has the extractor, the reference and the decoder.

    Args:
        rank, world: this worker and the number of workers. All workers make an Evaluator and call `measure` together.
            The samples, and so the values, do not depend on `world`.
        say: gets a line from time to time in long tasks, on rank 0.
        encoder: the trial's text encoder on the device, if it is loaded already.
    Raises UserError as check_evaluation, check_decoder and load_decoder do.
    """

    def __init__(
        self,
        config: TrialConfig,
        dataset: Dataset,
        home: Place,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        say: Say = silent,
        encoder: TextEncoder | None = None,
    ):
        _check_options(config)
        check_decoder(config, device)
        self.config, self.device, self.rank, self.world = config, device, rank, world
        self.say: Say = say if rank == 0 else silent
        self.extractor = make_extractor(config.eval, device)
        self.reference = load_reference(config, dataset, home, device, rank, world, self.say, self.extractor)
        self.decoder = dataset_decoder(config, dataset, device)
        self.encoder = encoder or trial_encoder(config, device)
        self.dataset = captioned(compared_dataset(config, dataset), self.encoder)
        # Real images whose classes or captions the samples have, with the frequencies of the data, shuffled once.
        order = np.random.default_rng(config.eval.seed).permutation(len(self.dataset))
        self.order = np.resize(order, config.eval.samples)
        # Numbers that choose among an image's captions.
        self.draws = np.random.default_rng([config.eval.seed, 2]).random(config.eval.samples)
        self.clip = _clip(config.eval.clip, device) if config.eval.clip else None
        self.protocol = make_protocol(self.extractor, self.reference, config.eval.samples) | {
            "seed": config.eval.seed,
            "chunk": CHUNK,
            "psi": config.eval.psi,
            "guidance": config.eval.guidance,
            "ema": config.train.ema_decay,
            "tokenizer": dataset.identity.digest or dataset.identity.source,
            "decoder": config.eval.decoder,
        }
        if config.eval.guidance != 1:
            self.protocol["null"] = config.eval.null
        if self.encoder:
            self.protocol |= {"captions": self.encoder.identity.digest, "retrieval": f"{NEAREST} of at most {POOL}"}
        if self.encoder or (config.eval.data and config.eval.reference):
            self.protocol["conditions"] = self.dataset.digest  # whose captions or classes the samples have
        if self.clip:
            self.protocol["clip"] = self.clip.digest

    def measure(self, ema: Generator, extras: bool = False, between: Callable[[], None] = lambda: None) -> Evaluation:
        """Frechet distance of `eval.samples` pictures of `ema`, and eval.extras where asked for; on every rank.

        between: called after every chunk of samples, equally often on every rank; it may raise to end the evaluation.
        """
        n = self.config.eval.samples
        chosen = self.config.eval.extras if extras else ()
        scored = "clip_score" in chosen
        features = self._features(ema, n, between, scored)
        if self.rank:
            found = dict.fromkeys(_MEASURES)
        else:
            features, scores = features[:, : self.extractor.width], features[:, self.extractor.width :]
            found = measure_features(features, self.reference, chosen)
            if "retrieval" in chosen:
                pool = min(POOL, n, len(self.dataset))
                found |= retrieval_score(features[:pool], self._real_features(pool))
            if scored:
                found |= {"clip_score": scores.mean().item(), "clip_score_se": scores.std().item() / n**0.5}
        if self.world > 1:
            shared = torch.tensor([math.nan if v is None else v for v in found.values()], dtype=torch.float64)
            shared = shared.to(self.device)
            dist.broadcast(shared, 0)
            found = {k: None if math.isnan(v) else v for k, v in zip(found, shared.tolist(), strict=True)}
        return make_evaluation(found, self.reference, n, self.protocol)

    def samples(self, ema: Generator, start: int, count: int = CHUNK) -> Tensor:
        """Pictures `start` to `start + count` of the fixed set, uint8 [n, 3, h, w], on the device."""
        config, part = self.config, slice(start, start + count)
        y = self._condition(part)
        count = len(self.order[part])
        generator = torch.Generator().manual_seed(config.eval.seed * 1_000_003 + start)
        z = torch.randn(count, config.model.z_dim, generator=generator).to(self.device)
        return self.decoder.decode(ema.sample(z, y, config.eval.psi, config.eval.guidance, config.eval.null))

    def _condition(self, part: slice) -> Condition:
        """Captions, classes or nothing, of some of the samples."""
        if self.encoder:
            rows = self.dataset.rows(self.order[part], captions=self.draws[part])
            return condition(self.config, rows.each(lambda column: column.to(self.device)), self.encoder)
        labels = self.dataset.labels[torch.from_numpy(self.order[part])]
        return labels.to(self.device) if self.config.data.classes else None

    def captions(self, start: int, count: int = CHUNK) -> list[str]:
        """Captions of `samples`; empty without captions."""
        if not self.encoder:
            return []
        return self.dataset.caption_texts(self.order[start : start + count], self.draws[start : start + count])

    def _clip_scores(self, pictures: Tensor, captions: list[str]) -> Tensor:
        """CLIP score [n] of each picture with its caption."""
        from gat_sweep.vision.clip import clip_scores

        assert self.clip is not None
        with torch.no_grad():
            return clip_scores(self.clip.pictures(pictures), self.clip.texts(captions))

    def _real_features(self, count: int) -> Tensor:
        """Features [count, F] of the real pictures of the first samples."""
        parts = []
        for index in np.array_split(self.order[:count], -(-count // CHUNK)):
            pictures = self.dataset.rows(index, pictures=True).pictures
            assert pictures is not None
            parts.append(self.extractor(pictures.to(self.device)))
        return torch.cat(parts)

    def _features(self, ema: Generator, n: int, between: Callable[[], None], scored: bool) -> Tensor:
        """Features [n, F] of all ranks, in the order of their seeds, on rank 0; other ranks return only their own.

        scored: whether a last column has the CLIP score of each picture with its caption.
        """
        eta = Eta(self.say, f"{self.extractor.metric} samples", n)
        rounds = -(-n // (CHUNK * self.world))
        mine = torch.zeros(rounds, CHUNK, self.extractor.width + scored, device=self.device)
        for i in range(rounds):
            start = (i * self.world + self.rank) * CHUNK
            if start < n:
                pictures = self.samples(ema, start)
                chunk = self.extractor(pictures)
                if scored:
                    scores = self._clip_scores(pictures, self.captions(start))
                    chunk = torch.cat([chunk, scores[:, None]], dim=1)
                mine[i, : len(chunk)] = chunk
            eta.add(min(CHUNK * self.world, n - i * self.world * CHUNK))
            between()
        if self.world == 1:
            return mine.flatten(0, 1)[:n]
        shares = [torch.empty_like(mine) for _ in range(self.world)] if self.rank == 0 else None
        dist.gather(mine, shares, 0)
        if shares is None:
            return mine
        return torch.stack(shares, dim=1).flatten(0, 2)[:n]  # in rounds; only the last chunk may be incomplete


def _clip(source: str, device: torch.device) -> "Clip":
    from gat_sweep.vision.clip import Clip  # imports transformers, which takes seconds

    return Clip(source, device)


_MEASURES = ["value", *(field.name for field in fields(Evaluation) if field.default is None)]


def measure_features(features: Tensor, reference: Reference, extras: tuple[str, ...]) -> dict[str, float | None]:
    """Measured values of generated features [n, F], by column; None for extras that are not in `extras`."""
    found: dict[str, float | None] = dict.fromkeys(_MEASURES)
    generated = distances.feature_statistics(features)
    found["value"] = distances.frechet_distance(reference.statistics, generated, reference.root)
    found["split_half"] = reference.halves
    if "kernel_distance" in extras:
        assert reference.features is not None
        pair = distances.kernel_distance(features, reference.features)
        found["kernel_distance"], found["kernel_distance_std"] = pair
    if "precision_recall" in extras:
        assert reference.features is not None
        found["precision"], found["recall"] = distances.precision_recall(features, reference.features)
    if "fd_infinity" in extras:
        pair = distances.frechet_infinity(reference.statistics, features, reference.root)
        found["fd_infinity"], found["fd_infinity_se"] = pair
    return found


def make_protocol(extractor: Extractor, reference: Reference, n: int) -> dict[str, Any]:
    """Protocol of distances of n pictures; the caller adds the source of the pictures."""
    return {
        "extractor": extractor.name,
        "weights": extractor.digest,
        "n": n,
        "reference": reference.reference,
        "resize": extractor.resize,
        "kernel_distance": f"cubic, {distances.SUBSETS} subsets of {distances.SUBSET}",
        "precision_recall": f"k={distances.NEIGHBOURS}, at most {distances.MANIFOLD}",
        "fd_infinity": f"{distances.BLOCKS} blocks, {distances.SPLITS} splits",
    }


def make_evaluation(
    found: dict[str, float | None], reference: Reference, n: int, protocol: dict[str, Any]
) -> Evaluation:
    """The evaluation of measured values, which must have a value."""
    value = found["value"]
    assert value is not None
    others: dict[str, Any] = {name: number for name, number in found.items() if name != "value"}
    return Evaluation(reference.metric, value, n, reference.reference, json.dumps(protocol, sort_keys=True), **others)
