"""The kernel for qk-norm and RoPE beside the formula in float64 and beside torch's operations.

`python -m helpers.qk` prints what it found as JSON. Under TRITON_INTERPRET=1 it needs no GPU; Triton reads the variable
once, when it is imported, so tests run this file in a process of its own.
"""

import json
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from gat_sweep.gat.layers import QK_NORM_EPS, Attention, rope_table
from gat_sweep.gat.qk_kernel import qk_norm_rope


class Case(NamedTuple):
    """A shape. readers: how many leading tokens are in x (0: all)."""

    images: int
    grid: int
    extra: int  # tokens that are not rotated
    kinds: int
    heads: int
    width: int
    readers: int = 0


# Tokens of a program: 128 at width 16, 64 at 20, 32 at 64, 16 at 72 and 128.
CASES = {
    "q and k of D": Case(2, 4, 1, 2, 2, 16),
    "two tiles, one image": Case(1, 5, 1, 2, 2, 72),
    "one reader": Case(3, 4, 1, 1, 2, 128, readers=1),
    "whole tiles of G": Case(1, 8, 0, 1, 1, 64),
    "three heads": Case(1, 9, 1, 2, 3, 20),
}


def made(case: Case, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x as a part of the output of a linear layer, gain, table, and a gradient of the result."""
    random = torch.Generator().manual_seed(0)
    rope = rope_table(case.width, case.grid, case.extra)[: case.readers or None].to(device)
    shape = (case.images, len(rope), case.kinds + 1, case.heads * case.width)
    scale = torch.rand(shape[:2], generator=random)[..., None, None]
    whole = (scale * torch.randn(shape, generator=random)).to(device, dtype)
    gain = 0.5 + torch.rand(case.kinds, case.width, generator=random)
    grad = torch.randn(case.kinds, case.images, case.heads, len(rope), case.width, generator=random)
    x = whole[:, :, : case.kinds].detach().requires_grad_()
    assert not x.is_contiguous()
    return x, gain.to(device).requires_grad_(), rope, grad.to(device, dtype)


def exact(x: Tensor, gain: Tensor, rope: Tensor, grad: Tensor, heads: int) -> list[Tensor]:
    """y, dx and dgain by the formula in float64."""
    x, gain = x.detach().double().requires_grad_(), gain.detach().double().requires_grad_()
    heads_BTSHE = x.unflatten(-1, (heads, -1))
    normed = heads_BTSHE * (heads_BTSHE.square().mean(dim=-1, keepdim=True) + QK_NORM_EPS).rsqrt() * gain[:, None]
    turn = torch.view_as_complex(rope.double())[:, None, None]
    turned = torch.view_as_real(torch.view_as_complex(normed.unflatten(-1, (-1, 2))) * turn)
    y = turned.flatten(-2).permute(2, 0, 3, 1, 4)
    return [y, *torch.autograd.grad(y, (x, gain), grad.double())]


def by_kernel(x: Tensor, gain: Tensor, rope: Tensor, grad: Tensor, heads: int) -> list[Tensor]:
    y = qk_norm_rope(x, gain, rope, heads, QK_NORM_EPS)
    return [y, *torch.autograd.grad(y, (x, gain), grad)]


def distances(found: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """Largest distance of y, dx and dgain, relative to the largest entry.

    In bfloat16 relative to each entry, with a thousandth of the largest one added: a rounding is at most 2^-8, or 2^-7
    in the interpreter, which cuts off.
    """
    off = {}
    for name, a, b in zip(("y", "dx", "dgain"), found, expected, strict=True):
        assert a.shape == b.shape
        scale = b.abs() + 1e-3 * b.abs().max() if a.dtype == torch.bfloat16 else b.abs().max()
        off[name] = ((a.double() - b).abs() / scale).max().item()
    return off


def errors(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    """Distances from the formula; `again`: how many of y, dx and dgain another run changes."""
    x, gain, rope, grad = made(case, dtype, device)
    found = by_kernel(x, gain, rope, grad, case.heads)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32] and all(t.is_contiguous() for t in found)
    repeated = by_kernel(x, gain, rope, grad, case.heads)
    again = sum(not torch.equal(a, b) for a, b in zip(found, repeated, strict=True))
    return distances(found, exact(x, gain, rope, grad, case.heads)) | {"again": again}


def planted(device: str = "cpu") -> dict[str, dict[str, float]]:
    """Distances from formulas that are wrong: what a mistake of the kernel would look like."""
    case = CASES["q and k of D"]
    x, gain, rope, grad = made(case, torch.float32, device)
    found = by_kernel(x, gain, rope, grad, case.heads)
    wrong = {
        "sine with the other sign": (gain, rope * rope.new_tensor([1.0, -1.0])),
        "tokens off by one": (gain, rope.roll(1, 0)),
        "gains of q and k swapped": (gain.flip(0), rope),
    }
    return {name: distances(found, exact(x, g, r, grad, case.heads)) for name, (g, r) in wrong.items()}


def attention(device: str = "cpu", low: bool = False, backend: str | None = None) -> dict[str, float]:
    """A whole Attention with and without the kernel, with and without readers: distance of outputs and gradients."""
    torch.manual_seed(0)
    layer, rope = Attention(32, 2).to(device), rope_table(16, 3, 1).to(device)
    with torch.no_grad():
        for norm in (layer.q_norm, layer.k_norm):
            norm.weight.uniform_(0.5, 1.5)
    x, off = torch.randn(2, 10, 32, device=device, requires_grad=True), {}
    for readers in (None, 2):
        results = []
        for kernel in (None, qk_norm_rope):
            layer.kernel = kernel
            call = torch.compile(layer, backend=backend, dynamic=False, fullgraph=True) if backend and kernel else layer
            with torch.autocast(device, torch.bfloat16, enabled=low):
                y = call(x, rope, readers)
            results.append([y, *torch.autograd.grad(y.float().sin().sum(), (x, *layer.parameters()))])
        pairs = zip(*results, strict=True)
        off[str(readers)] = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
    return off


def checks() -> dict[str, str]:
    """What torch.library.opcheck says of each of its tests."""
    x, gain, rope, grad = made(CASES["q and k of D"], torch.float32, "cpu")
    operators = torch.ops.gat_sweep
    forward = (x, gain, rope, 2, QK_NORM_EPS)
    backward = (grad, x.detach(), gain.detach(), rope, 2, QK_NORM_EPS)
    return torch.library.opcheck(operators.qk_norm_rope.default, forward) | {
        f"backward {name}": said
        for name, said in torch.library.opcheck(operators.qk_norm_rope_backward.default, backward).items()
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")  # the compiler warns of what it does itself
    everything = {
        "errors": {
            f"{name}, {dtype}": errors(case, getattr(torch, dtype))
            for name, case in CASES.items()
            for dtype in ("float32", "bfloat16")
        },
        "planted": planted(),
        "attention": {
            "float32": attention(),
            "bfloat16": attention(low=True),
            "compiled": attention(low=True, backend="aot_eager"),
        },
        "checks": checks(),
    }
    print(json.dumps(everything))
