"""qk-norm and RoPE as one Triton kernel each way; `Attention._rotated` composes the same of torch's operations.

Triton comes with torch's builds for CUDA alone, so this file is imported only where `workers.qk_kernel` is on.
In bfloat16 a value costs 10 bytes: the forward pass reads x and writes y, the backward pass reads x and the gradient of
y, and writes that of x. Nothing but the inputs is saved: a program holds whole heads, so its second RMS is free.

B: images, T: tokens, S: kinds (q and k, or one of them), H: heads, E: width of a head, P = E / 2, D = H E.
A program takes ROWS tokens of an image and a kind, head by head, with the table of RoPE in registers.
WIDE: E rounded up to a power of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # values of one head that a program holds at once: 16 per thread


@triton.jit
def _pairs(x: tl.tensor, ROWS: tl.constexpr, WIDE: tl.constexpr) -> tl.tensor:
    """(first, second) of the adjacent pairs of [ROWS, WIDE], [ROWS, WIDE / 2] each."""
    return tl.split(tl.reshape(x, (ROWS, WIDE // 2, 2)))


@triton.jit
def _normed(x: tl.tensor, eps: tl.tensor, E: tl.constexpr) -> tl.tensor:
    """(x / rms, 1 / rms) of every row."""
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / E + eps)[:, None]
    return x * inverse, inverse


@triton.jit
def _forward(
    x: tl.tensor,
    gain: tl.tensor,
    rope: tl.tensor,
    y: tl.tensor,
    stride_b: tl.tensor,
    stride_t: tl.tensor,
    stride_s: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    eps: tl.tensor,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    image, tile, kind = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t, e = tile * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, WIDE)[None, :]
    inside = (t < tokens) & (e < E)
    row = t * E + e  # in the table, and in one head of y
    cos, sin = _pairs(tl.load(rope + row, inside, 0.0), ROWS, WIDE)
    g = tl.load(gain + kind * E + e, e < E, 0.0)
    x += image.to(tl.int64) * stride_b + kind * stride_s + t * stride_t + e
    y += (kind * tl.num_programs(0) + image).to(tl.int64) * heads * tokens * E + row
    for head in range(heads):
        n, _ = _normed(tl.load(x + head * E, inside, 0.0).to(tl.float32), eps, E)
        even, odd = _pairs(n * g, ROWS, WIDE)
        turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
        tl.store(y + head * tokens * E, tl.reshape(turned, (ROWS, WIDE)).to(y.dtype.element_ty), inside)


@triton.jit
def _backward(
    x: tl.tensor,
    gain: tl.tensor,
    rope: tl.tensor,
    dy: tl.tensor,
    dx: tl.tensor,
    dgain: tl.tensor,
    stride_b: tl.tensor,
    stride_t: tl.tensor,
    stride_s: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    eps: tl.tensor,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    image, tile, kind = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t, e = tile * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, WIDE)[None, :]
    inside = (t < tokens) & (e < E)
    row = t * E + e
    cos, sin = _pairs(tl.load(rope + row, inside, 0.0), ROWS, WIDE)
    g = tl.load(gain + kind * E + e, e < E, 0.0)
    program = kind * tl.num_programs(0) + image
    x += image.to(tl.int64) * stride_b + kind * stride_s + t * stride_t + e
    dy += program.to(tl.int64) * heads * tokens * E + row
    dx += ((image.to(tl.int64) * tokens + t) * tl.num_programs(2) + kind) * heads * E + e
    summed = tl.zeros((ROWS, WIDE), tl.float32)
    for head in range(heads):
        n, inverse = _normed(tl.load(x + head * E, inside, 0.0).to(tl.float32), eps, E)
        even, odd = _pairs(tl.load(dy + head * tokens * E, inside, 0.0).to(tl.float32), ROWS, WIDE)
        back = tl.reshape(tl.join(even * cos + odd * sin, odd * cos - even * sin), (ROWS, WIDE))
        summed += back * n
        dn = back * g
        mean = tl.sum(dn * n, axis=1)[:, None] / E
        tl.store(dx + head * E, ((dn - n * mean) * inverse).to(dx.dtype.element_ty), inside)
    part = (program * tl.num_programs(1) + tile) * E
    tl.store(dgain + part + e, tl.sum(summed, axis=0)[None, :], e < E)


def _launch(kernel: Any, x_BTSD: Tensor, heads: int, eps: float, *tensors: Tensor) -> None:
    """Runs a kernel over x and the other tensors. The tiles depend on shapes alone, so sums keep their order."""
    images, tokens, kinds, width = x_BTSD.shape
    wide, rows = _tile(width // heads)
    grid = images, triton.cdiv(tokens, rows), kinds
    with torch.cuda.device_of(x_BTSD):  # Triton launches on the current device
        kernel[grid](
            *(x_BTSD, *tensors, *x_BTSD.stride()[:3], tokens, heads, eps), E=width // heads, WIDE=wide, ROWS=rows
        )


def _tile(width: int) -> tuple[int, int]:
    """(WIDE, ROWS) for heads of a width."""
    wide = triton.next_power_of_2(width)
    return wide, max(1, TILE // wide)


@torch.library.custom_op("gat_sweep::qk_norm_rope", mutates_args=())
def _rotated(x_BTSD: Tensor, gain_SE: Tensor, rope_TP2: Tensor, heads: int, eps: float) -> Tensor:
    y_SBHTE = _rotated_like(x_BTSD, gain_SE, rope_TP2, heads, eps)
    _launch(_forward, x_BTSD, heads, eps, gain_SE, rope_TP2, y_SBHTE)
    return y_SBHTE


@_rotated.register_fake
def _rotated_like(x_BTSD: Tensor, gain_SE: Tensor, rope_TP2: Tensor, heads: int, eps: float) -> Tensor:
    images, tokens, kinds, width = x_BTSD.shape
    return x_BTSD.new_empty(kinds, images, heads, tokens, width // heads)


@torch.library.custom_op("gat_sweep::qk_norm_rope_backward", mutates_args=())
def _gradients(
    dy_SBHTE: Tensor, x_BTSD: Tensor, gain_SE: Tensor, rope_TP2: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x, [B, T, S, D], and of the gain, of which each program sums a part."""
    images, tokens, kinds, _ = x_BTSD.shape
    dx_BTSD, width = x_BTSD.new_empty(x_BTSD.shape), gain_SE.shape[1]
    parts = gain_SE.new_empty(kinds, images * triton.cdiv(tokens, _tile(width)[1]), width)
    _launch(_backward, x_BTSD, heads, eps, gain_SE, rope_TP2, dy_SBHTE.contiguous(), dx_BTSD, parts)
    return dx_BTSD, parts.sum(dim=1)


