"""VAEs of diffusers behind the tokenizer's interface."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import save_vae
from safetensors.torch import load_file, save_file

from gat_sweep.data import tokenizer as module
from gat_sweep.data.tokenizer import load_tokenizer
from gat_sweep.errors import UserError


def some_pictures(count: int = 5, side: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


@torch.no_grad()
def test_moments_are_the_librarys(tmp_path: Path) -> None:
    model = save_vae(tmp_path)
    pictures = some_pictures()
    posterior = model.encode(pictures / 127.5 - 1).latent_dist
    mean, std = load_tokenizer(str(tmp_path)).encode(pictures)
    assert mean.shape == (5, 4, 8, 8) and mean.dtype == torch.float32
    assert torch.equal(mean, posterior.mean) and torch.equal(std, posterior.std)
    assert std.std() > 0


@torch.no_grad()
def test_decoding_undoes_shift_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_vae(tmp_path, scaling_factor=0.5, shift_factor=0.25)
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.identity.scale, tokenizer.identity.shift) == (0.5, 0.25)
    assert (tokenizer.identity.channels, tokenizer.identity.factor) == (4, 2)
    raw = torch.randn(5, 4, 8, 8)
    expected = ((model.decode(raw).sample.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pictures = tokenizer.decode((raw - 0.25) * 0.5)
    assert pictures.dtype == torch.uint8 and pictures.shape == (5, 3, 16, 16)
    assert (pictures.int() - expected.int()).abs().max() <= 1  # scaling there and back rounds
    monkeypatch.setattr(module, "DECODED_PIXELS", 2 * 16**2)
    assert (tokenizer.decode((raw - 0.25) * 0.5).int() - expected.int()).abs().max() <= 1
    # A CPU has no TF32, so what is left of that setting is the order of values in memory.
    fast = load_tokenizer(str(tmp_path), tf32=True)
    assert (fast.decode((raw - 0.25) * 0.5).int() - expected.int()).abs().max() <= 1
    assert torch.get_float32_matmul_precision() == "highest"
    with torch.autocast("cpu", torch.bfloat16):
        assert (tokenizer.decode((raw - 0.25) * 0.5).int() - expected.int()).abs().max() <= 1


def test_pixels_come_back_exactly() -> None:
    pixels = load_tokenizer("pixels")
    pictures = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    mean, std = pixels.encode(pictures)
    assert mean.min() == -1 and mean.max() == 1 and not std.any()
    assert torch.equal(pixels.decode(mean), pictures)


@pytest.mark.parametrize("kind", ["pixels", "dct4", "dct4grey", "vae"])
def test_values_before_rounding_have_gradients(tmp_path: Path, kind: str) -> None:
    """Rounded they are the decoded pictures; their gradient is that of a small step."""
    if kind == "vae":
        save_vae(tmp_path, scaling_factor=0.5, shift_factor=0.25)
    tokenizer = load_tokenizer(str(tmp_path) if kind == "vae" else kind)
    random = torch.Generator().manual_seed(0)
    latents = 0.1 * torch.randn(3, tokenizer.identity.channels, 8, 8, generator=random)
    latents.requires_grad_()
    values, pictures = tokenizer.decode_values(latents), tokenizer.decode(latents)
    assert values.shape == pictures.shape and values.shape[1] == 3 and values.min() >= 0 and values.max() <= 255
    assert torch.equal(values.round().to(torch.uint8), pictures) and not pictures.requires_grad
    weight = torch.randn(values.shape, generator=random)
    (gradient,) = torch.autograd.grad((values * weight).sum(), latents)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        change = ((tokenizer.decode_values(latents + step) - tokenizer.decode_values(latents - step)) * weight).sum()
    assert change.item() == pytest.approx(2 * (gradient * step).sum().item(), rel=0.02)


def test_the_digest_is_of_weights_and_arithmetic(tmp_path: Path) -> None:
    save_vae(tmp_path / "vae")

    def digest(folder: Path) -> str:
        return load_tokenizer(str(folder)).identity.digest

    first = digest(tmp_path / "vae")
    shutil.copytree(tmp_path / "vae", tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    (tmp_path / "copy/config.json").write_text(json.dumps({**config, "_diffusers_version": "0.1", "sample_size": 99}))
    assert digest(tmp_path / "copy") == first
    (tmp_path / "copy/config.json").write_text(json.dumps({**config, "act_fn": "relu"}))
    assert digest(tmp_path / "copy") != first
    (tmp_path / "copy/config.json").write_text(json.dumps({**config, "scaling_factor": 1.0}))
    assert digest(tmp_path / "copy") != first
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    weights = tmp_path / "copy/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["quant_conv.bias"][0] += 1e-6
    save_file(tensors, weights)
    assert digest(tmp_path / "copy") != first
    save_vae(tmp_path / "seed", seed=1)
    assert digest(tmp_path / "seed") != first


def test_half_precision_weights_compute_in_single(tmp_path: Path) -> None:
    save_vae(tmp_path).half().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).encode(some_pictures())[0].dtype == torch.float32


def test_a_user_is_told_what_is_wrong(tmp_path: Path) -> None:
    save_vae(tmp_path / "vae")
    with pytest.raises(UserError, match=r"do not fit .* multiple of 2"):
        load_tokenizer(str(tmp_path / "vae")).encode(some_pictures(side=15))
    with pytest.raises(UserError, match="is not a folder"):
        load_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="is not a folder; give 'pixels'"):
        load_tokenizer("pixel")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        load_tokenizer(str(tmp_path / "empty"))

    config = tmp_path / "vae/config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="is a UNet2DModel, not an AutoencoderKL"):
        load_tokenizer(str(tmp_path / "vae"))
    config.write_text(json.dumps({**values, "latents_mean": [0.0] * 4}))
    with pytest.raises(UserError, match="latents_mean"):
        load_tokenizer(str(tmp_path / "vae"))
    config.write_text(json.dumps(values))

    config.write_text(json.dumps({key: value for key, value in values.items() if key != "scaling_factor"}))
    with pytest.raises(UserError, match=r"has no scaling_factor in its config\.json; add it there"):
        load_tokenizer(str(tmp_path / "vae"))
    config.write_text(json.dumps(values))

    weights = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "quant_conv.bias": tensors["quant_conv.bias"] * math.nan}, weights)
    with pytest.raises(UserError, match=r"'quant_conv\.bias' has values that are not finite"):
        load_tokenizer(str(tmp_path / "vae"))
    del tensors["quant_conv.bias"]
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"has missing or unexpected weights \(first: quant_conv.bias\)"):
        load_tokenizer(str(tmp_path / "vae"))
    weights.rename(weights.with_suffix(".bin"))  # would be unpickled
    with pytest.raises(UserError, match="safetensors"):
        load_tokenizer(str(tmp_path / "vae"))

    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/model_index.json").write_text("{}")
    with pytest.raises(UserError, match="whole pipeline; name its VAE's folder"):
        load_tokenizer(str(tmp_path / "pipeline"))


def test_a_hub_id_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^cannot load the VAE 'nobody/no-such-vae': .*give its folder$"):
        load_tokenizer("nobody/no-such-vae")
