"""Running averages of G's weights (EMA), and of the styles w per class (for truncation)."""

import torch
import torch.distributed as dist
from torch import Tensor

from gat_sweep.gat.condition import Captions, Condition
from gat_sweep.gat.generator import STYLE_MEAN_DECAY, Generator
from gat_sweep.gat.layers import second_moment_norm


@torch.no_grad()
def update_ema(ema: Generator, generator: Generator, decay: float) -> None:
    """Updates the EMA, ema <- decay ema + (1 - decay) generator, in one fused pass; copies the means (A.1)."""
    torch._foreach_lerp_(list(ema.parameters()), list(generator.parameters()), 1 - decay)
    ema.style_mean.copy_(generator.style_mean)
    if generator.spec.text_width:
        ema.sentence_mean.copy_(generator.sentence_mean)


@torch.no_grad()
def update_style_mean(generator: Generator, w_BD: Tensor, y: Condition) -> None:
    """Moves the running mean of every class seen in the batch towards that class's mean style.

    Without classes there is one mean, and with captions also that of their sentences. One vectorised update uses the
    batches of all ranks, so the mean is the same on every rank.
    """
    one_class = torch.zeros(len(w_BD), dtype=torch.long, device=w_BD.device)
    if isinstance(y, Captions):
        _move_means(generator.sentence_mean[None], second_moment_norm(y.sentence.float()), one_class)
    _move_means(generator.style_mean, w_BD, y if isinstance(y, Tensor) else one_class)


def _move_means(mean_CD: Tensor, w_BD: Tensor, y_B: Tensor) -> None:
    """Moves the mean of every class that y has towards the mean of its vectors."""
    # A product with one-hot classes adds in the same order every time; index_add_ on CUDA does not.
    member_CB = (torch.arange(len(mean_CD), device=mean_CD.device)[:, None] == y_B).float()
    sums = member_CB @ torch.cat([w_BD.float(), torch.ones_like(w_BD[:, :1], dtype=torch.float32)], dim=1)
    if dist.is_initialized():
        dist.all_reduce(sums)
    count = sums[:, -1:]
    batch_mean = sums[:, :-1] / count.clamp(min=1)
    mean_CD.lerp_(batch_mean, (1 - STYLE_MEAN_DECAY) * (count > 0).float())
