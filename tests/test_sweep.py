"""Sweep files: what they resolve to, what a mistake in one says, and the record of a run."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.mistakes import message
from helpers.trials import tiny_config

from gat_sweep.compute import step_flops
from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.recipe import load_recipe, recipe_names, resolve
from gat_sweep.run.record import open_run
from gat_sweep.sweep import Sweep, differences, load_sweep, trial_id

SWEEPS = Path(__file__).parents[1] / "sweeps"
WIDTHS = SWEEPS / "widths.yaml"


def sweep_of(tmp_path: Path, text: str, **more: Any) -> Sweep:
    (tmp_path / "s.yaml").write_text("about: test\n" + text)
    return load_sweep(tmp_path / "s.yaml", "digits", **more)


def test_widths_is_figure_3a() -> None:
    for recipe in recipe_names():
        trials = list(load_sweep(WIDTHS, recipe).trials.values())
        assert [t.model.generator for t in trials] == ["S", "B", "L", "XL"]
        assert all(t.model.generator == t.model.discriminator for t in trials)


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
        ("seeds: [0, 0]\n", [":2", "seed 0 is given twice"]),
        ("seeds: [true]\n", [":2: seeds: write a whole number (got True)"]),
        ("sizes: []\n", [":2", "sizes is empty"]),
        ("sizes: S\n", [":2: sizes: write a list, such as [S]"]),
        ("sizes: [S, Q]\n", ["s.yaml", "no size 'Q'"]),
        ("variant: conditional\n", [":2", "write set: {variant: VALUE}"]),
        ("set: {train: {steps: 100}}\n", [":2", "'train' is a section"]),
        ("set:\n  train.batch: 4\n  train.steps: -1\n", ["s.yaml:4: train.steps", "greater than 0"]),
        ("set: {seed: 3}\nseeds: [0, 1]\n", [":2", "seed has a block of its own"]),
        ("zip: {seed: [1, 2]}\nseeds: [5]\n", [":3", "seed is given by 'seeds' and by another block"]),
        ("sizes: [S]\nset: {model.generator: B}\n", [":2", "model.generator", "'set' and by 'sizes'"]),
        ("set: {train.batch: 32}\npoints: [{train.batch: 16}]\n", [":3", "train.batch", "'set' and by 'points'"]),
        ("set: {train.batch: 32}\nparts: {a: {set: {train.batch: 16}}}\n", [":3", "for every part and by part 'a'"]),
        ("sizes: [S]\nparts: {a: {sizes: [B]}}\n", [":3", "for every part and by part 'a'"]),
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
    """The number of steps is not part of a trial's identity; more steps need --extend."""
    short, long = (load_sweep(WIDTHS, "digits", overrides={"train.steps": steps}) for steps in (200, 300))
    assert list(short.trials) == list(long.trials)
    open_run(tmp_path, "r", short)
    assert "train.steps: 200 -> 300; add --extend" in message(lambda: open_run(tmp_path, "r", long))
    open_run(tmp_path, "r", long, extend=True)
    assert "300 -> 200; trained steps cannot be removed" in message(lambda: open_run(tmp_path, "r", short, extend=True))


def test_a_trial_stands_once_in_a_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "twice.yaml"
    sweep.write_text("about: twice\npoints:\n  - {train.steps: 100}\n  - {train.steps: 200}\n")
    assert "two points are the same trial" in message(lambda: load_sweep(sweep, "digits"))


# ---------------------------------------------------------------- parts


def test_parts_stand_side_by_side_and_share_trials(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        "zip: {model.generator: [S, B], model.discriminator: [S, B]}\nseeds: [0, 1]\n"
        "parts:\n  a: {product: {train.rate_g: [0.5, 1]}}\n  b: {product: {train.rate_d: [1, 2]}}\n",
    )
    assert len(sweep.trials) == 2 * 2 * 3  # sizes, seeds, and three pairs of rates: 1 and 1 is of both parts
    varied = differences(sweep.trials)
    assert {tuple(values) for values in varied.values()} == {
        ("seed", "model.generator", "model.discriminator", "train.rate_g", "train.rate_d")
    }
    assert "two points are the same trial" in message(
        lambda: sweep_of(tmp_path, "parts: {a: {points: [{}, {train.rate_g: 1.0}]}}\n")
    )


