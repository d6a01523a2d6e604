"""A design for a goal, as a sweep file to run: what `gat-sweep design` does."""

import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from analysis.allocate import FAR
from analysis.checkpoints import MIN_SIZES, read_checkpoints
from analysis.design import HALF_WIDTH, Design, choose
from analysis.design_scenarios import Candidate, Goal, Known, Option
from analysis.design_text import summary
from analysis.fits.joint_fit import fit_joint
from analysis.table import Protocol, strict_json
from gat_sweep.compute import step_flops
from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, write
from gat_sweep.plan import Rate, trial_plan
from gat_sweep.recipe import built_in, changed_settings, load_recipe, resolve, spread_evenly
from gat_sweep.results.study import home_words, is_table, open_study
from gat_sweep.run.record import check_name, run_trials
from gat_sweep.sweep import NETWORKS
from gat_sweep.text import Eta, Say, nearest, silent

RATIO = 1.5  # between evaluations of a run, and between the lengths that are tried
YOUNG = 3  # evaluations that a run needs after its average has forgotten the beginning
LENGTHS = 30  # the most that are tried
GRIDS = (3, 5, 7)  # rates of a network at a size, each twice the one before, about that of Eq. 4
MANY = 9  # checkpoints from which far ones are found
# Config values that a design chooses.
CHOSEN = {"seed", "train.steps", "train.eval_at", "train.rate_g", "train.rate_d", *NETWORKS}


@dataclass(frozen=True)
class Asked:
    """What the user asked for."""

    goal: str  # exponent, predict:SIZE, allocate or rates
    budget: float  # GFLOPs, or hours if `rate` is given
    at: str | None = None  # the size that the goal is about; default: the largest one
    half_width: float | None = None
    rates: Callable[[list[TrialConfig]], list[Rate]] | None = None  # of configs; None: the budget is in GFLOPs


def design_command(
    source: str | None,
    config: TrialConfig | None,
    home: Place,
    out: Path | None,
    asked: Asked,
    say: Say = silent,
) -> tuple[dict[str, Any], str, list[Path]]:
    """Find a design; write its sweep file, JSON and figure; return (the JSON, a summary, the files).

    source: a run or a table whose data count. config: the setting; None: that of the run `source`. say: gets lines of
    progress.
    Raises UserError for a goal or a size that does not exist, a budget that is too small, and files that are there
    already with another content; nothing is written then.
    """
    from analysis.figures.design import plot

    folder = out or Path(f"design-{asked.goal.partition(':')[0]}")
    check_name(folder.resolve().name, "--out")  # the run will have the folder's name
    configs: dict[str, TrialConfig] = {}
    if source is not None and not is_table(source):
        configs = {trial.id: trial.config for trial in run_trials(home, source)}
    base = config or _setting(configs)
    name, size = _goal(asked, base)
    goal = _goal_of(name, size, base, asked)
    # An analysis has both the runs that are there and the new ones if these join the run.
    joined = name == "allocate" or (name != "rates" and {c.train.steps for c in configs.values()} == {base.train.steps})
    configs = configs if joined else {}
    known = None if source is None else _known(source, home, goal, base, bool(configs))
    try:
        found = choose(goal, _candidates(goal, base, asked), asked.budget, known, _progress(say))
    except ValueError as error:
        raise UserError(str(error)) from None
    path = folder / f"{folder.resolve().name}.yaml"
    run = source if source and configs else f"{path.stem}-{base.recipe}"
    text = _sweep_text(found, base, configs)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path} exists and is another sweep; give --out another folder, or delete it")
    commands = _commands(found, base, path, run, home)
    unit = "hours" if asked.rates else "GFLOPs"
    held = _held_price(found, base, asked) if name == "predict" else None
    more = {"recipe": base.recipe, "source": source, "price": unit, "held_price": held, "run": commands}
    report = strict_json(found.to_json() | more)
    write(folder / "design.json", json.dumps(report, indent=1, allow_nan=False).encode())
    figures = plot(found, unit, folder / "design")
    write(path, text.encode())  # last, so that a sweep file has its report beside it
    return report, summary(report), [path, folder / "design.json", *figures]


def _progress(say: Say) -> Callable[[int, int], None]:
    """A function that gets how many searches are done, of how many, and says it with the time left."""
    eta = Eta(say, "searches", 0)

    def searched(done: int, total: int) -> None:
        eta.total = total
        eta.add(done - eta.done)

    return searched


