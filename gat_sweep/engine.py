"""One GAN iteration: both networks, their optimizers, their running averages, and the step that moves them.

The training loop and the benchmark run this same object. Nothing in `iterate` waits for the device: what it
returns are tensors, and a non-finite gradient freezes every weight from that step on (`first_bad_step`).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gat_sweep.config import TrialConfig
from gat_sweep.gat.augment import AugmentDraws, augment, draw_augmentation
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.ema import update_ema, update_style_mean
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.losses import Draws, discriminator_losses, generator_loss
from gat_sweep.gat.mng import make_perturb


class Engine:
    """Networks and optimizers of a trial on one device.

    world: how many processes share a batch; above one, gradients are averaged over the process group.
    """

    def __init__(self, config: TrialConfig, device: torch.device, world: int = 1):
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.generator = Generator(config.generator_spec).to(device)
        self.discriminator = Discriminator(config.discriminator_spec).to(device)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizer_g = _adamw(self.generator, config.lr_g, config)
        self.optimizer_d = _adamw(self.discriminator, config.lr_d, config)
        self.perturb = make_perturb(config.mng.schedule, config.generator_spec.levels, config.mng.mixing, device)
        self.bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16")
        self.call_g: nn.Module = self.generator
        self.call_d: nn.Module = self.discriminator
        if world > 1:
            self.call_g = DistributedDataParallel(self.generator, broadcast_buffers=False)
            self.call_d = DistributedDataParallel(self.discriminator, broadcast_buffers=False)

    def parts(self) -> dict[str, Any]:
        """Everything with a state_dict that training changes."""
        names = ["generator", "discriminator", "ema", "optimizer_g", "optimizer_d"]
        return {name: getattr(self, name) for name in names}

    def iterate(
        self, real: Tensor, y: Tensor | None, z: Tensor, teacher: Tensor | None, draws_d: Draws, draws_g: Draws
    ) -> dict[str, Tensor]:
        """One D step and one G step; returns the terms of both losses, [B] each, and the gradient norms.

        real [B, C, Y, X], y [B] or None, z [B, z_dim], teacher [B, 1+T, W] or None.
        """
        config = self.config
        with self.bf16:
            fake_levels, w = self.call_g(z, y)  # one forward serves both steps
            terms = discriminator_losses(
                self.call_d,
                real,
                fake_levels.detach(),
                y,
                teacher,
                draws_d,
                self._augment,
                self.perturb,
                config.objective,
            )
        terms["loss_d"].mean().backward()
        terms["grad_norm_d"] = self._update(self.discriminator, self.optimizer_d)

        self.discriminator.requires_grad_(False)
        with self.bf16:
            loss_g = generator_loss(
                self.discriminator, real, fake_levels, y, draws_g, self._augment, self.perturb
            )
        loss_g.mean().backward()
        self.discriminator.requires_grad_(True)
        terms["loss_g"] = loss_g
        terms["grad_norm_g"] = self._update(self.generator, self.optimizer_g)
        update_style_mean(self.generator, w.detach(), y)
        update_ema(self.ema, self.generator, config.train.ema_decay)
        return {name: term.detach() for name, term in terms.items()}

    def _augment(self, x: Tensor, draws: AugmentDraws) -> Tensor:
        return augment(x, self.config.augment, draws)

    def _update(self, network: nn.Module, optimizer: torch.optim.AdamW) -> Tensor:
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.config.train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm


def draw(config: TrialConfig, batch: int, random: torch.Generator, penalty: bool) -> Draws:
    """The random numbers of one D step (with penalty noise) or G step, for (real, fake)."""
    spec = config.generator_spec
    shape = (batch, spec.channels, spec.side, spec.side)

    def noise(*leading: int) -> Tensor:
        return torch.randn(*leading, *shape, generator=random, device=random.device)

    mng = noise(2, spec.levels)
    penalty_noise = None
    if penalty:
        fake = noise(spec.levels)
        penalty_noise = torch.stack([noise(1).expand_as(fake), fake])
    draws = draw_augmentation(config.augment, (2, batch), spec.side, random)
    return Draws(mng=mng, penalty=penalty_noise, augment=draws)


def _adamw(network: nn.Module, rate: float, config: TrialConfig) -> torch.optim.AdamW:
    t = config.train
    return torch.optim.AdamW(
        network.parameters(), lr=rate, betas=(t.beta1, t.beta2), eps=t.eps, weight_decay=0.0, fused=True
    )