def test_a_part_after_another_goes_on_from_each_of_its_trials(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        "product: {model.patch: [2, 4]}\nparts:\n"
        "  first: {set: {train.steps: x2}}\n"
        "  second: {after: first, set: {train.steps: x1.5}, product: {objective.gp_weight: [x1, x100]}}\n"
        "  third: {after: second, set: {train.steps: x2, seed: 5}}\n",
    )
    trials = sweep.trials
    assert len(trials) == 2 + 4 + 4
    for trial, config in trials.items():
        assert trial == trial_id(config)
        if config.start is None:
            assert (config.train.steps, config.objective.gp_weight) == (4000, 0.01)
            continue
        parent = trials[config.start.trial]
        assert config.start.step == parent.train.steps and config.model == parent.model
        assert list(trials).index(config.start.trial) < list(trials).index(trial)
        assert config.train.steps == (6000 if parent.start is None else 12000)
        factor = config.objective.gp_weight / parent.objective.gp_weight
        assert factor == pytest.approx(1) or (factor == pytest.approx(100) and parent.start is None)
    assert [config.seed for config in trials.values()] == [0] * 6 + [5] * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parts: {a: {after: b}, b: {}}\n", ["s.yaml:2", "no part 'b' comes before 'a'", "'a' is the first"]),
        ("parts: {a: {}, b: {after: aa}}\n", ["no part 'aa'", "did you mean 'a'"]),
        ("parts: {a: {}, b: {after: a}}\n", ["part 'b'", "train.steps is 2000", "x1.5"]),
        ("parts: {a: {}, b: {after: a, set: {train.steps: x2, model.patch: 4}}}\n", ["patch 2 -> 4", "networks"]),
        (
            "parts: {a: {}, b: {after: a, set: {train.steps: x2, objective.align_weight: 1.0}}}\n",
            ["teacher_width 0 -> 1280"],
        ),
        ("parts: {a: {sets: {}}}\n", ["s.yaml:2", "unknown key 'sets'", "did you mean 'set'"]),
        ("parts:\n  a:\n    set: {train.step: 3}\n", ["s.yaml:4", "did you mean 'train.steps'"]),
        ("parts:\n  a:\n    points:\n      - {}\n      - {train.step: 3}\n", ["s.yaml:6", "did you mean"]),
        ("parts: {}\n", ["parts"]),
        ("set: {variant: [latent4]}\n", ["no variant '['latent4']'"]),
        ("product: {variant: [latent5]}\n", ["no variant 'latent5'", "did you mean"]),
    ],
)
def test_a_bad_part_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    said = message(lambda: sweep_of(tmp_path, text))
    assert all(word in said for word in words), said


def test_factors_stay_on_top_of_overrides(tmp_path: Path) -> None:
    """A short trial of a study keeps the study's proportions; what it varies by values stays its own."""
    text = "set: {train.steps: x0.5}\nparts:\n  a: {}\n  b: {after: a, set: {train.steps: x3, train.clip: 2.0}}\n"
    a, b = sweep_of(tmp_path, text, overrides={"train.steps": 40}).trials.values()
    assert (a.train.steps, b.train.steps) == (20, 60)
    assert "varies" in message(lambda: sweep_of(tmp_path, text, overrides={"train.clip": 3.0}))


def test_a_variant_and_an_override_never_fight_in_silence(tmp_path: Path) -> None:
    """What a variant sets by value is refused, naming the key to use; what it sets by factor is multiplied."""
    text, path = "product: {variant: [resolution1, resolution2]}\n", tmp_path / "s.yaml"
    path.write_text("about: test\n" + text)
    said = message(lambda: load_sweep(path, "imagenet256", overrides={"data.side": 16}))
    assert "variant 'resolution1' sets this key" in said and "--set variants.resolution1.data.side=VALUE" in said
    short = load_sweep(path, "imagenet256", overrides={"train.steps": 200}).trials.values()
    assert [config.train.steps for config in short] == [200, 150]
    own = {"train.steps": 200, "variants.resolution2.train.steps": 7}
    assert [c.train.steps for c in load_sweep(path, "imagenet256", overrides=own).trials.values()] == [200, 7]


# ---------------------------------------------------------------- the paper's studies


@functools.cache
def studies(recipe: str) -> dict[str, dict[str, TrialConfig]]:
    # With two levels the linear schedule is the exponential one, so `mng` takes more.
    two = load_recipe(recipe).get("mng") == {"levels": 2}
    more = {"mng": {"mng.levels": 4, "ladder.S.depth": 4}} if two else {}
    paths = [path for path in SWEEPS.glob("*.yaml") if path.stem != "text" or "text" in load_recipe(recipe)]
    return {path.stem: load_sweep(path, recipe, overrides=more.get(path.stem)).trials for path in paths}


def test_a_wrong_value_of_the_command_line_is_not_blamed_on_the_file() -> None:
    said = message(lambda: load_sweep(WIDTHS, "digits", overrides={"train.batch": -1}))
    assert said.startswith("--set train.batch: ") and "greater than 1" in said
    said = message(lambda: load_sweep(WIDTHS, "digits", overrides={"variant": "nine"}))
    assert said.startswith("--set: recipe 'digits' has no variant 'nine'")
    said = message(lambda: load_sweep(WIDTHS, "digits", overrides={"ladder.w9.width": 9}))
    assert said.startswith("--set: ladder.w9.depth: needs a value")


