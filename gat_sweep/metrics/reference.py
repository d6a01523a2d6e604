"""The reference of an evaluation: statistics of the features of all real pictures, and features of some of them."""

import hashlib
import itertools
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import Dataset, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.files.npy import BAD_ARRAY, read_array, read_header
from gat_sweep.files.storage import Place, write
from gat_sweep.metrics.distances import Moments, Statistics, covariance_root, frechet_distance
from gat_sweep.metrics.picture_sets import array_pictures
from gat_sweep.text import Eta, Say, silent
from gat_sweep.vision.extractors import WIDTHS, Extractor, make_extractor

BATCH = 64  # pictures per forward of the extractor, always the same because other batch sizes may round differently
# A data set has at least PARTS parts (if it has as many batches), each of at most PART_BATCHES batches. Parts are added
# in their order, so the sum does not depend on the number of workers.
PARTS, PART_BATCHES = 64, 256
KEPT = 10_000  # most pictures whose features are kept, for the kernel distance, precision and recall
ROUNDING = 1e-4  # of a covariance, relative to its largest variance; ADM's are in float32 or float64
THREADS = 4  # threads that read ahead


@dataclass(frozen=True)
class Reference:
    """The real pictures that generated ones are compared with, as statistics and features on one device."""

    metric: str
    reference: str  # data set, number of pictures, content digest; or the digest of a reference file
    statistics: Statistics
    root: Tensor  # of the covariance
    halves: float | None  # distance of two random halves of the real pictures; None for a reference file
    features: Tensor | None  # float32 [at most KEPT, F]; None for a reference file if they are not needed


def reference_dataset(config: TrialConfig) -> Dataset | None:
    """The data set whose pictures are the reference; None when eval.reference replaces them."""
    return None if config.eval.reference else compared_dataset(config, None)


def compared_dataset(config: TrialConfig, dataset: Dataset | None) -> Dataset:
    """The data set that gives an evaluation its real pictures, captions and classes: eval.data, or that of training.

    dataset: that of training, if it is open.
    Raises UserError when eval.data does not fit the training data.
    """
    if config.eval.data is None:
        return dataset or load_dataset(config.data)
    if config.data.dataset != "encoded":
        raise UserError(f"eval.data needs encoded training data, not {config.data.dataset}; set eval.data=null")
    other = load_dataset(config.data.model_copy(update={"path": config.eval.data}))
    if dataset is not None and other.identity.digest != dataset.identity.digest:
        raise UserError(
            f"eval.data '{other.name}' was encoded with the tokenizer {other.identity.source}, but the training data "
            f"'{dataset.name}' with {dataset.identity.source}; encode both with one"
        )
    return other


def check_reference(config: TrialConfig, dataset: Dataset | None) -> None:
    """Checks that there is a reference.

    dataset: that of training; None if eval.reference replaces its pictures, or if it is not open yet.

    Raises UserError when there are no real pictures, or a reference file does not fit the extractor or extras.
    """
    if config.eval.reference:
        _read_npz(Path(config.eval.reference), WIDTHS[config.eval.extractor])
        if _needs_features(config) and not _has_pictures(Path(config.eval.reference)):
            raise UserError(
                f"eval.reference {config.eval.reference} has no pictures (arr_0) for the kernel distance, precision "
                "and recall; remove them from eval.extras"
            )
        return
    found = compared_dataset(config, dataset)
    if not found.has_pictures:
        raise UserError(
            f"data set '{found.name}' has no pictures to compare with; encode it with --store-images, or set "
            "eval.reference to an npz with mu and sigma"
        )


