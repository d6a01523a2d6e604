"""The data set of a config: latents for training, and real pictures to compare generated ones with."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gat_sweep.config import Data, TrialConfig
from gat_sweep.data.builtin import BUILT_IN, BuiltIn
from gat_sweep.data.rows import Rows
from gat_sweep.data.shards import CachedTeacher, StoredText, open_shards
from gat_sweep.data.tokenizer import PIXELS, Pixels, Tokenizer, TokenizerIdentity, load_decoder
from gat_sweep.errors import UserError


class Dataset(Protocol):
    """A data set that several threads may read at the same time."""

    name: str
    digest: str  # of the content, 12 hex digits
    labels: Tensor  # [N] int64, zeros when there are no classes
    classes: int
    identity: TokenizerIdentity
    cached_teacher: CachedTeacher | None
    has_pictures: bool  # original pictures; pictures decoded by a VAE are not the real data
    text: StoredText | None  # how captions are stored; None without captions

    def __len__(self) -> int: ...

    def rows(
        self,
        indices: Sequence[int] | np.ndarray,
        pictures: bool = False,
        teacher: bool = False,
        captions: np.ndarray | None = None,
    ) -> Rows:
        """Images by index, in the order given, with their pictures or cached teacher tokens if asked for.

        captions: numbers [n] in [0, 1) that choose a caption of each image, where captions are asked for.
        """

    def caption_texts(self, indices: Sequence[int] | np.ndarray, draws: np.ndarray) -> list[str]:
        """The words of the captions that the same numbers choose in `rows`."""


class Encoded:
    """A data set that `gat-sweep encode` wrote, memory-mapped."""

    def __init__(self, folder: str):
        self.shards = open_shards(folder)
        manifest = self.shards.manifest
        self.name, self.digest, self.identity = manifest.name, manifest.digest, manifest.tokenizer
        self.cached_teacher, self.text = manifest.teacher, manifest.text
        self.has_pictures, self.classes = manifest.has_pictures, len(manifest.classes)
        self.labels = torch.from_numpy(self.shards.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(
        self,
        indices: Sequence[int] | np.ndarray,
        pictures: bool = False,
        teacher: bool = False,
        captions: np.ndarray | None = None,
    ) -> Rows:
        index = np.asarray(indices)
        std: Tensor | None = None
        if self.identity.source == PIXELS:
            mean, _ = Pixels(3).encode(torch.from_numpy(self.shards.pictures(index)))
        else:
            raw_mean, raw_std = (torch.from_numpy(part) for part in self.shards.moments(index))
            mean = (raw_mean - self.identity.shift) * self.identity.scale
            std = raw_std * self.identity.scale
        ids, states = (None, None) if captions is None else self.shards.captions(index, captions)
        return Rows(
            mean,
            std,
            self.labels[index],
            torch.from_numpy(self.shards.pictures(index)) if pictures else None,
            torch.from_numpy(self.shards.teacher(index)) if teacher else None,
            None if ids is None else torch.from_numpy(ids),
            None if states is None else torch.from_numpy(states[0]),
            None if states is None else torch.from_numpy(states[1]),
        )

    def caption_texts(self, indices: Sequence[int] | np.ndarray, draws: np.ndarray) -> list[str]:
        return self.shards.caption_texts(indices, draws)


@lru_cache(maxsize=2)  # trials of a pack share a data set
def _open(dataset: str, path: str | None, side: int, channels: int) -> Dataset:
    return BUILT_IN[dataset](side, channels) if dataset in BUILT_IN else Encoded(path or "")


def load_dataset(config: Data) -> Dataset:
    """The data set that a config names.

    Raises UserError when it is missing or does not fit the config's side, channels and classes.
    """
    if config.dataset not in BUILT_IN and not config.path:
        raise UserError("data.path is not set; write a data set with `gat-sweep encode` and add --set data.path=FOLDER")
    dataset = _open(config.dataset, config.path, config.side, config.channels)
    first = dataset.rows([0])
    found = {
        "data.side": first.mean.shape[2],
        "data.channels": first.mean.shape[1],
        "data.classes": dataset.classes if config.classes else 0,  # an unconditional trial ignores the labels
    }
    asked = {"data.side": config.side, "data.channels": config.channels, "data.classes": config.classes}
    wrong = [f"{key}={found[key]}, the config says {asked[key]}" for key in asked if asked[key] != found[key]]
    if wrong:
        raise UserError(f"data set '{dataset.name}' has {'; '.join(wrong)}; set the values of the data set")
    return dataset


def check_needs(config: TrialConfig, dataset: Dataset) -> None:
    """Raises UserError when the data set lacks what the trial's teacher or its text encoder needs."""
    _check_teacher(config, dataset)
    check_text(config, dataset)


