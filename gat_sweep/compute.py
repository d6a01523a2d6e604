"""Training compute of a trial by arithmetic: FLOPs of an iteration, and the steps that a compute pays for.

FLOP count 2 per multiply-add.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.gat import flops
from gat_sweep.language.flops import WORDLLAMA, WORDLLAMA_PARAMS, clip_text_flops

EFFICIENTNET = "efficientnet_lite0"
TEACHER_SIDE = 224  # side of the pictures that every teacher gets


@dataclass(frozen=True)
class NetworkCost:
    """FLOPs of a frozen network for one picture or caption, and its parameters."""

    flops: int
    params: int


# The recipes' teachers, as `count_teacher` counts them.
TEACHERS = {
    EFFICIENTNET: NetworkCost(767_815_104, 3_371_008),
    "vit_base_patch14_dinov2.lvd142m": NetworkCost(46_322_454_528, 85_724_928),
}


# Width, layers and width of the FFN of a text tower, and its parameters.
TEXT_TOWERS = {"openai/clip-vit-large-patch14": ((768, 12, 3072), 123_650_304)}


def iteration_flops(config: TrialConfig) -> dict[str, int]:
    """FLOPs per image of one training iteration, itemised; frozen networks only if they run in training."""
    items = flops.iteration(config.generator_spec, config.discriminator_spec)
    if teacher := online_teacher(config):
        items["teacher_forward"] = teacher.flops
    if config.text and not config.text.cached:
        items["text_encoder"] = text_encoder_cost(config.text.name, config.text.folder, config.text.tokens).flops
    return items


@cache
def text_encoder_cost(name: str, folder: str | None, tokens: int) -> NetworkCost:
    """Cost of a text encoder for a caption of so many tokens. One that is not in TEXT_TOWERS is loaded.

    Raises UserError as load_text_encoder does.
    """
    if name == WORDLLAMA:
        return NetworkCost(0, WORDLLAMA_PARAMS)  # it looks up and adds
    if name in TEXT_TOWERS:
        shape, params = TEXT_TOWERS[name]
        return NetworkCost(clip_text_flops(*shape, tokens), params)
    from gat_sweep.language.load import load_text_encoder  # takes seconds, which commands that only read should not pay

    encoder = load_text_encoder(name, tokens, folder)
    return NetworkCost(encoder.flops, encoder.params)


def online_teacher(config: TrialConfig) -> NetworkCost | None:
    """Cost of the teacher that runs in training; None without alignment, or where its tokens are stored."""
    if not config.teacher or not config.discriminator_spec.teacher_width or config.teacher.cached:
        return None
    name = config.teacher.name
    return TEACHERS[name] if name in TEACHERS else count_teacher(name)


def step_flops(config: TrialConfig) -> int:
    """FLOPs of one training step with the whole batch."""
    return sum(iteration_flops(config).values()) * config.train.batch


@cache
def count_teacher(name: str) -> NetworkCost:
    """Cost of a teacher, counted by torch on the meta device. Raises UserError as check_teacher_name does."""
    import timm  # like torch, takes seconds, which commands that only read files should not pay
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        if name == EFFICIENTNET:
            network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        else:
            check_teacher_name(name)
            network = timm.create_model(name, img_size=TEACHER_SIDE, num_classes=0)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network.eval().forward_features(torch.empty(1, 3, TEACHER_SIDE, TEACHER_SIDE))
    return NetworkCost(counter.get_total_flops(), sum(p.numel() for p in network.parameters()))


def check_teacher_name(name: str) -> None:
    """Raises UserError unless `name` is that of a vision transformer of timm."""
    import timm

    if not name.startswith("vit_") or not timm.is_model(name):
        raise UserError(
            f"unknown teacher '{name}'; use {EFFICIENTNET}, or a vision transformer of timm such as "
            "vit_base_patch14_dinov2.lvd142m"
        )
