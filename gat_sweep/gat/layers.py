"""Layers shared by the generator and the discriminator (paper section 2.2, A.1)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gat_sweep.gat.spec import NetworkSpec, ffn_width

ROPE_THETA = 10000.0
NORM_EPS = 1e-6
ALIGNED = 16  # hidden widths of an FFN on CUDA are filled up to a multiple: at 2,730 products take three times as long
QK_NORM_EPS = torch.finfo(torch.float32).eps  # the default of torch and of the released code


def sincos_position_table(width: int, grid: int) -> Tensor:
    """2-D sin-cos table of MAE, [1, grid*grid, width], row-major.

    The first half of the channels encodes the column, the second half the row; each half is [sin, cos].
    """
    quarter = width // 4
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.outer(torch.arange(grid, dtype=torch.float64), omega)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, width/2]
    column = axis[None, :, :].expand(grid, grid, -1)
    row = axis[:, None, :].expand(grid, grid, -1)
    return torch.cat([column, row], dim=2).reshape(1, grid * grid, width).float()


def add_position(network: nn.Module, spec: NetworkSpec) -> None:
    """Gives a network its table `position`, [1, T, D]: a constant, or a parameter that starts as the constant.

    The paper is silent. The released code learns the tables, because each step switches on gradients of the whole
    network.
    """
    table = sincos_position_table(spec.width, spec.side // spec.patch)
    if spec.positions == "trained":
        network.register_parameter("position", nn.Parameter(table))
    else:
        network.register_buffer("position", table, persistent=False)


def rope_table(head_dim: int, grid: int, extra_tokens: int = 0) -> Tensor:
    """Axial 2-D RoPE as pairs (cos, sin), [extra_tokens + grid*grid, head_dim / 2, 2].

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
    return torch.stack([table.cos(), table.sin()], dim=-1)


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) with a hand-written gradient: half as many passes over memory as the composed operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = (norm.square() / x.shape[-1] + eps).rsqrt()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        y, inverse = ctx.saved_tensors
        mean = (grad * y).mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, y, mean, value=-1).mul_(inverse), None