def _setting(configs: Mapping[str, TrialConfig]) -> TrialConfig:
    """The setting of a run; if its trials differ in length, with the length of its recipe."""
    first = next(iter(configs.values()))
    steps = first.train.steps
    if len({config.train.steps for config in configs.values()}) > 1:
        steps = resolve(load_recipe(first.recipe)).train.steps
    return first.model_copy(update={"seed": 0, "train": first.train.model_copy(update={"steps": steps, "eval_at": ()})})


def _goal(asked: Asked, base: TrialConfig) -> tuple[str, str]:
    """The name of the goal, and the size that it is about."""
    name, colon, size = asked.goal.partition(":")
    if name not in HALF_WIDTH or bool(colon) != (name == "predict") or (colon and not size):
        raise UserError(f"--goal '{asked.goal}': expected exponent, predict:SIZE, allocate or rates")
    if size and asked.at:
        raise UserError(f"--goal {asked.goal} and --at {asked.at} both name a size; leave --at out")
    largest = max(base.ladder, key=lambda label: step_flops(_sized(base, label)))
    size = size or asked.at or ("XL" if "XL" in base.ladder else largest)
    if size not in base.ladder:
        raise UserError(f"recipe '{base.recipe}' has no size '{size}'; {nearest(size, base.ladder)}")
    return name, size


def _sized(base: TrialConfig, label: str, steps: int | None = None) -> TrialConfig:
    """The config of a size; steps: of a length for `allocate`, with evaluations RATIO apart."""
    model = base.model.model_copy(update={"generator": label, "discriminator": label})
    train = base.train
    if steps is not None:
        train = train.model_copy(update={"steps": steps, "eval_at": spread_evenly(train, steps, RATIO)})
    return base.model_copy(update={"model": model, "train": train})


def _cost(config: TrialConfig) -> float:
    """GFLOPs (multiply-adds / 1e9) of training for one image."""
    return step_flops(config) / 2e9 / config.train.batch


def _goal_of(name: str, size: str, base: TrialConfig, asked: Asked) -> Goal:
    config = _sized(base, size)
    half_width = asked.half_width or HALF_WIDTH[name]
    if asked.half_width and name != "exponent":
        if asked.half_width <= 1:
            raise UserError(f"--half-width {asked.half_width:g}: for --goal {name} it is a factor above 1, such as 1.5")
        half_width = math.log(asked.half_width)
    images = float(base.train.steps * base.train.batch)
    return Goal(name, size, _cost(config), images, config.generator_spec.width, half_width)


