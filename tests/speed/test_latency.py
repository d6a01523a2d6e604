"""The inference benchmark: what it calls, and that its numbers follow from what it measured."""

import io
from typing import Any

import pytest
import torch
from helpers.trials import tiny_config
from rich.console import Console
from torch import Tensor

from gat_sweep.commands.latency import latency_table
from gat_sweep.data.tokenizer import Vae
from gat_sweep.errors import UserError
from gat_sweep.gat import flops
from gat_sweep.gat.generator import Generator
from gat_sweep.speed.latency import latency_command, measure_latency

CPU = torch.device("cpu")


def silent(text: str) -> None:
    pass


def tiny_vae(channels: int) -> Vae:
    from diffusers import AutoencoderKL

    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(**blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=channels)
    return Vae(model.eval().requires_grad_(False), "tiny")


def test_an_image_takes_one_call_of_the_generator_whatever_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    config, calls = tiny_config(), []
    honest = Generator.synthesize

    def counted(self: Generator, w: Tensor, y: Tensor | None) -> Tensor:
        calls.append(len(w))
        return honest(self, w, y)

    monkeypatch.setattr(Generator, "synthesize", counted)
    result = measure_latency(config, CPU, 6, [4], 2, tiny_vae(1), silent)
    ways = ["generator", "truncation", "guidance", "generator and decoder"]
    assert [row["what"] for row in result["rows"]] == ways
    # A call to warm up, one for the memory, and twice six images in batches of four.
    assert calls == [4, 4, *[4, 2] * 2] * len(ways)


def test_numbers_follow_from_each_other() -> None:
    config = tiny_config(model__generator="B")
    result = measure_latency(config, CPU, 4, [1, 4], 3, tiny_vae(1), silent)
    generator = Generator(config.generator_spec)
    assert result["weight_bytes"] == sum(t.nbytes for t in generator.state_dict().values())
    assert result["flops_per_image"] == flops.generator_forward(config.generator_spec)
    assert [(row["batch"], row["calls"]) for row in result["rows"]] == [(1, 4)] * 4 + [(4, 1)] * 4
    for row in result["rows"]:
        held = result["weight_bytes"] + (result["decoder_weight_bytes"] if "decoder" in row["what"] else 0)
        assert 0 < row["seconds_low"] <= row["seconds_per_image"] <= row["seconds_high"]
        assert row["peak_bytes"] >= held > 0
    console = Console(file=io.StringIO(), width=160)
    latency_table(result, console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "NFE 1" in printed and "weights random" in printed
    assert f"{result['rows'][0]['seconds_per_image']:.4f}" in printed


def test_unconditional_has_no_guidance_and_a_foreign_tokenizer_is_refused() -> None:
    config = tiny_config(data__classes=0)
    (result,) = latency_command([config], CPU, None, 2, [2], 1, None, silent)
    assert [row["what"] for row in result["rows"]] == ["generator", "truncation"] and result["tokenizer"] is None
    with pytest.raises(UserError, match="decodes 3 channels, but the generator makes 1"):
        measure_latency(config, CPU, 2, [2], 1, tiny_vae(3), silent)
    with pytest.raises(UserError, match=r"tokenizer '\./none' is not a folder"):
        latency_command([config], CPU, None, 2, [2], 1, "./none", silent)
