"""Invariants of the paper's parts that the reference file does not hold."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers.trials import tiny_config

from gat_sweep.gat.augment import AugmentDraws, augment, draw_augmentation, move, move_tokens
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.ema import update_ema, update_style_mean
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.layers import SwiGLU, embed_patches
from gat_sweep.gat.losses import alignment_loss
from gat_sweep.gat.mng import make_perturb, official_mixing, paper_mixing, signal_schedule
from gat_sweep.gat.scaling import adapted_learning_rate
from gat_sweep.gat.spec import Augmentation


def networks(**overrides: object) -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    config = tiny_config(**overrides)
    return Generator(config.generator_spec), Discriminator(config.discriminator_spec)


# ---------------------------------------------------------------- MNG (Eq. 2, A.1)


def test_schedules() -> None:
    assert signal_schedule("exp", 4).tolist() == [0.125, 0.25, 0.5, 1.0]
    assert signal_schedule("linear", 4).tolist() == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", ["exp", "linear"])
def test_paper_noise_keeps_unit_variance_and_the_stated_correlation(schedule: str) -> None:
    """Var(level k) = 1 for unit images; Cov(eps_{k-1}, eps_k) = alpha_{k-1} / alpha_k."""
    alpha = signal_schedule(schedule, 4)
    signal, noise = paper_mixing(alpha)
    variance = signal**2 + (noise**2).sum(axis=1)
    assert variance == pytest.approx(np.ones(4))
    for k in (1, 2):  # levels 2 and 3 have noise to correlate
        covariance = noise[k - 1] @ noise[k]
        scale = math.sqrt(1 - alpha[k - 1] ** 2) * math.sqrt(1 - alpha[k] ** 2)
        assert covariance / scale == pytest.approx(alpha[k - 1] / alpha[k])
    assert noise[3] == pytest.approx(np.zeros(4))  # the last level is clean


def test_official_noise_has_its_own_variance() -> None:
    alpha = signal_schedule("exp", 4)
    signal, noise = official_mixing(alpha)
    t = 1 - alpha + 0.01
    assert signal == pytest.approx(1 - t)
    assert (noise**2).sum(axis=1) == pytest.approx(t**2)


def test_perturbation_is_linear_in_the_image_and_the_draws() -> None:
    perturb = make_perturb("exp", 4, "paper")
    x, draws = torch.randn(2, 2, 4, 3, 1, 8, 8), torch.randn(2, 4, 3, 1, 8, 8)
    clean = perturb(x, torch.zeros_like(draws))
    assert torch.allclose(clean[:, :, 0], 0.125 * x[:, :, 0]) and torch.equal(clean[:, :, 3], x[:, :, 3])
    assert torch.allclose(perturb(x, draws) - clean, perturb(torch.zeros_like(x), draws), atol=1e-6)


def test_msg_degrades_by_resolution_and_leaves_the_last_level() -> None:
    x = torch.randn(1, 2, 4, 3, 2, 8, 8)
    out = make_perturb("msg", 4, "paper")(x, torch.empty(0))
    assert torch.equal(out[:, :, 3], x[:, :, 3])
    assert out[:, :, 0].std(dim=(-2, -1)).max() < 1e-6  # one pixel, enlarged
    assert torch.allclose(out[:, :, 0].mean(dim=(-2, -1)), x[:, :, 0].mean(dim=(-2, -1)), atol=1e-6)


def test_without_mng_there_is_one_clean_level() -> None:
    generator, discriminator = networks(mng__schedule="none")
    levels, _ = generator(torch.randn(2, 16), torch.tensor([1, 2]))
    assert len(levels) == 1 and discriminator.patch_embedding.in_channels == 1
    x = torch.randn(1, 2, 1, 3, 1, 8, 8)
    assert make_perturb("none", 1, "paper")(x, torch.empty(0)) is x


# ---------------------------------------------------------------- augmentation


def still(sides: int, batch: int) -> dict[str, torch.Tensor]:
    """Draws that change nothing."""
    zero, one = torch.zeros(sides, batch), torch.ones(sides, batch)
    off, none = zero.bool(), zero.long()
    far = torch.full((sides, batch), 1000)
    return {
        "colored": off, "brightness": zero, "saturation": one, "contrast": one, "shift_y": none, "shift_x": none,
        "flipped": off, "cut_y": far, "cut_x": far,
    }  # fmt: skip


def test_augmentation_moves_flips_cuts_and_colors_as_written() -> None:
    x = torch.randn(2, 2, 4, 3, 2, 8, 8)
    config = Augmentation()
    assert torch.equal(augment(x, config, AugmentDraws(**still(2, 3))), x)

    draws = still(2, 3)
    draws["shift_y"], draws["shift_x"] = torch.full((2, 3), 1), torch.full((2, 3), -1)
    moved = augment(x, config, AugmentDraws(**draws))
    assert torch.equal(moved[..., :7, 1:], x[..., 1:, :7])
    assert not moved[..., 7, :].any() and not moved[..., :, 0].any()  # zero padding

    draws = still(2, 3)
    draws["flipped"] = torch.tensor([[True, False, False], [False, False, True]])
    flipped = augment(x, config, AugmentDraws(**draws))
    assert torch.equal(flipped[:, 0, :, 0], x[:, 0, :, 0].flip(-1)) and torch.equal(flipped[:, 1, :, 0], x[:, 1, :, 0])

    draws = still(2, 3)
    draws["cut_y"], draws["cut_x"] = torch.full((2, 3), -2), torch.full((2, 3), 3)
    cut = augment(x, config, AugmentDraws(**draws))
    assert not cut[..., :2, 3:7].any() and torch.equal(cut[..., 2:, :], x[..., 2:, :])

    draws = still(2, 3)
    draws |= {"colored": torch.ones(2, 3).bool(), "brightness": torch.full((2, 3), 0.3)}
    draws |= {"saturation": torch.full((2, 3), 1.7), "contrast": torch.full((2, 3), 0.6)}
    colored = augment(x, config, AugmentDraws(**draws))
    final = x[0, :, -1]  # the steps one by one, on the level whose means are used
    step = final + 0.3
    step = (step - step.mean(2, keepdim=True)) * 1.7 + step.mean(2, keepdim=True)
    step = (step - step.mean((2, 3, 4), keepdim=True)) * 0.6 + step.mean((2, 3, 4), keepdim=True)
    assert torch.allclose(colored[0, :, -1], step, atol=1e-5)
    shift = colored - 1.7 * 0.6 * x  # the same affine map at every pass and level
    assert torch.allclose(shift, shift[:1, :, :1].expand_as(shift), atol=1e-5)


def test_draws_have_the_stated_probabilities_and_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = draw_augmentation(Augmentation(), (2, 20_000), 32, generator)
    assert draws.colored.float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.flipped.float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert (draws.shift_y.min(), draws.shift_y.max()) == (-4, 4)
    assert (draws.cut_x.min(), draws.cut_x.max()) == (-8, 24)
    assert not torch.equal(draws.shift_y[0], draws.shift_y[1])  # real and fake differ


def test_gradients_reach_the_image_only_where_it_is_seen() -> None:
    x = torch.randn(1, 1, 4, 1, 1, 8, 8, requires_grad=True)
    draws = still(1, 1)
    draws["cut_y"], draws["cut_x"] = torch.zeros(1, 1).long(), torch.zeros(1, 1).long()
    augment(x, Augmentation(), AugmentDraws(**draws)).sum().backward()
    assert x.grad is not None
    assert not x.grad[..., :4, :4].any() and (x.grad[..., 4:, :] == 1).all()


def test_the_teacher_sees_what_the_latent_shows() -> None:
    latents = torch.randn(3, 2, 8, 8)
    pictures = latents.repeat_interleave(4, 2).repeat_interleave(4, 3)
    draws = draw_augmentation(Augmentation(color=0), (2, 3), 8, torch.Generator().manual_seed(3))
    far = torch.full((2, 3), 1000)
    draws = AugmentDraws(**{**vars(draws), "cut_y": far, "cut_x": far})
    moved = augment(latents[None, None, None].expand(1, 2, 1, -1, -1, -1, -1), Augmentation(), draws)[0, 0, 0]
    assert torch.equal(move(pictures, draws.of_real(), 4)[..., ::4, ::4], moved)


def test_cached_tokens_move_with_the_picture() -> None:
    """By whole patches, or by half of one between two tokens; [cls] stays, and what comes in is zero."""
    tokens = torch.randn(3, 1 + 16, 5)
    grid = tokens[:, 1:].unflatten(1, (4, 4))
    draws = {**still(1, 3), "shift_y": torch.tensor([[2, 0, 0]]), "shift_x": torch.tensor([[0, -2, 1]])}
    moved = move_tokens(tokens, AugmentDraws(**draws).of_real(), patch=2)
    assert torch.equal(moved[:, 0], tokens[:, 0])
    down, left, half = moved[:, 1:].unflatten(1, (4, 4))
    assert torch.allclose(down[:3], grid[0, 1:], atol=1e-5) and not down[3].any()
    assert torch.allclose(left[:, 1:], grid[1, :, :3], atol=1e-5) and not left[:, 0].any()
    assert torch.allclose(half[:, :3], (grid[2, :, :3] + grid[2, :, 1:]) / 2, atol=1e-5)
    flipped = {**still(1, 3), "flipped": torch.ones(1, 3, dtype=torch.bool)}
    mirrored = move_tokens(tokens, AugmentDraws(**flipped).of_real(), patch=2)[:, 1:].unflatten(1, (4, 4))
    assert torch.allclose(mirrored, grid.flip(2), atol=1e-5)


# ---------------------------------------------------------------- networks


def test_levels_accumulate_and_sampling_options_are_off_at_one() -> None:
    generator, _ = networks()
    z, y = torch.randn(3, 16), torch.tensor([0, 5, 9])
    levels, _ = generator(z, y)
    assert levels.shape == (4, 3, 1, 8, 8)
    image = generator.sample(z, y)
    assert torch.equal(image, levels[-1])
    assert not torch.allclose(generator.sample(z, y, guidance=1.5), image)
    generator.style_mean.copy_(torch.randn_like(generator.style_mean))
    assert torch.allclose(generator.sample(z, y, psi=0.0), generator.synthesize(generator.style_mean[y])[-1])


def test_null_style_is_the_mean_over_classes() -> None:
    generator, _ = networks()
    z = torch.randn(3, 16)
    styles = torch.stack([generator.style(z, torch.full((3,), c)) for c in range(10)])
    assert torch.allclose(generator.null_style(z), styles.mean(0), atol=1e-6)


def test_unconditional_networks_have_no_class_parameters() -> None:
    generator, discriminator = networks(data__classes=0)
    assert not [n for n, _ in [*generator.named_parameters(), *discriminator.named_parameters()] if "class" in n]
    levels, w = generator(torch.randn(3, 16), None)
    logits, _ = discriminator(levels.transpose(0, 1).flatten(1, 2), None)
    assert logits.shape == (3,)
    update_style_mean(generator, w.detach(), None)
    assert generator.sample(torch.randn(2, 16), None, psi=0.5).shape == (2, 1, 8, 8)


def test_each_group_of_a_batched_call_meets_its_own_classes() -> None:
    _, discriminator = networks()
    x, y = torch.randn(6, 4, 8, 8), torch.tensor([3, 1, 4])
    together, _ = discriminator(x, y)
    apart = torch.cat([discriminator(x[:3], y)[0], discriminator(x[3:], y)[0]])
    assert torch.allclose(together, apart, atol=1e-6)
    assert not torch.allclose(together[:3], discriminator(x[:3], y.flip(0))[0])


def test_mapping_layers_learn_a_hundred_times_slower() -> None:
    """One Adam step moves the effective weight 1/100 as far as another layer's."""
    generator, _ = networks()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3, betas=(0.0, 0.99), weight_decay=0)
    before = copy.deepcopy(generator)
    levels, _ = generator(torch.randn(8, 16), torch.arange(8))
    levels.square().mean().backward()
    optimizer.step()
    mapped = (0.01 * (generator.mapping[0].weight - before.mapping[0].weight)).abs().max()
    plain = (generator.blocks[0].ffn.w_in.weight - before.blocks[0].ffn.w_in.weight).abs().max()
    assert (plain / mapped).item() == pytest.approx(100, rel=0.02)


