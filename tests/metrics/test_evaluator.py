"""Evaluations from pictures to numbers: parity with torch-fidelity, references, one and two workers."""

import json
import math
import multiprocessing
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch_fidelity
from helpers.pictures import (
    EXTRAS,
    Photographs,
    encoded_latents,
    encoded_pixels,
    photo_config,
    photographs,
    write_npz,
)
from helpers.trials import new_ema, tiny_config
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from gat_sweep import text
from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import dataset_decoder, load_dataset
from gat_sweep.data.tokenizer import Pixels
from gat_sweep.errors import UserError
from gat_sweep.metrics import evaluator as evaluate
from gat_sweep.metrics import picture_sets, reference
from gat_sweep.metrics.distances import covariance_root, feature_statistics, frechet_distance, frechet_infinity
from gat_sweep.metrics.evaluator import Evaluation, Evaluator, check_evaluation, measure_features
from gat_sweep.metrics.reference import Reference, load_reference, reference_dataset
from gat_sweep.pretrained.evaluate import evaluate_pictures
from gat_sweep.vision.extractors import EfficientNetLite0

CPU = torch.device("cpu")


def reference_of(config: TrialConfig, home: Path) -> Reference:
    return load_reference(config, reference_dataset(config), home)


def checked(config: TrialConfig) -> None:
    check_evaluation(config, reference_dataset(config))


# ---------------------------------------------------------------- parity


class OursForTheirs(FeatureExtractorBase):
    """Our network where torch-fidelity expects one of its own."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any):
        super().__init__(name, features_list)
        self.network = EfficientNetLite0(32)

    def forward(self, pictures: Tensor) -> tuple[Tensor]:
        return (self.network(pictures),)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("pooled",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "pooled"


def test_the_whole_path_agrees_with_torch_fidelity(tmp_path: Path) -> None:
    """From a data set's shards and a file of generated pictures to the numbers, within 1e-3, relative and absolute."""
    real, generated = encoded_pixels(tmp_path / "data", 300, 32), photographs(260, 32, seed=9) // 4 * 3
    config = photo_config(tmp_path / "data")
    ours = evaluate_pictures(write_npz(tmp_path / "samples.npz", generated), config, tmp_path, CPU)
    register_feature_extractor("ours", OursForTheirs)
    try:
        expected = torch_fidelity.calculate_metrics(
            input1=Photographs(generated), input2=Photographs(real), feature_extractor="ours", fid=True, kid=True,
            prc=True, kid_subset_size=260, cuda=False, verbose=False, save_cpu_ram=True,
        )  # fmt: skip
    finally:
        del FEATURE_EXTRACTORS_REGISTRY["ours"]
    pairs = {
        "frechet_inception_distance": ours.value,
        "kernel_inception_distance_mean": ours.kernel_distance,
        "kernel_inception_distance_std": ours.kernel_distance_std,
        "precision": ours.precision,
        "recall": ours.recall,
    }
    for name, value in pairs.items():
        assert value == pytest.approx(expected[name], rel=1e-3), name
        assert value == pytest.approx(expected[name], abs=1e-3), name
    assert ours.value > 10 and 0 < ours.precision < 1 and 0 < ours.recall < 1  # type: ignore[operator]
    assert (ours.metric, ours.n, ours.fd_infinity) == ("fd_efficientnet_lite0", 260, None)


# ---------------------------------------------------------------- references


def test_the_reference_is_the_statistics_of_all_pictures(tmp_path: Path) -> None:
    shown = torch.from_numpy(encoded_pixels(tmp_path / "data", 200, 32))
    found = reference_of(photo_config(tmp_path / "data"), tmp_path)
    features = torch.cat([EfficientNetLite0(32)(part) for part in shown.split(64)])
    whole = feature_statistics(features)
    torch.testing.assert_close(found.statistics.mu, whole.mu)
    torch.testing.assert_close(found.statistics.sigma, whole.sigma)
    torch.testing.assert_close(found.root @ found.root, whole.sigma, rtol=1e-5, atol=1e-9)
    assert found.features is not None and torch.equal(found.features, features) and found.statistics.n == 200
    first = np.sort(np.random.default_rng(0).permutation(200)[:100])
    second = np.setdiff1d(np.arange(200), first)
    halves = frechet_distance(feature_statistics(features[first]), feature_statistics(features[second]))
    assert found.halves == pytest.approx(halves)