def test_the_study_of_captions_is_refused_by_recipes_without_them() -> None:
    for recipe in ("imagenet256", "digits"):
        said = message(lambda recipe=recipe: load_sweep(SWEEPS / "text.yaml", recipe))  # type: ignore[misc]
        assert f"recipe '{recipe}' has no variant 'captions'; recipes that have it: coco256, emoji" in said


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_study_of_the_paper_resolves(recipe: str) -> None:
    """At the scale of every recipe; as many trials, in as many of them nothing but what the paper varies."""
    found, sizes = studies(recipe), len(load_recipe(recipe)["ladder"])
    assert {name: len(trials) for name, trials in found.items()} == {
        "widths": 4,
        "ladder": sizes,
        "patch_sizes": 4,
        "decoupled": 16,
        "lr_transfer": 2 + 4 * 5 + 4 * 4,
        "mng": 4,
        "positions": 2,
        "alignment": 8,
        "seeds": 4,
        "penalty_schedule": 3,
        "tokenizers": 2,
        "resolution": 2,
        "unconditional": 2,
        "depth_batch": 9,
        "frontier": 2 * sizes,
        "isoflop": sizes,
        "one": 1,
        **({"text": 3} if "text" in load_recipe(recipe) else {}),
    }
    networks = ["model.generator", "model.discriminator"]
    captions = {"text.name", "text.width", "text.tokens", "text.cached"} if "text" in load_recipe(recipe) else set()
    start = ["train.steps", "start.trial", "start.step"]
    varied = {name: set(next(iter(differences(trials).values()))) for name, trials in found.items()}
    assert varied == {
        "widths": {*networks},
        "ladder": {*networks},
        "patch_sizes": {*networks, "model.patch"},
        "decoupled": {*networks},
        "lr_transfer": {*networks, "train.rate_of", "train.rate_g", "train.rate_d"},
        "mng": {"mng.schedule"},
        "positions": {"model.positions"},
        "alignment": {*networks, "objective.align_weight", *start},
        "seeds": {"seed"},
        "penalty_schedule": {"objective.gp_weight", *start},
        "tokenizers": {"data.channels"},
        "resolution": {"data.side"} | ({"train.steps"} if recipe == "imagenet256" else set()),
        "unconditional": captions | {"eval.extras"} if captions else {"data.classes"},
        "depth_batch": {"ladder.B.depth", "train.batch", "train.steps", "train.depth_rule", "train.batch_rule"},
        "frontier": {*networks, "seed", "train.steps"},
        "isoflop": {*networks, "train.steps"},
        "one": set(),
        **({"text": {*networks}} if captions else {}),
    }


def test_the_studies_have_the_papers_numbers() -> None:
    trials = {name: list(found.values()) for name, found in studies("imagenet256").items()}
    assert [t.lr_g for t in trials["widths"]] == pytest.approx([4e-4, 2e-4, 1.5e-4, 1.333e-4], rel=1e-3)
    cross = {(t.model.generator, t.train.rate_of): t.lr_g for t in trials["lr_transfer"] if t.train.rate_of}
    assert cross == pytest.approx({("S", "B"): 2e-4, ("B", "S"): 4e-4})
    light, heavy, control = trials["penalty_schedule"]
    assert [t.objective.gp_weight for t in (light, heavy, control)] == pytest.approx([0.1, 10, 0.1])
    assert [t.train.steps for t in (light, heavy, control)] == [100_000, 150_000, 150_000]
    removed = [t for t in trials["alignment"] if t.start and not t.objective.align_weight]
    assert [(t.start and t.start.step, t.train.steps) for t in removed] == [(50_000, 60_000)] * 2
    assert {t.train.steps for t in trials["seeds"]} == {25_000} and [t.seed for t in trials["seeds"]] == [0, 1, 2, 3]
    assert [(t.data.side, t.train.steps) for t in trials["resolution"]] == [(32, 50_000), (64, 37_500)]
    assert [(t.data.side, t.data.channels, t.model.generator) for t in trials["tokenizers"]] == [
        (32, 4, "L"),
        (32, 16, "L"),
    ]
    images = {t.train.batch * t.train.steps for t in trials["depth_batch"]}
    assert images == {512 * 50_000} and {t.ladder["B"].depth for t in trials["depth_batch"]} == {12, 24}


def test_the_readme_names_every_study() -> None:
    readme = (SWEEPS.parent / "README.md").read_text()
    named = {line.split("|")[1].strip() for line in readme.splitlines() if line.startswith("| ") and "|" in line[2:]}
    assert {path.stem for path in SWEEPS.iterdir()} <= named


