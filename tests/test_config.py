"""Recipes, overrides, sweep files: what they resolve to, and what a mistake says."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.mistakes import message
from helpers.trials import tiny_config

from gat_sweep.config import ADDED
from gat_sweep.files.yamlfile import read_yaml
from gat_sweep.recipe import check_key, load_recipe, recipe_names, resolve

# ---------------------------------------------------------------- recipes and overrides


def test_every_recipe_resolves_at_every_size() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        assert [size for size in recipe["ladder"] if not size.startswith("w")] == ["S", "B", "L", "XL"]
        widths = [row["width"] for row in recipe["ladder"].values()]
        assert widths == sorted(widths) and len(widths) >= 6
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


def test_an_override_is_not_changed_by_the_next() -> None:
    """A sweep's trials share what their file sets."""
    recipe, teacher = load_recipe("digits"), {"teacher": {"name": "efficientnet_lite0", "width": 1280}}
    assert resolve(recipe, teacher, {"teacher.cached": True}).teacher != resolve(recipe, teacher).teacher
    assert teacher == {"teacher": {"name": "efficientnet_lite0", "width": 1280}}


def test_machines_are_no_part_of_what_a_trial_is() -> None:
    assert tiny_config().digest() == tiny_config(workers__count=2).digest()
    assert tiny_config().digest() != tiny_config(train__clip=2.0).digest()


def test_values_that_came_later_leave_the_ids_of_older_runs() -> None:
    """A run that is older than `model.positions` goes on: its trials keep the ids that they had without it."""
    values = tiny_config().identity()
    del values["train"]["steps"], values["train"]["eval_at"]
    values["ladder"] = {size: row for size, row in values["ladder"].items() if size == "S"}
    for section, key in ADDED:
        del values[section][key]
    del values["text"]
    older = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    assert tiny_config().digest() == older
    for (section, key), other in zip(ADDED, ("trained", "before", "official", "tf32", "official", "tf32"), strict=True):
        assert tiny_config(**{f"{section}__{key}": other}).digest() != older


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
        ({"train__steps": "many"}, ["train.steps: write a whole number, or a factor such as x0.5 (got 'many')"]),
        ({"mng__schedule": "cubic"}, ["mng.schedule", "'exp'"]),
        ({"mng__schedule": "linear", "mng__levels": 2}, ["linear is exp", "mng.levels=4", "ladder.S.depth=4"]),
        ({"workers__count": 9}, ["workers.count 9 is more than train.batch, 8 images"]),
        ({"workers__count": {"min": 2, "max": 9}}, ["workers.count 9 is more than train.batch"]),
        ({"workers__count": {"min": 4, "max": 2}}, ["workers.count", "give a min below max"]),
        ({"workers__count": {"min": 2}}, ["workers.count", "max"]),
        ({"workers__count": 0}, ["workers.count", "greater than 0"]),
        ({"train__steps": "100"}, ["train.steps: write 100 (got '100')"]),
        ({"data__classes": True}, ["data.classes: write 1 (got True)"]),
        ({"eval__extras": "kernel_distance"}, ["eval.extras: write a list"]),
        ({"eval__extras": ["clip_score"]}, ["clip_score needs captions"]),
        ({"augment__color": 1.5}, ["augment", "color is between 0 and 1"]),
        ({"augment__flip": -1}, ["augment", "flip is between 0 and 1"]),
        ({"objective__gp_weight": -1}, ["objective", "at least 0"]),
        ({"objective__gp_sigma": 0.0}, ["objective", "gp_sigma is above 0"]),
    ],
)
def test_bad_values_say_what_to_change(overrides: dict[str, Any], words: list[str]) -> None:
    text = message(lambda: tiny_config(**overrides))
    assert all(word in text for word in words), text


