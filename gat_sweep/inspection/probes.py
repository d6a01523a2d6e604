"""Tokens of every block, and synthesis without one block; hooks do both without changes to the networks' code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator


@torch.no_grad()
def generator_tokens(generator: Generator, w_BD: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Image levels [K, B, C, Y, X] of styles, and depth + 1 tokens [B, T, W]: block 1's input, all blocks' outputs."""
    with _recorded(generator.blocks) as tokens:
        levels = generator.synthesize(w_BD)
    return levels, tokens


@torch.no_grad()
def discriminator_tokens(discriminator: Discriminator, levels: Tensor, y_B: Tensor | None) -> list[Tensor]:
    """Output tokens [B, 1 + T, W] of each block, [cls] first, for perturbed image levels [K, B, C, Y, X]."""

    def all_tokens(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "readers": None}  # otherwise D's last block computes only [cls]

    hook = discriminator.blocks[-1].register_forward_pre_hook(all_tokens, with_kwargs=True)
    try:
        with _recorded(discriminator.blocks) as tokens:
            discriminator(levels.movedim(0, 1).flatten(1, 2), y_B)
    finally:
        hook.remove()
    return tokens[1:]


class _Skipped(nn.Module):
    def forward(self, x_BTD: Tensor, *rest: Any) -> Tensor:
        return x_BTD


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
    hooks = [blocks[0].register_forward_pre_hook(lambda block, args: tokens.append(args[0]))]
    hooks += [block.register_forward_hook(lambda block, args, out: tokens.append(out)) for block in blocks]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()