def test_a_padded_ffn_is_the_same_function() -> None:
    """Width 20 has 53 hidden units, of which the padded product makes 64; outputs and gradients stay as they are."""
    torch.manual_seed(0)
    ffn, x = SwiGLU(20).double(), torch.randn(3, 5, 20, dtype=torch.float64, requires_grad=True)
    whole, padded = ffn(x), ffn.padded(x)
    assert torch.allclose(whole, padded, rtol=1e-13, atol=1e-13)
    inputs, grad = [x, *ffn.parameters()], torch.randn_like(whole)
    pairs = zip(torch.autograd.grad(whole, inputs, grad), torch.autograd.grad(padded, inputs, grad), strict=True)
    assert all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-13) for a, b in pairs)


def test_embedded_patches_are_the_convolution() -> None:
    torch.manual_seed(0)
    convolution, x = torch.nn.Conv2d(6, 10, 2, 2).double(), torch.randn(3, 6, 8, 4, dtype=torch.float64)
    assert torch.allclose(embed_patches(x, convolution), convolution(x).flatten(2).transpose(1, 2), atol=1e-14)


def test_initialisation_is_the_stated_table() -> None:
    generator, discriminator = networks(model__generator="XL", model__discriminator="XL")

    def bound(weight: torch.Tensor, gain: float) -> float:
        return gain * math.sqrt(6 / (weight.shape[0] + weight[0].numel()))

    for weight, gain in [
        (generator.blocks[0].ffn.w_in.weight, 1.0),
        (generator.blocks[0].modulation.weight, 0.1),
        (generator.mapping[2].weight, 100.0),
        (discriminator.patch_embedding.weight, 1.0),
    ]:
        assert weight.abs().max().item() == pytest.approx(bound(weight, gain), rel=0.02)
    assert generator.class_embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert (discriminator.blocks[0].scale1 == 0.1).all()
    assert all(not b.any() for n, b in generator.named_parameters() if n.endswith("bias"))