def test_unknown_names_get_the_nearest_right_one() -> None:
    assert "did you mean 'train.steps'" in message(lambda: check_key("train.step"))
    assert "did you mean 'mng.schedule'" in message(lambda: check_key("schedule"))
    assert "'train' is a section; name one of its values, such as train." in message(lambda: check_key("train"))
    assert "'ladder.w9' is a size; name one of its values, such as ladder.w9.width" in message(
        lambda: check_key("ladder.w9")
    )
    assert "did you mean 'digits'" in message(lambda: load_recipe("digit"))


# ---------------------------------------------------------------- strict YAML


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("about: a\nabout: b\n", [":2", "occurs twice", "line 1"]),
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


# ---------------------------------------------------------------- rules for rates, factors, variants


def test_rules_for_depth_and_batch() -> None:
    """A.12: rate times sqrt(base depth / L) of each network's own L, and times (B / base batch) to the 1/2 or 1."""
    recipe = load_recipe("digits")
    usual = resolve(recipe)

    def rates(**overrides: Any) -> tuple[float, float]:
        config = resolve(recipe, {k.replace("__", "."): v for k, v in overrides.items()})
        return config.lr_g / usual.lr_g, config.lr_d / usual.lr_d

    deep = {"ladder__S__depth": 16}
    assert rates(**deep) == (1, 1) and rates(**deep, train__depth_rule="sqrt") == (0.5, 0.5)
    apart = {"ladder__XL__depth": 16, "model__discriminator": "XL", "ladder__XL__width": 8}
    assert rates(**apart, train__depth_rule="sqrt") == (1, 0.5)
    batch = {"train__batch": 256}
    assert rates(**batch) == (1, 1) and rates(**batch, train__batch_rule="linear") == (4, 4)
    assert rates(**batch, train__batch_rule="sqrt") == (2, 2)
    assert rates(train__rate_g=0.25) == (0.25, 1) and rates(train__rate_d=3) == (1, 3)


def test_the_rate_of_another_size() -> None:
    """Table 4: S at B's rate and the reverse; a size at its own rate is the trial that it is anyway."""
    recipe = load_recipe("imagenet256")

    def of(size: str, rate: str | None) -> Any:
        return resolve(recipe, {"model.generator": size, "model.discriminator": size, "train.rate_of": rate})

    assert [of("S", None).lr_g, of("S", "B").lr_g, of("B", "S").lr_d] == pytest.approx([4e-4, 2e-4, 4e-4])
    assert of("B", "B") == of("B", None) and of("B", "S").digest() != of("B", None).digest()
    assert "no size 'M'" in message(lambda: of("S", "M"))


def test_factors_multiply_what_is_there() -> None:
    recipe = load_recipe("digits")
    config = resolve(recipe, {"train.steps": "x1.5", "objective.gp_sigma": "x100", "ladder.B.depth": "x2"})
    assert (config.train.steps, config.objective.gp_sigma, config.ladder["B"].depth) == (3000, 1.0, 8)
    again = resolve(recipe, {"train.steps": 7}, {"train.steps": "x0.5"}, {"train.steps": "x0.1"})
    assert again.train.steps == 1  # whole, and no fewer than one
    assert "no size 'x2'" in message(lambda: resolve(recipe, {"model.generator": "x2"}))
    assert "workers.memory_gib" in message(lambda: resolve(recipe, {"workers.memory_gib": "x2"}))


def test_variants_are_the_recipes_own() -> None:
    recipe = load_recipe("imagenet256")
    config = resolve(recipe, {"variants.latent16.data.path": "/there", "data.path": "/here"}, {"variant": "latent16"})
    assert (config.data.channels, config.data.path) == (16, "/there")
    assert resolve(recipe, {"data.path": "/here"}, {"variant": "latent4"}).data.path == "/here"
    assert "did you mean 'latent16'" in message(lambda: resolve(recipe, {"variant": "latent15"}))
    assert "did you mean 'latent4'" in message(lambda: resolve(recipe, {"variants.latnt4.data.side": 3}))
    assert "did you mean 'data.side'" in message(lambda: check_key("variants.latent4.data.sid"))
    check_key("variants.latent4.data.side")