def test_only_some_features_are_kept_and_the_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = torch.from_numpy(encoded_pixels(tmp_path / "data", 130, 32))
    monkeypatch.setattr(reference, "KEPT", 40)
    found = reference_of(photo_config(tmp_path / "data"), tmp_path)
    features = torch.cat([EfficientNetLite0(32)(part) for part in shown.split(64)])
    chosen = np.sort(np.random.default_rng(1).permutation(130)[:40])
    assert found.features is not None and torch.equal(found.features, features[chosen])

    def never(*args: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(reference, "_of_dataset", never)
    again = reference_of(photo_config(tmp_path / "data"), tmp_path)
    assert again.halves == found.halves and torch.equal(again.root, found.root)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]
    with pytest.raises(AssertionError, match="computed again"):  # pictures seen at another size are another reference
        reference_of(photo_config(tmp_path / "data", eval__resize=64), tmp_path)


def test_a_reference_file(tmp_path: Path) -> None:
    """Its mu and sigma are the reference, its pictures the real ones of the other measures; no data set is needed."""
    real, generated = photographs(120, 32), photographs(110, 32, seed=5)
    extractor = EfficientNetLite0(32)
    features = torch.cat([extractor(part) for part in torch.from_numpy(real).split(64)])
    told = feature_statistics(features * 2)  # not those of the pictures beside them
    npz = write_npz(tmp_path / "VIRTUAL.npz", real, mu=told.mu.numpy(), sigma=told.sigma.numpy())
    samples = write_npz(tmp_path / "samples.npz", generated)
    config = photo_config(tmp_path / "nowhere", eval__reference=str(npz))
    checked(config)
    found = evaluate_pictures(samples, config, tmp_path, CPU)
    assert found.reference.startswith("npz:") and found.split_half is None
    seen = torch.cat([extractor(part) for part in torch.from_numpy(generated).split(64)])
    assert found.value == pytest.approx(frechet_distance(told, feature_statistics(seen)))
    kernel = evaluate.distances.kernel_distance(seen, features)
    assert (found.kernel_distance, found.kernel_distance_std) == pytest.approx(kernel)


def test_references_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, message: str, **overrides: Any) -> None:
        config = photo_config(tmp_path / "nowhere", eval__reference=str(path), **overrides)
        for check in (lambda: checked(config), lambda: reference_of(config, tmp_path)):
            with pytest.raises(UserError, match=message):
                check()

    sound = {"mu": np.zeros(1280), "sigma": np.eye(1280)}
    refused(tmp_path / "absent.npz", "absent.npz: No such file")
    np.savez(tmp_path / "small.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    refused(tmp_path / "small.npz", r"mu \[2048\].*features have 1280 values")
    np.savez(tmp_path / "nan.npz", mu=sound["mu"], sigma=np.full((1280, 1280), math.nan))
    refused(tmp_path / "nan.npz", "not finite")
    skew, negative = np.eye(1280), np.eye(1280)
    skew[0, 1], negative[3, 3] = 0.1, -0.1
    for name, sigma in (("skew", skew), ("negative", negative)):
        np.savez(tmp_path / f"{name}.npz", mu=sound["mu"], sigma=sigma)
        refused(tmp_path / f"{name}.npz", "its sigma is not a covariance")
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}], dtype=object), sigma=sound["sigma"])
    refused(tmp_path / "pickle.npz", "not an npz with mu and sigma")
    (tmp_path / "text.npz").write_text("mu, sigma")
    refused(tmp_path / "text.npz", "not an npz with mu and sigma")
    np.savez(tmp_path / "bare.npz", **sound)
    refused(tmp_path / "bare.npz", r"no pictures \(arr_0\)")
    checked(photo_config(tmp_path / "nowhere", eval__reference=str(tmp_path / "bare.npz"), eval__extras=[]))
    encoded_latents(tmp_path / "latents", 10, 4, 4)
    config = photo_config(tmp_path / "latents", data__side=4, data__channels=4, model__patch=2)
    with pytest.raises(UserError, match="has no pictures to compare with; encode it with --store-images"):
        checked(config)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="fd_infinity needs at least 8,960 pictures"):
        checked(tiny_config(eval__extras=["fd_infinity"]))
    with pytest.raises(UserError, match=r"eval\.guidance"):
        checked(tiny_config(eval__guidance=2.0, data__classes=0))