def test_alignment_reductions() -> None:
    student, teacher = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    distance = 1 - torch.cosine_similarity(student, teacher, dim=-1)
    assert torch.allclose(alignment_loss(student, teacher, "mean"), distance.mean(1))
    official = distance[:, 0] + distance[:, 1:].mean(1)
    assert torch.allclose(alignment_loss(student, teacher, "official"), official)


# ---------------------------------------------------------------- averages and the rate


def test_ema_and_style_mean() -> None:
    generator, _ = networks()
    ema = copy.deepcopy(generator)
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(1.0)
    update_ema(ema, generator, 0.9)
    for mine, theirs in zip(ema.parameters(), generator.parameters(), strict=True):
        assert torch.allclose(theirs - mine, torch.full_like(mine, 0.9), atol=1e-4)
    w, y = torch.randn(4, generator.spec.width), torch.tensor([2, 2, 7, 2])
    generator.style_mean.fill_(1.0)
    update_style_mean(generator, w, y)
    assert torch.allclose(generator.style_mean[2], 0.995 + 0.005 * w[[0, 1, 3]].mean(0), atol=1e-6)
    assert torch.allclose(generator.style_mean[7], 0.995 + 0.005 * w[2], atol=1e-6)
    assert (generator.style_mean[[0, 1, 3, 4, 5, 6, 8, 9]] == 1).all()


def test_rates_of_the_paper() -> None:
    rates = [adapted_learning_rate(4e-4, 384, width) for width in (384, 768, 1024, 1152)]
    assert rates == pytest.approx([4e-4, 2e-4, 1.5e-4, 1.333e-4], rel=1e-3)
