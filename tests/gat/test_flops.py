"""Closed-form counts against torch's counter, and parameter counts against Table 2."""

import pytest
import torch
from helpers.trials import recipe
from torch.utils.flop_counter import FlopCounterMode

from gat_sweep.gat import flops
from gat_sweep.gat.condition import Captions, Condition
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.losses import Draws, discriminator_losses, generator_loss
from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec, Objective
from gat_sweep.plan import model_info
from gat_sweep.recipe import resolve

SIZES = ["S", "B", "L", "XL"]
TABLE_2 = {  # M parameters of G and D
    "S": (29.36, 39.21),
    "B": (116.75, 104.68),
    "L": (408.75, 323.04),
    "XL": (602.25, 467.68),
}


def paper(size: str, patch: int, name: str = "imagenet256", **more: object) -> object:
    sizes = {"model.generator": size, "model.discriminator": size, "model.patch": patch}
    return resolve(recipe(name), sizes, more)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [2, 4])
def test_forward_counts_equal_the_counter(size: str, patch: int) -> None:
    config = paper(size, patch)
    g, d = config.generator_spec, config.discriminator_spec
    with torch.device("meta"):
        z, y = torch.empty(1, g.z_dim), torch.empty(1, dtype=torch.long)
        x = torch.empty(1, g.levels * g.channels, g.side, g.side)
        generator, discriminator = Generator(g), Discriminator(d)
    with FlopCounterMode(display=False) as counter:
        generator(z, y)
    assert counter.get_total_flops() == flops.generator_forward(g)
    with FlopCounterMode(display=False) as counter:
        discriminator(x, y, 1)
    assert counter.get_total_flops() == flops.discriminator_forward(d)


def iteration_counter(
    generator: Generator,
    discriminator: Discriminator,
    real: torch.Tensor,
    z: torch.Tensor,
    y: Condition,
    teacher: torch.Tensor | None,
    draws: Draws,
) -> FlopCounterMode:
    """torch's counts of one D step and one G step."""

    def same(x: torch.Tensor, _: object) -> torch.Tensor:
        return x

    with FlopCounterMode(display=False) as counter:
        fake, _ = generator(z, y)
        terms = discriminator_losses(discriminator, real, fake.detach(), y, teacher, draws, same, same, Objective())
        terms["loss_d"].mean().backward()
        discriminator.requires_grad_(False)
        generator_loss(discriminator, real, fake, y, draws, same, same).mean().backward()
    return counter


@pytest.mark.parametrize("scale", ["imagenet256", "digits"])
@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("classes", [10, 0])
def test_iteration_counts_equal_the_counter(scale: str, patch: int, classes: int) -> None:
    """A D step and a G step run on meta tensors, forward and backward, item by item summed."""
    config = paper("S", patch, scale, **{"data.classes": classes})
    g, d = config.generator_spec, config.discriminator_spec
    batch = 3
    with torch.device("meta"):
        generator, discriminator = Generator(g), Discriminator(d)
        z, y = torch.empty(batch, g.z_dim), torch.empty(batch, dtype=torch.long) if classes else None
        real = torch.empty(batch, g.channels, g.side, g.side)
        teacher = torch.empty(batch, 1 + d.tokens, d.teacher_width) if d.teacher_width else None
        noise = torch.empty(2, g.levels, *real.shape)
    counter = iteration_counter(generator, discriminator, real, z, y, teacher, Draws(mng=noise, penalty=noise))
    assert counter.get_total_flops() == batch * sum(flops.iteration(g, d).values())
    assert counter.get_flop_counts()["Global"][torch.ops.aten.bmm] == batch * flops.iteration_attention(g, d)


def test_whole_forwards_and_what_the_engine_runs() -> None:
    """Against 3 G + 15 D the engine spares input gradients of images and the last block's unread tokens."""
    config = paper("XL", 2)
    specs = config.generator_spec, config.discriminator_spec
    g, d = flops.generator_forward(specs[0]), flops.discriminator_forward(specs[1])
    rounded = flops.round_counts(*specs)
    assert rounded == {"straightforward_5g_20d": 5 * g + 20 * d, "shared_3g_15d": 3 * g + 15 * d}
    total = sum(flops.iteration(*specs).values())
    assert 0.93 * rounded["shared_3g_15d"] < total < rounded["shared_3g_15d"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [2, 4])
def test_parameters_equal_table_2(size: str, patch: int) -> None:
    info = model_info(paper(size, patch))
    if patch == 2:
        assert round(info["g_params_paper"] / 1e6, 2) == TABLE_2[size][0]
    assert round(info["d_params_paper"] / 1e6, 2) == TABLE_2[size][1]
    assert info["g_params"] < info["g_params_paper"]


def text_specs(tokens: int) -> tuple[GeneratorSpec, DiscriminatorSpec]:
    shape = {"width": 32, "depth": 4, "heads": 2, "side": 8, "channels": 3, "patch": 2, "classes": 0, "levels": 4}
    text = {"text_width": 24, "text_tokens": tokens}
    return GeneratorSpec(**shape, **text, z_dim=16), DiscriminatorSpec(
        **shape, **text, class_width=20, projector_width=12, teacher_width=10
    )


@pytest.mark.parametrize("tokens", [1, 7, 77])
def test_counts_with_captions_equal_the_counter(tokens: int) -> None:
    g, d = text_specs(tokens)
    batch = 3
    with torch.device("meta"):
        generator, discriminator = Generator(g), Discriminator(d)
        z = torch.empty(batch, g.z_dim)
        y = Captions(
            torch.empty(batch, tokens, 24), torch.ones(batch, tokens, dtype=torch.bool), torch.empty(batch, 24)
        )
        real = torch.empty(batch, g.channels, g.side, g.side)
        teacher = torch.empty(batch, 1 + d.tokens, d.teacher_width)
        noise = torch.empty(2, g.levels, *real.shape)
    with FlopCounterMode(display=False) as counter:
        generator(z, y)
    assert counter.get_total_flops() == batch * flops.generator_forward(g)
    counter = iteration_counter(generator, discriminator, real, z, y, teacher, Draws(mng=noise, penalty=noise))
    assert counter.get_total_flops() == batch * sum(flops.iteration(g, d).values())
    assert counter.get_flop_counts()["Global"][torch.ops.aten.bmm] == batch * flops.iteration_attention(g, d)