def check_text(config: TrialConfig, dataset: Dataset) -> None:
    """Raises UserError when the data set lacks what the trial's text encoder needs."""
    asked = config.text
    if asked is None:
        return
    if isinstance(dataset, BuiltIn):
        if not dataset.captions:
            raise UserError(f"data set '{dataset.name}' has no captions; set text=null, or data.dataset=emoji")
        if asked.cached:
            raise UserError("text.cached needs stored states, which a built-in data set lacks; set text.cached=false")
        return
    stored = dataset.text
    if stored is None:
        raise UserError(
            f"data set '{dataset.name}' has no captions; encode it with --captions --text-encoder {asked.name}, or set "
            "text=null"
        )
    found = (stored.encoder.tokens, stored.encoder.width)  # which tokenizer it is tells data/condition.py
    if found != (asked.tokens, asked.width):
        raise UserError(
            f"data set '{dataset.name}' has captions for {stored.encoder.name} with {found[0]} tokens of width "
            f"{found[1]}, the config says {asked.name} with {asked.tokens} of {asked.width}; set "
            f"text.tokens={found[0]} and text.width={found[1]}, or encode it again"
        )
    if asked.cached and not stored.states:
        raise UserError(
            f"data set '{dataset.name}' has no states of its captions; encode it with --store-text, or set "
            "text.cached=false"
        )


def _check_teacher(config: TrialConfig, dataset: Dataset) -> None:
    teacher = config.teacher
    if teacher is None or config.discriminator_spec.teacher_width == 0:
        return
    if not teacher.cached:
        if not dataset.has_pictures:
            raise UserError(
                f"teacher '{teacher.name}' needs pictures, which data set '{dataset.name}' lacks; encode it with "
                "--store-images, or set teacher=null"
            )
        return
    if isinstance(dataset, BuiltIn):
        return  # the tokens of so few images are computed and kept in memory (vision/teacher.py)
    if config.objective.align_view == "official":
        raise UserError(
            "objective.align_view=official needs pictures, as stored tokens are of pictures resized with antialias; "
            "set teacher.cached=false, or objective.align_view=paper"
        )
    grid = config.data.side // config.model.patch
    asked = (teacher.name, 1 + grid**2, teacher.width)
    stored = dataset.cached_teacher
    if stored is None or (stored.name, stored.tokens, stored.width) != asked:
        has = f"{stored.name} with {stored.tokens} tokens of width {stored.width}" if stored else "none"
        raise UserError(
            f"teacher.cached needs {asked[1]} stored tokens of width {asked[2]} of {asked[0]}, but data set "
            f"'{dataset.name}' has {has}; encode with --teacher {teacher.name} --teacher-grid {grid}, or set "
            "teacher.cached=false"
        )


def dataset_decoder(config: TrialConfig, dataset: Dataset, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer that a data set was encoded with, as eval.decoder says.

    Raises UserError when data.tokenizer is another one.
    """
    whose, tf32 = f"data set '{dataset.name}'", config.eval.decoder == "tf32"
    place = config.data.tokenizer
    return load_decoder(dataset.identity, place, config.data.channels, whose, "data.tokenizer", device, tf32)
