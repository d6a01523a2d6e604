"""Edits by text: the loss falls, what should stay stays, a direction shows CLIP more of a text, and mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.clips import POSITIONS, save_clip
from helpers.processes import Gat
from helpers.trials import networks
from safetensors.torch import load_file
from torch import Tensor

from gat_sweep.data.tokenizer import Pixels
from gat_sweep.files.sheet import labelled_sheet
from gat_sweep.gat.generator import Generator
from gat_sweep.pretrained.card import About
from gat_sweep.pretrained.edit import Edit, edit_command
from gat_sweep.pretrained.folder import from_pretrained, save_pretrained
from gat_sweep.pretrained.sample import Request
from gat_sweep.pretrained.styleclip import ClipView, Optimisation, optimised, text_direction
from gat_sweep.text import silent
from gat_sweep.vision.clip import Clip

CPU = torch.device("cpu")
DEPTH = 4  # of the small generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    """An untrained one; its modulation is larger than at the start, so that w shows."""
    network = networks()[0].eval().requires_grad_(False)
    for name, tensor in network.named_parameters():
        if "modulation" in name:
            tensor.mul_(3)
    return network


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    return Clip(str(clip_folder))


@pytest.fixture
def folder(tmp_path: Path, generator: Generator) -> Path:
    save_pretrained(tmp_path / "folder", generator, About(tokenizer=Pixels(1).identity, training={"step": 9}))
    return tmp_path / "folder"


def sight(generator: Generator, clip: Clip, layers: tuple[int, int] = (0, DEPTH - 1), batch: int = 32) -> ClipView:
    return ClipView(generator, Pixels(1), clip, layers, batch)


def some_styles(generator: Generator, count: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator.spec.width, generator=random)


def test_the_loss_falls_and_is_what_it_says(generator: Generator, clip: Clip) -> None:
    """The cosines of the path are those of its pictures, seen again; every picture comes closer to the text."""
    w, text = some_styles(generator, 3), clip.texts(["a cat"])[0]
    options = Optimisation("a cat", iterations=40, rate=0.1, keep=0.01)
    path = optimised(sight(generator, clip), w, None, text, options, silent)
    assert path.kept == [0, 7, 13, 20, 27, 33, 40] and path.cosine.shape == path.distance.shape == (41, 3)
    assert torch.equal(path.w[0], w.expand(DEPTH, -1, -1)) and not path.distance[0].any()
    loss = path.loss(0.01)
    assert torch.allclose(loss, 1 - path.cosine + 0.01 * path.distance**2)
    assert (loss[-1] < loss[0] - 0.01).all() and (path.cosine[-1] > path.cosine[0]).all()
    for i, step in enumerate(path.kept):
        with torch.no_grad():
            pictures = Pixels(1).decode(generator.synthesize(path.w[i])[-1])
        assert torch.equal(pictures, path.pictures[i])
        assert torch.allclose(clip.pictures(pictures) @ text, path.cosine[step], atol=0.02)  # the path does not round
        assert torch.allclose((path.w[i, 0] - w).norm(dim=1), path.distance[step], atol=1e-5)


def test_the_first_step_goes_down_the_gradient(generator: Generator, clip: Clip) -> None:
    """Adam's first step is the sign of the gradient, by the rate."""
    w, text = some_styles(generator, 1), clip.texts(["a dog"])[0]
    path = optimised(sight(generator, clip), w, None, text, Optimisation("a dog", 1, 0.01, 0.0), silent)
    own = w.clone().requires_grad_()
    cosine = clip.pictures(Pixels(1).decode_values(generator.synthesize(own)[-1])) @ text
    (gradient,) = torch.autograd.grad(cosine.sum(), own)
    assert torch.allclose(path.w[1, 0] - w, 0.01 * gradient.sign(), atol=1e-4)


def test_the_rate_falls_to_the_end(generator: Generator, clip: Clip) -> None:
    """Adam's steps are about as long as the rate; the last of six has a quarter of it."""
    w, text = some_styles(generator, 2), clip.texts(["a dog"])[0]
    path = optimised(sight(generator, clip), w, None, text, Optimisation("a dog", 6, 0.02, 0.0), silent)
    steps = path.w[:, 0].diff(dim=0).abs().amax(dim=(1, 2))
    assert path.kept == list(range(7)) and steps[:4].min() > 0.01 and 0.002 < steps[-1] < 0.008