def steps_of(sweep: Sweep) -> dict[str, int]:
    return {config.model.generator: config.train.steps for config in sweep.trials.values()}


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_frontier_gives_every_size_one_compute_and_evaluations_even_in_log_steps(recipe: str) -> None:
    trials = list(load_sweep(SWEEPS / "frontier.yaml", recipe).trials.values())
    widest = next(trial for trial in trials if trial.model.generator == "XL")
    assert widest.train.steps == load_recipe(recipe)["train"]["steps"]
    for trial in trials:
        compute = step_flops(trial) * trial.train.steps
        assert abs(compute / (step_flops(widest) * widest.train.steps) - 1) <= 0.5 / trial.train.steps
        at = np.array(trial.train.eval_at)
        assert at[-1] == trial.train.steps and at[0] >= trial.train.averaged > at[0] / 1.5
        assert at[1:] / at[:-1] == pytest.approx(np.full(len(at) - 1, 1.5), rel=0.01)


def test_steps_by_compute(tmp_path: Path) -> None:
    """Absolute, or those of a size; with a batch of its own, factors, --set, and a part that goes on."""
    sized = "sizes: [S, XL]\n"
    recipe = steps_of(sweep_of(tmp_path, "set: {train.steps: {compute_of: XL}}\n" + sized))
    assert recipe["XL"] == 2000 and recipe["S"] > 20_000
    halved = steps_of(
        sweep_of(tmp_path, "set: {train.steps: {compute_of: XL}}\n" + sized, overrides={"train.steps": 1000})
    )
    assert halved["XL"] == 1000 and halved["S"] == pytest.approx(recipe["S"] / 2, abs=1)
    smaller = sweep_of(tmp_path, "set: {train.steps: {compute_of: XL}, train.batch: x0.5}\n" + sized)
    assert steps_of(smaller) == recipe  # the recipe's steps at half the batch cost half
    given = sweep_of(tmp_path, "set: {train.steps: {flops: 1e12}}\n" + sized).trials.values()
    for config in given:
        assert step_flops(config) * config.train.steps == pytest.approx(1e12, rel=0.5 / config.train.steps)
    budgets = "product: {train.steps: [{flops: 1e12}], model.patch: [2, 4]}\n"
    fine, coarse = sweep_of(tmp_path, budgets).trials.values()
    assert step_flops(fine) * fine.train.steps == pytest.approx(step_flops(coarse) * coarse.train.steps, rel=1e-3)
    parts = "parts:\n  a: {set: {train.steps: {compute_of: B}}}\n  b: {after: a, set: {train.steps: x1.5}}\n"
    first, second = sweep_of(tmp_path, parts).trials.values()
    assert second.train.steps == pytest.approx(1.5 * first.train.steps, abs=1) and second.start


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("set: {train.steps: {flops: 10}}\n", "do not pay for one step of S"),
        ("set: {train.steps: {flops: many}}\n", "{flops: 3e15}"),
        ("set: {train.steps: {flop: 1e12}}\n", "{flops: 3e15}"),
        ("set: {train.steps: {flops: 1e12, compute_of: XL}}\n", "{flops: 3e15}"),
        ("set: {train.steps: {compute_of: XXL}}\n", "no size 'XXL'"),
        ("set: {train.eval_at: {ratio: 1}}\n", "at least 1.05"),
        ("sizes: [S, B]\nproduct: {model.generator: [S]}\n", "given by 'sizes' and by 'product'"),
        ("zip: {model.patch: [2, 4]}\nproduct: {model.patch: [2]}\n", "given by 'zip' and by 'product'"),
        ("sizes: some\n", "sizes"),
    ],
)
def test_steps_and_sizes_that_say_nothing_or_two_things(tmp_path: Path, text: str, words: str) -> None:
    assert words in message(lambda: sweep_of(tmp_path, text))


def test_what_a_trial_is_depends_on_neither_its_evaluations_nor_sizes_of_others() -> None:
    config = resolve(load_recipe("digits"))
    for other in ({"train.eval_at": (100, 200)}, {"train.steps": 7}, {"ladder.XL.width": 64}):
        assert resolve(load_recipe("digits"), other).digest() == config.digest()
    assert resolve(load_recipe("digits"), {"ladder.S.depth": 8}).digest() != config.digest()


def test_a_trial_is_evaluated_at_its_steps_and_at_the_end() -> None:
    config = resolve(load_recipe("digits"), {"train.eval_at": (100, 250), "train.steps": 900})
    assert [step for step in range(1, 901) if config.train.evaluates(step)] == [100, 250, 900]
    config = resolve(load_recipe("digits"), {"train.steps": 900})
    assert [step for step in range(1, 901) if config.train.evaluates(step)] == [400, 800, 900]