def reference_name(config: TrialConfig, dataset: Dataset | None) -> str:
    """Name of the reference in rows: data set, number of pictures and content digest, or the digest of a file."""
    if not config.eval.reference:
        found = compared_dataset(config, dataset)
        return f"{found.name}:{len(found)}:{found.digest}"
    with open(config.eval.reference, "rb") as file:
        return f"npz:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def load_reference(
    config: TrialConfig,
    dataset: Dataset | None,
    home: Place,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    say: Say = silent,
    extractor: Extractor | None = None,
) -> Reference:
    """The reference of a config: eval.reference, or the pictures of eval.data, or of `dataset`, that of training.

    It is computed once per home and stored in <home>/cache.
    rank, world: with more than one worker, all call this together and share the work; the result does not depend on
    the number of workers. extractor: the extractor of the config, if it is already loaded.
    Raises UserError as check_reference and check_extractor do.
    """
    device = torch.device(device)
    check_reference(config, dataset)
    extractor = extractor or make_extractor(config.eval, device)
    name = reference_name(config, dataset)
    with_pictures = "-pictures" if config.eval.reference and _needs_features(config) else ""
    digest = f"{name.rsplit(':', 1)[1]}{with_pictures}"
    path = home / "cache" / f"{extractor.metric}-{extractor.resize}-{digest}-{extractor.digest}.safetensors"
    # Rank 0 looks for all ranks, because another trial may be writing the file now.
    missing = torch.tensor(int(not path.exists()), device=device)
    if world > 1:
        dist.broadcast(missing, 0)
    if missing.item():
        if not config.eval.reference:
            found = _of_dataset(compared_dataset(config, dataset), extractor, device, rank, world, say)
        elif rank == 0:
            found = _of_npz(Path(config.eval.reference), extractor, device, _needs_features(config), say)
        if rank == 0:
            write(path, save({name: tensor.cpu().contiguous() for name, tensor in found.items()}))
        if world > 1:
            dist.broadcast(missing, 0)
            missing.item()  # other ranks wait until the file is written; NCCL's broadcast alone lets them go on
    try:
        kept = {name: tensor.to(device) for name, tensor in load(path.read_bytes()).items()}
        statistics = Statistics(kept["mu"], kept["sigma"], int(kept["n"]))
        root = kept["root"]
    except (SafetensorError, KeyError):
        raise UserError(f"{path} is damaged; delete it and run the same command again") from None
    return Reference(
        config.eval.metric,
        name,
        statistics,
        root,
        kept["halves"].item() if "halves" in kept else None,
        kept.get("features"),
    )


def _of_npz(path: Path, extractor: Extractor, device: torch.device, pictures: bool, say: Say) -> dict[str, Tensor]:
    """Tensors of an ADM reference file: its mu and sigma, and the features of its pictures if `pictures`."""
    mu, sigma = _read_npz(path, extractor.width)
    found = {"mu": mu, "sigma": sigma, "root": covariance_root(sigma.to(device)), "n": torch.tensor(0)}
    if pictures:
        source = array_pictures(path)
        eta, features = Eta(say, "reference pictures", source.count), []
        for batch in source.batches(BATCH):
            features.append(extractor(batch.to(device)))
            eta.add(len(batch))
        found["features"] = torch.cat(features)[_kept(source.count)]
    return found


