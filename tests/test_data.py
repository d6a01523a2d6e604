"""The digits, and the sampler's exactness."""

import numpy as np
import pytest
import torch
from conftest import tiny_config

from gat_sweep.data.dataset import check_dataset, load_dataset
from gat_sweep.data.sampler import batch_indices
from gat_sweep.errors import UserError


def test_digits_are_the_real_ones() -> None:
    dataset = load_dataset(tiny_config().data)
    assert dataset.latents.shape == (1797, 1, 8, 8)
    assert (dataset.latents.min(), dataset.latents.max()) == (-1, 1)
    assert torch.bincount(dataset.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pictures = dataset.decode(dataset.latents[:5])
    assert pictures.shape == (5, 3, 8, 8) and pictures.dtype == torch.uint8 and pictures.max() == 255


def test_data_that_does_not_fit_the_recipe_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(8, 1, 10\).*\(8, 3, 10\)"):
        load_dataset(tiny_config(data__channels=3).data)
    with pytest.raises(UserError, match="not found at 'nowhere'"):
        load_dataset(tiny_config(data__dataset="latents", data__path="nowhere").data)
    with pytest.raises(UserError, match="teacher"):
        check_dataset(tiny_config(teacher={"name": "x", "width": 8}))


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
