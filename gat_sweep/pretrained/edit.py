"""Edits of a trained generator's pictures: steps of the style w along a direction (paper A.13).

    directions.safetensors    the directions by name, [D] each, with what they are and the digest of the weights
    NAME.png                  a figure for each direction: a row for each picture, a column for each strength
    edit.json                 the request, the weights, and figures of the directions; written last

Directions are the principal components of w (GANSpace, arXiv 2004.02546), the way from one class to another, the way
from one text to another, or those of a file. A strength of 1 is one standard deviation of w along a component or a way
between texts, or the whole way between two classes. With `optimise`, the pictures follow a text instead (StyleCLIP):

    text.png              a row for each picture, a column every few iterations
    path.json             loss, cosine and distance by iteration and picture
    path.safetensors      w [columns, blocks, pictures, D] of the columns

Its only direction is the mean of the pictures' steps.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gat_sweep.data.tokenizer import Tokenizer, load_decoder
from gat_sweep.errors import UserError
from gat_sweep.files.sheet import labelled_sheet
from gat_sweep.files.storage import Place, write
from gat_sweep.files.weights import weights_digest
from gat_sweep.gat.condition import Condition
from gat_sweep.gat.generator import Generator
from gat_sweep.pretrained.directions import FILE, Direction, read_directions, write_directions
from gat_sweep.pretrained.folder import check_new
from gat_sweep.pretrained.sample import Given, Request, checked, codes, encoded_texts, opened, styled
from gat_sweep.pretrained.styleclip import (
    ClipView,
    Optimisation,
    check_optimisation,
    moved,
    styleclip,
    text_direction,
)
from gat_sweep.text import Eta, Say, silent

STYLES = 4096  # styles at once
TEXT_SAMPLES = 256  # styles for a direction of texts, unless asked otherwise; each is a picture with its gradient


@dataclass(frozen=True)
class Edit:
    """Options of an edit. One of ganspace, between, file, from_to and optimise says which directions.

    ganspace: number of principal components. samples: styles that they, or a direction of texts, are computed from.
    between: two classes. file: directions.safetensors of another edit.
    from_to: the way from one text to another. optimise: towards one text. clip: hub id or folder of a CLIP, for both.
    names: of the file's directions (default: all).
    strengths: of the columns. layers: first and last block that the edit reaches, from 0 (default: all).
    pictures: rows of a figure.
    """

    ganspace: int | None = None
    between: tuple[int, int] | None = None
    file: Path | None = None
    from_to: tuple[str, str] | None = None
    optimise: Optimisation | None = None
    clip: str | None = None
    names: tuple[str, ...] = ()
    samples: int = 10_000
    strengths: tuple[float, ...] = (-3, -2, -1, 0, 1, 2, 3)
    layers: tuple[int, int] | None = None
    pictures: int = 6


def edit_command(
    source: Place,
    out: Path,
    edit: Edit,
    request: Request,
    settings: Mapping[str, Any],
    tokenizer: str | None,
    device: torch.device,
    say: Say = silent,
    encoder: str | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Writes figures of edited pictures, and the directions, to a new folder; returns edit.json and the files.

    request: seed, classes, texts, psi, guidance and batch of the pictures. The rest is as in sample_command.
    Raises UserError, before anything is written, when the source cannot be read or the edit does not fit it.
    """
    check_new(out)
    pretrained = opened(source, settings, tokenizer, encoder)
    generator = pretrained.generator
    _check(edit, generator)
    request = replace(request, count=edit.pictures)
    classes = checked(request, generator.spec)
    decoder = load_decoder(
        pretrained.about.tokenizer, tokenizer, generator.spec.channels, "these latents", "--tokenizer", device
    )
    given = encoded_texts(request, pretrained, encoder, device, say) or classes
    digest = weights_digest(generator)
    generator.to(device).eval().requires_grad_(False)
    sight = _sight(edit, generator, decoder, request.batch, device)
    z_BZ, y = codes(request, generator.spec, given, range(edit.pictures))
    w_BD = styled(generator, request, z_BZ, y)
    figures: dict[str, bytes] = {}
    if edit.optimise is not None:
        assert sight is not None
        figures, step_D, numbers = styleclip(sight, w_BD, y, edit.optimise, digest, say)
        directions, facts = [Direction("text", step_D, f"mean step to: {edit.optimise.text}")], {"text": numbers}
    else:
        directions, facts = _directions(generator, edit, request, given, digest, sight, say)

    drawn = directions if edit.optimise is None else []  # a path has its own figure
    eta = Eta(say, "figures", len(drawn))
    for direction in drawn:
        pictures = edited_pictures(generator, decoder, w_BD, y, direction, edit, request.batch)
        heads = [f"{strength:+g}" if strength else "0" for strength in edit.strengths]
        figures[f"{direction.name}.png"] = labelled_sheet(pictures, len(edit.strengths), direction.about, heads)
        eta.add(1)
    result = {
        "source": source.name,
        "training": pretrained.about.training,
        "weights": digest,
        **{key: str(value) if isinstance(value, Path) else value for key, value in asdict(edit).items()},
        "clip": {"source": edit.clip, "digest": sight.clip.digest} if sight else None,
        **{key: getattr(request, key) for key in ("seed", "classes", "texts", "psi", "guidance")},
        "directions": facts,
        "gat_sweep": version("gat-sweep"),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in figures.items():
        write(out / name, content)
    write_directions(out / FILE, directions, digest)
    write(out / "edit.json", (json.dumps(result, indent=1) + "\n").encode())
    return result, [*(out / name for name in figures), out / FILE, out / "edit.json"]


def principal_components(w_ND: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` principal components of styles, [count, D] with one standard deviation as length, and the
    share of the variance that each explains, [count].

    The largest entry of each is positive, so that the sign does not depend on the samples.
    """
    centred = (w_ND - w_ND.mean(dim=0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(w_ND) - 1))
    values, vectors = values.flip(0).clamp(min=0), vectors.T.flip(0)
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    steps = vectors * largest.sign() * values.sqrt()[:, None]
    return steps[:count].float(), (values / values.sum().clamp(min=1e-30))[:count].float()


def edited_pictures(
    generator: Generator,
    decoder: Tokenizer,
    w_BD: Tensor,
    y: Condition,
    direction: Direction,
    edit: Edit,
    batch: int,
) -> Tensor:
    """Pictures, uint8 [B * strengths, 3, h, w]: a picture at every strength, then the next one."""
    depth = generator.spec.depth
    layers, vector = edit.layers or (0, depth - 1), direction.vector.to(w_BD.device)
    columns = []
    with torch.no_grad():
        for strength in edit.strengths:
            w_LBD = moved(w_BD, vector, strength, layers, depth)
            parts = []
            for start in range(0, len(w_BD), batch):
                part = slice(start, start + batch)
                latents = generator.synthesize(w_LBD[:, part], None if y is None else y[part])[-1]
                parts.append(decoder.decode(latents).cpu())
            columns.append(torch.cat(parts))
    return torch.stack(columns, dim=1).flatten(0, 1)


def _check(edit: Edit, generator: Generator) -> None:
    """Raises UserError when an edit does not fit the generator."""
    spec = generator.spec
    if edit.ganspace is not None and not 1 <= edit.ganspace <= spec.width:
        raise UserError(f"--ganspace {edit.ganspace}: give 1 to {spec.width}, the width of w")
    if edit.ganspace is not None and edit.samples <= spec.width:
        raise UserError(f"--samples {edit.samples}: components of {spec.width} numbers need more; give 10000")
    if edit.between is not None:
        unknown = [y for y in edit.between if not 0 <= y < spec.classes]
        if not spec.classes or unknown or edit.between[0] == edit.between[1]:
            there_are = f"two of the classes 0 to {spec.classes - 1}" if spec.classes else "networks with classes"
            raise UserError(f"--between {edit.between[0]},{edit.between[1]}: give {there_are}")
    if edit.layers is not None and not 0 <= edit.layers[0] <= edit.layers[1] < spec.depth:
        raise UserError(f"--layers {edit.layers[0]}-{edit.layers[1]}: the blocks are 0 to {spec.depth - 1}")
    if edit.from_to is not None and edit.samples < 2:
        raise UserError(f"--samples {edit.samples}: a direction of texts needs 2 or more; give {TEXT_SAMPLES}")
    if edit.from_to is not None and not all(text.strip() for text in edit.from_to):
        raise UserError("--from-text and --to-text: a text is empty; give both")
    if edit.optimise is not None:
        check_optimisation(edit.optimise)
    if edit.pictures < 1:
        raise UserError(f"--pictures {edit.pictures}: give 1 or more")
    if not edit.strengths or not all(map(math.isfinite, edit.strengths)):
        raise UserError("--strengths: give numbers with commas, such as -2,0,2")


def _sight(edit: Edit, generator: Generator, decoder: Tokenizer, batch: int, device: torch.device) -> ClipView | None:
    """What shows pictures to CLIP, for an edit that needs it. Raises UserError when the CLIP cannot be loaded."""
    if edit.from_to is None and edit.optimise is None:
        return None
    assert edit.clip is not None, "an edit by text needs a CLIP"
    from gat_sweep.vision.clip import Clip  # imports transformers, which takes seconds

    return ClipView(generator, decoder, Clip(edit.clip, device), edit.layers or (0, generator.spec.depth - 1), batch)


def _directions(
    generator: Generator,
    edit: Edit,
    request: Request,
    given: Given,
    digest: str,
    sight: ClipView | None,
    say: Say,
) -> tuple[list[Direction], dict[str, Any]]:
    """The directions of an edit, and figures of each by name."""
    if edit.ganspace is not None:
        w_ND = torch.cat([w_BD for w_BD, _ in _styles(generator, edit, request, given, STYLES, say)])
        steps, shares = principal_components(w_ND, edit.ganspace)
        found = [
            Direction(f"component-{i}", step, f"component {i}: {share:.1%} of the variance of w, in deviations")
            for i, (step, share) in enumerate(zip(steps, shares.tolist(), strict=True), start=1)
        ]
        explained = {d.name: {"explained": round(share, 6)} for d, share in zip(found, shares.tolist(), strict=True)}
        return found, explained
    if edit.between is not None:
        start, end = edit.between
        way = generator.style_mean[end] - generator.style_mean[start]
        name = f"class-{start}-to-{end}"
        return [Direction(name, way, f"from class {start} to class {end}")], {
            name: {"length": round(way.norm().item(), 6)}
        }
    if edit.from_to is not None:
        assert sight is not None
        styles = _styles(generator, edit, request, given, request.batch, say)
        vector, numbers = text_direction(sight, styles, *edit.from_to)
        before, after = edit.from_to
        return [Direction("text", vector, f"from '{before}' to '{after}', in deviations")], {"text": numbers}
    assert edit.file is not None
    found = read_directions(edit.file, digest, generator.spec.width)
    names = [direction.name for direction in found]
    for name in edit.names:
        if name not in names:
            raise UserError(f"--name {name}: {edit.file} has {', '.join(names)}")
    return [d for d in found if d.name in (edit.names or names)], {}


def _styles(
    generator: Generator, edit: Edit, request: Request, given: Given, batch: int, say: Say
) -> Iterator[tuple[Tensor, Condition]]:
    """The styles [B, D] that a direction is computed from, with their conditions, in batches."""
    eta = Eta(say, "styles", edit.samples)
    for start in range(0, edit.samples, batch):
        part = range(start, min(start + batch, edit.samples))
        z_BZ, y = codes(request, generator.spec, given, part)
        yield styled(generator, request, z_BZ, y), y
        eta.add(len(part))
