"""Folders of networks: what comes back, what diffusers makes of them, what damage costs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import ConfigMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from helpers.processes import Gat
from helpers.trials import checkpoint_of, networks, tiny_trial
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gat_sweep.data.dataset import load_dataset
from gat_sweep.data.tokenizer import Pixels
from gat_sweep.errors import UserError
from gat_sweep.pretrained.card import About
from gat_sweep.pretrained.folder import CONFIG, WEIGHTS, from_pretrained, from_trial, save_pretrained
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.train.recorder import trial_constants


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("classes", [10, 0])
def test_what_goes_in_comes_out_and_the_same_goes_in_as_the_same_bytes(tmp_path: Path, classes: int) -> None:
    generator, discriminator = networks(classes)
    about = About(tokenizer=Pixels(1).identity, class_names=("nought", "one"), training={"step": 7})
    for name in ("a", "b"):
        save_pretrained(tmp_path / name, generator, about, discriminator)
    found = from_pretrained(tmp_path / "a", discriminator=True)
    assert found.generator.spec == generator.spec and found.discriminator is not None
    assert found.discriminator.spec == discriminator.spec
    assert_same(found.generator, generator)
    assert_same(found.discriminator, discriminator)
    assert (found.about.tokenizer, found.about.class_names) == (about.tokenizer, about.class_names)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 5
    assert [f for f in files if (tmp_path / "a" / f).read_bytes() != (tmp_path / "b" / f).read_bytes()] == []


def test_diffusers_knows_the_folder(tmp_path: Path) -> None:
    class Reader(ConfigMixin):
        config_name = CONFIG

    generator, discriminator = networks()
    save_pretrained(tmp_path / "a", generator, discriminator=discriminator)
    config = Reader.load_config(tmp_path / "a")
    assert (config["_class_name"], config["width"], config["classes"]) == ("GATGenerator", 8, 10)
    assert Reader.load_config(tmp_path / "a", subfolder="discriminator")["_class_name"] == "GATDiscriminator"
    assert WEIGHTS == SAFETENSORS_WEIGHTS_NAME
    with safe_open(tmp_path / "a" / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"} and "style_mean" in file.keys()  # noqa: SIM118


def edited(key: str, value: Any) -> Any:
    def edit(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(values | {key: value}))

    return edit


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def flipped(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def partial(folder: Path) -> None:
    """A whole file with its own digest, without a tensor."""
    tensors = load_file(folder / WEIGHTS)
    del tensors["blocks.2.attention.proj.bias"]
    redigested(folder, tensors)


def integral(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    redigested(folder, tensors | {"style_mean": tensors["style_mean"].to(torch.int32)})


def redigested(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / WEIGHTS)
    files = json.loads((folder / CONFIG).read_text())["files"]
    edited("files", files | {WEIGHTS: hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()})(folder)


DAMAGE = [
    (lambda folder: (folder / CONFIG).unlink(), "has no config.json; give a folder that"),
    (lambda folder: (folder / CONFIG).write_text("{"), "config.json is not a valid config.json"),
    (lambda folder: (folder / CONFIG).write_text("[1]"), "config.json is not a valid config.json"),
    (edited("_class_name", "UNet2DModel"), "describes a UNet2DModel, not a GATGenerator"),
    (edited("width", "8"), "width: Input should be a valid integer"),
    (edited("heads", 0), "heads is 0"),
    (edited("heads", 3), "width 8 is not divisible by heads 3"),
    (edited("depth", 10**9), "too few for 1000000000 blocks"),
    (edited("width", 16), "'style_mean' is float32 [10, 8], but the other shapes need [10, 16]"),
    (edited("files", {}), f"has no {WEIGHTS}"),
    (edited("tokenizer", {"source": "pixels"}), "tokenizer.digest"),
    (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    (cut, "has changed since it was written (sha256 differs)"),
    (flipped, "has changed since it was written (sha256 differs)"),
    (partial, "lacks 'blocks.2.attention.proj.bias'"),
    (integral, "'style_mean' is int32 [10, 8]"),
    (lambda folder: (folder / "discriminator" / CONFIG).unlink(), "discriminator/config.json is missing"),
    (lambda folder: (folder / "discriminator" / WEIGHTS).unlink(), f"discriminator/{WEIGHTS} is missing"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[words[-30:] for _, words in DAMAGE])
def test_damage_costs_one_line(tmp_path: Path, damage: Any, words: str) -> None:
    generator, discriminator = networks()
    save_pretrained(tmp_path, generator, discriminator=discriminator)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        from_pretrained(tmp_path, discriminator=True)
    assert words in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_the_generator_needs_no_discriminator_and_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    generator, _ = networks()
    save_pretrained(tmp_path / "a", generator)
    assert from_pretrained(tmp_path / "a").discriminator is None
    with pytest.raises(UserError, match="has no discriminator/"):
        from_pretrained(tmp_path / "a", discriminator=True)
    before = (tmp_path / "a" / "README.md").read_bytes()
    with pytest.raises(UserError, match=r"already has README\.md; give a new folder"):
        save_pretrained(tmp_path / "a", networks(0)[0])
    assert (tmp_path / "a" / "README.md").read_bytes() == before


def evaluated(trial: Trial, step: int, metric: str = "fd_efficientnet_lite0") -> None:
    table = RunTable(trial.table, trial_constants(trial.run, trial.sweep, trial.id, trial.config))
    protocol = {"extractor": "efficientnet_lite0", "n": 64, "seed": None}
    table.put(step, status="running", metric=metric, value=12.5, n=64, reference="d:1:2", protocol=json.dumps(protocol))


def test_export_of_a_trial_says_what_its_run_knows(tmp_path: Path, gat: Gat) -> None:
    trial = tiny_trial(tmp_path)
    checkpoint = checkpoint_of(trial)
    evaluated(trial, 2)
    code, out, err = gat("export", checkpoint, tmp_path / "out")
    assert code == 0 and "width 8, depth 4" in out and err == ""
    found = from_pretrained(tmp_path / "out", discriminator=True)
    source = from_trial(checkpoint, {}, discriminator=True)
    assert_same(found.generator, source.generator)
    assert found.discriminator is not None and source.discriminator is not None
    assert_same(found.discriminator, source.discriminator)
    about = found.about
    assert about.evaluation is None  # that of step 2 is of other weights
    assert (about.training["recipe"], about.training["trial"], about.training["step"]) == ("digits", "trial", 4)
    assert about.training["data"]["digest"] == load_dataset(trial.config.data).digest
    assert about.tokenizer == Pixels(1).identity
    assert "have not been evaluated" in (tmp_path / "out" / "README.md").read_text()

    evaluated(trial, 4)
    assert gat("export", checkpoint, tmp_path / "again")[0] == 0
    evaluation = from_pretrained(tmp_path / "again").about.evaluation
    assert evaluation is not None and (evaluation["metric"], evaluation["value"]) == ("fd_efficientnet_lite0", 12.5)
    text = (tmp_path / "again" / "README.md").read_text()
    assert (
        "`fd_efficientnet_lite0` = 12.5 with 64 samples against d:1:2." in text
        and "cannot be compared with an FID" in text
    )
    assert "extractor efficientnet_lite0; n 64." in text
    front = yaml.safe_load(text.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("gat-sweep", "unconditional-image-generation")


def test_export_of_what_cannot_be_costs_one_line(tmp_path: Path, gat: Gat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    checkpoint = checkpoint_of(tiny_trial(tmp_path / "home"))
    for args, words in [
        (["nowhere", "out"], "nowhere is not a checkpoint; give one of"),
        (["step_00000004", "out"], "is not a checkpoint; give one of"),
        ([checkpoint, "full"], "full already has x; give a new folder"),
        ([checkpoint, "out", "--set", "train.steps=3"], "allows only data.path, data.tokenizer, text.folder"),
    ]:
        code, _, err = gat("export", *args)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "out").exists() and [path.name for path in (tmp_path / "full").iterdir()] == ["x"]