def test_a_huge_keep_keeps_w_at_its_start(generator: Generator, clip: Clip) -> None:
    w, text = some_styles(generator, 2), clip.texts(["a cat"])[0]
    ends = {
        keep: optimised(sight(generator, clip), w, None, text, Optimisation("a cat", 60, 0.05, keep), silent)
        for keep in (0.0, 1e4)
    }
    assert (ends[0.0].distance[-1] > 0.1).all()
    assert (ends[1e4].distance[-1] < 0.05 * ends[0.0].distance[-1]).all()


def test_only_the_named_blocks_move(generator: Generator, clip: Clip) -> None:
    w, text = some_styles(generator, 2), clip.texts(["a cat"])[0]
    path = optimised(sight(generator, clip, (1, 2)), w, None, text, Optimisation("a cat", 6, 0.1), silent)
    assert torch.equal(path.w[:, [0, 3]], w.expand(len(path.kept), 2, -1, -1))
    assert torch.equal(path.w[:, 1], path.w[:, 2]) and (path.w[-1, 1] - w).abs().max() > 0.05
    assert path.cosine[-1].mean() > path.cosine[0].mean()


def test_pictures_do_not_depend_on_their_batch(generator: Generator, clip: Clip) -> None:
    w, text = some_styles(generator, 3), clip.texts(["a cat"])[0]
    options = Optimisation("a cat", 5, 0.1)
    together, apart = (optimised(sight(generator, clip, batch=b), w, None, text, options, silent) for b in (32, 2))
    assert torch.allclose(together.w, apart.w, atol=1e-3) and together.pictures.shape == apart.pictures.shape
    assert torch.allclose(together.cosine, apart.cosine, atol=1e-4)


@pytest.mark.parametrize("layers", [(0, DEPTH - 1), (2, 3)])
def test_a_direction_of_texts_shows_clip_more_of_the_second(
    generator: Generator, clip: Clip, layers: tuple[int, int]
) -> None:
    """On styles that it was not computed from; the change of a small step is the gain that it names."""
    seen, w = sight(generator, clip, layers), some_styles(generator, 64)
    vector, figures = text_direction(seen, [(w[:40], None), (w[40:], None)], "a cat", "a dog, a dog")
    unit = vector / vector.norm()
    assert vector.norm().item() == pytest.approx((w @ unit).std().item(), rel=1e-4)
    way = F.normalize(clip.texts(["a dog, a dog"])[0] - clip.texts(["a cat"])[0], dim=0)

    def along(styles: Tensor, strength: float) -> Tensor:
        with torch.no_grad():
            return (clip.pictures(seen.pictures(seen.moved(styles, strength * vector), None)) @ way).mean()

    other = some_styles(generator, 200, seed=1)
    assert along(other, 0.3) > along(other, 0.0) > along(other, -0.3)
    small = (along(w, 0.02) - along(w, -0.02)).item() / 0.04
    assert small == pytest.approx(figures["gain"], rel=0.1) and 0 < figures["agreement"] <= 1
    back = text_direction(seen, [(w, None)], "a dog, a dog", "a cat")[0]
    assert torch.allclose(back, -vector, atol=1e-4)


def edited(folder: Path, out: Path, edit: Edit, **request: Any) -> dict[str, Any]:
    return edit_command(folder, out, edit, Request(**request), {}, None, CPU)[0]


def test_the_files_of_an_optimisation(tmp_path: Path, folder: Path, clip_folder: Path, gat: Gat) -> None:
    """Its mean step is a direction that --direction applies; the same command writes the same bytes."""
    command = ["edit", folder, "--styleclip", "a cat", "--clip", clip_folder, "--iterations", 4, "--pictures", 2]
    code, out, err = gat(*command, "--rate", 0.2, "--layers", "1-2", "--out", tmp_path / "cat")
    assert (code, err) == (0, "") and "text  cosine_before" in out
    report = json.loads((tmp_path / "cat" / "edit.json").read_text())
    assert report["optimise"] == {"text": "a cat", "iterations": 4, "rate": 0.2, "keep": 0.005}
    path, w = json.loads((tmp_path / "cat" / "path.json").read_text()), load_file(tmp_path / "cat" / "path.safetensors")
    assert path["kept"] == [0, 1, 2, 3, 4] and len(path["loss"]) == 5 and len(path["loss"][0]) == 2
    assert report["directions"]["text"]["cosine_after"] == pytest.approx(sum(path["cosine"][-1]) / 2, abs=1e-5)
    step = load_file(tmp_path / "cat" / "directions.safetensors")["text"]
    assert torch.allclose(step, (w["w"][-1, 1] - w["w"][0, 1]).mean(dim=0), atol=1e-6) and step.any()
    generator = from_pretrained(folder).generator
    with torch.no_grad():  # rows are pictures, columns are iterations
        columns = [Pixels(1).decode(generator.synthesize(styles)[-1]) for styles in w["w"]]
    rows = torch.cat([column[i : i + 1] for i in range(2) for column in columns])
    sheet = labelled_sheet(rows, 5, "a cat: after so many iterations", ["0", "1", "2", "3", "4"])
    assert (tmp_path / "cat" / "text.png").read_bytes() == sheet
    gat(*command, "--rate", 0.2, "--layers", "1-2", "--out", tmp_path / "again")
    names = sorted(file.name for file in (tmp_path / "cat").iterdir())
    assert names == ["directions.safetensors", "edit.json", "path.json", "path.safetensors", "text.png"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "cat" / name).read_bytes()
    direction = tmp_path / "cat" / "directions.safetensors"
    assert gat("edit", folder, "--direction", direction, "--strengths", "0,1", "--out", tmp_path / "by")[0] == 0
    assert (tmp_path / "by" / "text.png").exists()


