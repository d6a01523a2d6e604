"""Sampling: what decides a picture, how often the backbone runs, what the files hold, what a mistake costs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import Gat
from helpers.trials import checkpoint_of, networks, tiny_trial
from PIL import Image

from gat_sweep.data.tokenizer import Dct, Pixels
from gat_sweep.errors import UserError
from gat_sweep.files.weights import weights_digest
from gat_sweep.gat.generator import Generator
from gat_sweep.metrics.picture_sets import open_pictures
from gat_sweep.pretrained.card import About
from gat_sweep.pretrained.folder import from_trial, save_pretrained
from gat_sweep.pretrained.sample import Request, batches, checked, codes, sample_command

CPU = torch.device("cpu")
PLAIN = Request(count=21, seed=5)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return networks()[0].eval()


@pytest.fixture
def folder(tmp_path: Path, generator: Generator) -> Path:
    save_pretrained(tmp_path / "folder", generator, About(tokenizer=Pixels(1).identity, training={"step": 9}))
    return tmp_path / "folder"


@pytest.fixture
def forwards(generator: Generator) -> Iterator[list[int]]:
    """How many images each forward of the first block saw."""
    seen: list[int] = []
    hook = generator.blocks[0].register_forward_hook(lambda block, given, out: seen.append(len(out)))
    yield seen
    hook.remove()


def latents(generator: Generator, request: Request) -> torch.Tensor:
    return torch.cat(list(batches(generator, request, checked(request, generator.spec))))


# ---------------------------------------------------------------- what decides a picture


def test_a_code_and_its_class_depend_on_the_seed_and_the_number_alone(generator: Generator) -> None:
    """Bit for bit."""
    z, y = codes(PLAIN, generator.spec, None, range(21))
    assert y is not None and len(set(y.tolist())) > 5 and len(torch.unique(z)) == z.numel()
    part_z, part_y = codes(replace(PLAIN, count=500), generator.spec, None, range(7, 10))
    assert torch.equal(part_z, z[7:10]) and part_y is not None and torch.equal(part_y, y[7:10])
    other, _ = codes(replace(PLAIN, seed=6), generator.spec, None, range(21))
    assert not torch.isin(other, z).any()
    many, drawn = codes(PLAIN, generator.spec, None, range(4000))
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
    assert drawn is not None and (torch.bincount(drawn) - 400).abs().max() < 100


def test_the_batch_changes_no_picture_beyond_float_rounding(generator: Generator) -> None:
    """Not bit for bit: matrix products of other sizes may add in another order."""
    options = {"psi": 0.6, "guidance": 1.4}
    three, seven = (latents(generator, replace(PLAIN, batch=batch, **options)) for batch in (3, 7))
    assert three.shape == (21, 1, 8, 8) and three.std() > 0.01
    assert torch.allclose(three, seven, atol=1e-6)
    assert torch.allclose(latents(generator, replace(PLAIN, count=4, **options)), seven[:4], atol=1e-6)


def test_pictures_are_those_of_generator_sample(generator: Generator) -> None:
    request = replace(PLAIN, classes=(4, 2, 9), psi=0.5, guidance=2.0)
    z, y = codes(request, generator.spec, (4, 2, 9), range(21))
    assert y is not None and y.tolist() == [4, 2, 9] * 7
    assert torch.equal(latents(generator, request), generator.sample(z, y, psi=0.5, guidance=2.0))
    unconditional = networks(0)[0]
    z, y = codes(PLAIN, unconditional.spec, None, range(21))
    assert y is None
    assert torch.equal(latents(unconditional, replace(PLAIN, psi=0.5)), unconditional.sample(z, None, psi=0.5))


@pytest.mark.parametrize("interpolate", [None, "intra", "inter"])
def test_one_forward_an_image_whatever_the_options(
    generator: Generator, forwards: list[int], interpolate: str | None
) -> None:
    request = Request(15, None, 0.7, 1.5, batch=6, grid=(3, 5), interpolate=interpolate)
    assert len(latents(generator, request)) == 15
    assert forwards == [6, 6, 3]


# ---------------------------------------------------------------- interpolation


def styles_seen(generator: Generator, request: Request) -> torch.Tensor:
    """Styles [rows, columns, width] as they reach the backbone."""
    seen: list[torch.Tensor] = []
    real = generator.synthesize
    generator.synthesize = lambda w, y=None: seen.append(w) or real(w, y)  # type: ignore[assignment, func-returns-value]
    try:
        latents(generator, request)
    finally:
        del generator.synthesize
    return torch.cat(seen).unflatten(0, request.grid)


@pytest.mark.parametrize("classes", [None, (3, 8)])
@pytest.mark.parametrize("kind", ["intra", "inter"])
def test_rows_are_lines_between_styles_after_truncation_and_guidance(
    generator: Generator, kind: str, classes: tuple[int, ...] | None
) -> None:
    request = Request(interpolate=kind, classes=classes, grid=(3, 5), psi=0.6, guidance=1.3, batch=4)
    w = styles_seen(generator, request)
    z, drawn = codes(request, generator.spec, None, range(6))
    assert drawn is not None
    first, last = z[0::2], z[0::2] if kind == "inter" else z[1::2]
    if classes:
        y = torch.tensor([3, 8, 3])
        end_y = torch.tensor([8, 3, 8]) if kind == "inter" else y
    else:
        y = end_y = drawn[0::2]
        if kind == "inter":
            matches = [
                [torch.allclose(generator.styled(last[r : r + 1], torch.tensor([c]), 0.6, 1.3), w[r, -1:], atol=1e-5)
                 for c in range(10)]
                for r in range(3)
            ]  # fmt: skip
            end_y = torch.tensor(matches).int().argmax(dim=1)
            assert torch.tensor(matches).sum() == 3 and (end_y != y).all()
    start, end = generator.styled(first, y, 0.6, 1.3), generator.styled(last, end_y, 0.6, 1.3)
    assert (end - start).abs().max() > 0.01
    for column in range(5):
        part = column / 4
        assert torch.allclose(w[:, column], (1 - part) * start + part * end, atol=1e-5)


def test_unconditional_rows_go_between_codes() -> None:
    generator = networks(0)[0]
    request = Request(interpolate="intra", grid=(2, 3))
    w = styles_seen(generator, request)
    z, _ = codes(request, generator.spec, None, range(4))
    assert torch.allclose(w[:, 0], generator.styled(z[0::2], None), atol=1e-6)
    assert torch.allclose(w[:, 1], w[:, [0, 2]].mean(dim=1), atol=1e-6)


# ---------------------------------------------------------------- files


def test_the_files_hold_what_was_asked(folder: Path, tmp_path: Path, generator: Generator) -> None:
    request = Request(count=7, classes=(1, 2), psi=0.5, seed=3, batch=3, grid=(2, 3))
    result, files = sample_command(folder, tmp_path / "out", request, {}, None, CPU)
    assert [file.name for file in files] == ["samples.npz", "grid.png", "sampling.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(file.name for file in files)
    expected = Pixels(1).decode(latents(generator, request)).permute(0, 2, 3, 1).numpy()
    with np.load(files[0]) as archive:
        assert archive["arr_0"].dtype == np.uint8 and np.array_equal(archive["arr_0"], expected)
        assert archive["arr_1"].tolist() == [1, 2, 1, 2, 1, 2, 1]
    assert open_pictures(files[0]).count == 7
    grid = np.asarray(Image.open(files[1]))
    assert grid.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    for i in range(6):
        y, x = 66 * (i // 3) + 2, 66 * (i % 3) + 2
        assert np.array_equal(grid[y : y + 64 : 8, x + 7 : x + 64 : 8], expected[i])
    assert (grid[64 + 2 : 66 + 2] == 255).all() and (grid[:, -2:] == 255).all()
    assert json.loads(json.dumps(result)) == json.loads(files[2].read_text())
    assert (result["seed"], result["psi"], result["classes"], result["count"]) == (3, 0.5, (1, 2), 7)
    assert result["training"] == {"step": 9} and result["weights"] == weights_digest(generator)
    assert result["tokenizer"]["source"] == "pixels"
    again = sample_command(folder, tmp_path / "again", request, {}, None, CPU)[1]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(files, again, strict=True)] == [True] * 3


def test_a_short_last_row_is_white_and_rows_are_no_samples_of_classes(folder: Path, tmp_path: Path) -> None:
    sample_command(folder, tmp_path / "a", Request(count=4, grid=(2, 3), npz=False), {}, None, CPU)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["grid.png", "sampling.json"]
    grid = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    assert grid.shape == (134, 200, 3) and (grid[68:, 68:] == 255).all() and (grid[68:, :68] < 255).any()
    sample_command(folder, tmp_path / "b", Request(interpolate="inter", grid=(2, 3)), {}, None, CPU)
    with np.load(tmp_path / "b" / "samples.npz") as archive:
        assert list(archive) == ["arr_0"] and archive["arr_0"].shape == (6, 8, 8, 3)


def test_a_trial_and_its_folder_give_the_same_pictures(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tiny_trial(tmp_path / "home"))
    trial = from_trial(checkpoint, {})
    save_pretrained(tmp_path / "folder", trial.generator, trial.about)
    results = [sample_command(s, tmp_path / s.name[0], PLAIN, {}, None, CPU) for s in (checkpoint, tmp_path / "folder")]
    (a, files_a), (b, files_b) = results
    assert a["training"] == b["training"] and a["training"]["step"] == 4 and a["weights"] == b["weights"]
    assert files_a[0].read_bytes() == files_b[0].read_bytes()


def test_pictures_that_are_not_whole_are_not_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = Pixels.decode

    def failing(self: Pixels, latents: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, latents)

    monkeypatch.setattr(Pixels, "decode", failing)
    with pytest.raises(KeyboardInterrupt):
        sample_command(folder, tmp_path / "out", Request(batch=4), {}, None, CPU)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    sample_command(folder, tmp_path / "out", Request(), {}, None, CPU)


# ---------------------------------------------------------------- the tokenizer


def test_latents_are_decoded_by_their_own_tokenizer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'dct16' has 16 channels instead of the 1 of these latents"):
        sample_command(folder, tmp_path / "out", PLAIN, {}, "dct16", CPU)
    with pytest.raises(UserError, match=r"'dct1' \(dct1\) is not the one of these latents, 'pixels'"):
        sample_command(folder, tmp_path / "out", PLAIN, {}, "dct1", CPU)
    save_pretrained(tmp_path / "unknown", networks()[0])
    with pytest.raises(UserError, match="is not recorded; give it with --tokenizer"):
        sample_command(tmp_path / "unknown", tmp_path / "out", PLAIN, {}, None, CPU)
    assert not (tmp_path / "out").exists()
    sample_command(tmp_path / "unknown", tmp_path / "out", PLAIN, {}, "dct1", CPU)
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        assert archive["arr_0"].shape[1:] == (8 * Dct.block, 8 * Dct.block, 3)


# ---------------------------------------------------------------- mistakes

MISTAKES: list[tuple[list[str], str]] = [
    (["folder", "--classes", "10"], "--classes 10: give 0 to 9, or all"),
    (["folder", "--classes", "two"], "expected class numbers with commas"),
    (["folder", "--psi", "-0.1"], "--psi -0.1: give 0 or more"),
    (["folder", "--psi", "nan"], "nan is not a number of at most 1e+30"),
    (["folder", "--guidance", "-1"], "--guidance -1.0: give 0 or more"),
    (["folder", "--count", "0"], "--count 0: give 1 or more"),
    (["folder", "--batch", "0"], "--batch 0: give 1 or more"),
    (["folder", "--seed", "-1"], "--seed -1: give 0 or more"),
    (["folder", "--grid", "0x4"], "--grid 0: give 1 or more"),
    (["folder", "--grid", "4"], "expected ROWSxCOLUMNS"),
    (["folder", "--no-npz", "--count", "65"], "keeps only the 64 pictures of the grid"),
    (["folder", "--steps", "4"], "need --interpolate"),
    (["folder", "--interpolate", "intra", "--count", "4"], "use these instead of --count"),
    (["folder", "--interpolate", "intra", "--steps", "1"], "give --steps 2 or more"),
    (["folder", "--interpolate", "inter", "--classes", "3,3"], "give two or more --classes"),
    (["folder", "--interpolate", "along"], "'intra', 'inter'"),
    (["folder", "--set", "data.path=x"], "leave --set out"),
    (["folder", "--tokenizer", "/nowhere"], "tokenizer '/nowhere' is not a folder"),
    (["folder", "--device", "tpu9"], "--device"),
    (["nowhere"], "nowhere has no config.json; give a folder that `gat-sweep export` wrote, or a trial's"),
    (["folder", "--interpolate", "intra", "--rows", "0"], "--rows 0: give 1 or more"),
    (["step_00000004"], "is not a checkpoint; give one of"),
    (["unconditional", "--classes", "1"], "these networks have no classes; leave --classes out"),
    (["unconditional", "--classes", "all"], "these networks have no classes; leave --classes out"),
    (["unconditional", "--guidance", "1.5"], "guidance needs classes, and these networks have none"),
    (["unconditional", "--interpolate", "inter"], "use --interpolate intra"),
]


@pytest.mark.parametrize(("args", "words"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_costs_one_line_and_writes_nothing(
    folder: Path,
    tmp_path: Path,
    args: list[str],
    words: str,
    gat: Gat,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pretrained(tmp_path / "unconditional", networks(0)[0], About(tokenizer=Pixels(1).identity))
    code, out, err = gat("sample", *args, "--out", "out")
    assert code == 2 and words in err, err
    assert out == "" and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_the_command(folder: Path, tmp_path: Path, gat: Gat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = ["sample", "folder", "--out", "out", "--classes", "all", "--grid", "2x10", "--count", 20]
    code, out, err = gat(*asked, "--json")
    assert code == 0 and err == "" and json.loads(out) == json.loads((tmp_path / "out" / "sampling.json").read_text())
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        assert archive["arr_1"].tolist() == [*range(10), *range(10)]
    code, _, err = gat(*asked)
    assert code == 2 and "out already has grid.png; give a new folder" in err
    code, out, _ = gat("sample", "folder", "--out", "rows", "--interpolate", "intra", "--rows", 2, "--steps", 5)
    assert code == 0 and out.split() == ["rows/samples.npz", "rows/grid.png", "rows/sampling.json"]
