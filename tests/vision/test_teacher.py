"""The teacher: its tokens against the networks they come from, moved as the latents are, and its FLOPs."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.pictures import photographs
from helpers.trials import tiny_config

from gat_sweep.compute import TEACHERS, count_teacher, iteration_flops
from gat_sweep.data.builtin import digits
from gat_sweep.data.rows import Rows
from gat_sweep.data.shards import CachedTeacher
from gat_sweep.errors import UserError
from gat_sweep.gat.augment import draw_augmentation, move, move_tokens
from gat_sweep.gat.spec import Augmentation
from gat_sweep.vision.extractors import EfficientNetLite0
from gat_sweep.vision.teacher import load_teacher, taught, teacher_tokens, trial_teacher

EFFICIENTNET = {"teacher": {"name": "efficientnet_lite0", "width": 1280}, "objective__align_weight": 1.0}
CACHED = {**EFFICIENTNET, "teacher__cached": True}


def test_efficientnet_tokens_are_its_last_map_and_its_mean() -> None:
    pictures = torch.from_numpy(photographs(3, 224))
    native, resized = (load_teacher("efficientnet_lite0", None, grid) for grid in (7, 4))
    tokens = native.tokens(pictures)
    with torch.no_grad():
        expected = EfficientNetLite0(224).network.forward_features(pictures.float() / 127.5 - 1)
    assert tokens.shape == (3, 50, 1280) and native.width == 1280
    assert torch.allclose(tokens[:, 1:].transpose(1, 2).unflatten(2, (7, 7)), expected, atol=1e-3)
    assert torch.allclose(tokens[:, 0], expected.mean(dim=(2, 3)), atol=1e-3)
    smaller = resized.tokens(pictures)
    assert torch.allclose(smaller[:, 0], tokens[:, 0], atol=1e-4)
    grid = F.interpolate(expected, size=(4, 4), mode="bicubic", antialias=True)
    assert torch.allclose(smaller[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), grid, atol=1e-3)
    assert native.digest == resized.digest and len(native.digest) == 12


def test_a_vision_transformer_from_a_local_checkpoint(tmp_path: Path) -> None:
    """A small one of timm's own making stands for DINOv2-B, which is loaded by the same lines."""
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    teacher = load_teacher("vit_tiny_patch16_224", str(tmp_path / "weights.pth"), grid=14)
    pictures = torch.from_numpy(photographs(3, 224))
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = network.forward_features((pictures / 255 - mean) / std)
    assert torch.allclose(teacher.tokens(pictures), expected, atol=1e-4)
    assert teacher.width == 192 and expected.shape == (3, 197, 192)
    poisoned = network.state_dict()
    poisoned["norm.bias"] = poisoned["norm.bias"] * float("nan") + float("nan")
    torch.save(poisoned, tmp_path / "poisoned.pth")
    with pytest.raises(UserError, match=r"teacher\.checkpoint .*poisoned\.pth: 'norm\.bias' has values that are not"):
        load_teacher("vit_tiny_patch16_224", str(tmp_path / "poisoned.pth"), grid=14)
    with pytest.raises(UserError, match=r"teacher.checkpoint .* does not fit"):
        load_teacher("vit_small_patch16_224", str(tmp_path / "weights.pth"), grid=14)


@pytest.mark.parametrize(
    ("name", "checkpoint", "message"),
    [
        ("dinov2", None, "unknown teacher 'dinov2'.*vit_base_patch14_dinov2"),
        ("resnet50", None, "unknown teacher"),
        ("vit_tiny_patch16_224", "nowhere.pth", "set teacher.checkpoint"),
    ],
)
def test_teachers_that_cannot_be_had(name: str, checkpoint: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_teacher(name, checkpoint, grid=4)


def test_it_sees_the_picture_moved_or_its_stored_tokens_moved() -> None:
    config = tiny_config(**EFFICIENTNET)
    latents = torch.zeros(3, 1, 8, 8)
    pictures = torch.from_numpy(photographs(3, 64))
    draws = draw_augmentation(Augmentation(), (2, 3), 8, torch.Generator().manual_seed(1))
    rows = Rows(latents, None, torch.zeros(3), pictures=pictures)
    teacher = trial_teacher(config, torch.device("cpu"))
    assert teacher is not None and teacher.grid == 4
    seen = teacher_tokens(teacher, config, rows, draws)
    moved = move(pictures.float() - 127.5, draws.of_real(), 8) + 127.5  # what comes in is the middle grey
    assert seen is not None and torch.allclose(seen, teacher.tokens(moved), atol=1e-3)

    stored = teacher.tokens(pictures).half()
    cached = tiny_config(**CACHED)
    assert trial_teacher(cached, torch.device("cpu")) is None
    tokens = teacher_tokens(None, cached, Rows(latents, None, torch.zeros(3), teacher=stored), draws)
    assert tokens is not None and torch.equal(tokens, move_tokens(stored.float(), draws.of_real(), 2))
    assert teacher_tokens(None, tiny_config(), rows, draws) is None


def test_its_flops_are_counted_where_it_runs() -> None:
    """DINOv2-B on 224x224: 16x16 patches of 14x14, 12 blocks of width 768 on 257 tokens."""
    tokens, width = 257, 768
    blocks = 12 * (2 * 12 * tokens * width**2 + 4 * tokens**2 * width)
    assert count_teacher("vit_base_patch14_dinov2.lvd142m").flops == blocks + 2 * 256 * 3 * 14**2 * width
    online = iteration_flops(tiny_config(**EFFICIENTNET))
    assert online["teacher_forward"] == count_teacher("efficientnet_lite0").flops > 7e8
    assert "teacher_forward" not in iteration_flops(tiny_config(**CACHED))
    assert "teacher_forward" not in iteration_flops(tiny_config(**{**EFFICIENTNET, "objective__align_weight": 0}))


def test_digits_are_asked_about_once() -> None:
    """Tokens of every picture in memory, half precision, given with the rows that have them."""
    config = tiny_config(objective__align_weight=1.0)
    some = copy.copy(digits())
    some.pictures = some.pictures[:70]
    said: list[str] = []
    found = taught(config, some, torch.device("cpu"), said.append)
    network = load_teacher("efficientnet_lite0", None, 4)
    assert found.cached_teacher == CachedTeacher(
        name="efficientnet_lite0", digest=network.digest, tokens=17, width=1280
    )
    rows = found.rows([65, 2], teacher=True)
    assert rows.teacher is not None and rows.teacher.dtype == torch.float16
    torch.testing.assert_close(rows.teacher.float(), network.tokens(some.pictures[[65, 2]]), rtol=1e-3, atol=1e-3)
    assert len(said) == 1 and some.cached_teacher is None
    assert taught(tiny_config(), some, torch.device("cpu"), said.append) is some


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teachers_of_our_recipes_cost_what_is_written_down(name: str) -> None:
    assert TEACHERS[name] == count_teacher(name)
