"""Layers shared by the generator and the discriminator (paper section 2.2, A.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_THETA = 10000.0
NORM_EPS = 1e-6


def ffn_width(width: int) -> int:
    """Hidden width of the SwiGLU FFN: int(8/3 d), which keeps the parameters of a plain 4d MLP."""
    return 8 * width // 3


def sincos_position_table(width: int, grid: int) -> Tensor:
    """Fixed 2-D sin-cos table of MAE, [grid*grid, width], row-major.

    The first half of the channels encodes the column, the second half the row; each half is [sin, cos].
    """
    quarter = width // 4
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.outer(torch.arange(grid, dtype=torch.float64), omega)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, width/2]
    column = axis[None, :, :].expand(grid, grid, -1)
    row = axis[:, None, :].expand(grid, grid, -1)
    return torch.cat([column, row], dim=2).reshape(grid * grid, width).float()


def rope_table(head_dim: int, grid: int, extra_tokens: int = 0) -> Tensor:
    """Axial 2-D RoPE as unit complex numbers, complex64 [extra_tokens + grid*grid, head_dim / 2].

    The first half of a head rotates by the row, the second half by the column, in adjacent pairs.
    Extra tokens ([cls]) stand in front and are not rotated.
    """
    half = head_dim // 2
    frequency = 1.0 / ROPE_THETA ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
    angle = torch.outer(torch.arange(grid, dtype=torch.float32), frequency)
    row = angle[:, None, :].expand(grid, grid, -1)
    column = angle[None, :, :].expand(grid, grid, -1)
    table = torch.cat([row, column], dim=2).reshape(grid * grid, half)
    table = torch.cat([table.new_zeros(extra_tokens, half), table])
    return torch.polar(torch.ones_like(table), table)


def rotate(x_BHTE: Tensor, rope: Tensor) -> Tensor:
    """Rotates adjacent pairs of float32 heads; one complex product is several times faster than its real parts."""
    pairs = torch.view_as_complex(x_BHTE.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2)


def attend(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v.

    On CPU the fused kernel takes about twice the time of plain products at the few tokens of a small recipe.
    """
    if q_BHTE.device.type == "cpu" and q_BHTE.shape[2] <= 64:
        scores = (q_BHTE * q_BHTE.shape[-1] ** -0.5) @ k_BHTE.transpose(-1, -2)
        return scores.softmax(dim=-1) @ v_BHTE
    return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE)


class MappingLinear(nn.Linear):
    """Linear layer that learns 100x slower, the StyleGAN way (A.1).

    The stored weight is initialised 100x larger and multiplied by 0.01 in forward, and so is the bias, so
    that one optimizer step of a given size moves the effective weight 100x less.
    """

    rate = 0.01

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.rate, self.bias * self.rate)


def second_moment_norm(x: Tensor) -> Tensor:
    """x divided by the RMS of its last dimension."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


class Attention(nn.Module):
    """Multi-head self-attention with qk-norm and axial RoPE; x_BTD -> [B, T, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // heads)
        self.k_norm = nn.RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, rope: Tensor) -> Tensor:
        qkv_BTD = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1))
        q_BHTE, k_BHTE, v_BHTE = qkv_BTD.permute(2, 0, 3, 1, 4).unbind(0)
        # Norm and rotation run in float32; attention in the dtype of v (bf16 under autocast).
        q_BHTE = rotate(self.q_norm(q_BHTE.float()), rope).to(v_BHTE.dtype)
        k_BHTE = rotate(self.k_norm(k_BHTE.float()), rope).to(v_BHTE.dtype)
        return self.proj(attend(q_BHTE, k_BHTE, v_BHTE).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """SwiGLU feed-forward network with one fused input projection; x_BTD -> [B, T, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.w_in = nn.Linear(width, 2 * ffn_width(width))
        self.w_out = nn.Linear(ffn_width(width), width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, value = self.w_in(x_BTD).chunk(2, dim=-1)
        return self.w_out(F.silu(gate) * value)


def init_linears(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear and patch embedding below `module`.

    Mapping layers are stored 1/rate larger; a patch embedding counts as the linear layer it is.
    """
    for m in module.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            gain = 1 / m.rate if isinstance(m, MappingLinear) else 1.0
            nn.init.xavier_uniform_(m.weight.view(m.weight.shape[0], -1), gain=gain)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
