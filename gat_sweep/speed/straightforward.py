"""The training step as a reader of the paper would write it; `gat-sweep bench` compares the engine with it.

Nothing is optimised here, and nothing is slow on purpose: one call of D per input, every block checkpointed (as in the
released code), fakes generated for the D step and again for the G step, and torch's layers, optimizer and clipping.
It shares no code with gat_sweep/gat, only the names of the parameters, so that both can start from the same weights
and use the same random numbers.

Shapes: B batch, K levels, C channels, T tokens, D width; `levels` is a list of K images [B, C, Y, X].
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class SlowLinear(nn.Linear):
    """Mapping layer, stored 100 times larger and multiplied by 0.01, so that it learns 100 times slower (A.1)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 0.01 * self.weight, 0.01 * self.bias)


def position_table(width: int, grid: int) -> Tensor:
    """2-D sin-cos table of MAE, [1, T, D]."""
    frequency = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows = []
    for y in range(grid):
        for x in range(grid):
            rows.append(torch.cat([f(at * frequency) for at in (x, y) for f in (torch.sin, torch.cos)]))
    return torch.stack(rows).float()[None]


def add_position(network: nn.Module, spec: Any) -> None:
    """The table as a constant of a network, or as one of its parameters (model.positions)."""
    table = position_table(spec.width, spec.side // spec.patch)
    if spec.positions == "trained":
        network.position = nn.Parameter(table)
    else:
        network.register_buffer("position", table, persistent=False)


def rope_angles(head: int, grid: int) -> Tensor:
    """Angles of axial RoPE, [T, head / 2]: the first half by row, the second half by column."""
    frequency = 1 / 10000 ** (torch.arange(0, head // 2, 2).float() / (head // 2))
    y, x = torch.meshgrid(torch.arange(grid).float(), torch.arange(grid).float(), indexing="ij")
    return torch.cat([y.flatten()[:, None] * frequency, x.flatten()[:, None] * frequency], dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates adjacent pairs of heads [B, H, T, E]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Self-attention with qk-norm and axial RoPE; [B, T, D] to [B, T, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = rotate(self.q_norm(q.float()), angles).to(v.dtype)
        k = rotate(self.k_norm(k.float()), angles).to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class SwiGLU(nn.Module):
    """SwiGLU feed-forward network; [B, T, D] to [B, T, D]."""

    def __init__(self, width: int):
        super().__init__()
        hidden = int(8 / 3 * width)
        self.w_in, self.w_out = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w_in(x).chunk(2, dim=-1)
        return self.w_out(F.silu(gate) * value)


class GeneratorBlock(nn.Module):
    """Transformer block of G, with scales and gates from the style w."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention, self.ffn = Attention(width, heads), SwiGLU(width)
        self.modulation = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor, w: Tensor, angles: Tensor) -> Tensor:
        g1, a1, g2, a2 = self.modulation(F.silu(w))[:, None].chunk(4, dim=-1)
        x = x + a1 * self.attention(self.norm(x) * (1 + g1), angles)
        return x + a2 * self.ffn(self.norm(x) * (1 + g2))


class OutputLayer(nn.Module):
    """Output of one level: [B, T, D] to [B, T, p*p*C]."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation, self.linear = nn.Linear(width, width), nn.Linear(width, out)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.linear(self.norm(x) * (1 + self.modulation(F.silu(w))[:, None]))


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + 1e-8)


class Generator(nn.Module):
    """The generator of section 2.2 and Eq. 1."""

    position: Tensor
    angles: Tensor
    style_mean: Tensor

    def __init__(self, spec: Any):
        super().__init__()
        self.spec, width, grid = spec, spec.width, spec.side // spec.patch
        if spec.classes:
            self.class_embedding = nn.Embedding(spec.classes, spec.z_dim)
        codes = 2 * spec.z_dim if spec.classes else spec.z_dim
        self.mapping = nn.Sequential(SlowLinear(codes, width), nn.SiLU(), SlowLinear(width, width))
        self.blocks = nn.ModuleList(GeneratorBlock(width, spec.heads) for _ in range(spec.depth))
        pixels = spec.patch**2 * spec.channels
        self.outputs = nn.ModuleList(OutputLayer(width, pixels) for _ in range(spec.levels))
        add_position(self, spec)
        self.register_buffer("angles", rope_angles(width // spec.heads, grid), persistent=False)
        self.register_buffer("style_mean", torch.zeros(max(spec.classes, 1), width))

    def forward(self, z: Tensor, y: Tensor | None) -> tuple[list[Tensor], Tensor]:
        code = unit(z) if y is None else torch.cat([unit(self.class_embedding(y)), unit(z)], dim=1)
        w = self.mapping(code)
        x = self.position.expand(len(z), -1, -1)
        levels: list[Tensor] = []
        stage = len(self.blocks) // self.spec.levels
        for i, block in enumerate(self.blocks, start=1):
            x = checkpoint(block, x, w, self.angles, use_reentrant=False)
            if i % stage == 0:
                image = self.unpatchify(self.outputs[i // stage - 1](x, w).float())
                levels.append(image + levels[-1] if levels else image)
        return levels, w

    def unpatchify(self, x: Tensor) -> Tensor:
        p, grid = self.spec.patch, self.spec.side // self.spec.patch
        x = x.view(len(x), grid, grid, p, p, self.spec.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.spec.channels, grid * p, grid * p)


class DiscriminatorBlock(nn.Module):
    """Transformer block of D, with LayerScale."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attention, self.ffn = Attention(width, heads), SwiGLU(width)
        self.scale1 = nn.Parameter(torch.full((width,), 0.1))
        self.scale2 = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x), angles)
        return x + self.scale2 * self.ffn(self.norm2(x))


class Discriminator(nn.Module):
    """The discriminator of section 2.2: a logit by projection on the class vector, and tokens for alignment."""

    position: Tensor
    angles: Tensor

    def __init__(self, spec: Any):
        super().__init__()
        self.spec = spec
        width, cw, pw, grid = spec.width, spec.class_width, spec.projector_width, spec.side // spec.patch
        self.patch_embedding = nn.Conv2d(spec.levels * spec.channels, width, spec.patch, spec.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(DiscriminatorBlock(width, spec.heads) for _ in range(spec.depth))
        self.head_norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, cw if spec.classes else 1)
        if spec.classes:
            self.class_embedding = nn.Embedding(spec.classes, cw)
            self.class_mapping = nn.Sequential(SlowLinear(cw, cw), nn.SiLU(), SlowLinear(cw, cw))
        self.projector = None
        if spec.teacher_width:
            self.projector = nn.Sequential(
                nn.Linear(width, pw), nn.SiLU(), nn.Linear(pw, pw), nn.SiLU(), nn.Linear(pw, spec.teacher_width)
            )
        add_position(self, spec)
        angles = rope_angles(width // spec.heads, grid)
        self.register_buffer("angles", torch.cat([torch.zeros_like(angles[:1]), angles]), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.patch_embedding(x).flatten(2).transpose(1, 2) + self.position
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = checkpoint(block, x, self.angles, use_reentrant=False)
        head = self.head(self.head_norm(x[:, 0])).float()
        logits = head.sum(1) if y is None else (head * self.class_mapping(self.class_embedding(y)).float()).sum(1)
        return logits, self.projector(x) if self.projector is not None else None


def augment(levels: list[Tensor], final: Tensor, config: Any, draws: Any, side: int) -> list[Tensor]:
    """DiffAugment with the draws of one side (0 real, 1 fake); colour means are from the clean final image."""
    b, s, c = (t[side][:, None, None, None] for t in (draws.brightness, draws.saturation, draws.contrast))
    over_channels = final.mean(1, keepdim=True)
    over_image = final.mean((1, 2, 3), keepdim=True)
    out = []
    for image in levels:
        brightened = image + b
        shift = b if config.color_means == "after" else 0.0  # the means move with the brightness, or do not
        colored = s * (brightened - over_channels - shift) + over_channels + shift
        colored = c * (colored - over_image - shift) + over_image + shift
        image = torch.where(draws.colored[side][:, None, None, None], colored, image)
        image = torch.where(draws.flipped[side][:, None, None, None], image.flip(3), image)
        out.append(_translate_and_cut(image, config, draws, side))
    return out


def _translate_and_cut(image: Tensor, config: Any, draws: Any, side: int) -> Tensor:
    """Shifts images with zero padding, then sets a square to zero."""
    n, size = len(image), image.shape[-1]
    here = torch.arange(size, device=image.device)
    rows = (here + draws.shift_y[side][:, None]).clamp(-1, size) + 1  # indices into a picture with a border of zeros
    columns = (here + draws.shift_x[side][:, None]).clamp(-1, size) + 1
    padded = F.pad(image, (1, 1, 1, 1))
    batch = torch.arange(n, device=image.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    cut = int(size * config.cutout + 0.5)
    from_y, from_x = here - draws.cut_y[side][:, None], here - draws.cut_x[side][:, None]
    inside_y, inside_x = (from_y >= 0) & (from_y < cut), (from_x >= 0) & (from_x < cut)
    return moved * ~(inside_y[:, :, None] & inside_x[:, None, :])[:, None]


def perturb(levels: list[Tensor], noises: Tensor) -> Tensor:
    """Perturbed levels [B, K C, Y, X] (Eq. 2 and 3, exponential alpha); noises [K, B, C, Y, X], clean end first."""
    count = len(levels)
    alpha = [2.0 ** (k - count + 1) for k in range(count)]
    out = list(levels)
    eps = noises[0]
    for k in range(count - 1, -1, -1):
        if k < count - 1:
            r = alpha[k] / alpha[k + 1]
            eps = r * eps + math.sqrt(1 - r**2) * noises[count - 1 - k]
        out[k] = alpha[k] * levels[k] + math.sqrt(1 - alpha[k] ** 2) * eps
    return torch.cat(out, dim=1)


class Straightforward:
    """Networks, optimizers and one iteration of training: D step, then G step.

    config: a TrialConfig. generator, discriminator: networks of the engine, whose weights are copied.
    """

    def __init__(self, config: Any, generator: nn.Module, discriminator: nn.Module, device: torch.device):
        self.config = config
        with device:
            self.generator, self.ema = Generator(config.generator_spec), Generator(config.generator_spec)
            self.discriminator = Discriminator(config.discriminator_spec)
        for ours, theirs in [
            (self.generator, generator),
            (self.ema, generator),
            (self.discriminator, discriminator),
        ]:
            ours.load_state_dict(theirs.state_dict())
        t = config.train
        options: dict[str, Any] = {"betas": (t.beta1, t.beta2), "eps": t.eps, "weight_decay": 0.0}
        self.optimizer_g = torch.optim.AdamW(self.generator.parameters(), lr=config.lr_g, **options)
        self.optimizer_d = torch.optim.AdamW(self.discriminator.parameters(), lr=config.lr_d, **options)
        low = t.precision == "bfloat16"
        self.autocast = torch.autocast(device.type, torch.bfloat16) if low else nullcontext()

    def score(self, levels: list[Tensor], final: Tensor, y: Tensor | None, draws: Any, side: int) -> tuple[Tensor, Any]:
        """Output of D for one input, which is augmented, perturbed and concatenated."""
        if draws.augment is not None:
            levels = augment(levels, final, self.config.augment, draws.augment, side)
        return self.discriminator(perturb(levels, draws.mng[side]), y)

    def step(self, batch: Any) -> dict[str, Tensor]:
        """One iteration on a train.engine.Batch; returns per-image losses [B]."""
        losses, w = self.steps(batch)
        self.averages(w, batch.y)
        return losses

    def parts(self) -> list[Any]:
        """Everything with a state_dict that an iteration changes."""
        return [self.generator, self.ema, self.discriminator, self.optimizer_g, self.optimizer_d]

    def steps(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Runs the D step, then the G step; returns the losses, and the styles w [B, D] of the fakes."""
        objective, levels = self.config.objective, self.config.generator_spec.levels
        real, y, z, teacher = batch.real, batch.y, batch.z, batch.teacher
        draws_d, draws_g = batch.draws_d, batch.draws_g
        reals = [real] * levels

        # D step: Eq. 6 to 10
        with self.autocast:
            with torch.no_grad():
                fakes, w = self.generator(z, y)
            e_real, e_fake = objective.gp_sigma * draws_d.penalty
            d_real, tokens = self.score(reals, real, y, draws_d, 0)
            d_fake, _ = self.score(fakes, fakes[-1], y, draws_d, 1)
            d_real_e, _ = self.score([x + e for x, e in zip(reals, e_real, strict=True)], real, y, draws_d, 0)
            d_fake_e, _ = self.score([x + e for x, e in zip(fakes, e_fake, strict=True)], fakes[-1], y, draws_d, 1)
            loss_d = F.softplus(d_fake - d_real)
            loss_d = loss_d + objective.gp_weight * ((d_real - d_real_e) / objective.gp_sigma) ** 2
            loss_d = loss_d + objective.gp_weight * ((d_fake - d_fake_e) / objective.gp_sigma) ** 2
            if teacher is not None:
                distance = 1 - F.cosine_similarity(tokens.float(), teacher, dim=-1)
                loss_d = loss_d + objective.align_weight * distance.mean(1)
        self.optimizer_d.zero_grad()
        loss_d.mean().backward()
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.config.train.clip)
        self.optimizer_d.step()

        # G step: Eq. 5
        self.discriminator.requires_grad_(False)
        with self.autocast:
            fakes, w = self.generator(z, y)
            with torch.no_grad():
                d_real, _ = self.score(reals, real, y, draws_g, 0)
            d_fake, _ = self.score(fakes, fakes[-1], y, draws_g, 1)
            loss_g = F.softplus(d_real - d_fake)
        self.optimizer_g.zero_grad()
        loss_g.mean().backward()
        self.discriminator.requires_grad_(True)
        nn.utils.clip_grad_norm_(self.generator.parameters(), self.config.train.clip)
        self.optimizer_g.step()
        return {"loss_d": loss_d.detach(), "loss_g": loss_g.detach()}, w.detach()

    @torch.no_grad()
    def averages(self, w: Tensor, y: Tensor | None) -> None:
        """Updates the EMA of G's weights, and the running mean of w per class."""
        for average, parameter in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            average.lerp_(parameter, 1 - self.config.train.ema_decay)
        labels = torch.zeros(len(w), dtype=torch.long, device=w.device) if y is None else y
        for label in labels.unique():
            self.generator.style_mean[label].lerp_(w[labels == label].float().mean(0), 0.005)
