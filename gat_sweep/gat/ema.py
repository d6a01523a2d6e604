"""Running averages of G's weights (EMA), and of the styles w per class (for truncation)."""

import torch
import torch.distributed as dist
from torch import Tensor

from gat_sweep.gat.generator import STYLE_MEAN_DECAY, Generator


@torch.no_grad()
def update_ema(ema: Generator, generator: Generator, decay: float) -> None:
    """Updates the EMA, ema <- decay ema + (1 - decay) generator, in one fused pass; copies the style mean (A.1)."""
    torch._foreach_lerp_(list(ema.parameters()), list(generator.parameters()), 1 - decay)
    ema.style_mean.copy_(generator.style_mean)


@torch.no_grad()
def update_style_mean(generator: Generator, w_BD: Tensor, y_B: Tensor | None) -> None:
    """Moves the running mean of every class seen in the batch towards that class's mean style.

    One vectorised update uses the batches of all ranks, so the mean is the same on every rank.
    """
    mean_CD = generator.style_mean
    if y_B is None:
        y_B = torch.zeros(len(w_BD), dtype=torch.long, device=w_BD.device)
    # A product with one-hot classes adds in the same order every time; index_add_ on CUDA does not.
    member_CB = (torch.arange(len(mean_CD), device=mean_CD.device)[:, None] == y_B).float()
    sums = member_CB @ torch.cat([w_BD.float(), torch.ones_like(w_BD[:, :1], dtype=torch.float32)], dim=1)
    if dist.is_initialized():
        dist.all_reduce(sums)
    count = sums[:, -1:]
    batch_mean = sums[:, :-1] / count.clamp(min=1)
    mean_CD.lerp_(batch_mean, (1 - STYLE_MEAN_DECAY) * (count > 0).float())
