"""Recipes, overrides, sweep files: what they resolve to, and what a mistake says."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config

from gat_sweep.config import TrialConfig, check_key, load_recipe, recipe_names, resolve
from gat_sweep.errors import UserError
from gat_sweep.sweep import Sweep, load_sweep, open_run, trial_id
from gat_sweep.yamlfile import read_yaml

WIDTHS = Path(__file__).parents[1] / "sweeps" / "widths.yaml"


def message(action: Any) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- recipes and overrides


def test_every_recipe_resolves_at_every_size() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        assert list(recipe["ladder"]) == ["S", "B", "L", "XL"]
        for size in recipe["ladder"]:
            config = resolve(recipe, {"model.generator": size, "model.discriminator": size})
            assert config.lr_g * config.generator_spec.width == pytest.approx(
                config.train.base_lr * config.train.base_width
            )


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    config = resolve(load_recipe("imagenet256"), {"model.generator": "XL", "model.discriminator": "XL"})
    assert config.lr_g == pytest.approx(1.333e-4, rel=1e-3)
    assert (config.train.batch, config.train.steps, config.train.ema_decay) == (512, 50_000, 0.999)
    assert (config.objective.gp_weight, config.objective.gp_sigma, config.objective.align_weight) == (0.1, 0.01, 1.0)
    assert (config.train.beta1, config.train.beta2, config.mng.schedule) == (0.0, 0.99, "exp")
    assert config.discriminator_spec.teacher_width == 768


def test_networks_scale_apart_each_at_its_own_rate() -> None:
    config = tiny_config(model__generator="S", model__discriminator="XL")
    assert config.generator_spec.width < config.discriminator_spec.width
    assert config.lr_g / config.lr_d == pytest.approx(config.discriminator_spec.width / config.generator_spec.width)


def test_machines_are_no_part_of_what_a_trial_is() -> None:
    assert tiny_config().digest() == tiny_config(workers__count=2).digest()
    assert tiny_config().digest() != tiny_config(train__clip=2.0).digest()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model__patch": 3}, ["patch 3", "[1, 2, 4, 8]"]),
        ({"ladder__S__heads": 3}, ["width 8", "heads 3"]),
        ({"ladder__S__heads": 4}, ["divisible by 4"]),
        ({"ladder__S__depth": 6}, ["depth 6", "4 levels"]),
        ({"model__generator": "XXL"}, ["no size 'XXL'", "'XL'"]),
        ({"train__steps": 0}, ["train.steps", "greater than 0"]),
        ({"train__base_lr": float("nan")}, ["train.base_lr"]),
        ({"train__steps": "many"}, ["train.steps", "integer"]),
        ({"mng__schedule": "cubic"}, ["mng.schedule", "'exp'"]),
        ({"workers__count": 3}, ["train.batch 8", "workers.count 3"]),
    ],
)
def test_bad_values_say_what_to_change(overrides: dict[str, Any], words: list[str]) -> None:
    text = message(lambda: tiny_config(**overrides))
    assert all(word in text for word in words), text


def test_unknown_names_get_the_nearest_right_one() -> None:
    assert "did you mean 'train.steps'" in message(lambda: check_key("train.step"))
    assert "did you mean 'mng.schedule'" in message(lambda: check_key("schedule"))
    assert "did you mean 'digits'" in message(lambda: load_recipe("digit"))


# ---------------------------------------------------------------- strict YAML


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("about: a\nabout: b\n", [":2", "stands twice", "line 1"]),
        ("a: &x [1]\nb: *x\n", [":2", "aliases"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["could not determine a constructor"]),
        ("a: [1\n", ["expected"]),
        ("- 1\n", ["expected a mapping"]),
        ("", ["expected a mapping"]),
    ],
)
def test_yaml_is_plain_data_only(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "x.yaml").write_text(text)
    said = message(lambda: read_yaml(tmp_path / "x.yaml"))
    assert "x.yaml" in said and all(word in said for word in words), said


# ---------------------------------------------------------------- sweeps


def sweep_of(tmp_path: Path, text: str, **more: Any) -> Sweep:
    (tmp_path / "s.yaml").write_text("about: test\n" + text)
    return load_sweep(tmp_path / "s.yaml", "digits", **more)


def test_widths_is_figure_3a() -> None:
    for recipe in recipe_names():
        trials = list(load_sweep(WIDTHS, recipe).trials.values())
        assert [t.model.generator for t in trials] == ["S", "B", "L", "XL"]
        assert all(t.model.generator == t.model.discriminator and t.model.patch == 2 for t in trials)


def test_blocks_multiply_and_zip_pairs(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        "zip: {model.generator: [S, B], model.discriminator: [B, S]}\n"
        "product: {model.patch: [2, 4], mng.schedule: [exp, none]}\nseeds: [0, 1, 2]\n",
    )
    assert len(sweep.trials) == 2 * 2 * 2 * 3
    pairs = {(t.model.generator, t.model.discriminator) for t in sweep.trials.values()}
    assert pairs == {("S", "B"), ("B", "S")}
    points = sweep_of(tmp_path, "points: [{model.patch: 2}, {model.generator: L}]\n")
    assert [(t.model.patch, t.model.generator) for t in points.trials.values()] == [(2, "S"), (2, "L")]


def test_overrides_beat_the_file_but_not_what_varies(tmp_path: Path) -> None:
    text = "set: {train.steps: 7}\nproduct: {model.patch: [2, 4]}\n"
    (config, _) = sweep_of(tmp_path, text, overrides={"train.steps": 9}, seeds=[5]).trials.values()
    assert (config.train.steps, config.seed) == (9, 5)
    assert "varies" in message(lambda: sweep_of(tmp_path, text, overrides={"model.patch": 1}))
    assert "--seeds" in message(lambda: sweep_of(tmp_path, text, overrides={"seed": 1}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sett: {a: 1}\n", [":2", "did you mean 'set'"]),
        ("set:\n  train.step: 1\n", [":3", "did you mean 'train.steps'"]),
        ("zip: {model.generator: [S], model.discriminator: [S, B]}\n", [":2", "differ in length"]),
        ("product: {model.patch: 2}\n", ["model.patch", "list"]),
        ("product: {model.patch: []}\n", ["empty"]),
        ("seeds: []\n", ["seeds"]),
    ],
)
def test_a_bad_sweep_file_names_its_line(tmp_path: Path, text: str, words: list[str]) -> None:
    said = message(lambda: sweep_of(tmp_path, text))
    assert all(word in said for word in words), said


def test_trial_ids_are_stable_readable_and_distinct() -> None:
    trials = load_sweep(WIDTHS, "digits", seeds=[0, 1]).trials
    assert len(trials) == 8 and all(trial_id(config) == trial for trial, config in trials.items())
    assert [t.split("-")[:3] for t in trials][:2] == [["S", "p2", "s0"], ["S", "p2", "s1"]]
    config = tiny_config(model__discriminator="B")
    assert trial_id(config).startswith("GS-DB-p2-s0-")
    again = TrialConfig.model_validate(json.loads(config.model_dump_json()))
    assert trial_id(again) == trial_id(config)


def test_a_run_may_grow_but_not_change(tmp_path: Path) -> None:
    one = load_sweep(WIDTHS, "digits")
    for sweep in (one, one, load_sweep(WIDTHS, "digits", seeds=[0, 1])):
        open_run(tmp_path, "r", sweep)
    before = (tmp_path / "r" / "run.json").read_text()
    changed = load_sweep(WIDTHS, "digits", overrides={"train.clip": 3.0}, seeds=[0, 1])
    said = message(lambda: open_run(tmp_path, "r", changed))
    assert "train.clip: 1.0 -> 3.0" in said and "--name" in said
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        open_run(tmp_path, "r", one)
    assert (tmp_path / "r" / "run.json").read_text() == before


def test_a_run_may_be_trained_on_but_not_back(tmp_path: Path) -> None:
    """The number of steps is no part of what a trial is; more of them have to be asked for."""
    short, long = (load_sweep(WIDTHS, "digits", overrides={"train.steps": steps}) for steps in (200, 300))
    assert list(short.trials) == list(long.trials)
    open_run(tmp_path, "r", short)
    assert "train.steps: 200 -> 300; add --extend" in message(lambda: open_run(tmp_path, "r", long))
    open_run(tmp_path, "r", long, extend=True)
    assert "300 -> 200; steps that were trained" in message(lambda: open_run(tmp_path, "r", short, extend=True))


def test_a_trial_stands_once_in_a_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "twice.yaml"
    sweep.write_text("about: twice\npoints:\n  - {train.steps: 100}\n  - {train.steps: 200}\n")
    assert "two points are the same trial" in message(lambda: load_sweep(sweep, "digits"))
