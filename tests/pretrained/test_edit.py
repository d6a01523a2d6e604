"""Edits: planted directions are found, an edit reaches the blocks that it names, and what a mistake costs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import Gat
from helpers.trials import networks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gat_sweep.data.tokenizer import Pixels
from gat_sweep.files.weights import weights_digest
from gat_sweep.gat.generator import Generator
from gat_sweep.pretrained.card import About
from gat_sweep.pretrained.edit import Edit, edit_command, moved, principal_components
from gat_sweep.pretrained.folder import save_pretrained
from gat_sweep.pretrained.sample import Request

CPU = torch.device("cpu")


@pytest.fixture
def generator() -> Generator:
    network = networks()[0].eval()
    with torch.no_grad():  # class means are zero until training moves them
        network.style_mean.normal_(generator=torch.Generator().manual_seed(3))
    return network


@pytest.fixture
def folder(tmp_path: Path, generator: Generator) -> Path:
    save_pretrained(tmp_path / "folder", generator, About(tokenizer=Pixels(1).identity, training={"step": 9}))
    return tmp_path / "folder"


def edited(folder: Path, out: Path, edit: Edit, **request: Any) -> dict[str, Any]:
    return edit_command(folder, out, edit, Request(**request), {}, None, CPU)[0]


def test_planted_components_are_found(generator: Generator) -> None:
    """Styles with deviations 5, 2 and 1 along known directions and .1 elsewhere."""
    random, width = torch.Generator().manual_seed(0), 16
    axes = torch.linalg.qr(torch.randn(width, width, generator=random))[0]
    deviations = torch.full((width,), 0.1)
    deviations[:3] = torch.tensor([5.0, 2.0, 1.0])
    w = 7 + torch.randn(20_000, width, generator=random) * deviations @ axes.T
    steps, shares = principal_components(w, 3)
    assert torch.allclose(steps.norm(dim=1), deviations[:3], rtol=0.03)
    along = (steps / steps.norm(dim=1, keepdim=True)) @ axes[:, :3]
    assert torch.allclose(along.abs(), torch.eye(3), atol=0.03)
    total = deviations.square().sum()
    assert torch.allclose(shares, deviations[:3].square() / total, atol=0.01)
    assert torch.allclose(
        steps, principal_components(w.flip(0), 3)[0], atol=1e-4
    )  # the sign does not hang on the order


class Planted(nn.Module):
    """A mapping whose styles vary along one direction only."""

    def __init__(self, direction: Tensor):
        super().__init__()
        self.direction = nn.Parameter(direction)

    def forward(self, code: Tensor) -> Tensor:
        return code[:, -1:] * self.direction  # the last number of z


def test_ganspace_finds_the_direction_that_the_mapping_was_given(
    tmp_path: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    direction = torch.zeros(generator.spec.width)
    direction[[1, 4]] = torch.tensor([3.0, -4.0])
    generator.mapping = Planted(direction)  # type: ignore[assignment]
    about = About(tokenizer=Pixels(1).identity)
    monkeypatch.setattr(
        "gat_sweep.pretrained.edit.opened", lambda *_: type("P", (), {"generator": generator, "about": about})
    )
    edit = Edit(ganspace=2, samples=2000, strengths=(-1, 1), pictures=2)
    report = edit_command(tmp_path, tmp_path / "out", edit, Request(), {}, None, CPU)[0]
    assert report["directions"]["component-1"]["explained"] > 0.999
    step = load_file(tmp_path / "out" / "directions.safetensors")["component-1"]
    assert torch.allclose(step / step.norm(), -direction / 5, atol=1e-4)  # the largest entry is positive


def test_an_edit_reaches_the_blocks_that_it_names(generator: Generator) -> None:
    """One style for all blocks is the plain forward; a step in the last block leaves the levels before it alone."""
    random, depth = torch.Generator().manual_seed(1), generator.spec.depth
    w, vector = (
        torch.randn(3, generator.spec.width, generator=random),
        torch.randn(generator.spec.width, generator=random),
    )
    with torch.no_grad():
        plain = generator.synthesize(w)
        assert torch.equal(generator.synthesize(moved(w, vector, 0.0, (0, depth - 1), depth)), plain)
        # Some processors fuse w + 2 v into one rounding where memory is aligned, and not elsewhere.
        assert torch.allclose(
            generator.synthesize(moved(w, vector, 2.0, (0, depth - 1), depth)),
            generator.synthesize(w + 2 * vector),
            atol=1e-5,
        )
        late = generator.synthesize(moved(w, vector, 2.0, (depth - 1, depth - 1), depth))
        early = generator.synthesize(moved(w, vector, 2.0, (0, 0), depth))
    assert torch.equal(late[:-1], plain[:-1]) and not torch.allclose(late[-1], plain[-1])
    assert not torch.allclose(early[0], plain[0])


def test_the_way_between_classes_ends_at_the_other_ones_mean(
    tmp_path: Path, folder: Path, generator: Generator
) -> None:
    edited(folder, tmp_path / "out", Edit(between=(3, 8), strengths=(0, 1), pictures=1), classes=(3,))
    way = load_file(tmp_path / "out" / "directions.safetensors")["class-3-to-8"]
    assert torch.allclose(generator.style_mean[3] + way, generator.style_mean[8], atol=1e-6)


def test_directions_are_read_back_and_give_the_same_picture(tmp_path: Path, folder: Path) -> None:
    edit = Edit(ganspace=2, samples=500, pictures=2)
    edited(folder, tmp_path / "first", edit)
    file = tmp_path / "first" / "directions.safetensors"
    report = edited(folder, tmp_path / "again", Edit(file=file, names=("component-2",), pictures=2))
    assert (tmp_path / "again" / "component-2.png").read_bytes() == (
        tmp_path / "first" / "component-2.png"
    ).read_bytes()
    assert not (tmp_path / "again" / "component-1.png").exists()
    assert json.loads((tmp_path / "again" / "edit.json").read_text()) == json.loads(json.dumps(report))
    edited(folder, tmp_path / "twice", edit)
    assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()
    edited(folder, tmp_path / "other", replace(edit, layers=(0, 0)))
    assert (tmp_path / "other" / "component-1.png").read_bytes() != (
        tmp_path / "first" / "component-1.png"
    ).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ganspace", "2", "--between", "1,2"], "give one of --ganspace, --between, --direction"),
        ([], "give one of --ganspace"),
        (["--ganspace", "0"], "--ganspace 0: give 1 to"),
        (["--ganspace", "2", "--samples", "3"], "--samples 3: components of"),
        (["--between", "3,3"], "give two of the classes 0 to"),
        (["--between", "3"], "expected two classes"),
        (["--between", "1,2", "--layers", "0-99"], "--layers 0-99: the blocks are 0 to"),
        (["--between", "1,2", "--layers", "1"], "expected the first and the last block"),
        (["--between", "1,2", "--strengths", "a"], "expected numbers with commas"),
        (["--between", "1,2", "--strengths", "nan"], "--strengths: give numbers"),
        (["--between", "1,2", "--pictures", "0"], "--pictures 0: give 1 or more"),
        (["--between", "1,2", "--name", "x"], "--name needs --direction"),
        (["--between", "1,2", "--samples", "9"], "--samples needs --ganspace"),
        (["--direction", "none.safetensors"], "no such file"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, folder: Path, gat: Gat, options: list[str], words: str) -> None:
    code, _, err = gat("edit", folder, "--out", tmp_path / "out", *options)
    assert code == 2 and words in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_directions_of_other_weights_are_refused(tmp_path: Path, folder: Path, generator: Generator, gat: Gat) -> None:
    """A direction means something in the w of one generator alone."""
    file, digest, width = tmp_path / "d.safetensors", weights_digest(generator), generator.spec.width

    def described(weights: str) -> dict[str, str]:
        return {"gat_sweep_directions": json.dumps({"weights": weights, "about": {}})}

    good = described(digest)

    def refusal(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
        save_file(tensors, file, metadata)
        code, _, err = gat("edit", folder, "--out", tmp_path / "out", "--direction", file)
        assert code == 2 and err.count("\n") == 1
        return str(err)

    assert "is of other weights" in refusal({"a": torch.ones(width)}, described("0" * 12))
    assert "holds no directions" in refusal({"a": torch.ones(width)}, {"format": "pt"})
    assert "holds no directions" in refusal({"a": torch.ones(width)}, {"gat_sweep_directions": "[1]"})
    assert "'a' is not a direction of" in refusal({"a": torch.ones(width + 1)}, good)
    assert "'a' is not a direction of" in refusal({"a": torch.full((width,), torch.nan)}, good)
    file.write_bytes(b"nothing")
    assert "is not a safetensors file" in gat("edit", folder, "--out", tmp_path / "out", "--direction", file)[2]
    save_file({"a": torch.ones(width)}, file, good)
    assert "has a" in gat("edit", folder, "--out", tmp_path / "out", "--direction", file, "--name", "b")[2]