def test_the_files_of_a_direction_of_texts(tmp_path: Path, folder: Path, clip_folder: Path) -> None:
    edit = Edit(from_to=("a cat", "a dog"), clip=str(clip_folder), samples=40, strengths=(-1, 0, 1), pictures=2)
    report = edited(folder, tmp_path / "out", edit)
    assert report["directions"]["text"]["gain"] > 0 and report["clip"]["digest"] == Clip(str(clip_folder)).digest
    vector = load_file(tmp_path / "out" / "directions.safetensors")["text"]
    again = edited(folder, tmp_path / "again", edit, batch=7)
    assert torch.allclose(load_file(tmp_path / "again" / "directions.safetensors")["text"], vector, atol=1e-4)
    assert again["directions"]["text"]["gain"] == pytest.approx(report["directions"]["text"]["gain"], rel=1e-2)
    assert (tmp_path / "out" / "text.png").exists()


STYLECLIP = ["--styleclip", "a cat", "--clip", "CLIP"]
TEXTS = ["--from-text", "a cat", "--to-text", "a dog", "--clip", "CLIP"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--styleclip", "a cat"], "needs a CLIP; add --clip"),
        (TEXTS[:4], "needs a CLIP; add --clip"),
        (["--styleclip", "a cat", "--clip", "./nowhere"], "the CLIP './nowhere' is not a folder"),
        ([*STYLECLIP, "--ganspace", "2"], "give one of --ganspace"),
        ([*STYLECLIP, *TEXTS[:4]], "give one of --ganspace"),
        ([*TEXTS[:2], "--clip", "CLIP"], "--from-text and --to-text belong together"),
        (["--between", "1,2", "--clip", "CLIP"], "--clip needs --styleclip or --from-text"),
        ([*TEXTS, "--iterations", "3"], "--iterations needs --styleclip"),
        ([*TEXTS, "--keep", "0"], "--keep needs --styleclip"),
        ([*STYLECLIP, "--samples", "9"], "--samples needs --ganspace or --from-text"),
        ([*STYLECLIP, "--strengths", "1,2"], "--strengths does not go with --styleclip"),
        ([*STYLECLIP, "--iterations", "0"], "--iterations 0: give 1 or more"),
        ([*STYLECLIP, "--rate", "0"], "--rate 0.0: give more than 0"),
        ([*STYLECLIP, "--keep", "-1"], "--keep -1.0: give 0 or more"),
        ([*STYLECLIP, "--rate", "1e30"], "the loss is not finite after"),
        ([*STYLECLIP, "--layers", "0-99"], "--layers 0-99: the blocks are 0 to"),
        (["--styleclip", " ", "--clip", "CLIP"], "--styleclip: the text is empty"),
        (["--styleclip", "a cat " * POSITIONS, "--clip", "CLIP"], f"has more than CLIP's {POSITIONS} tokens"),
        ([*TEXTS, "--samples", "1"], "--samples 1: a direction of texts needs 2 or more"),
        (["--from-text", "", *TEXTS[2:]], "a text is empty"),
        (["--from-text", "A  dog", *TEXTS[2:]], "are the same to CLIP"),
        ([*TEXTS, "--samples", "3", "--psi", "0", "--classes", "1"], "do not change along them"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, folder: Path, clip_folder: Path, gat: Gat, options: list[str], words: str
) -> None:
    given = [str(clip_folder) if option == "CLIP" else option for option in options]
    code, _, err = gat("edit", folder, "--out", tmp_path / "out", *given)
    assert code == 2 and words in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