def _candidates(goal: Goal, base: TrialConfig, asked: Asked) -> list[Candidate]:
    """The sizes of the recipe, each with the ways to train it that 4 times the budget can pay for."""
    sized = [_sized(base, label) for label in base.ladder]
    rates = asked.rates([*sized]) if asked.rates else [None] * len(sized)
    found = []
    for config, rate in zip(sized, rates, strict=True):
        label, options = config.model.generator, []
        if goal.name == "allocate":
            options = _lengths(config, rate, 4 * asked.budget, goal)
        elif goal.name == "rates":
            price = _price(config, rate)
            for count in GRIDS:
                grid = tuple(2.0 ** (k - count // 2) for k in range(count))
                # Both networks have a grid each, and share its middle.
                options.append(_option(config, (2 * count - 1) * price, grid))
        elif not (goal.name == "predict" and label == goal.size):
            options.append(_option(config, _price(config, rate)))
        found.append(Candidate(label, _cost(config), config.generator_spec.width, tuple(options)))
    return sorted(found, key=lambda candidate: candidate.cost)


def _held_price(found: Design, base: TrialConfig, asked: Asked) -> float:
    """What the size that is predicted costs, with as many seeds as the others."""
    config = _sized(base, found.goal.size)
    rate = asked.rates([config])[0] if asked.rates else None
    return found.best.seeds * _price(config, rate)


def _lengths(config: TrialConfig, rate: Rate | None, most: float, goal: Goal) -> list[Option]:
    """Lengths of a size, RATIO apart, up to a price and FAR times the goal's compute; the shortest one in any case."""
    steps, found = config.train.averaged * RATIO ** (YOUNG - 1), list[Option]()
    while len(found) < LENGTHS:
        longer = _sized(config, config.model.generator, round(steps))
        price = _price(longer, rate)
        if found and (price > most or round(steps) * config.train.batch * _cost(config) > FAR * goal.gflops):
            break
        found.append(_option(longer, price))
        steps *= RATIO
    return found


def _option(config: TrialConfig, price: float, rates: tuple[float, ...] = ()) -> Option:
    train = config.train
    lengths = tuple(float(step * train.batch) for step in (train.eval_at or (train.steps,)))
    return Option(price, lengths[-1], train.steps, lengths, rates)


def _price(config: TrialConfig, rate: Rate | None) -> float:
    """What a trial costs: GFLOPs, or hours of its workers with its evaluations."""
    if rate is None:
        return config.train.steps * step_flops(config) / 2e9
    return float(trial_plan(config, rate)["worker_hours"])


def _known(source: str, home: Place, goal: Goal, base: TrialConfig, together: bool) -> Known:
    """What a run or a table holds. together: the new trials join the run, so that an analysis has both."""
    try:
        found = read_checkpoints(open_study(source, home, None).table)
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_measured_on(found.measured, base)
    if found.grid:
        raise UserError("a design is for sizes of both networks alike, and this table has a grid of G and D sizes")
    if found.unit != "images":
        raise UserError("the table does not say how many images a step has; give it a column images or train.batch")
    labels = tuple(size.cell.generator_size for size in found.sizes)
    if goal.name == "predict" and goal.size in labels:
        raise UserError(f"{goal.size} is in {source} already; predict a size that has not begun")
    data = found.data
    if len(data.log_value) >= MANY and len(found.sizes) >= MIN_SIZES:
        data = data.some(fit_joint(data)[1])
    return Known(data, labels, together)


# ---------------------------------------------------------------- what is to be run


def _check_measured_on(measured: Protocol, base: TrialConfig) -> None:
    """Raises UserError if a table was measured on another data set than the recipe's."""
    found = built_in(measured.reference)
    if found not in (None, base.data.dataset):
        raise UserError(f"the table was measured on {found}, and the recipe is {base.recipe}; give --recipe {found}")


def _sweep_text(found: Design, base: TrialConfig, configs: Mapping[str, TrialConfig]) -> str:
    """The sweep file of a design. With a run's own trials, which then do not train again."""
    goal, cells, first = found.goal, found.cells(found.best), 1 + max((c.seed for c in configs.values()), default=-1)
    seeds = list(range(first, first + found.best.seeds))
    sizes = [cell["size"] for cell in cells] + ([goal.size] if goal.name == "predict" else [])
    length = {"train.steps": base.train.steps}
    parts: dict[str, Any] = {}
    if configs:
        own = list(configs.values())
        parts["there"] = {
            "zip": {
                "model.generator": [config.model.generator for config in own],
                "model.discriminator": [config.model.discriminator for config in own],
                "train.steps": [config.train.steps for config in own],
                "seed": [config.seed for config in own],
            }
        }
    if goal.name == "rates":
        for cell in cells:
            for network in ("g", "d"):
                part = {"sizes": [cell["size"]], "product": {f"train.rate_{network}": cell["rates"]}}
                parts[f"{cell['size']}_{network}"] = part
        values: dict[str, Any] = {"seeds": seeds, "parts": parts}
    else:
        new: dict[str, Any] = {"sizes": sizes}
        if goal.name == "allocate":
            new = {"zip": dict.fromkeys(NETWORKS, sizes) | {"train.steps": [cell["steps"] for cell in cells]}}
        if configs:
            new |= {"product": {"seed": seeds}} | ({} if goal.name == "allocate" else {"set": length})
        values = {"parts": parts | {"new": new}} if configs else {"seeds": seeds, **new}
    if goal.name == "allocate":
        values = {"set": {"train.eval_at": {"ratio": RATIO}}, **values}
    elif not configs:
        values = {"set": length, **values}
    about = f"{goal.name} at {goal.size}, as designed for {found.budget:g}"
    head = "# Written by `gat-sweep design`; docs/studies.md says how it chooses.\n"
    return head + yaml.dump(
        {"about": about, **values}, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=200
    )


class _Plain(yaml.SafeDumper):
    """Writes a list that occurs twice as two lists, since sweep files have no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _commands(found: Design, base: TrialConfig, path: Path, run: str, home: Place) -> list[str]:
    """The commands that train a design and find what it is for."""
    goal = found.goal
    settings = [word for key, text in changed_settings(base, CHOSEN).items() for word in ("--set", f"{key}={text}")]
    named = [] if run == f"{path.stem}-{base.recipe}" else ["--name", run]
    where = home_words(home)
    train = ["run", str(path), "--recipe", base.recipe, *named, *settings, *where]
    then = {
        "predict": [[*train, "--hold", goal.size], ["predict", run, "--for", goal.size, *where], train],
        "allocate": [train, ["allocate", run, "--budget", f"{goal.gflops:g}", *where]],
        "exponent": [train, ["fit-law", run, *where]],
        "rates": [train, ["rates", run, *where]],
    }
    return [shlex.join(["gat-sweep", *words]) for words in then[goal.name]]
