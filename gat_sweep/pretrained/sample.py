"""Pictures of a trained generator: samples of chosen classes or captions, or rows between two styles (A.21).

    samples.npz       arr_0: uint8 [N, h, w, 3]; for plain samples also arr_1: their classes, as ADM writes them, or
                      captions: their captions
    grid.png          the first rows x columns pictures; small pictures are enlarged by a whole factor
    sampling.json     the request and the weights; written last

Picture i depends only on the seed and on i: it has its own random stream for its latent code and, if no classes are
given, its class. So more pictures, another batch size or another device change a picture only by float rounding.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gat_sweep.data.tokenizer import load_decoder
from gat_sweep.errors import UserError
from gat_sweep.files.sheet import sheet
from gat_sweep.files.storage import Place, write
from gat_sweep.files.weights import weights_digest
from gat_sweep.gat.condition import Captions, Condition, joined, mixed
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.spec import GeneratorSpec, NullStyle
from gat_sweep.language.load import load_same_encoder
from gat_sweep.pretrained.archive import Archive
from gat_sweep.pretrained.folder import Pretrained, check_new, from_pretrained, from_trial, is_checkpoint
from gat_sweep.text import Eta, Say, silent


@dataclass(frozen=True)
class Request:
    """Options of a sampling.

    classes: classes of the pictures, repeated in order; "all"; or None to draw a class for each picture.
    texts: captions of the pictures, repeated in order, for networks with captions.
    psi, guidance: as in Generator.styled; 1 = off. null: as in Generator.null_style.
    batch: pictures per forward; it changes only time and memory.
    grid: (rows, columns).
    interpolate: makes rows of `columns` pictures each, whose styles lie on a line after truncation and guidance.
        "intra": between two latent codes of one class; row r has class classes[r]. "inter": between two classes with
        one latent code, to show the effect of the class; row r goes from classes[r] to classes[r + 1]. After the last
        class comes the first again. Captions are like classes. `count` is ignored: the grid is filled.
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
    texts: tuple[str, ...] = ()

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
    encoder: str | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Writes samples of a trial's checkpoint (its EMA) or of a folder of save_pretrained to a new folder.

    settings: for a trial, as in from_trial. tokenizer, encoder: places of the tokenizer and of the text encoder now
    (default: the recorded ones).
    Returns the content of sampling.json and the written files.
    Raises UserError, before anything is written, when the source cannot be read, the request does not fit it, the
    tokenizer is another one, or `out` is not empty.
    """
    check_new(out)
    pretrained = opened(source, settings, tokenizer, encoder)
    generator = pretrained.generator
    classes = checked(request, generator.spec)
    request = replace(request, texts=request.texts[: request.pictures])  # the others are not drawn
    decoder = load_decoder(
        pretrained.about.tokenizer, tokenizer, generator.spec.channels, "these latents", "--tokenizer", device
    )
    given = encoded_texts(request, pretrained, encoder, device, say) or classes
    digest = weights_digest(generator)
    generator.to(device).eval().requires_grad_(False)

    shown: list[Tensor] = []
    cells = math.prod(request.grid)
    archive = Archive(out / "samples.npz", request.pictures) if request.npz else None
    eta, done = Eta(say, "pictures", request.pictures), 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        for latents in batches(generator, request, given):
            pictures = decoder.decode(latents).cpu()
            shown.append(pictures[: max(0, cells - done)])
            if archive:
                archive.add(pictures)
            done += len(pictures)
            eta.add(len(pictures))
        labels: dict[str, np.ndarray] = {}
        if request.interpolate is None and generator.spec.classes:
            y_N = codes(request, generator.spec, given, range(request.count))[1]
            assert isinstance(y_N, Tensor)
            labels["arr_1"] = y_N.numpy()
        elif request.interpolate is None and request.texts:
            labels["captions"] = np.array(captions_of(request, request.count))
        if archive:
            archive.close(labels)
    finally:
        if archive:
            archive.discard()
    pictures = torch.cat(shown)
    write(out / "grid.png", sheet(pictures, request.grid[1], captions_of(request, len(pictures))))
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


def captions_of(request: Request, count: int) -> list[str]:
    """Captions of the first pictures; those of an interpolation only where a row has one from end to end."""
    if not request.texts or request.interpolate == "inter":
        return []
    each = request.grid[1] if request.interpolate else 1
    return [request.texts[i // each % len(request.texts)] for i in range(count)]


def encoded_texts(
    request: Request, pretrained: Pretrained, folder: str | None, device: torch.device, say: Say
) -> Captions | None:
    """States of the texts of a request, on the device; None without texts. folder: place of the text encoder now.

    Raises UserError when the text encoder is missing or another one.
    """
    if not request.texts:
        if folder is not None:
            raise UserError("--text-encoder needs --text or --text-file; add one, or leave --text-encoder out")
        return None
    assert pretrained.about.text is not None
    encoder = load_same_encoder(pretrained.about.text, folder, "--text-encoder", device)
    ids, cut = encoder.ids(request.texts)
    if cut.any():
        first = request.texts[int(cut.argmax())]
        say(f"captions cut to their first {ids.shape[1]} tokens: {cut.sum()}, such as '{first[:60]}'")
    parts = [encoder.encode(part.to(device)) for part in torch.from_numpy(ids).split(request.batch)]
    return joined(parts)


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
    if spec.text_width:
        if not request.texts:
            raise UserError("these networks draw captions; give --text or --text-file")
        if request.null != "paper":
            raise UserError("--null official is about classes, and these networks have captions; leave --null out")
    elif request.texts:
        raise UserError("these networks have no captions; leave --text and --text-file out")
    if not spec.classes:
        if classes is not None:
            raise UserError("these networks have no classes; leave --classes out")
        if request.guidance != 1 and not spec.text_width:
            raise UserError("guidance needs classes, and these networks have none; leave --guidance out")
        if request.interpolate == "inter" and not spec.text_width:
            raise UserError("--interpolate inter needs classes, and these networks have none; use --interpolate intra")
    assert classes is None or isinstance(classes, tuple)
    unknown = [y for y in classes or () if not 0 <= y < spec.classes]
    if unknown or classes == ():
        raise UserError(f"--classes {', '.join(map(str, unknown))}: give 0 to {spec.classes - 1}, or all")
    if request.interpolate is not None:
        if request.grid[1] < 2:
            raise UserError("a row of --interpolate needs two ends; give --steps 2 or more")
        if request.interpolate == "inter" and spec.text_width:
            if len(set(request.texts)) < 2:
                raise UserError("--interpolate inter goes between captions; give --text twice or more")
        elif request.interpolate == "inter" and (spec.classes < 2 or (classes is not None and len(set(classes)) < 2)):
            raise UserError("--interpolate inter goes between classes; give two or more --classes")
    elif not request.npz and request.count > math.prod(request.grid):
        raise UserError(
            f"--no-npz keeps only the {math.prod(request.grid)} pictures of the grid, but --count is {request.count}; "
            "lower it, or make --grid larger"
        )
    return classes


Given = tuple[int, ...] | Captions | None  # classes or captions of the pictures in turn; None: classes are drawn
Style = tuple[Tensor, Condition]  # w [B, D], and what the backbone reads besides


def batches(generator: Generator, request: Request, given: Given) -> Iterator[Tensor]:
    """Latents [n, C, Y, X] of the pictures, in order, in batches of `request.batch`; each is one forward."""
    style = _lines(generator, request, given) if request.interpolate else _plain(generator, request, given)
    with torch.no_grad():
        for start in range(0, request.pictures, request.batch):
            w_BD, y = style(range(start, min(start + request.batch, request.pictures)))
            yield generator.synthesize(w_BD, y)[-1]


def codes(request: Request, spec: GeneratorSpec, given: Given, pictures: range) -> tuple[Tensor, Condition]:
    """Latent codes [n, z_dim] of pictures, and their classes [n] or captions; None for networks without either."""
    codes, drawn = [], []
    for i in pictures:
        random = np.random.default_rng((request.seed, i))  # hashes both; torch uses only 32 bits of a CPU seed
        codes.append(random.standard_normal(spec.z_dim, dtype=np.float32))
        drawn.append(int(random.integers(max(1, spec.classes))))
    z = torch.from_numpy(np.stack(codes))
    if isinstance(given, Captions):
        return z, in_turn(given, list(pictures))
    if not spec.classes:
        return z, None
    return z, torch.tensor([given[i % len(given)] for i in pictures] if given else drawn)


def in_turn(given: Captions, pictures: list[int]) -> Captions:
    """The captions of pictures by number; after the last comes the first again."""
    return given[torch.tensor(pictures, device=given.words.device) % len(given)]


def _plain(generator: Generator, request: Request, given: Given) -> Callable[[range], Style]:
    def style(pictures: range) -> Style:
        z, y = codes(request, generator.spec, given, pictures)
        return styled(generator, request, z, y), y

    return style


def _lines(generator: Generator, request: Request, given: Given) -> Callable[[range], Style]:
    """Styles along the rows. The ends of row r have codes 2r and 2r + 1 ("inter": both have code 2r)."""
    rows, columns = request.grid
    spec = generator.spec
    inter = request.interpolate == "inter"
    z, drawn = codes(request, spec, None, range(2 * rows))
    firsts = torch.arange(0, 2 * rows, 2)
    lasts = firsts if inter else firsts + 1
    start_y: Condition = None
    end_y: Condition = None
    if isinstance(given, Captions):
        start_y, end_y = (in_turn(given, [row + step for row in range(rows)]) for step in (0, int(inter)))
    elif isinstance(drawn, Tensor):
        start_y, end_y = drawn[firsts], drawn[firsts]
        if inter:
            # The end is one of the other classes, so that a row never stays in one class.
            end_y = (start_y + 1 + drawn[firsts + 1] % (spec.classes - 1)) % spec.classes
        if given is not None:
            start_y = torch.tensor([given[row % len(given)] for row in range(rows)])
            next_y = torch.tensor([given[(row + 1) % len(given)] for row in range(rows)])
            end_y = next_y if inter else start_y
    start_RD = styled(generator, request, z[firsts], start_y)
    end_RD = styled(generator, request, z[lasts], end_y)

    def style(pictures: range) -> Style:
        number = torch.tensor(pictures, device=start_RD.device)
        row, part_B1 = number // columns, (number % columns / (columns - 1))[:, None]
        w_BD = (1 - part_B1) * start_RD[row] + part_B1 * end_RD[row]
        if isinstance(start_y, Captions) and isinstance(end_y, Captions):
            return w_BD, mixed(start_y[row], end_y[row], part_B1[:, 0])
        return w_BD, None

    return style


def styled(generator: Generator, request: Request, z_BZ: Tensor, y: Condition) -> Tensor:
    """Styles w [B, D] of codes, with truncation and guidance as requested."""
    device = generator.style_mean.device
    y = None if y is None else y.to(device)
    return generator.styled(z_BZ.to(device), y, request.psi, request.guidance, request.null)


def opened(source: Place, settings: Mapping[str, Any], tokenizer: str | None, encoder: str | None) -> Pretrained:
    """The networks of a trial's checkpoint or of a folder of save_pretrained; arguments as of sample_command."""
    if is_checkpoint(source):
        places = {"data.tokenizer": tokenizer, "text.folder": encoder}
        return from_trial(source, {**settings, **{key: place for key, place in places.items() if place}})
    if settings:
        raise UserError(f"--set {next(iter(settings))}: a folder of networks uses no data; leave --set out")
    return from_pretrained(source)
