"""Training compute of a trial by arithmetic: FLOPs of an iteration, and the steps that a compute pays for.

FLOP count 2 per multiply-add.
"""

from functools import cache
from typing import Any

from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.gat import flops

EFFICIENTNET = "efficientnet_lite0"
TEACHER_SIDE = 224  # side of the pictures that every teacher gets
# FLOPs of the recipes' teachers for one picture, as `teacher_flops` counts them.
TEACHER_FLOPS = {EFFICIENTNET: 767_815_104, "vit_base_patch14_dinov2.lvd142m": 46_322_454_528}


def iteration_flops(config: TrialConfig) -> dict[str, int]:
    """FLOPs per image of one training iteration, itemised; those of the teacher only if it runs in training."""
    items = flops.iteration(config.generator_spec, config.discriminator_spec)
    if config.teacher and config.discriminator_spec.teacher_width and not config.teacher.cached:
        name = config.teacher.name
        items["teacher_forward"] = TEACHER_FLOPS[name] if name in TEACHER_FLOPS else teacher_flops(name)
    return items


def step_flops(config: TrialConfig) -> int:
    """FLOPs of one training step with the whole batch."""
    return sum(iteration_flops(config).values()) * config.train.batch


@cache
def teacher_flops(name: str) -> int:
    """FLOPs of a teacher on one picture, counted by torch on the meta device."""
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
    return counter.get_total_flops()


def check_teacher_name(name: str) -> None:
    """Raises UserError unless `name` is that of a vision transformer of timm."""
    import timm

    if not name.startswith("vit_") or not timm.is_model(name):
        raise UserError(
            f"unknown teacher '{name}'; use {EFFICIENTNET}, or a vision transformer of timm such as "
            "vit_base_patch14_dinov2.lvd142m"
        )
