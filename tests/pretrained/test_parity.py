"""The networks, losses and gradients against the reference values of the released code."""

import json
from pathlib import Path

import pytest
import torch
from helpers.trials import REFERENCE, altered_reference, recipe
from safetensors import safe_open
from safetensors.torch import save_file

from gat_sweep.gat.spec import OFFICIAL_OBJECTIVE
from gat_sweep.pretrained.parity import LIMITS, check_parity
from gat_sweep.recipe import PRESETS, resolve

ITERATION = REFERENCE.with_name("official_iteration.safetensors")
CPU = torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("reference", [REFERENCE, ITERATION])
def test_cuda_matches_too(reference: Path) -> None:
    assert check_parity(reference, torch.device("cuda")).passed


def test_outputs_losses_and_every_gradient_match() -> None:
    result = check_parity(REFERENCE, CPU)
    assert result.max_abs_output <= LIMITS["max_abs_output"]
    assert result.max_rel_loss <= LIMITS["max_rel_loss"]
    assert result.max_rel_grad <= LIMITS["max_rel_grad"]
    assert result.passed


@pytest.mark.parametrize(
    ("key", "figure"),
    [
        ("G.levels", "max_abs_output"),
        ("D.proj_patch", "max_abs_output"),
        ("D_step.r1_loss", "max_rel_loss"),
        ("D_step.z_kd_patch", "max_rel_loss"),
        ("G_step.loss", "max_rel_loss"),
        ("D_step.grad.blocks.2.ls_mlp", "max_rel_grad"),
        ("G_step.grad.latent_embedder.0.bias", "max_rel_grad"),
    ],
)
def test_one_percent_off_anywhere_is_seen_where_it_is(tmp_path: Path, key: str, figure: str) -> None:
    result = check_parity(altered_reference(tmp_path, key, 1.01), CPU)
    exceeded = [name for name, limit in LIMITS.items() if getattr(result, name) > limit]
    assert exceeded == [figure]


def test_a_changed_weight_changes_everything(tmp_path: Path) -> None:
    result = check_parity(altered_reference(tmp_path, "G.param.blocks.0.attn.qkv.weight", 1.01), CPU)
    assert result.max_abs_output > 1e-5 and result.max_rel_grad > 1e-4


def test_a_whole_iteration_with_preset_official_matches() -> None:
    """The released loop: D's step, AdamW, G's step on the moved D, augmentation, learned positions, its teacher."""
    result = check_parity(ITERATION, CPU)
    assert result.passed and result.max_rel_grad > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mng.mixing", "paper"),
        ("objective.gp_weight", 0.0505),
        ("objective.align_reduction", "mean"),
        ("objective.align_view", "paper"),
        ("augment.color_means", "after"),
        ("train.base_lr", 4.04e-4),
    ],
)
def test_each_value_of_the_preset_is_needed(key: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS["official"], key, value)
    assert not check_parity(ITERATION, CPU).passed


def test_with_fixed_positions_there_are_too_few_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS["official"], "model.positions", "fixed")
    with pytest.raises(ValueError, match="gradients"):
        check_parity(ITERATION, CPU)


def test_missing_files_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with safe_open(REFERENCE, framework="pt") as file:
        some = {name: file.get_tensor(name) for name in list(file.keys())[:20]}
        save_file(some, tmp_path / "part.safetensors", file.metadata())
    for name, word in [("no", "no such"), ("text", "readable"), ("foreign", "metadata"), ("part", "lacks")]:
        with pytest.raises(ValueError, match=word) as error:
            check_parity(tmp_path / f"{name}.safetensors", CPU)
        assert "\n" not in str(error.value)


def test_the_preset_is_the_objective_that_parity_runs() -> None:
    config = resolve(recipe("imagenet256"), PRESETS["official"])
    assert config.objective == OFFICIAL_OBJECTIVE and config.mng.mixing == "official"
    assert resolve(recipe("imagenet256")).objective != OFFICIAL_OBJECTIVE
    assert json.loads(config.model_dump_json())["objective"]["gp_weight"] == 0.05
