"""Inspection: planted networks with known answers, an independent CKNNA, and a checkpoint end to end."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.pictures import encoded_latents
from helpers.trials import save_checkpoint, tiny_config
from rich.console import Console
from torch import Tensor

from gat_sweep.commands.inspect import inspection_table
from gat_sweep.data.dataset import load_dataset
from gat_sweep.data.tokenizer import Pixels, load_tokenizer
from gat_sweep.errors import UserError
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.inspection.blocks import CHUNK, Findings, Subject, look, pca_maps, similarity
from gat_sweep.inspection.cknna import cknna
from gat_sweep.inspection.inspect import COLUMNS, InspectOptions, inspect_command
from gat_sweep.inspection.probes import discriminator_tokens, generator_tokens, without_block
from gat_sweep.run.checkpoint import open_checkpoint
from gat_sweep.run.trial import Trial
from gat_sweep.vision.perceptual import FeatureDistance, Lpips

CPU = torch.device("cpu")


def slow_cknna(a: Tensor, b: Tensor, k: int) -> float:
    """The definition, pair by pair."""
    n = len(a)
    kernels, neighbours = [], []
    for x in (a, b):
        x = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
        kernels.append([[float(x[i] @ x[j]) for j in range(n)] for i in range(n)])
        others = [[j for j in range(n) if j != i] for i in range(n)]
        neighbours.append([set(sorted(others[i], key=lambda j: -kernels[-1][i][j])[:k]) for i in range(n)])

    def cut(kernel: list[list[float]], *kept: list[set[int]]) -> np.ndarray:
        rows = [[kernel[i][j] if all(j in near[i] for near in kept) else 0.0 for j in range(n)] for i in range(n)]
        return np.array(rows)

    def hsic(p: np.ndarray, q: np.ndarray) -> float:
        trace = sum(p[i, j] * q[j, i] for i in range(n) for j in range(n))
        one = np.ones(n)
        centred = (one @ p @ one) * (one @ q @ one) / ((n - 1) * (n - 2)) - 2 * (one @ p @ q @ one) / (n - 2)
        return (trace + centred) / (n * (n - 3))

    (ka, kb), (na, nb) = kernels, neighbours
    cross = hsic(cut(ka, na, nb), cut(kb, na, nb))
    return cross / math.sqrt(hsic(cut(ka, na), cut(ka, na)) * hsic(cut(kb, nb), cut(kb, nb)))


def test_cknna_is_its_definition_and_ignores_rotation_and_scale() -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.randn(60, 7, generator=random, dtype=torch.float64)
    noise = torch.randn(60, 7, generator=random, dtype=torch.float64)
    related = a[:, :5] + noise[:, :5]
    value = cknna(a, related, 10)
    assert value == pytest.approx(slow_cknna(a, related, 10), rel=1e-12)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=random, dtype=torch.float64))[0]
    assert cknna(3 * a, related @ rotation * 0.1, 10) == pytest.approx(value, rel=1e-9)
    assert cknna(related, a, 10) == pytest.approx(slow_cknna(related, a, 10), rel=1e-12)
    assert cknna(a, a, 10) == pytest.approx(1, rel=1e-12)


def test_cknna_tells_unrelated_from_mixed_from_equal() -> None:
    random = torch.Generator().manual_seed(1)
    a, unrelated = torch.randn(2, 500, 6, generator=random)
    values = [cknna(a, (1 - t) * unrelated + t * a) for t in (0.0, 0.5, 0.8, 1.0)]
    assert abs(values[0]) < 0.03 and values[1] > 0.1 and values[3] == pytest.approx(1)
    assert values == sorted(values)
    with pytest.raises(ValueError, match="more than k"):
        cknna(a[:11], a[:11])


def subject(**settings: Any) -> Subject:
    config = tiny_config(**settings)
    torch.manual_seed(0)
    networks = Generator(config.generator_spec), Discriminator(config.discriminator_spec)
    return Subject(config, *(n.requires_grad_(False) for n in networks), load_dataset(config.data), Pixels(1), CPU)


class PixelTeacher:
    """The pictures themselves."""

    def tokens(self, pictures: Tensor) -> Tensor:
        return pictures.float().flatten(1)[:, None]


def seen(one: Subject, images: int = 16) -> tuple[Findings, dict[tuple[str, int, str, str], Any]]:
    teacher: Any = PixelTeacher()
    found = look(one, FeatureDistance(32, CPU), teacher, images, 0, lambda: None)
    return found, {(r.network, r.block, r.data, r.measure): r for r in found.rows(10, lambda: None)}


def test_a_dead_block_has_no_influence_and_a_code_that_is_not_read_makes_no_difference() -> None:
    one = subject()
    dead = one.generator.blocks[1]
    for layer in (dead.attention.proj, dead.ffn.w_out):
        layer.weight.zero_()
        layer.bias.zero_()
    _, rows = seen(one)
    influence = [rows["G", i, "fake", "influence_efficientnet_lite0"] for i in (1, 2, 3, 4)]
    kept = [rows["G", i, "fake", "similarity_input_output"].value for i in (1, 2, 3, 4)]
    assert influence[1].value == 0 and influence[1].standard_error == 0 and influence[1].n == 16
    assert all(influence[i].value > 0 and influence[i].standard_error > 0 for i in (0, 2, 3))
    assert kept[1] == 1 and max(kept[0], *kept[2:]) < 1
    assert all(rows["G", i, "fake", "similarity_other_z"].value < 1 for i in (1, 2, 3, 4))

    z_dim = one.config.model.z_dim
    one.generator.mapping[0].weight[:, z_dim:] = 0  # the class half stays
    _, rows = seen(one)
    assert all(rows["G", i, "fake", "similarity_other_z"].value == 1 for i in (1, 2, 3, 4))
    assert rows["G", 1, "fake", "influence_efficientnet_lite0"].value > 0


@torch.no_grad()
def test_probes_see_what_the_networks_compute_and_leave_no_trace() -> None:
    one = subject()
    generator, discriminator = one.generator, one.discriminator
    z, y = torch.randn(3, one.config.model.z_dim), torch.tensor([0, 4, 9])
    w = generator.style(z, y)
    before = generator.synthesize(w)
    levels, tokens = generator_tokens(generator, w)
    assert torch.equal(levels, before) and len(tokens) == 1 + len(generator.blocks)
    assert torch.equal(tokens[0], generator.position.expand(3, -1, -1))
    assert torch.equal(tokens[3], generator.blocks[2](tokens[2], F.silu(w), generator.rope))

    block = generator.blocks[2]
    block_scale = block.modulation.weight.clone()
    block.modulation.weight.zero_()  # a1 = a2 = 0: the identity
    identity = generator.synthesize(w)
    block.modulation.weight.copy_(block_scale)
    with without_block(generator, 2):
        assert torch.equal(generator.synthesize(w), identity) and not torch.equal(identity, before)
    assert torch.equal(generator.synthesize(w), before) and generator.blocks[2] is block

    x = levels.movedim(0, 1).flatten(1, 2)
    logits = discriminator(x, y)[0]
    out = discriminator_tokens(discriminator, levels, y)
    assert len(out) == len(discriminator.blocks)
    assert torch.equal(out[-1], discriminator.blocks[-1](out[-2], discriminator.rope))
    assert out[-1].shape == (3, 1 + one.config.discriminator_spec.tokens, discriminator.spec.width)
    assert torch.equal(discriminator(x, y)[0], logits)


def test_similarity_and_colours_of_planted_tokens() -> None:
    a = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0))
    b = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(similarity(a, b), F.cosine_similarity(a, b, dim=-1).mean(dim=1))
    assert torch.equal(similarity(a, a), torch.ones(4))

    # One direction per colour, of falling variance: rows, then columns, then the image.
    grid = torch.zeros(4, 3, 3, 6)
    grid[..., 5] = 100 * torch.arange(3.0)[:, None]
    grid[..., 0] = 10 * torch.arange(3.0)
    grid[..., 2] = torch.arange(4.0)[:, None, None]
    colours = pca_maps(grid.flatten(1, 2))
    assert colours.shape == (4, 3, 3, 3)
    np.testing.assert_allclose(colours[..., 0], np.broadcast_to(np.arange(3)[:, None] / 2, (4, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(colours[..., 1], np.broadcast_to(np.arange(3) / 2, (4, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(colours[:, 0, 0, 2], np.arange(4) / 3, atol=1e-6)


def test_unconditional_and_one_level() -> None:
    found, rows = seen(subject(data__classes=0, mng__schedule="none"), images=16)
    assert {key[3] for key in rows} == {
        "influence_efficientnet_lite0", "similarity_input_output", "similarity_other_z", "cknna_patches", "cknna_cls",
    }  # fmt: skip
    assert found.shown_tokens["D", "real"][0].shape == (6, 16, 8)
    assert all(row.n == 16 for row in rows.values())


def test_latents_are_decoded_by_the_tokenizer_that_made_them(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(0)
    AutoencoderKL(**blocks, block_out_channels=(8, 8), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    encoded_latents(tmp_path / "data", 20, 4, 4)
    data = {"dataset": "encoded", "path": str(tmp_path / "data"), "side": 4, "channels": 4, "classes": 2}
    config = tiny_config(**{f"data__{key}": value for key, value in data.items()})
    networks = Generator(config.generator_spec), Discriminator(config.discriminator_spec)
    tokenizer = load_tokenizer(str(tmp_path / "vae"))
    found, rows = seen(Subject(config, *networks, load_dataset(config.data), tokenizer, CPU))
    assert found.shown_pictures["real"].shape == found.shown_pictures["fake"].shape == (6, 3, 8, 8)
    assert rows["D", 4, "real", "cknna_patches"].n == 16

    (tmp_path / "trial" / "checkpoints").mkdir(parents=True)
    (tmp_path / "trial" / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    path = tmp_path / "trial" / "checkpoints" / "step_00000000"
    networks_by_name = {"ema": networks[0], "discriminator": networks[1]}
    save_checkpoint(path.parent, 0, networks_by_name, {"data": load_dataset(config.data).digest})
    with pytest.raises(UserError, match="is not the one of data set 'photographs', 'nowhere'"):
        inspect_command(
            path, None, InspectOptions(), {"data.tokenizer": str(tmp_path / "vae")}, CPU, Console(quiet=True)
        )


def test_lpips_is_the_packages_own_and_needs_no_download(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    backbone = {}
    for layer, (out, into, side) in shapes.items():
        weight = torch.randn(out, into, side, side, generator=random) * (into * side**2) ** -0.5
        backbone |= {f"features.{layer}.weight": weight, f"features.{layer}.bias": torch.zeros(out)}
    torch.save({**backbone, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "alexnet.pth")
    ours = Lpips(tmp_path / "alexnet.pth", CPU)

    pictures = torch.randint(256, (2, 3, 64, 64), generator=random, dtype=torch.uint8)
    changed = torch.stack([pictures, 255 - pictures])
    found = ours(pictures, changed)
    layers = [m for m in ours.network.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for layer, number in zip(layers, shapes, strict=True):
        assert torch.equal(layer.weight, backbone[f"features.{number}.weight"])
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", weights_only=True, map_location="cpu")
    assert torch.equal(ours.network.lin0.model[1].weight, heads["lin0.model.1.weight"])
    assert torch.equal(found[0], torch.zeros(2)) and bool((found[1] > 0).all())
    expected = ours.network(pictures.float() / 127.5 - 1, changed[1].float() / 127.5 - 1).flatten()
    torch.testing.assert_close(found[1], expected)
    assert ours(pictures[:, :, :8, :8], changed[:, :, :, :8, :8]).shape == (2, 2)

    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in [
        ("other.pth", "not torchvision's alexnet"),
        ("text.pth", "not a file of the expected weights"),
        ("none.pth", "no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            Lpips(tmp_path / name, CPU)


@pytest.fixture(scope="module")
def checkpoint(trained: Trial) -> Path:
    return trained.folder / "checkpoints" / "step_00000004"


def inspect(checkpoint: Path, out: Path | None = None) -> tuple[dict[str, Any], list[Path]]:
    console = Console(quiet=True)
    return inspect_command(checkpoint, out, InspectOptions(images=CHUNK + 5), {}, CPU, console)


def test_inspect_a_checkpoint(checkpoint: Path) -> None:
    result, files = inspect(checkpoint)
    assert files[0].parent == checkpoint.parents[3] / "inspect" / "trial-step_00000004"
    figures = {"block_influence", "similarity", "cknna", "pca_g", "pca_d"}
    names = {"inspect.json", "inspect.csv"} | {f"{name}.{kind}" for name in figures for kind in ("svg", "png")}
    assert {file.name for file in files} == names == {file.name for file in files[0].parent.iterdir()}

    assert json.loads(files[0].read_text(encoding="utf-8")) == result
    with open(files[1], newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    kinds: list[Any] = [str, int, str, str, float, float, int]
    read = [{c: kind(row[c]) if row[c] else None for c, kind in zip(COLUMNS, kinds, strict=True)} for row in lines]
    assert read == result["rows"]
    # Per block: three of G alone and CKNNA once; of D patches and [cls], on real and fake.
    assert len(read) == 4 * (3 + 1) + 4 * 2 * 2
    assert result["step"] == 4 and result["data"] == open_checkpoint(checkpoint).facts["data"]
    assert inspection_table(result).row_count == 4


@pytest.mark.slow
def test_an_inspection_gives_the_same_files_twice(checkpoint: Path, tmp_path: Path) -> None:
    (result, files), (again, other) = (inspect(checkpoint, tmp_path / name) for name in ("one", "two"))
    assert again == result and all(a.read_bytes() == b.read_bytes() for a, b in zip(files, other, strict=True))


def test_bad_input_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "trial" / "checkpoints"
    folder.mkdir(parents=True)
    damaged = folder / "step_00000004"
    shutil.copytree(checkpoint, damaged)
    whole = (damaged / "ema.safetensors").read_bytes()
    (damaged / "ema.safetensors").write_bytes(whole[:1000])

    def refused(match: str, path: Path = damaged, settings: dict[str, Any] | None = None, **options: Any) -> None:
        with pytest.raises(UserError, match=match) as error:
            inspect_command(path, None, InspectOptions(**options), settings or {}, CPU, Console(quiet=True))
        assert "\n" not in str(error.value)

    refused("is not a checkpoint; give one of", folder / "step_00000008")
    refused("is not a checkpoint; give one of", folder)
    refused("config.json is missing")
    shutil.copy(checkpoint.parents[1] / "config.json", folder.parent)
    refused(f"ema.safetensors has 1000 bytes instead of {len(whole)}; give another")
    (damaged / "checkpoint.json").write_text("{}", encoding="utf-8")
    refused("checkpoint.json is not a valid checkpoint manifest; give another")
    shutil.rmtree(damaged)
    save_checkpoint(folder, 4, {"ema": torch.nn.Linear(1, 1)}, {"data": open_checkpoint(checkpoint).facts["data"]})
    refused("does not hold the networks")
    (folder.parent / "config.json").write_text("{", encoding="utf-8")
    refused("config.json is damaged")
    refused("set only data.path", checkpoint, {"model.patch": 4})
    refused("--images 5000: give 12 to 1797", checkpoint, images=5000)
    refused("unknown teacher 'vgg'", checkpoint, teacher="vgg")
