"""`gat-sweep inspect`: measures of every block of a checkpoint's networks, as a table and figures.

They are the paper's Fig. 4 (block influence, features), 6b (alignment with a vision model), 9 (similarities), 26, 27.
"""

import csv
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gat_sweep.config import PLACES, TrialConfig
from gat_sweep.data.condition import captioned, trial_encoder
from gat_sweep.data.dataset import Dataset, dataset_decoder
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.inspection.blocks import CHUNK, Findings, Row, Subject, look, pca_maps
from gat_sweep.run.checkpoint import Checkpoint, check_text_encoder, read_network, read_trial
from gat_sweep.vision.perceptual import Distance, FeatureDistance, Lpips
from gat_sweep.vision.teacher import EFFICIENTNET, Teacher, load_teacher

IMAGES = 2000
NEIGHBOURS = 10  # of CKNNA, as in REPA
DEEPEST_DRAWN = 14  # most blocks in a figure of features; deeper networks show every other block, as in Fig. 26 and 27
COLUMNS = [field.name for field in fields(Row)]


@dataclass(frozen=True)
class InspectOptions:
    """Options of the command in addition to the checkpoint."""

    images: int | None = None  # images of each kind, real and generated (default: IMAGES, or all that the data set has)
    seed: int = 0
    lpips_backbone: Path | None = None  # torchvision's alexnet, for LPIPS (default: another distance)
    teacher: str | None = None  # default: the trial's teacher, or efficientnet_lite0
    teacher_checkpoint: str | None = None


def inspect_command(
    checkpoint: Place,
    out: Path | None,
    options: InspectOptions,
    settings: dict[str, Any],
    device: torch.device,
    console: Console,
) -> tuple[dict[str, Any], list[Path]]:
    """Inspects <run>/trials/<trial>/checkpoints/step_X; returns the content of inspect.json and the written files.

    out: a folder (default: <run>/inspect/<trial>-step_X). settings: overrides for the places of data and tokenizer.
    Progress is shown on the console.
    Raises UserError when a file is missing or damaged, or does not fit the trial.
    """
    places = sorted(f"{section}.{key}" for section, keys in PLACES.items() for key in keys)
    for key in settings:
        if key not in places:
            raise UserError(f"--set {key}: inspection keeps the config of the trial; set only {', '.join(places)}")
    config, state, dataset = read_trial(checkpoint, settings)
    trial = checkpoint.parents[1].name
    folder = out
    if folder is None:
        if not isinstance(checkpoint, Path):
            raise UserError(f"{checkpoint} is in an object store; give a folder on this machine with --out")
        folder = checkpoint.parents[3] / "inspect" / f"{trial}-{checkpoint.name}"
    subject = _subject(config, state, dataset, device)
    available = len(subject.dataset)
    images = min(IMAGES, available) if options.images is None else options.images
    if not NEIGHBOURS + 2 <= images <= available:
        raise UserError(
            f"--images {images}: give {NEIGHBOURS + 2} to {available}, the size of data set '{subject.dataset.name}'"
        )
    teacher, teacher_name = _teacher(config, options, device)
    distance: Distance = (
        Lpips(options.lpips_backbone, device) if options.lpips_backbone else FeatureDistance(config.eval.resize, device)
    )

    found, rows = _measured(subject, distance, teacher, images, options.seed, console)
    result = {
        "trial": trial,
        "step": state.step,
        "config": config.digest(),
        "data": subject.dataset.digest,
        "protocol": {
            "images": images,
            "seed": options.seed,
            "ema": config.train.ema_decay,
            "precision": "float32",
            "distance": distance.name,
            "distance_label": distance.label,
            "teacher": teacher_name,
            "teacher_weights": teacher.digest,
            "neighbours": NEIGHBOURS,
        },
        "classes": config.data.classes,
        "levels": config.generator_spec.levels,
        "depth": {"G": len(subject.generator.blocks), "D": len(subject.discriminator.blocks)},
        "rows": [asdict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inspect.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_csv(folder / "inspect.csv", rows)
    return result, [folder / "inspect.json", folder / "inspect.csv", *_draw(result, found, folder)]


def write_csv(path: Path, rows: list[Row]) -> None:
    """Writes the rows as a long table; an empty field means that there is no value."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _subject(config: TrialConfig, checkpoint: Checkpoint, dataset: Dataset, device: torch.device) -> Subject:
    generator, discriminator = Generator(config.generator_spec), Discriminator(config.discriminator_spec)
    read_network(checkpoint, "ema", generator)
    read_network(checkpoint, "discriminator", discriminator)
    tokenizer = dataset_decoder(config, dataset, device)
    for network in (generator, discriminator):
        network.to(device).eval().requires_grad_(False)
    encoder = trial_encoder(config, device)
    check_text_encoder(checkpoint, encoder, str(checkpoint.folder))
    dataset = captioned(dataset, encoder)
    return Subject(config, generator, discriminator, dataset, tokenizer, device, encoder)


def _teacher(config: TrialConfig, options: InspectOptions, device: torch.device) -> tuple[Teacher, str]:
    name, checkpoint = options.teacher, options.teacher_checkpoint
    if name is None:
        name = config.teacher.name if config.teacher else EFFICIENTNET
        checkpoint = checkpoint or (config.teacher.checkpoint if config.teacher else None)
    return load_teacher(name, checkpoint, config.data.side // config.model.patch, device), name


def _measured(
    subject: Subject, distance: Distance, teacher: Teacher, images: int, seed: int, console: Console
) -> tuple[Findings, list[Row]]:
    looks = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*looks, TextColumn("ETA"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"images, {CHUNK} at a time", total=math.ceil(images / CHUNK))
        found = look(subject, distance, teacher, images, seed, lambda: progress.advance(task))
        task = progress.add_task("alignments", total=len(found.features))
        rows = found.rows(NEIGHBOURS, lambda: progress.advance(task))
    return found, sorted(rows, key=lambda row: (row.network != "G", row.measure, row.data, row.block))


def _draw(result: dict[str, Any], found: Findings, folder: Path) -> list[Path]:
    from analysis.figures.inspect import plot_alignment, plot_features, plot_influence, plot_similarity

    files = plot_influence(result, folder / "block_influence")
    files += plot_similarity(result, folder / "similarity")
    files += plot_alignment(result, folder / "cknna")
    pictures = {data: shown.permute(0, 2, 3, 1).cpu().numpy() for data, shown in found.shown_pictures.items()}
    for network, data in (("G", ["fake"]), ("D", ["real", "fake"])):
        # Real and fake share components, so that equal colours mean equal features.
        tokens = [torch.cat(parts) for parts in zip(*(found.shown_tokens[network, d] for d in data), strict=True)]
        step = 1 if len(tokens) <= DEEPEST_DRAWN else 2
        maps = {i + 1: pca_maps(tokens[i]) for i in range(len(tokens) - 1, -1, -step)}
        shown = {d: pictures[d] for d in data}
        files += plot_features(network, shown, dict(sorted(maps.items())), folder / f"pca_{network.lower()}")
    return files
