"""The roofline of an iteration (speed/roofline.py), against what a GPU measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.trials import recipe

from gat_sweep.errors import UserError
from gat_sweep.plan import model_info
from gat_sweep.recipe import resolve
from gat_sweep.speed.roofline import pass_bytes, roofline

MEASURED = json.loads(Path("docs/gpu/2026-11-27-h200-b.json").read_text())["stages"]


def found(size: str, device: str = "h200", batch: int = 64, **settings: Any) -> dict[str, Any]:
    """The roofline of imagenet256, without the teacher, which the benchmark did not run."""
    sizes = {"model.generator": size, "model.discriminator": size, "teacher.cached": True}
    return roofline(resolve(recipe("imagenet256"), sizes | settings), device, batch)


def rows(roof: dict[str, Any]) -> dict[str, float]:
    return {row["part"]: row["ms"] for row in roof["rows"]}


@pytest.mark.parametrize("size", ["S", "L"])
def test_no_kernels_were_faster_than_the_roofline(size: str) -> None:
    """A bound that a measurement beats is wrong; one that is far off in what is simple to count is useless."""
    kinds = {kind: value["ms"] for kind, value in MEASURED[f"bench:{size}"]["kernels compiled"]["kinds"].items()}
    bound = rows(found(size))
    moved = sum(kinds[kind] for kind in ("norm", "compiled", "elementwise", "copies and fills", "reductions"))
    assert bound["matrix products"] <= kinds["matrix products"] + kinds["convolution"]
    assert bound["elementwise"] <= moved and bound["optimizers, EMA"] <= kinds["optimizer and averages"]
    assert bound["matrix products"] == pytest.approx(kinds["matrix products"], rel=0.3)
    assert bound["attention"] == pytest.approx(kinds["attention"], rel=0.1)  # the rate is fitted to these two
    assert found(size)["ms"] < MEASURED[f"bench:{size}"]["kernels compiled"]["kernel_ms_per_step"]


@pytest.mark.parametrize(("size", "settings"), [("S", {}), ("L", {"workers.compile": False})])
def test_the_number_of_kernels_is_near_the_one_that_was_counted(size: str, settings: dict[str, Any]) -> None:
    """With the chunks of that run: 32 pairs a call at L, which the memory model of eager blocks chooses."""
    counted = MEASURED[f"bench:{size}"]["kernels compiled"]["kernels_per_step"]
    roof = found(size, **settings)
    assert roof["chunk"] == MEASURED[f"bench:{size}"]["plan"]["chunk"]
    assert roof["launches"] == pytest.approx(counted, rel=0.03)


def test_the_parts_are_those_of_the_iteration() -> None:
    """All FLOPs are there; time grows with the images; a whole iteration is never faster than its products."""
    config = resolve(recipe("imagenet256"), {"model.generator": "B", "model.discriminator": "B"})
    roof = roofline(config, "h100", 32)
    flop = sum(row["amount"] for row in roof["rows"] if row["unit"] == "FLOP")
    assert flop == 32 * model_info(config)["iteration_flops_total"]
    assert rows(roof)["teacher"] > 0 and "teacher" not in rows(found("B"))
    assert 1.5 < found("B", batch=64)["ms"] / found("B", batch=32)["ms"] < 2
    assert 0 < roof["mfu"] < 1 and roof["ms"] <= roof["ms_without_graph"]


def test_a_block_moves_fewer_bytes_where_nothing_of_it_learns() -> None:
    spec = resolve(recipe("imagenet256"), {}).discriminator_spec
    forward, backward, images = pass_bytes(spec)
    assert forward < images < backward


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match=r"unknown device 'a100'; use h200 or h100"):
        found("S", "a100")
    with pytest.raises(UserError, match=r"add --set train.precision=bfloat16"):
        roofline(resolve(recipe("digits"), {}), "h100")
    with pytest.raises(UserError, match=r"use more workers"):
        found("XL", "h100", batch=4096)
