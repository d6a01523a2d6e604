"""Pictures of captions: what decides them, what lies between two, what is written, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trials import checkpoint_of, text_trial
from PIL import Image

from gat_sweep.commands.sample import read_texts
from gat_sweep.errors import UserError
from gat_sweep.gat.condition import Captions
from gat_sweep.pretrained.edit import Edit, edit_command
from gat_sweep.pretrained.folder import Pretrained, from_pretrained, from_trial, save_pretrained
from gat_sweep.pretrained.pyfunc import Sampler
from gat_sweep.pretrained.sample import Request, batches, checked, encoded_texts, sample_command
from gat_sweep.text import silent

CPU = torch.device("cpu")
TEXTS = ("red circle", "flag of France")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(text_trial(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    found = from_trial(checkpoint, {})
    folder = tmp_path_factory.mktemp("export") / "folder"
    save_pretrained(folder, found.generator, found.about)
    return folder


@pytest.fixture(scope="module")
def networks(folder: Path) -> Pretrained:
    found = from_pretrained(folder)
    found.generator.eval().requires_grad_(False)
    return found


def latents(networks: Pretrained, request: Request) -> torch.Tensor:
    checked(request, networks.generator.spec)
    given = encoded_texts(request, networks, None, CPU, silent)
    return torch.cat(list(batches(networks.generator, request, given)))


def test_a_picture_depends_on_its_code_and_its_caption_alone(networks: Pretrained) -> None:
    """Captions come in turn; another list of captions, or another batch, changes only what it changes."""
    both = latents(networks, Request(count=6, texts=TEXTS, batch=6))
    alone = latents(networks, Request(count=6, texts=TEXTS[:1], batch=6))
    assert torch.allclose(both[::2], alone[::2], atol=1e-5)
    assert not torch.allclose(both[1::2], alone[1::2], atol=1e-3)
    assert torch.allclose(latents(networks, Request(count=6, texts=TEXTS, batch=4)), both, atol=1e-5)
    guided = latents(networks, Request(count=6, texts=TEXTS, batch=6, guidance=2.0))
    assert not torch.allclose(guided, both, atol=1e-4)


def test_rows_begin_at_one_caption_and_end_at_the_other(networks: Pretrained) -> None:
    row = latents(networks, Request(texts=TEXTS, interpolate="inter", grid=(2, 5)))
    ends = [latents(networks, Request(count=1, texts=(text,))) for text in TEXTS]
    assert torch.allclose(row[0], ends[0][0], atol=1e-4) and torch.allclose(row[4], ends[1][0], atol=1e-4)
    steps = (row[1:5] - row[:4]).flatten(1).norm(dim=1)
    assert steps.max() < 0.9 * (row[4] - row[0]).norm()  # no jump from one to the other
    third = latents(networks, Request(count=3, texts=TEXTS[1:]))[2]
    assert torch.allclose(row[5], third, atol=1e-4)  # the second row has code 2 and begins at the second caption
    within = latents(networks, Request(texts=TEXTS, interpolate="intra", grid=(1, 3)))
    codes = latents(networks, Request(count=2, texts=TEXTS[:1]))
    assert torch.allclose(within[[0, 2]], codes, atol=1e-4)


def test_a_checkpoint_and_its_export_give_the_same_files(tmp_path: Path, checkpoint: Path, folder: Path) -> None:
    request = Request(count=5, texts=TEXTS, grid=(1, 5))
    for name, source in (("a", checkpoint), ("b", folder)):
        sample_command(source, tmp_path / name, request, {}, None, CPU)
    first, second = (np.load(tmp_path / name / "samples.npz") for name in ("a", "b"))
    assert (first["arr_0"] == second["arr_0"]).all() and "arr_1" not in first
    assert first["captions"].tolist() == [TEXTS[i % 2] for i in range(5)]
    written = json.loads((tmp_path / "a" / "sampling.json").read_text())
    assert written["texts"] == list(TEXTS)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in card and "captions of 16 tokens of width 256 (wordllama" in card
    grid = (tmp_path / "a" / "grid.png").read_bytes()
    sample_command(folder, tmp_path / "c", replace(request, texts=(*TEXTS, "cat")), {}, None, CPU)
    assert grid != (tmp_path / "c" / "grid.png").read_bytes()


def test_the_mlflow_model_draws_what_sample_draws(tmp_path: Path, folder: Path) -> None:
    sample_command(folder, tmp_path / "out", Request(count=2, texts=TEXTS), {}, None, CPU)
    drawn = Sampler(folder, {"device": "cpu"}).predict({"captions": list(TEXTS)})
    assert (drawn == np.load(tmp_path / "out" / "samples.npz")["arr_0"]).all()
    with pytest.raises(UserError, match="no classes or captions are given"):
        Sampler(folder, {"device": "cpu"}).predict({"captions": []})


def test_an_edit_keeps_the_caption(tmp_path: Path, folder: Path) -> None:
    """At strength 0 the picture is the one that sample draws; away from it, it is another."""
    edit = Edit(ganspace=1, samples=300, strengths=(0.0, 3.0), pictures=2)
    edit_command(folder, tmp_path / "edit", edit, Request(texts=TEXTS), {}, None, CPU)
    assert json.loads((tmp_path / "edit" / "edit.json").read_text())["texts"] == list(TEXTS)
    sample_command(folder, tmp_path / "sample", Request(count=2, texts=TEXTS), {}, None, CPU)
    drawn = np.load(tmp_path / "sample" / "samples.npz")["arr_0"]
    with Image.open(tmp_path / "edit" / "component-1.png") as image:
        figure = np.asarray(image.convert("RGB"))
    step = 2 * drawn.shape[1] + 2  # 32 pixels are shown as 64, with lines of 2 between
    grid = figure[figure.shape[0] - 2 * step - 2 :]
    corners = [(2 + step * row, 2 + step * column) for row in range(2) for column in range(2)]
    shown = [grid[y : y + step - 2 : 2, x : x + step - 2 : 2] for y, x in corners]
    assert (shown[0] == drawn[0]).all() and (shown[2] == drawn[1]).all()
    assert (shown[1] != drawn[0]).any() and (shown[3] != drawn[1]).any()


def test_components_are_of_the_styles_of_all_captions(tmp_path: Path, networks: Pretrained, folder: Path) -> None:
    """Also of those captions that are not among the few pictures of the figure."""
    found = []
    for name, texts in (("few", TEXTS[:1]), ("many", (TEXTS[0], "blue heart", "person running", "cat face"))):
        edit = Edit(ganspace=1, samples=300, strengths=(1.0,), pictures=1)
        result, _ = edit_command(folder, tmp_path / name, edit, Request(texts=texts), {}, None, CPU)
        found.append(result["directions"]["component-1"]["explained"])
    assert found[0] != found[1]


def test_another_text_encoder_is_refused(networks: Pretrained) -> None:
    assert networks.about.text is not None
    about = replace(networks.about, text=replace(networks.about.text, digest="0" * 12))
    with pytest.raises(UserError, match=r"is not the recorded one .*; set --text-encoder to that one"):
        encoded_texts(Request(texts=TEXTS), replace(networks, about=about), None, CPU, silent)


def test_a_long_text_is_cut_and_said(networks: Pretrained) -> None:
    said: list[str] = []
    texts = (
        "cat",
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
    )
    found = encoded_texts(Request(texts=texts), networks, None, CPU, said.append)
    assert isinstance(found, Captions) and found.words.shape == (2, 16, 256)
    assert said == [f"captions cut to their first 16 tokens: 1, such as '{texts[1][:60]}'"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(), "these networks draw captions; give --text or --text-file"),
        (Request(texts=TEXTS, null="official", guidance=2.0), "--null official is about classes"),
        (Request(texts=TEXTS, classes=(1,)), "these networks have no classes; leave --classes out"),
        (Request(texts=("a", "a"), interpolate="inter"), "give --text twice or more"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(networks: Pretrained, request_: Request, said: str) -> None:
    with pytest.raises(UserError, match=said):
        checked(request_, networks.generator.spec)


def test_texts_for_networks_without_captions_are_refused() -> None:
    from helpers.trials import networks as small

    with pytest.raises(UserError, match="these networks have no captions; leave --text and --text-file out"):
        checked(Request(texts=TEXTS), small()[0].spec)


def test_a_file_of_texts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("red car\n\n  blue car \n", encoding="utf-8")
    assert read_texts((), file) == ("red car", "blue car")
    mistakes: list[tuple[tuple[str, ...], Any, str]] = [
        (("x",), file, "--text and --text-file both give captions; leave one out"),
        ((), tmp_path / "none.txt", "No such file"),
        ((" ",), None, "--text is empty; give a caption"),
    ]
    for texts, where, said in mistakes:
        with pytest.raises(UserError, match=said):
            read_texts(texts, where)
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8 text; save it as UTF-8"):
        read_texts((), file)
    file.write_text("\n \n")
    with pytest.raises(UserError, match="has no captions; write one in each line"):
        read_texts((), file)
