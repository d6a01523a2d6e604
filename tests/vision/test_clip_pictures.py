"""A whole CLIP: its embeddings and its preparation of pictures against the library's, gradients, the score."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.clips import POSITIONS, SIDE, clip_tokenizer, save_clip
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel

from gat_sweep.errors import UserError
from gat_sweep.vision.clip import Clip, clip_scores

TEXTS = ["a cat", "a dog, a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


def some_pictures(height: int, width: int, count: int = 2) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, 3, height, width), dtype=np.uint8))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (50, 47), (8, 8), (20, 33), (100, 61), (45, 90)])
def test_pictures_are_prepared_as_the_library_does(folder: Path, height: int, width: int) -> None:
    clip, pictures = Clip(str(folder)), some_pictures(height, width)
    ours = clip.prepared(pictures)
    expected = CLIPImageProcessor.from_pretrained(folder)(list(pictures), return_tensors="pt").pixel_values
    assert ours.shape == expected.shape == (2, 3, SIDE, SIDE)
    # The library rounds to whole values after each side: half a value, half of one through the filter, over the std.
    assert (ours - expected).abs().max() <= 1.3 / 255 / 0.26
    if (height, width) == (SIDE, SIDE):
        assert torch.allclose(ours, expected, atol=1e-6)


def test_embeddings_are_the_librarys(folder: Path) -> None:
    clip, model, pictures = Clip(str(folder)), CLIPModel.from_pretrained(folder), some_pictures(SIDE, SIDE)
    read = clip_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(folder)(list(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model(**read, pixel_values=pixels)
    assert torch.allclose(clip.pictures(pictures), expected.image_embeds, atol=1e-5)
    assert torch.allclose(clip.texts(TEXTS), expected.text_embeds, atol=1e-5)
    assert torch.allclose(clip.texts(TEXTS).norm(dim=1), torch.ones(2))
    assert (expected.image_embeds[0] - expected.image_embeds[1]).abs().max() > 0.01


def test_a_file_as_openai_wrote_it(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half precision, positions that the library no longer reads, and the old number of the end token."""
    save_clip(tmp_path, end=2)
    weights = {name: tensor.half() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    old, pictures = Clip(str(tmp_path)), some_pictures(SIDE, SIDE)
    assert capsys.readouterr() == ("", "")
    new = Clip(str(folder))
    assert old.pictures(pictures).dtype == torch.float32
    assert torch.allclose(old.pictures(pictures), new.pictures(pictures), atol=1e-2)
    assert torch.allclose(old.texts(TEXTS), new.texts(TEXTS), atol=1e-2)


def test_gradients_reach_the_pictures_alone(folder: Path) -> None:
    clip = Clip(str(folder))
    pictures = some_pictures(40, 36).float().clamp(20, 235).requires_grad_()
    similarity = (clip.pictures(pictures) * clip.texts(TEXTS)).sum()
    (gradient,) = torch.autograd.grad(similarity, pictures)
    assert gradient.isfinite().all() and gradient.abs().mean() > 0
    assert not any(weight.requires_grad for weight in clip.model.parameters())
    with torch.no_grad():  # a small step along the gradient changes the similarity by as much as it says
        step = 0.5 * gradient / gradient.norm()
        moved = (clip.pictures(pictures + step) * clip.texts(TEXTS)).sum() - similarity
    assert moved.item() == pytest.approx((gradient * step).sum().item(), rel=0.2)


def test_the_score_of_planted_pairs() -> None:
    """Cosines 1, 0.5 and -1, which counts as 0."""
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [-1.0, 0.0]])
    assert clip_scores(pictures, texts).tolist() == pytest.approx([100, 50, 0])


def test_pairs_score_more_than_strangers(folder: Path) -> None:
    """Pictures whose embeddings are moved to their texts score more in order than exchanged."""
    texts = Clip(str(folder)).texts(TEXTS)
    pictures = F.normalize(texts + 0.1 * torch.randn(texts.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    assert clip_scores(pictures, texts).mean() > clip_scores(pictures, texts.flip(0)).mean()


def test_the_digest_is_of_the_weights(tmp_path: Path, folder: Path) -> None:
    save_clip(tmp_path, seed=1)
    assert Clip(str(tmp_path)).digest != Clip(str(folder)).digest == Clip(str(folder)).digest


def test_what_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path)
    file = tmp_path / "processor_config.json"
    values = json.loads(file.read_text())["image_processor"]
    file.unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json; copy the file of the same model there"):
        Clip(str(tmp_path))
    old = tmp_path / "preprocessor_config.json"
    old.write_text(json.dumps({**values, "size": SIDE, "crop_size": SIDE}))  # as OpenAI wrote it
    assert Clip(str(tmp_path)).short == SIDE
    for wrong in ({"size": 16}, {"crop_size": 16}, {"resample": 2}, {"do_normalize": False}, {"do_resize": False}):
        old.write_text(json.dumps({**values, **wrong}))
        with pytest.raises(UserError, match="prepares pictures in a way that is not supported"):
            Clip(str(tmp_path))
    old.write_text(json.dumps(values))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "clip_text_model"}))
    with pytest.raises(UserError, match="is of type clip_text_model, not clip"):
        Clip(str(tmp_path))


def test_nothing_around_it_changes_its_precision(folder: Path) -> None:
    """Inside, neither TF32 nor bfloat16, whatever the process has allowed; behind it, what was allowed is so again."""
    clip, pictures = Clip(str(folder)), some_pictures(SIDE, SIDE)
    expected = clip.pictures(pictures), clip.texts(TEXTS)
    inside = []

    def look(*_: object) -> None:
        inside.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    for tower in (clip.model.vision_model, clip.model.text_model):
        tower.register_forward_pre_hook(look)
    usual = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = clip.pictures(pictures), clip.texts(TEXTS)
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
    finally:
        torch.backends.cudnn.allow_tf32 = usual[0]
        torch.set_float32_matmul_precision(usual[1])
    assert inside == [(False, "highest")] * 2
    assert all(torch.equal(ours, other) for ours, other in zip(found, expected, strict=True))
