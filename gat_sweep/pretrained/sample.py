"""Pictures of a trained generator: samples of chosen classes, or rows that interpolate between two styles (A.21).

    samples.npz       arr_0: uint8 [N, h, w, 3]; for plain samples also arr_1: their classes, as ADM writes them
    grid.png          the first rows x columns pictures; small pictures are enlarged by a whole factor
    sampling.json     the request and the weights; written last

Picture i depends only on the seed and on i: it has its own random stream for its latent code and, if no classes are
given, its class. So more pictures, another batch size or another device change a picture only by float rounding.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gat_sweep.data.tokenizer import load_decoder
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, write
from gat_sweep.files.weights import weights_digest
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.spec import GeneratorSpec, NullStyle
from gat_sweep.pretrained.folder import Pretrained, check_new, from_pretrained, from_trial, is_checkpoint
from gat_sweep.pretrained.sheet import sheet
from gat_sweep.text import Eta, Say, silent


@dataclass(frozen=True)
class Request:
    """Options of a sampling.

    classes: classes of the pictures, repeated in order; "all"; or None to draw a class for each picture.
    psi, guidance: as in Generator.styled; 1 = off. null: as in Generator.null_style.
    batch: pictures per forward; it changes only time and memory.
    grid: (rows, columns).
    interpolate: makes rows of `columns` pictures each, whose styles lie on a line after truncation and guidance.
        "intra": between two latent codes of one class; row r has class classes[r]. "inter": between two classes with
        one latent code, to show the effect of the class; row r goes from classes[r] to classes[r + 1]. After the last
        class comes the first again. `count` is ignored: the grid is filled.
    """

    count: int = 64
    classes: tuple[int, ...] | str | None = None
    psi: float = 1.0
    guidance: float = 1.0
    null: NullStyle = "paper"
    seed: int = 0
    batch: int = 32
    grid: tuple[int, int] = (8, 8)
    npz: bool = True
    interpolate: str | None = None

    @property
    def pictures(self) -> int:
        return self.count if self.interpolate is None else math.prod(self.grid)


def sample_command(
    source: Place,
    out: Path,
    request: Request,
    settings: Mapping[str, Any],
    tokenizer: str | None,
    device: torch.device,
    say: Say = silent,
) -> tuple[dict[str, Any], list[Path]]:
    """Writes samples of a trial's checkpoint (its EMA) or of a folder of save_pretrained to a new folder.

    settings: for a trial, as in from_trial. tokenizer: place of the tokenizer now (default: the recorded place).
    Returns the content of sampling.json and the written files.
    Raises UserError, before anything is written, when the source cannot be read, the request does not fit it, the
    tokenizer is another one, or `out` is not empty.
    """
    check_new(out)
    pretrained = opened(source, settings, tokenizer)
    generator = pretrained.generator
    classes = checked(request, generator.spec)
    decoder = load_decoder(
        pretrained.about.tokenizer, tokenizer, generator.spec.channels, "these latents", "--tokenizer", device
    )
    digest = weights_digest(generator)
    generator.to(device).eval().requires_grad_(False)

    shown: list[Tensor] = []
    cells = math.prod(request.grid)
    archive = Archive(out / "samples.npz", request.pictures) if request.npz else None
    eta, done = Eta(say, "pictures", request.pictures), 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        for latents in batches(generator, request, classes):
            pictures = decoder.decode(latents).cpu()
            shown.append(pictures[: max(0, cells - done)])
            if archive:
                archive.add(pictures)
            done += len(pictures)
            eta.add(len(pictures))
        labels = None
        if generator.spec.classes and request.interpolate is None:
            labels = codes(request, generator.spec, classes, range(request.count))[1]
        if archive:
            archive.close(labels)
    finally:
        if archive:
            archive.discard()
    write(out / "grid.png", sheet(torch.cat(shown), request.grid[1]))
    files = [out / "grid.png", out / "sampling.json"]
    if request.npz:
        files.insert(0, out / "samples.npz")
    result = {
        "source": source.name,
        "training": pretrained.about.training,
        "weights": digest,
        "tokenizer": asdict(decoder.identity),
        **asdict(request),
        "count": request.pictures,
        "device": device.type,
        "gat_sweep": version("gat-sweep"),
    }
    write(out / "sampling.json", (json.dumps(result, indent=1) + "\n").encode())
    return result, files


def checked(request: Request, spec: GeneratorSpec) -> tuple[int, ...] | None:
    """Classes of a request; None if they are drawn or there are none. Raises UserError for invalid requests."""
    for option, value, least in [
        ("--count", request.count, 1),
        ("--batch", request.batch, 1),
        ("--seed", request.seed, 0),
        ("--grid", min(request.grid), 1) if request.interpolate is None else ("--rows", request.grid[0], 1),
    ]:
        if value < least:
            raise UserError(f"{option} {value}: give {least} or more")
    for option, number in [("--psi", request.psi), ("--guidance", request.guidance)]:
        if not (math.isfinite(number) and number >= 0):
            raise UserError(f"{option} {number}: give 0 or more; 1 means off")
    classes = tuple(range(spec.classes)) if request.classes == "all" else request.classes
    if not spec.classes:
        if classes is not None:
            raise UserError("these networks have no classes; leave --classes out")
        if request.guidance != 1:
            raise UserError("guidance needs classes, and these networks have none; leave --guidance out")
        if request.interpolate == "inter":
            raise UserError("--interpolate inter needs classes, and these networks have none; use --interpolate intra")
    assert classes is None or isinstance(classes, tuple)
    unknown = [y for y in classes or () if not 0 <= y < spec.classes]
    if unknown or classes == ():
        raise UserError(f"--classes {', '.join(map(str, unknown))}: give 0 to {spec.classes - 1}, or all")
    if request.interpolate is not None:
        if request.grid[1] < 2:
            raise UserError("a row of --interpolate needs two ends; give --steps 2 or more")
        if request.interpolate == "inter" and (spec.classes < 2 or (classes is not None and len(set(classes)) < 2)):
            raise UserError("--interpolate inter goes between classes; give two or more --classes")
    elif not request.npz and request.count > math.prod(request.grid):
        raise UserError(
            f"--no-npz keeps only the {math.prod(request.grid)} pictures of the grid, but --count is {request.count}; "
            "lower it, or make --grid larger"
        )
    return classes


def batches(generator: Generator, request: Request, classes: tuple[int, ...] | None) -> Iterator[Tensor]:
    """Latents [n, C, Y, X] of the pictures, in order, in batches of `request.batch`; each is one forward."""
    style = _lines(generator, request, classes) if request.interpolate else _plain(generator, request, classes)
    with torch.no_grad():
        for start in range(0, request.pictures, request.batch):
            w_BD = style(range(start, min(start + request.batch, request.pictures)))
            yield generator.synthesize(w_BD)[-1]


def codes(
    request: Request, spec: GeneratorSpec, classes: tuple[int, ...] | None, pictures: range
) -> tuple[Tensor, Tensor | None]:
    """Latent codes [n, z_dim] of pictures, and their classes [n], given or drawn; None for networks without classes."""
    codes, drawn = [], []
    for i in pictures:
        random = np.random.default_rng((request.seed, i))  # hashes both; torch uses only 32 bits of a CPU seed
        codes.append(random.standard_normal(spec.z_dim, dtype=np.float32))
        drawn.append(int(random.integers(max(1, spec.classes))))
    z = torch.from_numpy(np.stack(codes))
    if not spec.classes:
        return z, None
    return z, torch.tensor([classes[i % len(classes)] for i in pictures] if classes else drawn)


def _plain(generator: Generator, request: Request, classes: tuple[int, ...] | None) -> Callable[[range], Tensor]:
    def style(pictures: range) -> Tensor:
        return styled(generator, request, *codes(request, generator.spec, classes, pictures))

    return style


def _lines(generator: Generator, request: Request, classes: tuple[int, ...] | None) -> Callable[[range], Tensor]:
    """Styles along the rows. The ends of row r have codes 2r and 2r + 1 ("inter": both have code 2r)."""
    rows, columns = request.grid
    spec = generator.spec
    z, drawn = codes(request, spec, None, range(2 * rows))
    firsts = torch.arange(0, 2 * rows, 2)
    lasts = firsts if request.interpolate == "inter" else firsts + 1
    start_y, end_y = None, None
    if drawn is not None:
        start_y, end_y = drawn[firsts], drawn[firsts]
        if request.interpolate == "inter":
            # The end is one of the other classes, so that a row never stays in one class.
            end_y = (start_y + 1 + drawn[firsts + 1] % (spec.classes - 1)) % spec.classes
        if classes is not None:
            start_y = torch.tensor([classes[row % len(classes)] for row in range(rows)])
            next_y = torch.tensor([classes[(row + 1) % len(classes)] for row in range(rows)])
            end_y = next_y if request.interpolate == "inter" else start_y
    start_RD = styled(generator, request, z[firsts], start_y)
    end_RD = styled(generator, request, z[lasts], end_y)

    def style(pictures: range) -> Tensor:
        number = torch.tensor(pictures, device=start_RD.device)
        row, part_B1 = number // columns, (number % columns / (columns - 1))[:, None]
        return (1 - part_B1) * start_RD[row] + part_B1 * end_RD[row]

    return style


def styled(generator: Generator, request: Request, z_BZ: Tensor, y_B: Tensor | None) -> Tensor:
    """Styles w [B, D] of codes, with truncation and guidance as requested."""
    device = generator.style_mean.device
    y_B = None if y_B is None else y_B.to(device)
    return generator.styled(z_BZ.to(device), y_B, request.psi, request.guidance, request.null)


class Archive:
    """An npz that grows batch by batch (50,000 pictures of 256x256 are 10 GB); it appears complete or not at all."""

    def __init__(self, path: Path, count: int):
        self.path, self.count = path, count
        self.temporary = path.with_name(f".{path.name}.tmp")
        self.zip: zipfile.ZipFile | None = None
        self.array: Any = None

    def add(self, pictures: Tensor) -> None:
        """Appends pictures, uint8 [n, 3, h, w]."""
        values = np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())
        if self.zip is None:
            self.zip = zipfile.ZipFile(self.temporary, "w")
            self.array = self.zip.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True)
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *values.shape[1:])}
            np.lib.format.write_array_header_1_0(self.array, header)
        self.array.write(values)

    def close(self, labels: Tensor | None) -> None:
        """Writes the labels [N] as arr_1, and puts the complete file in place."""
        assert self.zip is not None
        self.array.close()
        if labels is not None:
            content = io.BytesIO()
            np.lib.format.write_array(content, labels.numpy(), allow_pickle=False)
            self.zip.writestr(zipfile.ZipInfo("arr_1.npy"), content.getvalue())
        self.zip.close()
        with open(self.temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)

    def discard(self) -> None:
        """Removes an incomplete file; does nothing after close()."""
        self.temporary.unlink(missing_ok=True)


def opened(source: Place, settings: Mapping[str, Any], tokenizer: str | None) -> Pretrained:
    """The networks of a trial's checkpoint or of a folder of save_pretrained; settings, tokenizer: as above."""
    if is_checkpoint(source):
        return from_trial(source, {**settings, **({"data.tokenizer": tokenizer} if tokenizer else {})})
    if settings:
        raise UserError(f"--set {next(iter(settings))}: a folder of networks uses no data; leave --set out")
    return from_pretrained(source)