def test_another_decoder_is_refused(tmp_path: Path) -> None:
    encoded_latents(tmp_path / "latents", 10, 4, 4)
    config = photo_config(
        tmp_path / "latents", data__side=4, data__channels=4, model__patch=2, data__tokenizer="pixels"
    )
    with pytest.raises(UserError, match="is not the one of data set 'photographs', 'nowhere'"):
        dataset_decoder(config, load_dataset(config.data))
    digits = tiny_config()
    assert isinstance(dataset_decoder(digits, load_dataset(digits.data)), Pixels)


def test_tf32_needs_a_gpu(home_with_reference: Path) -> None:
    config = tiny_config(eval__decoder="tf32")
    with pytest.raises(UserError, match=r"set eval\.decoder=float32"):
        Evaluator(config, load_dataset(config.data), home_with_reference, CPU)


# ---------------------------------------------------------------- evaluations


def test_fd_infinity_is_measured_where_it_is_asked_for() -> None:
    """On planted features, few of them per picture: the columns are frechet_infinity's, and empty without it."""
    real, generated = torch.randn(2, 400, 6, generator=torch.Generator().manual_seed(0))
    statistics = feature_statistics(real)
    planted = Reference("fd_x", "planted", statistics, covariance_root(statistics.sigma), None, None)
    asked = measure_features(generated, planted, ("fd_infinity",))
    assert (asked["fd_infinity"], asked["fd_infinity_se"]) == frechet_infinity(statistics, generated)
    assert asked["fd_infinity"] < asked["value"]  # a distance of 400 is biased upwards
    assert measure_features(generated, planted, ())["fd_infinity"] is None


def test_an_evaluation_and_its_protocol(home_with_reference: Path) -> None:
    config = tiny_config(eval__extras=EXTRAS, eval__samples=150)
    dataset = load_dataset(config.data)
    evaluator = Evaluator(config, dataset, home_with_reference, CPU)
    ema = new_ema(config)
    plain, full = evaluator.measure(ema), evaluator.measure(ema, extras=True)
    assert replace(plain, **{k: v for k, v in asdict(full).items() if getattr(plain, k) is None}) == full
    assert full.split_half == evaluator.reference.halves and plain.kernel_distance is None
    assert None not in (full.kernel_distance, full.kernel_distance_std, full.precision, full.recall)
    shown = torch.cat([evaluator.samples(ema, start) for start in (0, 64, 128)])
    assert shown.shape == (150, 3, 8, 8) and shown.dtype == torch.uint8
    protocol = json.loads(full.protocol)
    assert protocol == {
        "extractor": "efficientnet_lite0",
        "weights": evaluator.extractor.digest,
        "n": 150,
        "reference": f"digits:1797:{dataset.digest}",
        "resize": "bicubic-32",
        "seed": 0,
        "chunk": 64,
        "psi": 1.0,
        "guidance": 1.0,
        "ema": 0.99,
        "tokenizer": "pixels",
        "decoder": "float32",
        "kernel_distance": "cubic, 100 subsets of 1000",
        "precision_recall": "k=3, at most 10000",
        "fd_infinity": "20 blocks, 5 splits",
    }
    assert set(full.journal()) == {
        *("fd_efficientnet_lite0", "kd_efficientnet_lite0", "kd_efficientnet_lite0_std"),
        *("precision_efficientnet_lite0", "recall_efficientnet_lite0"),
    }


