"""`gat-sweep evaluate`: the evaluation of a checkpoint, a folder of networks, pictures in files, or reconstructions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gat_sweep.config import TrialConfig
from gat_sweep.data.condition import trial_encoder
from gat_sweep.data.dataset import Dataset, check_text, dataset_decoder, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place
from gat_sweep.gat.generator import Generator
from gat_sweep.metrics.distances import check_enough
from gat_sweep.metrics.evaluator import (
    CHUNK,
    Evaluation,
    Evaluator,
    check_decoder,
    check_evaluation,
    make_evaluation,
    make_protocol,
    measure_features,
)
from gat_sweep.metrics.picture_sets import open_pictures
from gat_sweep.metrics.reference import check_reference, compared_dataset, load_reference, reference_dataset
from gat_sweep.pretrained.folder import CONFIG, from_pretrained, is_checkpoint
from gat_sweep.recipe import check_key, load_recipe, resolve
from gat_sweep.run.checkpoint import check_text_encoder, read_network, read_trial
from gat_sweep.text import Eta, Say, silent
from gat_sweep.vision.extractors import check_extractor, make_extractor

CHANGEABLE = ("eval.", "data.path", "data.tokenizer", "text.folder")


def evaluate_command(
    target: Place | None,
    recipe: str,
    settings: Mapping[str, Any],
    home: Place,
    device: torch.device,
    say: Say = silent,
) -> Evaluation:
    """Measures `target` and returns the evaluation.

    target: a trial's checkpoint (step_*), which is measured with its config; a folder of save_pretrained, or pictures
    (an npz with arr_0, or a folder), which are measured with the config of the recipe; or None, for the recipe's real
    pictures after encoding and decoding.
    settings: changed values by dotted key; for a checkpoint only those in CHANGEABLE.
    home: has the cache of references; a checkpoint uses its own home.
    Raises UserError when there is nothing to measure, or something necessary is missing.
    """
    for key in settings:
        check_key(key)
    if target is None:
        return evaluate_reconstruction(resolve(load_recipe(recipe), settings), home, device, say)
    if is_checkpoint(target):
        return evaluate_checkpoint(target, settings, device, say)
    if (target / CONFIG).exists():
        return evaluate_folder(target, resolve(load_recipe(recipe), settings), home, device, say)
    if not isinstance(target, Path):
        raise UserError(f"{target} is not a checkpoint; pictures must be files on this machine")
    return evaluate_pictures(target, resolve(load_recipe(recipe), settings), home, device, say)


def evaluate_checkpoint(
    path: Place, settings: Mapping[str, Any], device: torch.device, say: Say = silent
) -> Evaluation:
    """Measures the EMA generator of a trial, as in training, with all of eval.extras.

    settings: as in evaluate_command.
    Raises UserError when the checkpoint is not in its trial's folder or is damaged, or when the data set is another.
    """
    for key in settings:
        if not key.startswith(CHANGEABLE):
            raise UserError(f"--set {key}: a trained model allows only {', '.join(CHANGEABLE[1:])} and eval.*")
    config, checkpoint, dataset = read_trial(path, settings)
    check_evaluation(config, dataset)
    ema = Generator(config.generator_spec)
    read_network(checkpoint, "ema", ema)
    ema.to(device)
    evaluator = Evaluator(config, dataset, path.parents[4], device, say=say)
    check_text_encoder(checkpoint, evaluator.encoder, str(path))
    return evaluator.measure(ema, extras=True)


def evaluate_folder(
    path: Place, config: TrialConfig, home: Place, device: torch.device, say: Say = silent
) -> Evaluation:
    """Measures the generator of a folder of save_pretrained with the data and the protocol of a config.

    Raises UserError when the folder is damaged, the data has other shapes or classes, or the data's tokenizer is not
    the folder's.
    """
    check_extractor(config.eval)
    found = from_pretrained(path)
    spec, tokenizer = found.generator.spec, found.about.tokenizer
    theirs = config.generator_spec
    keys = {"side": "data", "channels": "data", "classes": "data", "text_width": "text", "text_tokens": "text"}
    names = {key: f"{section}.{key.removeprefix('text_')}" for key, section in keys.items()}
    ours = {name: getattr(spec, key) for key, name in names.items()}
    asked = {name: getattr(theirs, key) for key, name in names.items()}
    wrong = [
        f"{key}={asked[key]} but the networks of {path} have {ours[key]}" for key in ours if asked[key] != ours[key]
    ]
    if wrong:
        raise UserError(f"{config.recipe} has {'; '.join(wrong)}; give another --recipe, or --set these")
    dataset = load_dataset(config.data)
    check_text(config, dataset)
    if tokenizer is None:
        say(f"{path} does not record its tokenizer; that of the data set, {dataset.identity.source}, is assumed")
    elif tokenizer.digest != dataset.identity.digest:
        raise UserError(
            f"networks of {path} make latents of the tokenizer {tokenizer.source} ({tokenizer.digest or 'pixels'}), "
            f"but data set '{dataset.name}' has {dataset.identity.source} ({dataset.identity.digest or 'pixels'}); "
            "give data that was encoded with theirs"
        )
    encoder = trial_encoder(config)
    if encoder and found.about.text and encoder.identity.digest != found.about.text.digest:
        raise UserError(
            f"networks of {path} have captions of {found.about.text.name} ({found.about.text.digest}), the config has "
            f"those of {encoder.identity.name} ({encoder.identity.digest}); set text.folder to theirs"
        )
    config = resolve(config.model_dump(), {"model.z_dim": spec.z_dim})
    check_evaluation(config, dataset)
    evaluator = Evaluator(config, dataset, home, device, say=say)
    evaluator.protocol["ema"] = found.about.training.get("ema_decay")
    return evaluator.measure(found.generator.to(device), extras=True)


def evaluate_pictures(
    path: Path, config: TrialConfig, home: Place, device: torch.device, say: Say = silent
) -> Evaluation:
    """Measures all pictures in a folder or an npz (arr_0, uint8 [N, h, w, 3]) against the config's reference.

    Raises UserError when there are no pictures, or too few for eval.extras.
    """
    check_extractor(config.eval)
    dataset = reference_dataset(config)
    check_reference(config, dataset)
    pictures = open_pictures(path)
    # It is not known how the pictures were generated, so the protocol has their digest instead.
    unknown = dict.fromkeys(("seed", "psi", "guidance", "ema", "tokenizer", "decoder"))
    batches = pictures.batches(CHUNK)
    about = unknown | {"chunk": CHUNK, "pictures": pictures.digest}
    return _measured(batches, pictures.count, pictures.name, about, config, dataset, home, device, say)


def evaluate_reconstruction(config: TrialConfig, home: Place, device: torch.device, say: Say = silent) -> Evaluation:
    """Measures the tokenizer alone, on eval.samples reconstructed real pictures (or all, if there are fewer).

    A generator cannot come closer to the reference than its decoder, so this is the floor of a scaling law
    (`fit-law --floor`).
    Raises UserError when the data or the tokenizer is not available.
    """
    check_extractor(config.eval)
    dataset = compared_dataset(config, load_dataset(config.data))
    check_reference(config, dataset)
    check_decoder(config, device)
    decoder = dataset_decoder(config, dataset, device)
    n = min(config.eval.samples, len(dataset))
    order = np.random.default_rng(config.eval.seed).permutation(len(dataset))[:n]
    random = torch.Generator().manual_seed(config.eval.seed)
    latents = (dataset.rows(order[start : start + CHUNK]).latents(random) for start in range(0, n, CHUNK))
    about: dict[str, Any] = dict.fromkeys(("psi", "guidance", "ema"))
    about |= {"seed": config.eval.seed, "chunk": CHUNK, "decoder": config.eval.decoder, "pictures": "reconstructions"}
    about["tokenizer"] = dataset.identity.digest or dataset.identity.source
    pictures = (decoder.decode(part.to(device)) for part in latents)
    return _measured(pictures, n, "reconstructions", about, config, dataset, home, device, say)


def _measured(
    batches: Iterator[torch.Tensor],
    count: int,
    name: str,
    about: dict[str, Any],
    config: TrialConfig,
    dataset: Dataset | None,
    home: Place,
    device: torch.device,
    say: Say,
) -> Evaluation:
    """Measures `count` pictures in batches against the config's reference; about: protocol of the pictures."""
    if count < 2:
        raise UserError(f"{name}: one picture has no covariance; give two or more")
    extractor = make_extractor(config.eval, device)
    if "fd_infinity" in config.eval.extras:
        check_enough(count, extractor.width)
    reference = load_reference(config, dataset, home, device, say=say, extractor=extractor)
    eta, features = Eta(say, f"{extractor.metric} of {name}", count), []
    for batch in batches:
        features.append(extractor(batch.to(device)))
        eta.add(len(batch))
    found = measure_features(torch.cat(features), reference, config.eval.extras)
    return make_evaluation(found, reference, count, make_protocol(extractor, reference, count) | about)