@_gradients.register_fake
def _gradients_like(
    dy_SBHTE: Tensor, x_BTSD: Tensor, gain_SE: Tensor, rope_TP2: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    return x_BTSD.new_empty(x_BTSD.shape), gain_SE.new_empty(gain_SE.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.heads, ctx.eps = inputs[3:]


def _differentiate(ctx: Any, dy_SBHTE: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(dy_SBHTE, *ctx.saved_tensors, ctx.heads, ctx.eps), None, None, None


_rotated.register_autograd(_differentiate, setup_context=_save)


def qk_norm_rope(x_BTSD: Tensor, gain_SE: Tensor, rope_TP2: Tensor, heads: int, eps: float) -> Tensor:
    """Heads divided by their RMS, times the gain, rotated by RoPE, in float32; [S, B, H, T, E] in x's dtype, dense.

    x: float32 or bfloat16; strides are free but for the last one. gain: float32. rope: float32 pairs (cos, sin), which
    get no gradient. eps: added to the mean square. The gradients of x and gain cannot be differentiated again.
    Raises AssertionError for other dtypes, shapes or layouts.
    """
    _, tokens, kinds, width = x_BTSD.shape
    assert x_BTSD.dtype in (torch.float32, torch.bfloat16) and x_BTSD.stride(-1) == 1
    assert gain_SE.shape == (kinds, width // heads) and rope_TP2.shape == (tokens, width // heads // 2, 2)
    assert all(table.dtype == torch.float32 and table.is_contiguous() for table in (gain_SE, rope_TP2))
    result: Tensor = _rotated(x_BTSD, gain_SE, rope_TP2, heads, eps)
    return result
