"""The generator G (paper section 2.2, Eq. 1, A.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gat_sweep.gat.layers import (
    Attention,
    MappingLinear,
    SwiGLU,
    add_position,
    init_linears,
    rms_norm,
    rope_table,
    second_moment_norm,
)
from gat_sweep.gat.spec import GeneratorSpec, NullStyle

MODULATION_GAIN = 0.1  # "all scaling parameters produced from style codes" start small (A.1)
STYLE_MEAN_DECAY = 0.995
NULL_BLOCK = 64  # classes whose styles are computed at once for guidance


def scaled_norm(x_BTD: Tensor, scale_BD: Tensor) -> Tensor:
    """RMSNorm without affine, multiplied by (1 + scale): the de-normalisation by w."""
    return rms_norm(x_BTD) * (1 + scale_BD[:, None])


class GeneratorBlock(nn.Module):
    """Transformer block: x += a1(w) Attn(norm(x) (1+g1(w))); x += a2(w) FFN(norm(x) (1+g2(w)))."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.ffn = SwiGLU(width)
        self.modulation = nn.Linear(width, 4 * width)

    def forward(self, x_BTD: Tensor, silu_w_BD: Tensor, rope: Tensor) -> Tensor:
        g1_BD, a1_BD, g2_BD, a2_BD = self.modulation(silu_w_BD).chunk(4, dim=-1)
        x_BTD = x_BTD + a1_BD[:, None] * self.attention(scaled_norm(x_BTD, g1_BD), rope)
        return x_BTD + a2_BD[:, None] * self.ffn(scaled_norm(x_BTD, g2_BD))


