"""`gat-sweep evaluate`: checkpoints, folders of networks, pictures and reconstructions."""

import json
from pathlib import Path

import pytest
from helpers.pictures import encoded_pixels, photographs, write_npz
from helpers.trials import CPU, new_ema, save_checkpoint, tiny_config
from PIL import Image

from gat_sweep.commands.evaluate import evaluation_table
from gat_sweep.data.dataset import load_dataset
from gat_sweep.data.tokenizer import Pixels, load_tokenizer
from gat_sweep.errors import UserError
from gat_sweep.metrics.evaluator import Evaluator
from gat_sweep.pretrained.card import About
from gat_sweep.pretrained.evaluate import evaluate_command
from gat_sweep.pretrained.folder import save_pretrained
from gat_sweep.text import silent


def test_a_checkpoint_is_measured_as_its_trial_was(tmp_path: Path, home_with_reference: Path) -> None:
    config = tiny_config(eval__extras=["kernel_distance"])
    trial = tmp_path / "run" / "trials" / "t"
    (trial / "checkpoints").mkdir(parents=True)
    (tmp_path / "cache").symlink_to(home_with_reference / "cache")
    (trial / "config.json").write_text(config.model_dump_json())
    path, ema, dataset = trial / "checkpoints" / "step_00000004", new_ema(config), load_dataset(config.data)
    save_checkpoint(path.parent, 4, {"ema": ema}, {"data": dataset.digest})
    found = evaluate_command(path, "imagenet256", {}, tmp_path, CPU)
    assert found == Evaluator(config, dataset, tmp_path, CPU).measure(ema, extras=True)
    changed = evaluate_command(path, "imagenet256", {"eval.samples": 100, "eval.extras": []}, tmp_path, CPU)
    assert (changed.n, changed.kernel_distance) == (100, None) and changed.value != found.value
    assert evaluation_table(found).row_count > 10
    with pytest.raises(UserError, match=r"--set model\.patch: a trained model allows only"):
        evaluate_command(path, "imagenet256", {"model.patch": 4}, tmp_path, CPU)
    save_checkpoint(path.parent, 4, {"ema": ema}, {"data": "elsewhere"})
    with pytest.raises(UserError, match="was trained on data elsewhere"):
        evaluate_command(path, "imagenet256", {}, tmp_path, CPU)
    (trial / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        evaluate_command(path, "imagenet256", {}, tmp_path, CPU)


def test_a_folder_of_pictures_is_measured_as_the_same_in_an_npz(tmp_path: Path) -> None:
    encoded_pixels(tmp_path / "data", 70, 32)
    shown = photographs(66, 32, seed=3)
    write_npz(tmp_path / "samples.npz", shown)
    (tmp_path / "folder").mkdir()
    for i, picture in enumerate(shown):
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "folder" / f"{i:03d}.png")
    settings = {"data.path": str(tmp_path / "data"), "data.classes": 2, "eval.resize": 32}
    both = [evaluate_command(tmp_path / name, "cifar10", settings, tmp_path, CPU) for name in ("samples.npz", "folder")]
    assert both[0].value == both[1].value and both[0].n == 66
    protocol = json.loads(both[0].protocol)
    assert protocol["psi"] is None and protocol["pictures"] != json.loads(both[1].protocol)["pictures"]


@pytest.mark.slow
def test_what_a_tokenizer_costs_is_measured_without_a_generator(home: Path) -> None:
    """Nothing for pixels, something for 4 of 16 cosine coefficients, next to nothing for all of them."""
    costs = {}
    for channels in (1, 4, 16):
        values = {"data.channels": channels, "eval.samples": 1797, "eval.resize": 32}
        found = evaluate_command(None, "digits", values, home, CPU)
        costs[channels] = found.value
        protocol = json.loads(found.protocol)
        assert found.n == 1797 and protocol["pictures"] == "reconstructions" and protocol["ema"] is None
    assert costs[1] == pytest.approx(0, abs=1e-2) and costs[4] > 3 and costs[16] < costs[4] / 10


def test_a_tokenizer_is_measured_on_as_many_pictures_as_asked(home: Path) -> None:
    found = evaluate_command(None, "digits", {"eval.samples": 100, "eval.resize": 32}, home, CPU)
    protocol = json.loads(found.protocol)
    assert found.n == 100 and protocol["pictures"] == "reconstructions" and protocol["ema"] is None


def test_a_folder_of_networks_is_measured_with_the_protocol_of_a_recipe(home_with_reference: Path) -> None:
    """As the same weights in a checkpoint, with the recipe's latent code where the networks have another."""
    config = tiny_config(model__z_dim=24, eval__guidance=1.5, eval__null="official")
    ema, home = new_ema(config), home_with_reference
    training = {"ema_decay": config.train.ema_decay}
    save_pretrained(home / "gat", ema, About(tokenizer=Pixels(1).identity, training=training))
    settings = {"eval.samples": 64, "eval.resize": 32, "eval.guidance": 1.5, "eval.null": "official"}
    expected = Evaluator(config, load_dataset(config.data), home, CPU).measure(ema, extras=True)
    assert evaluate_command(home / "gat", "digits", settings, home, CPU, silent) == expected
    assert json.loads(expected.protocol)["null"] == "official"
    other = evaluate_command(home / "gat", "digits", settings | {"eval.null": "paper"}, home, CPU, silent)
    assert other.value != expected.value


def test_a_folder_whose_tokenizer_is_not_recorded_takes_that_of_the_data_and_says_so(home_with_reference: Path) -> None:
    save_pretrained(home_with_reference / "unknown", new_ema(tiny_config()))
    said: list[str] = []
    settings = {"eval.samples": 64, "eval.resize": 32}
    evaluate_command(home_with_reference / "unknown", "digits", settings, home_with_reference, CPU, said.append)
    assert "does not record its tokenizer; that of the data set, pixels, is assumed" in said[0]


def test_a_folder_is_refused_where_the_data_is_for_other_networks(tmp_path: Path) -> None:
    ema = new_ema(tiny_config())
    save_pretrained(tmp_path / "gat", ema, About(tokenizer=load_tokenizer("dct1").identity))
    with pytest.raises(UserError, match=r"has data\.side=32 but the networks of .* have 8; .*give another --recipe"):
        evaluate_command(tmp_path / "gat", "cifar10", {}, tmp_path, CPU)
    with pytest.raises(UserError, match=r"latents of the tokenizer dct1 \(dct1\), but data set 'digits' has pixels"):
        evaluate_command(tmp_path / "gat", "digits", {}, tmp_path, CPU)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gat"]


def test_one_picture_has_no_covariance(tmp_path: Path) -> None:
    write_npz(tmp_path / "one.npz", photographs(1, 32))
    with pytest.raises(UserError, match="one: one picture has no covariance; give two or more"):
        evaluate_command(tmp_path / "one.npz", "digits", {}, tmp_path, CPU)