def test_names_of_inceptions_own() -> None:
    found = Evaluation(
        "fid", 2.0, 10, "r", "{}", kernel_distance=0.5, precision=0.1, fd_infinity=1.0, fd_infinity_se=0.2
    )
    assert found.journal() == {
        "fid": 2.0, "kid": 0.5, "precision": 0.1, "fid_infinity": 1.0, "fid_infinity_se": 0.2
    }  # fmt: skip


@pytest.mark.parametrize("change", [{"eval__psi": 0.5}, {"eval__guidance": 1.5}, {"eval__seed": 1}])
def test_how_pictures_are_drawn_is_in_the_protocol_and_in_the_number(
    home_with_reference: Path, change: dict[str, float]
) -> None:
    results = []
    for config in (tiny_config(), tiny_config(**change)):
        ema = new_ema(config)
        ema.style_mean += 0.5
        results.append(Evaluator(config, load_dataset(config.data), home_with_reference, CPU).measure(ema))
    (key, value), (before, after) = next(iter(change.items())), (json.loads(r.protocol) for r in results)
    null = {"null"} if key == "eval__guidance" else set()  # only guidance uses the null style
    assert {k for k in after if before.get(k) != after[k]} == {key.removeprefix("eval__")} | null
    assert after[key.removeprefix("eval__")] == value and results[0].value != results[1].value


def _shared_config(folder: Path) -> TrialConfig:
    small = {"ladder__S__width": 32, "ladder__S__heads": 1, "model__class_width": 32, "model__projector_width": 32}
    return photo_config(folder / "data", **small)


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    config = _shared_config(folder)
    evaluator = Evaluator(config, load_dataset(config.data), folder / "two", CPU, rank, 2)
    (folder / f"{rank}.json").write_text(json.dumps(asdict(evaluator.measure(new_ema(config), extras=True))))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_find_what_one_finds(tmp_path: Path) -> None:
    """Bit for bit: the reference that they compute together in five parts, and the measures, on each of them."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    encoded_pixels(tmp_path / "data", 300, 32)
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=_worker, args=(rank, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    config = _shared_config(tmp_path)
    alone = Evaluator(config, load_dataset(config.data), tmp_path / "one", CPU).measure(new_ema(config), extras=True)
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == asdict(alone)
    (one,), (two,) = ((tmp_path / home / "cache").iterdir() for home in ("one", "two"))
    assert one.name == two.name
    ours, theirs = load_file(one), load_file(two)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---------------------------------------------------------------- what cannot be measured, and how long it takes


def test_pictures_that_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no pictures"):
        picture_sets.open_pictures(tmp_path / "empty")
    with pytest.raises(UserError, match=r"absent\.npz: No such file"):
        picture_sets.open_pictures(tmp_path / "absent.npz")
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 4, 4, 3)))
    with pytest.raises(UserError, match=r"arr_0 is float64 \[2, 4, 4, 3\]; pictures must be uint8"):
        picture_sets.open_pictures(tmp_path / "float.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros((2, 4, 4, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="not an npz with pictures in arr_0"):
        picture_sets.open_pictures(tmp_path / "other.npz")
    for name, side in [("a.png", 8), ("b.png", 9)]:
        Image.new("RGB", (side, side)).save(tmp_path / "empty" / name)
    with pytest.raises(UserError, match=r"b\.png is 9x9, others are 8x8"):
        list(picture_sets.open_pictures(tmp_path / "empty").batches(2))


def test_a_long_pass_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 40.0, 100.0])
    monkeypatch.setattr(text.time, "monotonic", lambda: next(clock))
    said: list[str] = []
    eta = text.Eta(said.append, "fid samples", 50_000)
    for count in (1000, 4000, 45_000):
        eta.add(count)
    assert said == ["fid samples: 5,000 of 50,000, 0:06:00 left"]