def _of_dataset(
    dataset: Dataset, extractor: Extractor, device: torch.device, rank: int, world: int, say: Say
) -> dict[str, Tensor]:
    """Statistics of all pictures, distance of two random halves, and KEPT features; empty except on rank 0."""
    count = len(dataset)
    in_first = np.zeros(count, dtype=bool)
    in_first[np.random.default_rng(0).permutation(count)[: count // 2]] = True
    kept = np.zeros(count, dtype=bool)
    kept[_kept(count)] = True
    batches = -(-count // BATCH)
    edges = np.linspace(0, batches, max(min(PARTS, batches), -(-batches // PART_BATCHES)) + 1).astype(int) * BATCH
    parts = [np.arange(a, min(b, count)) for a, b in itertools.pairwise(edges)]

    first = second = None
    features: list[Tensor] = []
    eta = Eta(say, f"{extractor.metric} reference, {dataset.name}", count)
    for start in range(0, len(parts), world):
        if start + rank < len(parts):
            mine = _Part.of(parts[start + rank], dataset, extractor, device, in_first, kept)
        for owner in range(min(world, len(parts) - start)):
            indices = parts[start + owner]
            if rank == 0:
                sizes = int(in_first[indices].sum()), int((~in_first[indices]).sum()), int(kept[indices].sum())
                part = mine if owner == 0 else _Part.received(owner, sizes, extractor.width, device)
                first = part.first if first is None else first + part.first
                second = part.second if second is None else second + part.second
                features.append(part.features)
                eta.add(len(indices))
            elif rank == owner:
                mine.send()
    if first is None or second is None:
        return {}
    whole, halves = (first + second).statistics(), (first.statistics(), second.statistics())
    return {
        "mu": whole.mu,
        "sigma": whole.sigma,
        "root": covariance_root(whole.sigma),
        "n": torch.tensor(count),
        "halves": torch.tensor(frechet_distance(*halves), dtype=torch.float64),
        "features": torch.cat(features),
    }


@dataclass(frozen=True)
class _Part:
    """Sums over the pictures of one part, in each of the two random halves."""

    first: Moments
    second: Moments
    features: Tensor  # features to keep, float32 [k, F]

    @staticmethod
    def of(
        indices: np.ndarray,
        dataset: Dataset,
        extractor: Extractor,
        device: torch.device,
        in_first: np.ndarray,
        kept: np.ndarray,
    ) -> "_Part":
        features = torch.cat([extractor(pictures.to(device)) for pictures in _read_ahead(dataset, indices)])
        first, keeps = (torch.from_numpy(mask[indices]).to(device) for mask in (in_first, kept))
        return _Part(Moments.of(features[first]), Moments.of(features[~first]), features[keeps])

    def tensors(self) -> list[Tensor]:
        found = [self.first.mean, self.first.scatter, self.second.mean, self.second.scatter, self.features]
        return [tensor for tensor in found if tensor.numel()]

    def send(self) -> None:
        for tensor in self.tensors():
            dist.send(tensor.contiguous(), 0)

    @staticmethod
    def received(owner: int, sizes: tuple[int, int, int], width: int, device: torch.device) -> "_Part":
        first, second = (
            Moments(
                n,
                torch.empty(width, dtype=torch.float64, device=device),
                torch.empty(width, width, dtype=torch.float64, device=device),
            )
            for n in sizes[:2]
        )
        part = _Part(first, second, torch.empty(sizes[2], width, device=device))
        for tensor in part.tensors():
            dist.recv(tensor, owner)
        return part


def _read_ahead(dataset: Dataset, indices: np.ndarray) -> Iterator[Tensor]:
    """Batches of the pictures with the given indices, read by threads while the device computes."""
    waiting = deque(np.split(indices, range(BATCH, len(indices), BATCH)))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="reference") as pool:
        reading = deque(pool.submit(dataset.rows, waiting.popleft(), True) for _ in range(min(THREADS, len(waiting))))
        while reading:
            rows = reading.popleft().result()
            if waiting:
                reading.append(pool.submit(dataset.rows, waiting.popleft(), True))
            assert rows.pictures is not None
            yield rows.pictures


def _kept(count: int) -> np.ndarray:
    """Indices of the pictures whose features are kept."""
    return np.sort(np.random.default_rng(1).permutation(count)[:KEPT])


def _needs_features(config: TrialConfig) -> bool:
    return not {"kernel_distance", "precision_recall"}.isdisjoint(config.eval.extras)


def _read_npz(path: Path, width: int) -> tuple[Tensor, Tensor]:
    """As _checked_npz, which takes seconds: once for each content of the file in a process."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"eval.reference {path}: {error.strerror or error}") from None
    return _checked_npz(path, width, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _checked_npz(path: Path, width: int, _time: int, _size: int) -> tuple[Tensor, Tensor]:
    """mu [width] and sigma [width, width] of a file, float64. Raises UserError when it does not have them."""
    wanted = {"mu": (width,), "sigma": (width, width)}
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for key in wanted:
                with archive.open(f"{key}.npy") as file:
                    shapes[key] = read_header(file)[0]
            values = {}
            for key in wanted if shapes == wanted else ():
                with archive.open(f"{key}.npy") as file:
                    values[key] = torch.from_numpy(read_array(file, wanted[key]).astype(np.float64))
    except OSError as error:
        raise UserError(f"eval.reference {path}: {error.strerror or error}") from None
    except BAD_ARRAY as error:
        said = " ".join(str(error).split())[:150]
        raise UserError(f"eval.reference {path} is not an npz with mu and sigma: {said}") from None
    if shapes != wanted:
        raise UserError(
            f"eval.reference {path} has mu {list(shapes['mu'])} and sigma {list(shapes['sigma'])}, but the features "
            f"have {width} values; use a reference for eval.extractor"
        )
    mu, sigma = values["mu"], values["sigma"]
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise UserError(f"eval.reference {path} has values that are not finite; download it again")
    scale = sigma.diagonal().abs().max()
    if (sigma - sigma.T).abs().max() > ROUNDING * scale or torch.linalg.eigvalsh(sigma)[0] < -ROUNDING * scale:
        raise UserError(
            f"eval.reference {path}: its sigma is not a covariance (not symmetric, or with a negative variance); "
            "download it again"
        )
    return mu, sigma


def _has_pictures(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        return "arr_0.npy" in file.namelist()
