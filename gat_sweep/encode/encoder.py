"""Encoding of one unit of work into a shard, without Ray.

The content of a shard depends only on its unit, not on the worker, the time or other units. A unit that was not
recorded as done is encoded again, under the same name and to the same bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gat_sweep.data.captions import CaptionColumns
from gat_sweep.data.shards import SHARDS, CachedTeacher, Columns, Skipped, StoredText, float16, write_shard
from gat_sweep.data.tokenizer import PIXELS, Tokenizer, TokenizerIdentity, load_tokenizer
from gat_sweep.encode.ledger import Done
from gat_sweep.encode.sources import Loaded
from gat_sweep.encode.units import Source
from gat_sweep.errors import UserError
from gat_sweep.language.encoder import TextEncoder
from gat_sweep.language.load import load_text_encoder

if TYPE_CHECKING:  # imports timm, which only --teacher needs
    from gat_sweep.vision.teacher import Teacher


@dataclass(frozen=True)
class Encoding:
    """Settings of an encoding, the same for every worker."""

    source: Source
    out: str  # folder of the data set
    tokenizer: TokenizerIdentity
    picture_side: int
    batch: int  # images per forward of the networks
    store_images: bool  # store pictures with latents; pixels already are pictures
    teacher: CachedTeacher | None
    teacher_grid: int
    teacher_checkpoint: str | None
    text: StoredText | None = None  # None without captions

    @property
    def runs_networks(self) -> bool:
        """Whether an encoder runs a network, and does not only write what was read."""
        if self.teacher is not None or (self.text is not None and self.text.states):
            return True
        return self.tokenizer.source != PIXELS and self.source.kind != "latents"


class Encoder:
    """Encodes units on a device and writes them; loads the networks when the first unit needs them."""

    def __init__(self, encoding: Encoding, device: str = "cpu"):
        self.encoding, self.device = encoding, device

    def write(self, index: int, loaded: Loaded) -> Done:
        """Encodes a unit from read_unit and writes its shard, unless all of its images are unusable."""
        arrays: dict[str, np.ndarray] = {}
        count = len(loaded.names)
        good, why = np.ones(count, bool), {}
        if loaded.moments is not None:
            arrays["mean"], arrays["std"] = np.split(loaded.moments, 2, axis=1)
        elif loaded.pictures is not None and self.encoding.tokenizer.source != PIXELS:
            arrays["mean"], arrays["std"] = self._batched(self.tokenizer.encode, loaded.pictures)
        if self.encoding.teacher and loaded.pictures is not None:
            arrays["teacher"] = self._batched(lambda part: (self.teacher.tokens(part),), loaded.pictures)[0]
        for name, values in arrays.items():
            arrays[name], fits = float16(values)
            for i in np.flatnonzero(good & ~fits):
                why[i] = f"not finite: {name} in float16, whose largest value is 65504"
            good &= fits
        skipped = [*loaded.skipped, *((loaded.names[i], reason) for i, reason in why.items())]
        shard, cut = None, 0
        if good.any():
            captions = None
            if self.encoding.text is not None:
                captions, cut = self._captions(
                    [texts for texts, keep in zip(loaded.captions, good, strict=True) if keep]
                )
            if self.encoding.tokenizer.source == PIXELS and loaded.pictures is not None:
                arrays["pixels"] = loaded.pictures
            columns = Columns(
                labels=np.asarray(loaded.labels, np.int32)[good],
                sources=[name for name, keep in zip(loaded.names, good, strict=True) if keep],
                images=[image for image, keep in zip(loaded.images, good, strict=True) if keep]
                if loaded.images
                else None,
                captions=captions,
                **{name: values if good.all() else values[good] for name, values in arrays.items()},
            )
            shard = write_shard(Path(self.encoding.out) / SHARDS / f"{index:05d}.arrow", columns)
        return Done(unit=index, shard=shard, skipped=tuple(Skipped(source=s, reason=r) for s, r in skipped), cut=cut)

    def _captions(self, texts: Sequence[Sequence[str]]) -> tuple[CaptionColumns, int]:
        """Captions of some images as a shard stores them, and how many have more tokens than are stored.

        Raises UserError for states that are not finite in float16.
        """
        ids, cut = self.text.ids(list(chain.from_iterable(texts)))
        if self.encoding.text is None or not self.encoding.text.states:
            return CaptionColumns(texts, ids), int(cut.sum())

        def states(part: Tensor) -> tuple[Tensor, ...]:
            captions = self.text.encode(part)
            return captions.words.half(), captions.sentence.half()

        words, sentence = self._batched(states, ids)
        if not np.isfinite(words).all() or not np.isfinite(sentence).all():
            raise UserError(f"states of '{self.text.identity.name}' do not fit into float16; leave out --store-text")
        return CaptionColumns(texts, ids, words, sentence), int(cut.sum())

    @cached_property
    def text(self) -> TextEncoder:
        """The text encoder, loaded here. Raises UserError when it differs from the one in the encoding."""
        assert self.encoding.text is not None
        expected = self.encoding.text.encoder
        encoder = load_text_encoder(expected.name, expected.tokens, device=self.device)
        if encoder.identity != expected:
            raise UserError(f"'{expected.name}' on this machine differs from the one on the first; copy that here")
        return encoder

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded here. Raises UserError when it differs from the one in the encoding."""
        identity = self.encoding.tokenizer
        tokenizer = load_tokenizer(identity.source, self.device)
        if tokenizer.identity != identity:
            raise UserError(f"'{identity.source}' on this machine differs from the one on the first; copy that here")
        return tokenizer

    @cached_property
    def teacher(self) -> "Teacher":
        """The teacher, loaded here. Raises UserError when it differs from the one in the encoding."""
        from gat_sweep.vision.teacher import load_teacher

        expected = self.encoding.teacher
        assert expected is not None
        teacher = load_teacher(
            expected.name, self.encoding.teacher_checkpoint, self.encoding.teacher_grid, torch.device(self.device)
        )
        if teacher.digest != expected.digest:
            raise UserError(f"'{expected.name}' on this machine differs from the one on the first; copy that here")
        return teacher

    def _batched(self, network: Callable[[Tensor], tuple[Tensor, ...]], inputs: np.ndarray) -> list[np.ndarray]:
        """Outputs of the network for all inputs, in batches that are always full.

        The last batch repeats its last input, because libraries use different arithmetic for other batch sizes.
        """
        batch, count = self.encoding.batch, len(inputs)
        parts = []
        for start in range(0, count, batch):
            index = np.minimum(np.arange(start, start + batch), count - 1)
            outputs = network(torch.from_numpy(inputs[index]).to(self.device))
            parts.append([output[: count - start].cpu().numpy() for output in outputs])
        return [np.concatenate(part) for part in zip(*parts, strict=True)]
