"""Tokens of every block, and synthesis without one block; hooks do both without changes to the networks' code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gat_sweep.gat.condition import Condition
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator


@torch.no_grad()
def generator_tokens(generator: Generator, w_BD: Tensor, y: Condition = None) -> tuple[Tensor, list[Tensor]]:
    """Image levels [K, B, C, Y, X] of styles, and depth + 1 tokens [B, T, W]: block 1's input, all blocks' outputs.

    Tokens are those of the image; y: as in Generator.synthesize.
    """
    with _recorded(generator.blocks) as tokens:
        levels = generator.synthesize(w_BD, y)
    return levels, tokens


@torch.no_grad()
def discriminator_tokens(discriminator: Discriminator, levels: Tensor, y: Condition) -> list[Tensor]:
    """Output tokens [B, 1 + T, W] of each block, [cls] first, for perturbed image levels [K, B, C, Y, X]."""

    def all_tokens(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "readers": None}  # otherwise D's last block computes only [cls]

    hook = discriminator.blocks[-1].register_forward_pre_hook(all_tokens, with_kwargs=True)
    try:
        with _recorded(discriminator.blocks) as tokens:
            discriminator(levels.movedim(0, 1).flatten(1, 2), y)
    finally:
        hook.remove()
    return tokens[1:]


class _Skipped(nn.Module):
    def forward(self, x_BTD: Tensor, silu_w_BD: Tensor, rope: Tensor, *caption: Tensor) -> Any:
        return (x_BTD, caption[0]) if caption else x_BTD


@contextmanager
def without_block(generator: Generator, index: int) -> Iterator[None]:
    """Replaces one block by the identity until the end of the `with` block."""
    block = generator.blocks[index]
    generator.blocks[index] = _Skipped()
    try:
        yield
    finally:
        generator.blocks[index] = block


@contextmanager
def _recorded(blocks: nn.ModuleList) -> Iterator[list[Tensor]]:
    tokens: list[Tensor] = []

    def keep(block: nn.Module, args: Any, out: Any) -> None:
        tokens.append(out[0] if isinstance(out, tuple) else out)  # a JointBlock also returns the caption's tokens

    hooks = [blocks[0].register_forward_pre_hook(lambda block, args: tokens.append(args[0]))]
    hooks += [block.register_forward_hook(keep) for block in blocks]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()
