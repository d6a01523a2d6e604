"""What the command `evaluate` measures: a checkpoint of a trial, or pictures that lie in files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import check_dataset, dataset_decoder, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place
from gat_sweep.gat.generator import Generator
from gat_sweep.metrics.distances import check_enough
from gat_sweep.metrics.evaluator import (
    CHUNK,
    Evaluation,
    Evaluator,
    check_evaluation,
    make_evaluation,
    make_protocol,
    measure_features,
)
from gat_sweep.metrics.picture_sets import open_pictures
from gat_sweep.metrics.reference import check_reference, load_reference
from gat_sweep.recipe import check_key, load_recipe, resolve
from gat_sweep.run.checkpoint import read_network, read_trial
from gat_sweep.run.saved import MANIFEST
from gat_sweep.text import Eta, Say, silent
from gat_sweep.vision.extractors import check_extractor, make_extractor

CHANGEABLE = ("eval.", "data.path", "data.tokenizer")


def evaluate_command(
    target: Place | None,
    recipe: str,
    settings: Mapping[str, Any],
    home: Place,
    device: torch.device,
    say: Say = silent,
) -> Evaluation:
    """Measures `target`: a trial's checkpoint (step_*) by the config it was trained with, or pictures (an npz
    with arr_0, or a folder) by that of a recipe; None: the recipe's real pictures as its tokenizer gives them back.

    settings: dotted config values that differ; of a checkpoint `eval`, `data.path` and `data.tokenizer` only.
    home: where the cache of references is; a checkpoint's own home holds its.
    Raises UserError when there is nothing to measure, or not what it takes.
    """
    for key in settings:
        check_key(key)
    if target is None:
        return evaluate_reconstruction(resolve(load_recipe(recipe), settings), home, device, say)
    if target.name.startswith("step_") or (target / MANIFEST).exists():
        return evaluate_checkpoint(target, settings, device, say)
    if not isinstance(target, Path):
        raise UserError(f"{target} is no checkpoint, and pictures are measured from files on this machine only")
    return evaluate_pictures(target, resolve(load_recipe(recipe), settings), home, device, say)


def evaluate_checkpoint(
    path: Place, settings: Mapping[str, Any], device: torch.device, say: Say = silent
) -> Evaluation:
    """A trial's EMA generator as training measures it, with all of eval.extras.

    settings: as of evaluate_command.
    Raises UserError when the checkpoint does not lie in its trial's folder, is damaged, or the data is another.
    """
    for key in settings:
        if not key.startswith(CHANGEABLE):
            raise UserError(f"--set {key}: of a trained model only {', '.join(CHANGEABLE[1:])} and eval.* can be set")
    config, checkpoint = read_trial(path, settings)
    check_evaluation(config)
    ema = Generator(config.generator_spec)
    read_network(checkpoint, "ema", ema)
    ema.to(device)
    dataset, home = load_dataset(config.data), path.parents[4]
    return Evaluator(config, dataset, home, device, say=say).measure(ema, extras=True)


def evaluate_pictures(
    path: Path, config: TrialConfig, home: Place, device: torch.device, say: Say = silent
) -> Evaluation:
    """Pictures in a folder or an npz (arr_0, uint8 [N, h, w, 3]), all of them, against the config's reference.

    Raises UserError when there are none, or too few for eval.extras.
    """
    check_extractor(config.eval)
    check_reference(config)
    pictures = open_pictures(path)
    # How they were generated is not known: the protocol names the very pictures in its place.
    unknown = dict.fromkeys(("seed", "psi", "guidance", "ema", "tokenizer", "decoder"))
    batches = pictures.batches(CHUNK)
    about = unknown | {"chunk": CHUNK, "pictures": pictures.digest}
    return _measured(batches, pictures.count, pictures.name, about, config, home, device, say)


def evaluate_reconstruction(config: TrialConfig, home: Place, device: torch.device, say: Say = silent) -> Evaluation:
    """What the tokenizer alone costs: eval.samples real pictures (all, where there are fewer) out of their latents.

    No generator comes closer to the reference than its decoder, so that this is a law's floor (`fit-law --floor`).
    Raises UserError when the data or the tokenizer cannot be had.
    """
    check_extractor(config.eval)
    check_reference(config)
    dataset = check_dataset(config)
    decoder = dataset_decoder(config, dataset, device)
    n = min(config.eval.samples, len(dataset))
    order = np.random.default_rng(config.eval.seed).permutation(len(dataset))[:n]
    random = torch.Generator().manual_seed(config.eval.seed)
    latents = (dataset.rows(order[start : start + CHUNK]).latents(random) for start in range(0, n, CHUNK))
    about: dict[str, Any] = dict.fromkeys(("psi", "guidance", "ema"))
    about |= {"seed": config.eval.seed, "chunk": CHUNK, "decoder": "float32", "pictures": "reconstructions"}
    about["tokenizer"] = dataset.identity.digest or dataset.identity.source
    pictures = (decoder.decode(part.to(device)) for part in latents)
    return _measured(pictures, n, "reconstructions", about, config, home, device, say)


def _measured(
    batches: Iterator[torch.Tensor],
    count: int,
    name: str,
    about: dict[str, Any],
    config: TrialConfig,
    home: Place,
    device: torch.device,
    say: Say,
) -> Evaluation:
    """`count` pictures in batches against the config's reference; about: what the protocol says of them."""
    extractor = make_extractor(config.eval, device)
    if "fd_infinity" in config.eval.extras:
        check_enough(count, extractor.width)
    reference = load_reference(config, home, device, say=say, extractor=extractor)
    eta, features = Eta(say, f"{extractor.metric} of {name}", count), []
    for batch in batches:
        features.append(extractor(batch.to(device)))
        eta.add(len(batch))
    found = measure_features(torch.cat(features), reference, config.eval.extras)
    return make_evaluation(found, reference, count, make_protocol(extractor, reference, count) | about)
