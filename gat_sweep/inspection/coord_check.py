"""`gat-sweep coord-check`: the change of the networks' outputs in one training step, against width (Eq. 11, A.11).

Real trials start at several widths, each once with the rate of Eq. 4 and once with train.base_lr at every width.
Before and after every step, both networks score the same probe: the same latent codes, classes, real images and MNG
noise at every width, rule and step. So every difference comes from the step.
"""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.coord_check import RULES, Changes, report
from analysis.figures.coord_check import plot
from gat_sweep.config import Size, TrialConfig
from gat_sweep.data.condition import captioned, condition, trial_encoder
from gat_sweep.data.dataset import Dataset, check_needs, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.files.storage import write
from gat_sweep.gat.condition import Condition
from gat_sweep.gat.mng import make_perturb
from gat_sweep.inspection.probes import discriminator_tokens, generator_tokens
from gat_sweep.text import Say, duration
from gat_sweep.train.device import hardware
from gat_sweep.train.engine import Engine, draw
from gat_sweep.train.feed import Feed
from gat_sweep.vision.teacher import taught

PROBE = 64  # images
DOUBLINGS = 5  # number of default widths: 1, 2, 4, 8, 16 heads
LINE_EVERY = 5.0  # seconds between lines of progress
NAME = "coord-check"  # name of the written files


@dataclass(frozen=True)
class CoordCheckOptions:
    """Options of the command in addition to the config."""

    widths: tuple[int, ...] = ()  # default: 1, 2, 4, 8, 16 heads
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 10  # measured steps
    warmup: int = 0  # steps before the first measured one


def coord_check_command(
    config: TrialConfig, options: CoordCheckOptions, device: torch.device, out: Path, say: Say
) -> tuple[dict[str, Any], list[Path]]:
    """Trains, measures, fits and draws; returns the content of coord-check.json and the files written into `out`.

    config: gives everything but width, rate and seed. say: gets lines of progress.
    Raises UserError when there are too few widths for a slope, a width does not fit the heads, or training diverges.
    """
    widths = check_widths(config, options)
    plan = [
        (seed, rule, width, make_trial(config, width, rule, seed, options.warmup + options.steps))
        for seed, rule, width in itertools.product(options.seeds, RULES, widths)
    ]
    dataset = load_dataset(config.data)
    check_needs(config, dataset)
    dataset = taught(config, dataset, device, say)
    # The batches depend on the seed, but not on the width or the rate.
    feeds = {
        seed: Feed(make_trial(config, widths[0], "eq4", seed, options.warmup + options.steps), dataset, device)
        for seed in options.seeds
    }

    found: dict[tuple[str, int, int], dict[tuple[str, str], np.ndarray]] = {}
    seconds: dict[int, float] = {}  # seconds of a trial by width
    began = spoken = time.perf_counter()
    for number, (seed, rule, width, trial) in enumerate(plan, start=1):
        start = time.perf_counter()
        try:
            found[rule, seed, width] = measure(trial, dataset, feeds[seed], options.warmup)
        except UserError as error:
            raise UserError(f"width {width}, {RULES[rule]}, seed {seed}: {error}") from None
        now = time.perf_counter()
        seconds[width] = now - start
        if now - spoken > LINE_EVERY or number == len(plan):
            spoken = now
            left = sum(seconds[item[2]] for item in plan[number:]) if len(seconds) == len(widths) else None
            say(f"{number}/{len(plan)} trials measured, ETA {duration(left)}")

    measured = []
    for (network, layer), rule in itertools.product(next(iter(found.values())), RULES):
        # [S, W, T, 2]
        values = np.array([[found[rule, seed, width][network, layer] for width in widths] for seed in options.seeds])
        measured.append(Changes(network, layer, rule, values[..., 0], values[..., 1]))
    try:
        slopes = report(widths, measured)
    except ValueError as error:
        raise UserError(str(error)) from None
    result = {
        "recipe": config.recipe,
        "widths": widths,
        "seeds": list(options.seeds),
        "warmup": options.warmup,
        "steps": options.steps,
        "probe": PROBE,
        "slopes": slopes,
        "rates": {rule: [make_trial(config, width, rule, 0, 1).lr_g for width in widths] for rule in RULES},
        # [seed][width][step]
        "measured": [{**asdict(item), "change": _short(item.change), "size": _short(item.size)} for item in measured],
        "config": config.identity(),
        "seconds": round(time.perf_counter() - began, 1),
        "hardware": hardware(device),
    }
    write(out / f"{NAME}.json", (json.dumps(result) + "\n").encode())
    files = plot(widths, measured, options.warmup + 1, out / NAME)
    return result, [out / f"{NAME}.json", *files]


