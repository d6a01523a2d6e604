"""Edits that a text asks for, by CLIP's gradients through the decoder and the generator (StyleCLIP, arXiv 2103.17249).

    optimised         section 4, latent optimisation: the style of each picture moves until CLIP sees the text in it
    text_direction    section 6, adapted: one direction of w for all pictures, from two texts

Section 4 has a term that keeps a face's identity. It is left out, as these are not faces. Section 6 measures each
channel of StyleGAN's modulation on its own. Here the direction is one of w: the mean gradient of what CLIP should see
more of.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from gat_sweep.data.tokenizer import Tokenizer
from gat_sweep.errors import UserError
from gat_sweep.files.sheet import labelled_sheet
from gat_sweep.gat.condition import Condition
from gat_sweep.gat.generator import Generator
from gat_sweep.text import Eta, Say

if TYPE_CHECKING:
    from gat_sweep.vision.clip import Clip  # imports transformers, which takes seconds

COLUMNS = 7  # of the figure of a path, its ends included
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the iterations in which the rate rises and falls, as in the released code


@dataclass(frozen=True)
class Optimisation:
    """Options of a latent optimisation: the loss is 1 - cosine(picture, text) + keep * |w - w0|^2, for Adam."""

    text: str
    iterations: int = 100
    rate: float = 0.05  # of Adam
    keep: float = 0.005  # weight of the L2 term


@dataclass(frozen=True)
class ClipView:
    """Generator, decoder and CLIP in sequence. layers: first and last block that an edit reaches. batch: at once."""

    generator: Generator
    decoder: Tokenizer
    clip: "Clip"
    layers: tuple[int, int]
    batch: int

    def moved(self, w_BD: Tensor, step: Tensor) -> Tensor:
        """Styles [L, B, D] after a step [B, D] or [D], the same one in all blocks that the edit reaches."""
        return moved(w_BD, step, 1.0, self.layers, self.generator.spec.depth)

    def pictures(self, w_LBD: Tensor, y: Condition) -> Tensor:
        """Pictures of styles before rounding, [B, 3, h, w] with values 0 to 255 and gradients to the styles."""
        return self.decoder.decode_values(self.generator.synthesize(w_LBD, y)[-1])

    def texts(self, texts: list[str]) -> Tensor:
        """CLIP's embeddings [N, E] of texts. Raises UserError when one is too long for it."""
        for text, cut in zip(texts, self.clip.tokens.ids(texts)[1], strict=True):
            if cut:
                raise UserError(
                    f"the text '{text[:40]}...' has more than CLIP's {self.clip.tokens.most} tokens; shorten it"
                )
        return self.clip.texts(texts)


@dataclass(frozen=True)
class Path:
    """How the styles of B pictures moved in I iterations; S of the steps are kept."""

    kept: list[int]  # steps, from 0 to I
    w: Tensor  # [S, L, B, D]
    pictures: Tensor  # uint8 [S, B, 3, h, w]
    cosine: Tensor  # [I + 1, B], of picture and text before each step and after the last
    distance: Tensor  # [I + 1, B], |w - w0|, counted once and not for each block

    def loss(self, keep: float) -> Tensor:
        """The loss [I + 1, B]."""
        return 1 - self.cosine + keep * self.distance.square()


def moved(w_BD: Tensor, step: Tensor, strength: float, layers: tuple[int, int], depth: int) -> Tensor:
    """Styles [depth, B, D] of edited pictures: w + strength * step in the blocks from layers[0] to layers[1].

    step: [D], or [B, D] for a step of its own for each picture.
    """
    inside = torch.zeros(depth, 1, 1, device=w_BD.device)
    inside[layers[0] : layers[1] + 1] = strength
    return w_BD + inside * step