def rms_norm(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """x divided by the root of its mean square over the last dimension, without affine."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # torch has no fused kernel on CPU
        return _RMSNorm.apply(x, eps)
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def rotate(x_BTSHE: Tensor, rope: Tensor) -> Tensor:
    """Rotates adjacent pairs of float32 heads; rope [T, 1, 1, E / 2, 2].

    In eager mode one complex product is several times faster than real products; the compiler fuses only real ones.
    """
    pairs = x_BTSHE.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        cos, sin = rope.unbind(-1)
        even, odd = pairs.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope)).flatten(-2)


def attend(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, bias_BK: Tensor | None = None) -> Tensor:
    """Attention, softmax(q k^T + bias) v; q is already scaled. bias: of each key, for every query.

    On CPU plain products are faster than the fused kernel up to a few hundred tokens (docs/performance.md).
    """
    bias = None if bias_BK is None else bias_BK[:, None, None].to(q_BHTE.dtype)
    if q_BHTE.device.type == "cpu" and k_BHTE.shape[2] <= 512:
        scores = q_BHTE @ k_BHTE.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        return scores.softmax(dim=-1) @ v_BHTE
    return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, bias, scale=1.0)


def in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Context without autocast on the device of x; the meta device has no autocast."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


class MappingLinear(nn.Linear):
    """Linear layer that learns 100x slower, as in StyleGAN (A.1).

    Forward multiplies weight and bias by 0.01, and the stored weight is initialised 100x larger, so an optimizer
    step of a given size moves the effective weight 100x less.
    """

    rate = 0.01

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.rate, self.bias * self.rate)


def second_moment_norm(x: Tensor) -> Tensor:
    """x divided by the RMS of its last dimension."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


def merge_heads(x_BHTE: Tensor) -> Tensor:
    """Heads side by side, [B, T, D]."""
    return x_BHTE.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention with qk-norm and axial RoPE; x_BTD -> [B, T, D], or [B, readers, D].

    readers: how many leading tokens are read afterwards; the others are then only keys and values.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.kernel: Callable[..., Tensor] | None = None  # qk_norm_rope of qk_kernel.py, in place of torch's operations
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // heads, eps=QK_NORM_EPS)  # holds the weights; _rotated applies them
        self.k_norm = nn.RMSNorm(width // heads, eps=QK_NORM_EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, rope: Tensor, readers: int | None = None) -> Tensor:
        return self.proj(merge_heads(attend(*self.split_heads(x_BTD, rope, readers))))

    def split_heads(self, x_BTD: Tensor, rope: Tensor, readers: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q (scaled), k and v of every head, [B, H, T, E] each; q only of the leading `readers`, where given."""
        width = x_BTD.shape[-1]
        scale = (width // self.heads) ** -0.5
        q_gain, k_gain = self.q_norm.weight * scale, self.k_norm.weight
        if readers is None:
            qk_BTSD, v_BTD = self.qkv(x_BTD).unflatten(-1, (3, -1)).split([2, 1], dim=2)
            q_BHTE, k_BHTE = self._rotated(qk_BTSD, torch.stack([q_gain, k_gain]), rope).unbind(0)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q_BTSD = F.linear(x_BTD[:, :readers], weight[:width], bias[:width]).unsqueeze(2)
            k_BTSD, v_BTD = F.linear(x_BTD, weight[width:], bias[width:]).unflatten(-1, (2, -1)).split(1, dim=2)
            q_BHTE = self._rotated(q_BTSD, q_gain[None], rope[:readers])[0]
            k_BHTE = self._rotated(k_BTSD, k_gain[None], rope)[0]
        return q_BHTE, k_BHTE, v_BTD.squeeze(2).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _rotated(self, x_BTSD: Tensor, gain_SE: Tensor, rope: Tensor) -> Tensor:
        """qk-norm and RoPE of S kinds (q, k) at once, in float32; returns [S, B, H, T, E] in the input's dtype."""
        if self.kernel:
            return self.kernel(x_BTSD, gain_SE, rope, self.heads, QK_NORM_EPS)
        x_BTSHE = rms_norm(x_BTSD.unflatten(-1, (self.heads, -1)).float(), QK_NORM_EPS) * gain_SE[:, None]
        return rotate(x_BTSHE, rope[:, None, None]).to(x_BTSD.dtype).permute(2, 0, 3, 1, 4)


class KeysValues(nn.Module):
    """Keys and values of tokens that are only read: they have no queries, no rotation and no output."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(width, 2 * width)
        self.k_norm = nn.RMSNorm(width // heads, eps=QK_NORM_EPS)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """k and v of every head, [B, H, T, E] each."""
        k_BTHE, v_BTHE = self.kv(x_BTD).unflatten(-1, (2, self.heads, -1)).unbind(2)
        k_BTHE = (rms_norm(k_BTHE.float(), QK_NORM_EPS) * self.k_norm.weight).to(v_BTHE.dtype)
        return k_BTHE.transpose(1, 2), v_BTHE.transpose(1, 2)


class SwiGLU(nn.Module):
    """SwiGLU feed-forward network with one fused input projection; x_BTD -> [B, T, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.w_in = nn.Linear(width, 2 * ffn_width(width))
        self.w_out = nn.Linear(ffn_width(width), width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if x_BTD.is_cuda and self.w_out.in_features % ALIGNED:
            return self.padded(x_BTD)
        gate, value = self.w_in(x_BTD).chunk(2, dim=-1)
        return self.w_out(F.silu(gate) * value)

    def padded(self, x_BTD: Tensor) -> Tensor:
        """The same output, from a hidden width that zeros fill up to a multiple of ALIGNED.

        The padded units are silu(0) * 0 = 0, so neither the output nor a gradient changes.
        """
        zeros = -self.w_out.in_features % ALIGNED
        weight = F.pad(self.w_in.weight.unflatten(0, (2, -1)), (0, 0, 0, zeros)).flatten(0, 1)
        bias = F.pad(self.w_in.bias.unflatten(0, (2, -1)), (0, zeros)).flatten()
        gate, value = F.linear(x_BTD, weight, bias).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * value, F.pad(self.w_out.weight, (0, zeros)), self.w_out.bias)


def embed_patches(x: Tensor, embedding: nn.Conv2d) -> Tensor:
    """A convolution whose stride is its kernel, as a product of matrices: x [N, C, Y, X] -> [N, T, D].

    torch lets cuDNN round the inputs of a convolution to TF32 unless told otherwise, but not those of a product.
    """
    patch = embedding.kernel_size[0]
    x_NCHPWQ = x.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
    x_NTF = x_NCHPWQ.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return F.linear(x_NTF, embedding.weight.flatten(1), embedding.bias)


def init_linears(module: nn.Module) -> None:
    """Sets Xavier-uniform weights and zero biases in every linear layer and patch embedding of `module`.

    Mapping layers are stored 1/rate larger; a patch embedding counts as a linear layer.
    """
    for m in module.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            gain = 1 / m.rate if isinstance(m, MappingLinear) else 1.0
            nn.init.xavier_uniform_(m.weight.view(m.weight.shape[0], -1), gain=gain)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
