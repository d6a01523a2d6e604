"""Multi-level noise-perturbed guidance (paper section 2.3, Eq. 2 and 3, A.1)."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Draws are indexed from the clean end: draw 0 is the noise of level K, draw j is the noise that level K-j adds.
Perturb = Callable[[Tensor, Tensor], Tensor]


def signal_schedule(schedule: str, levels: int) -> np.ndarray:
    """Signal gains alpha_1 < ... < alpha_K = 1, doubling ("exp", A.1) or in even steps ("linear", Fig. 5a)."""
    k = np.arange(1, levels + 1)
    return 2.0 ** (k - levels) if schedule == "exp" else k / levels


def paper_mixing(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signal gains [K] and the matrix [K, K] from draws to noise: Eq. 2 with the cumulative noise of A.1.

    eps_{k-1} = r eps_k + sqrt(1 - r^2) eta with r = alpha_{k-1} / alpha_k keeps unit variance at every level;
    level k receives sqrt(1 - alpha_k^2) eps_k.
    """
    levels = len(alpha)
    unit = np.zeros((levels, levels))
    unit[-1, 0] = 1.0
    for k in range(levels - 2, -1, -1):
        r = alpha[k] / alpha[k + 1]
        unit[k] = r * unit[k + 1]
        unit[k, levels - 1 - k] = np.sqrt(1 - r**2)
    return alpha, np.sqrt(1 - alpha**2)[:, None] * unit


def official_mixing(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signal gains and noise matrix of the released code: t = 1 - alpha + 0.01, (1-t_k) x_k + n_k, Var n_k = t_k^2.

    n is built from the clean end, n_k = d n_{k+1} + sqrt(t_k^2 - d^2 t_{k+1}^2) eta, d = (1-t_k)/(1-t_{k+1}).
    """
    levels = len(alpha)
    t = 1 - alpha + 0.01
    noise = np.zeros((levels, levels))
    noise[-1, 0] = t[-1]
    for k in range(levels - 2, -1, -1):
        decay = (1 - t[k]) / (1 - t[k + 1])
        noise[k] = decay * noise[k + 1]
        noise[k, levels - 1 - k] = np.sqrt(t[k] ** 2 - (decay * t[k + 1]) ** 2)
    return 1 - t, noise


def resize_levels(x: Tensor) -> Tensor:
    """Degrades levels as in MSG-GAN: level k is made 2^(K-k) times smaller, then resized back; [..., K, B, C, Y, X]."""
    levels, side = x.shape[-5], x.shape[-1]
    out = []
    for k in range(levels):
        level = x[..., k, :, :, :, :].flatten(0, -4)
        small = max(side >> (levels - 1 - k), 1)
        if small < side:
            level = F.interpolate(level, size=(small, small), mode="area")
            level = F.interpolate(level, size=(side, side), mode="bilinear", align_corners=False)
        out.append(level.view_as(x[..., 0, :, :, :, :]))
    return torch.stack(out, dim=-5)


def make_perturb(schedule: str, levels: int, mixing: str, device: torch.device | str = "cpu") -> Perturb:
    """The operator E of Eq. 2 and 3.

    schedule: "exp" or "linear" (noise), "msg" (resizing instead of noise), "none" (only the final level, clean).
    mixing: "paper" or "official".
    Returns perturb(x [..., K, B, C, Y, X], draws [..., K, B, C, Y, X] of N(0, 1), clean end first).
    """
    if schedule == "none":
        assert levels == 1
        return lambda x, draws: x
    if schedule == "msg":
        return lambda x, draws: resize_levels(x)
    mix = {"paper": paper_mixing, "official": official_mixing}[mixing]
    signal, noise = mix(signal_schedule(schedule, levels))
    signal_K = torch.tensor(signal, dtype=torch.float32, device=device).view(-1, 1, 1, 1, 1)
    noise_KK = torch.tensor(noise, dtype=torch.float32, device=device)

    def perturb(x: Tensor, draws: Tensor) -> Tensor:
        return signal_K * x + torch.einsum("kj,...jbcyx->...kbcyx", noise_KK, draws)

    return perturb