class OutputLayer(nn.Module):
    """Maps tokens to the pixels of their patches: norm, scale by w, linear to p*p*C ("RGB layer" of Fig. 2)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.modulation = nn.Linear(width, width)
        self.linear = nn.Linear(width, out)

    def forward(self, x_BTD: Tensor, silu_w_BD: Tensor) -> Tensor:
        return self.linear(scaled_norm(x_BTD, self.modulation(silu_w_BD)))


class Generator(nn.Module):
    """Maps a latent code z and a class to K image levels; level K is the image."""

    style_mean: Tensor
    position: Tensor
    rope: Tensor

    def __init__(self, spec: GeneratorSpec):
        super().__init__()
        self.spec = spec
        self.checkpointed = 0  # how many leading blocks the backward pass recomputes, to save memory
        width, z_dim, classes = spec.width, spec.z_dim, spec.classes
        grid = spec.side // spec.patch
        self.class_embedding = nn.Embedding(classes, z_dim) if classes else None
        self.mapping = nn.Sequential(
            MappingLinear(2 * z_dim if classes else z_dim, width), nn.SiLU(), MappingLinear(width, width)
        )
        self.blocks = nn.ModuleList(GeneratorBlock(width, spec.heads) for _ in range(spec.depth))
        pixels = spec.patch**2 * spec.channels
        self.outputs = nn.ModuleList(OutputLayer(width, pixels) for _ in range(spec.levels))
        add_position(self, spec)
        self.register_buffer("rope", rope_table(width // spec.heads, grid), persistent=False)
        # Running mean of w per class (one row when unconditional), for truncation.
        self.register_buffer("style_mean", torch.zeros(max(classes, 1), width))
        self.init_weights()

    def init_weights(self) -> None:
        """Initialisation (A.1).

        linears                       Xavier-uniform, bias 0
        mapping                       the same, stored 100x larger, used at 0.01
        modulation (g, a, s)          Xavier-uniform with gain 0.1, bias 0
        class embedding               N(0, 0.02)
        """
        init_linears(self)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        for layer in [*self.blocks, *self.outputs]:
            nn.init.xavier_uniform_(layer.modulation.weight, gain=MODULATION_GAIN)

    def style(self, z_BZ: Tensor, y_B: Tensor | None) -> Tensor:
        """The style w_BD of latent codes z and classes y (None when unconditional)."""
        code = second_moment_norm(z_BZ)
        if self.class_embedding is not None:
            code = torch.cat([second_moment_norm(self.class_embedding(y_B)), code], dim=-1)
        return self.mapping(code)

    def null_style(self, z_BZ: Tensor, null: NullStyle = "paper") -> Tensor:
        """w_null_BD: the mapping of (class, z) averaged over all classes, for guidance.

        null: "official" is as in the released code, which normalises both halves across the classes instead of across
        their own entries, so the z half becomes nearly its sign.
        """
        assert self.class_embedding is not None, "guidance needs classes"
        code_BZ, class_CZ = second_moment_norm(z_BZ), second_moment_norm(self.class_embedding.weight)
        if null == "official":
            code_BZ = second_moment_norm(z_BZ[..., None])[..., 0]
            class_CZ = second_moment_norm(self.class_embedding.weight.T).T
        total = torch.zeros(len(z_BZ), self.style_mean.shape[1], device=z_BZ.device)
        for block_CZ in class_CZ.split(NULL_BLOCK):  # B x 1,000 styles at once would not fit in memory
            shape = (len(block_CZ), *code_BZ.shape)
            pairs = torch.cat([block_CZ[:, None].expand(shape), code_BZ.expand(shape)], dim=-1)
            total += self.mapping(pairs).sum(dim=0)
        return total / self.spec.classes

    def synthesize(self, w: Tensor) -> Tensor:
        """Image levels [K, B, C, Y, X] from styles; level k is the sum of outputs 1..k (Eq. 1).

        w: [B, D], or [L, B, D] with a style for each block; an output has the style of the block before it.
        """
        silu_w = F.silu(w).unbind() if w.ndim == 3 else [F.silu(w)] * len(self.blocks)
        x_BTD = self.position.expand(w.shape[-2], -1, -1)
        stage = len(self.blocks) // self.spec.levels
        image = None
        levels = []
        for i, (block, silu_w_BD) in enumerate(zip(self.blocks, silu_w, strict=True)):
            if i < self.checkpointed and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, silu_w_BD, self.rope, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, silu_w_BD, self.rope)
            if (i + 1) % stage == 0:
                out = self.unpatchify(self.outputs[i // stage](x_BTD, silu_w_BD).float())
                image = out if image is None else image + out
                levels.append(image)
        return torch.stack(levels)

    def unpatchify(self, x: Tensor) -> Tensor:
        """Image [B, C, Y, X] from tokens [B, T, p*p*C] (patch rows, patch columns, channels)."""
        patch, grid = self.spec.patch, self.spec.side // self.spec.patch
        x = x.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def forward(self, z_BZ: Tensor, y_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Training forward: (levels [K, B, C, Y, X], w_BD)."""
        w_BD = self.style(z_BZ, y_B)
        return self.synthesize(w_BD), w_BD

    @torch.no_grad()
    def styled(
        self,
        z_BZ: Tensor,
        y_B: Tensor | None,
        psi: float = 1.0,
        guidance: float = 1.0,
        null: NullStyle = "paper",
    ) -> Tensor:
        """The style w_BD for sampling; truncation and guidance are applied here, before the backbone.

        psi: w' = mean + psi (w - mean), 1 = off. guidance s: w' = null + s (w - null), 1 = off. null: as in null_style.
        """
        w_BD = self.style(z_BZ, y_B)
        if psi != 1.0:
            mean_BD = self.style_mean[y_B if self.spec.classes else torch.zeros(len(z_BZ), dtype=torch.long)]
            w_BD = mean_BD + psi * (w_BD - mean_BD)
        if guidance != 1.0:
            null_BD = self.null_style(z_BZ, null)
            w_BD = null_BD + guidance * (w_BD - null_BD)
        return w_BD

    @torch.no_grad()
    def sample(
        self,
        z_BZ: Tensor,
        y_B: Tensor | None,
        psi: float = 1.0,
        guidance: float = 1.0,
        null: NullStyle = "paper",
    ) -> Tensor:
        """Images [B, C, Y, X] in one forward of the backbone; the options are those of `styled`."""
        return self.synthesize(self.styled(z_BZ, y_B, psi, guidance, null))[-1]