def optimised(sight: ClipView, w_BD: Tensor, y: Condition, text_E: Tensor, options: Optimisation, say: Say) -> Path:
    """The path of styles by latent optimisation (StyleCLIP, section 4).

    Each picture has a step of its own, shared by the blocks that the edit reaches, so that it is a direction of w.
    Raises UserError when the loss is not finite.
    """
    last = options.iterations
    kept = sorted({round(i * last / (COLUMNS - 1)) for i in range(COLUMNS)})
    eta = Eta(say, "iterations", last * -(-len(w_BD) // sight.batch))
    parts = []
    for start in range(0, len(w_BD), sight.batch):
        which = slice(start, start + sight.batch)
        own, own_y = w_BD[which], y if y is None else y[which]
        step_BD = torch.zeros_like(own, requires_grad=True)
        adam = torch.optim.Adam([step_BD])
        styles, shown, cosines, distances = [], [], [], []
        for i in range(last + 1):
            w_LBD = sight.moved(own, step_BD)
            pictures = sight.pictures(w_LBD, own_y)
            cosine_B = sight.clip.pictures(pictures) @ text_E
            square_B = step_BD.square().sum(dim=1)
            loss = (1 - cosine_B + options.keep * square_B).sum()  # pictures do not see each other
            if not loss.isfinite():
                raise UserError(f"--styleclip: the loss is not finite after {i} iterations; lower --rate")
            cosines.append(cosine_B.detach().cpu())
            distances.append(square_B.detach().sqrt().cpu())
            if i in kept:
                styles.append(w_LBD.detach().cpu())
                shown.append(pictures.detach().round().to(torch.uint8).cpu())
            if i < last:
                adam.param_groups[0]["lr"] = options.rate * _ramp((i + 0.5) / last)
                adam.zero_grad()
                loss.backward()
                adam.step()
                eta.add(1)
        parts.append([torch.stack(values) for values in (styles, shown, cosines, distances)])
    w, shown, cosines, distances = (list(values) for values in zip(*parts, strict=True))
    return Path(kept, torch.cat(w, 2), torch.cat(shown, 1), torch.cat(cosines, 1), torch.cat(distances, 1))


def styleclip(
    sight: ClipView, w_BD: Tensor, y: Condition, options: Optimisation, digest: str, say: Say
) -> tuple[dict[str, bytes], Tensor, dict[str, float]]:
    """A latent optimisation: its files by name, the mean step [D] of the pictures, and figures of it.

    digest: of the generator's weights.
    """
    path = optimised(sight, w_BD, y, sight.texts([options.text])[0], options, say)
    pictures = path.pictures.transpose(0, 1).flatten(0, 1)  # a row for each picture
    heads = [str(step) for step in path.kept]
    written = {
        **asdict(options),
        "weights": digest,
        "clip": sight.clip.digest,
        "kept": path.kept,
        "loss": _rounded(path.loss(options.keep)),
        "cosine": _rounded(path.cosine),
        "distance": _rounded(path.distance),
    }
    files = {
        "text.png": labelled_sheet(pictures, len(heads), f"{options.text}: after so many iterations", heads),
        "path.json": (json.dumps(written, indent=1) + "\n").encode(),
        "path.safetensors": save({"w": path.w.contiguous()}, {"weights": digest}),
    }
    first, final = path.cosine[0].mean().item(), path.cosine[-1].mean().item()
    figures = {"cosine_before": first, "cosine_after": final, "distance": path.distance[-1].mean().item()}
    step_D = (path.w[-1, sight.layers[0]] - w_BD.cpu()).mean(dim=0)
    return files, step_D, {key: round(value, 6) for key, value in figures.items()}


def text_direction(
    sight: ClipView, styles: Iterable[tuple[Tensor, Condition]], before: str, after: str
) -> tuple[Tensor, dict[str, float]]:
    """The direction [D] of w from one text to another, one standard deviation of w long, and figures of it.

    Our adaptation of StyleCLIP's global directions (section 6) to w. dt is the normalised way between the embeddings
    of the texts. The direction is the mean over styles of the gradient of <CLIP(picture), dt> with respect to w.
    styles: (w [B, D], their condition), two styles or more in all. Figures: "gain", the change of <CLIP(picture), dt>
    for a strength of 1 to first order; "agreement", the mean cosine of the styles' gradients with the direction.
    Raises UserError when the texts are the same to CLIP, or nothing changes along them.
    """
    start_E, end_E = sight.texts([before, after])
    if (end_E - start_E).norm() < 1e-6:
        raise UserError(f"--from-text and --to-text: '{before}' and '{after}' are the same to CLIP; give others")
    way_E = F.normalize(end_E - start_E, dim=0)
    gradients, found = [], []
    for w_BD, y in styles:
        step_BD = torch.zeros_like(w_BD, requires_grad=True)
        along = sight.clip.pictures(sight.pictures(sight.moved(w_BD, step_BD), y)) @ way_E
        gradients.append(torch.autograd.grad(along.sum(), step_BD)[0])
        found.append(w_BD)
    gradient_ND, w_ND = torch.cat(gradients), torch.cat(found)
    mean_D = gradient_ND.mean(dim=0)
    unit_D = F.normalize(mean_D, dim=0)
    vector_D = unit_D * (w_ND @ unit_D).std()
    if not (vector_D.isfinite().all() and vector_D.any()):
        raise UserError(
            "--from-text and --to-text: the styles, or what CLIP sees, do not change along them; give other texts or a "
            "larger --psi"
        )
    agreement = F.cosine_similarity(gradient_ND, unit_D[None]).mean()
    figures = {"gain": (mean_D @ vector_D).item(), "agreement": agreement.item()}
    return vector_D, {key: round(value, 6) for key, value in figures.items()}


def check_optimisation(options: Optimisation) -> None:
    """Raises UserError, which names the option, when one is out of range."""
    if not options.text.strip():
        raise UserError("--styleclip: the text is empty; say what the pictures should show")
    if options.iterations < 1:
        raise UserError(f"--iterations {options.iterations}: give 1 or more")
    if not (math.isfinite(options.rate) and options.rate > 0):
        raise UserError(f"--rate {options.rate}: give more than 0, such as 0.05")
    if not (math.isfinite(options.keep) and options.keep >= 0):
        raise UserError(f"--keep {options.keep}: give 0 or more, such as 0.005")


def _ramp(done: float) -> float:
    """Factor of the rate when the share `done` of the iterations is done."""
    falling = min(1.0, (1 - done) / RAMP_DOWN)
    return (0.5 - 0.5 * math.cos(math.pi * falling)) * min(1.0, done / RAMP_UP)


def _rounded(values: Tensor) -> list[Any]:
    return [[round(value, 6) for value in row] for row in values.tolist()]
