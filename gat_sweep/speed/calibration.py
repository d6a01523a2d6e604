"""Speed of training and evaluation on this machine, from a few timed steps and samples, for `gat-sweep plan`."""

import math
import statistics
from collections.abc import Callable

import torch

from gat_sweep.compute import iteration_flops
from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import dataset_decoder, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.metrics.evaluator import CHUNK
from gat_sweep.plan import Rate, compiles
from gat_sweep.speed.clock import make_batch, make_condition, timed
from gat_sweep.train.engine import Engine
from gat_sweep.vision.extractors import make_extractor

WARMUP, STEPS = 2, 5


def calibrate(configs: list[TrialConfig], device: torch.device, say: Callable[[str], None]) -> list[Rate]:
    """A rate for each config; configs with the same cost are timed only once. say: gets lines of progress.

    It times one worker on Gaussian images, without communication, loading and saving. A teacher that runs in training
    is added by its FLOPs, at the rate of the networks.
    Raises UserError when the data set or the extractor's weights are missing.
    """
    known: dict[str, Rate] = {}
    rates = []
    for config in configs:
        objective, t, w = config.objective, config.train, config.workers
        shape = (
            config.generator_spec,
            config.discriminator_spec,
            config.mng,
            config.augment,
            bool(objective.gp_weight),
        )
        on = (compiles(config, device.type == "cpu"), w.memory_gib, w.cpus)
        images = math.ceil(t.batch / w.least)
        key = repr((*shape, images, t.precision, *on, config.eval, config.data))
        if key not in known:
            sizes = f"G {config.model.generator}, D {config.model.discriminator}, p={config.model.patch}"
            say(f"timing {sizes}, {images} images per worker")
            known[key] = _rate(config, device)
        rates.append(known[key])
    return rates


def _rate(config: TrialConfig, device: torch.device) -> Rate:
    share = config.train.model_copy(update={"batch": math.ceil(config.train.batch / config.workers.least)})
    config = config.model_copy(update={"train": share})
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.workers.cpus)))
    engine = Engine(config, device)
    random = torch.Generator(device).manual_seed(0)
    seconds = []
    for _ in range(WARMUP + STEPS):
        batch = make_batch(config, random)
        seconds.append(timed(lambda batch=batch: engine.iterate(batch), device))  # type: ignore[misc]
    items = iteration_flops(config)
    networks = sum(items.values()) - items.get("teacher_forward", 0) - items.get("text_encoder", 0)
    step = statistics.median(seconds[WARMUP:]) * sum(items.values()) / networks
    return Rate(step, _sample_seconds(config, engine, device))


def _sample_seconds(config: TrialConfig, engine: Engine, device: torch.device) -> float:
    """Seconds per sample of an evaluation: to generate it, decode it and extract its features.

    Raises UserError when the data set (which names the tokenizer) or the extractor's weights are missing.
    """
    try:
        decoder = dataset_decoder(config, load_dataset(config.data), device)
        extractor = make_extractor(config.eval, device)
    except UserError as error:
        raise UserError(f"--calibrate also times evaluations: {error}") from None
    z = torch.randn(CHUNK, config.model.z_dim, device=device)
    y = make_condition(config.generator_spec, CHUNK, torch.Generator(device).manual_seed(0))

    def evaluate() -> None:
        extractor(decoder.decode(engine.ema.sample(z, y, config.eval.psi, config.eval.guidance, config.eval.null)))

    return min(timed(evaluate, device) for _ in range(2)) / CHUNK
