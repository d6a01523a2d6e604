"""The retrieval score against planted answers."""

import pytest
import torch
from statsmodels.stats.proportion import proportion_confint

from gat_sweep.metrics.retrieval import NEAREST, retrieval_score


def test_pictures_beside_their_real_ones_are_all_found() -> None:
    real = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    found = retrieval_score(real + 0.01, real)
    assert found["retrieval"] == 1 and found["retrieval_high"] == pytest.approx(1)
    assert found["retrieval_chance"] == NEAREST / 200


def test_pictures_that_ignore_their_captions_are_found_by_chance() -> None:
    random = torch.Generator().manual_seed(1)
    inside = 0
    for _ in range(60):
        found = retrieval_score(torch.randn(100, 8, generator=random), torch.randn(100, 8, generator=random))
        inside += found["retrieval_low"] <= found["retrieval_chance"] <= found["retrieval_high"]
    assert inside >= 51  # 95 % of 60 are 57; fewer than 51 happen once in 1,000 such tests


def test_one_picture_for_all_captions_is_chance_not_more() -> None:
    """A generator with one mode: its picture is near the same ten real ones, whatever the caption."""
    real = torch.randn(100, 8, generator=torch.Generator().manual_seed(2))
    assert retrieval_score(real[:1].expand(100, -1), real)["retrieval"] == NEAREST / 100


def test_a_planted_share_and_its_interval() -> None:
    real = torch.eye(400)
    generated = real.clone()
    generated[100:] = -real[100:]  # farther from their own than from every other
    found = retrieval_score(generated, real)
    assert found["retrieval"] == 0.25
    low, high = proportion_confint(100, 400, method="wilson")
    assert (found["retrieval_low"], found["retrieval_high"]) == pytest.approx((low, high))