def check_widths(config: TrialConfig, options: CoordCheckOptions) -> list[int]:
    """Widths to measure, in ascending order. Raises UserError, with the fix, for widths that networks cannot have."""
    head = head_width(config.ladder[config.model.generator])
    widths = sorted(set(options.widths)) or [head * 2**i for i in range(DOUBLINGS)]
    shown = ",".join(map(str, widths))
    if len(widths) < 2:
        raise UserError(f"--widths {shown}: a slope needs at least two; give {head},{2 * head},{4 * head} for example")
    for name in {config.model.generator, config.model.discriminator}:
        head = head_width(config.ladder[name])
        wrong = [width for width in widths if width < 1 or width % head]
        if wrong:
            raise UserError(
                f"--widths {shown}: {wrong[0]} is not a multiple of {head}, the width of a head in recipe "
                f"'{config.recipe}' at size {name}; give {head},{2 * head},{4 * head} for example"
            )
    try:
        for width in widths:
            trial = make_trial(config, width, "eq4", 0, 1)
            _ = trial.generator_spec, trial.discriminator_spec
    except ValueError as error:
        raise UserError(f"--widths {shown}: {error}") from None
    return widths


def head_width(size: Size) -> int:
    return size.width // size.heads


def make_trial(config: TrialConfig, width: int, rule: str, seed: int, steps: int) -> TrialConfig:
    """The trial with both networks at `width`, with the same head width as before, and with the rate of a rule.

    rule: "eq4", or "none" for the rate of train.base_width at every width.
    """
    ladder = {"base": Size(width=config.train.base_width, depth=1, heads=1)}
    for network, name in (("G", config.model.generator), ("D", config.model.discriminator)):
        row = config.ladder[name]
        ladder[network] = Size(width=width, depth=row.depth, heads=width // head_width(row))
    changed = {
        "seed": seed,
        "ladder": ladder,
        "model": config.model.model_copy(update={"generator": "G", "discriminator": "D"}),
        "train": config.train.model_copy(update={"steps": steps, "rate_of": "base" if rule == "none" else None}),
        "workers": config.workers.model_copy(update={"count": 1}),
    }
    return config.model_copy(update=changed)


def trained(config: TrialConfig, feed: Feed) -> Iterator[Engine]:
    """Engine of a trial at the start and after each step; the steps equal those of train() bit for bit."""
    engine = Engine(config, feed.device)
    yield engine
    for step in range(config.train.steps):
        engine.iterate(feed.batch(step))
        yield engine


def measure(config: TrialConfig, dataset: Dataset, feed: Feed, warmup: int) -> dict[tuple[str, str], np.ndarray]:
    """Changes [T, 2] by (network, layer): the RMS of the change in each step after `warmup`, and of the value before.

    Raises UserError when training diverges.
    """
    probe = make_probe(config, dataset, feed.device)
    before: dict[tuple[str, str], Tensor] = {}
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for step, engine in enumerate(trained(config, feed)):
        if step < warmup:
            continue
        after = scored(engine, probe)
        for key, x in before.items():
            rows.setdefault(key, []).append((rms(after[key] - x), rms(x)))
        before = after
    if trouble := engine.trouble():
        finished, network, norm = trouble
        raise UserError(
            f"gradient norm of {network} is {norm} at step {finished}; measure fewer steps or lower train.base_lr"
        )
    return {key: np.array(values) for key, values in rows.items()}


@dataclass(frozen=True)
class Probe:
    """Fixed inputs that the networks score before and after every step."""

    z: Tensor  # [N, z_dim]
    y: Condition  # of N images
    levels: Tensor  # real images as D sees them, [K, N, C, Y, X]


def make_probe(config: TrialConfig, dataset: Dataset, device: torch.device) -> Probe:
    """Codes, real images and MNG noise of a seed; the same for every width, rule and device."""
    random = torch.Generator().manual_seed(config.seed)
    encoder = trial_encoder(config)
    dataset = captioned(dataset, encoder)
    index = torch.randperm(len(dataset), generator=random)[:PROBE].numpy()
    rows = dataset.rows(index, captions=np.zeros(len(index)) if encoder else None)
    real, spec = rows.latents(random), config.generator_spec
    z = torch.randn(len(real), spec.z_dim, generator=random)
    draws = draw(config, len(real), random, penalty=False)
    perturb = make_perturb(config.mng.schedule, spec.levels, config.mng.mixing)
    levels = perturb(real.expand(spec.levels, *real.shape), draws.mng[0])
    y = condition(config, rows, encoder)
    return Probe(z.to(device), None if y is None else y.to(device), levels.to(device))


def scored(engine: Engine, probe: Probe) -> dict[tuple[str, str], Tensor]:
    """Outputs of both networks for the probe, in float32 for any precision of training."""
    with torch.no_grad():
        levels, tokens_g = generator_tokens(engine.generator, engine.generator.style(probe.z, probe.y), probe.y)
        logits, _ = engine.discriminator(probe.levels.movedim(0, 1).flatten(1, 2), probe.y)
        tokens_d = discriminator_tokens(engine.discriminator, probe.levels, probe.y)
    return {
        ("G", "output"): levels[-1],
        ("G", "last block"): tokens_g[-1],
        ("D", "output"): logits,
        ("D", "last block"): tokens_d[-1][:, 0],  # [cls], from which the logit is computed
    }


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def _short(values: np.ndarray) -> Any:
    """Nested lists of numbers with six digits."""
    return np.vectorize(lambda value: float(f"{value:.6g}"))(values).tolist()
