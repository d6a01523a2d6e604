"""The encoding of a data set: it plans the units, encodes those that are missing, and writes the manifest."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gat_sweep.data.shards import SHARDS, CachedTeacher, Manifest, StoredText, open_shards, write_manifest
from gat_sweep.data.tokenizer import PIXELS, TokenizerIdentity, load_tokenizer
from gat_sweep.encode.captions import with_captions
from gat_sweep.encode.encoder import Encoding
from gat_sweep.encode.latents import plan_latents
from gat_sweep.encode.ledger import Done, Ledger, locked
from gat_sweep.encode.on_ray import run_on_ray
from gat_sweep.encode.sources import plan_images
from gat_sweep.encode.units import NO_CAPTION, Plan, Unit
from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_no_credentials
from gat_sweep.language.flops import WORDLLAMA
from gat_sweep.language.load import load_text_encoder

LINE_EVERY = 30.0  # seconds between plain lines without a terminal
RATE_AFTER = 3.0  # seconds after the first unit; at the beginning several units are done at once
SHOWN_BAD = 3  # unusable images that a line names


@dataclass(frozen=True)
class EncodeJob:
    """Options of `gat-sweep encode`."""

    out: Path
    tokenizer: str  # "pixels", or a VAE (see load_tokenizer)
    images: str | None = None  # folder, zip or parquet (see plan_images); with latents, the folder of their pictures
    latents: str | None = None  # folder that the tool of edm2 or REPA wrote, to import instead of encoding
    teacher: str | None = None  # network whose tokens are stored
    teacher_checkpoint: str | None = None
    teacher_grid: int | None = None  # tokens per side (default: half of the latent's side)
    store_images: bool = False  # store pictures, lossless, with the latents of a VAE
    size: int = 256  # side of the pictures; for imported latents it follows from the latents and the VAE
    label_column: str | None = None  # of parquet files
    follow_links: bool = False  # of folders
    captions: str | None = None  # file, column or "txt" (see with_captions)
    caption_column: str | None = None  # of a .jsonl of captions
    text_encoder: str | None = None  # whose token ids are stored (see load_text_encoder; default: wordllama)
    text_tokens: int | None = None  # of a caption (default: the text encoder's)
    store_text: bool = False  # store the text encoder's states, for small sets
    shard_size: int = 1024  # images
    batch: int = 16  # images per forward of the networks
    max_bad: int = 100  # stop when more images than this are unusable
    address: str | None = None  # a Ray cluster ("auto") whose nodes see the same folders (default: this machine)
    cpus: int | None = None  # CPUs of this machine to use, without an address (default: all)
    gpus: int | None = None  # GPUs of this machine to use, without an address (default: all)


# Encodes units in any order and yields each when it is done. The last arguments are EncodeJob's address, cpus, gpus.
Run = Callable[[Encoding, list[Unit], str | None, int | None, int | None], Generator[Done, None, None]]


def encode(job: EncodeJob, console: Console, run: Run = run_on_ray) -> Manifest:
    """Encodes a data set into job.out; a second call with the same job continues where the first stopped.

    Raises UserError for input that cannot be encoded, a folder with other content, and too many unusable images.
    """
    for option in ("out", "tokenizer", "images", "latents", "teacher_checkpoint", "captions", "text_encoder"):
        if value := getattr(job, option):
            check_no_credentials(str(value), f"--{option.replace('_', '-')}")
    # Folders have full paths, because workers and later decoders run in other folders.
    tokenizer = load_tokenizer(
        os.path.abspath(job.tokenizer) if os.path.isdir(job.tokenizer) else job.tokenizer
    ).identity
    text = _text(job)
    plan, size = _plan(job, tokenizer)
    if job.captions is not None:
        plan = with_captions(plan, job.captions, job.caption_column)
        _check_captions(job, plan)
    side = size // tokenizer.factor
    grid = job.teacher_grid or max(1, side // 2)
    teacher = _teacher(job, grid) if job.teacher else None
    store_images = job.store_images and tokenizer.source != PIXELS
    identity = {
        "inputs": plan.digest,
        "images": len(plan),
        "tokenizer": tokenizer.digest or tokenizer.source,
        "teacher": teacher.model_dump() if teacher else None,
        "size": size,
        "shard_size": job.shard_size,
        "store_images": store_images,
    }
    if text is not None:
        identity["text"] = text.model_dump(exclude={"encoder": {"name"}})
    out = Path(os.path.abspath(job.out))
    with locked(out, lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False)):
        ledger = Ledger(out, identity)
        if ledger.finished:
            manifest = open_shards(out).manifest
            console.print(f"{out} is already encoded: {manifest.count:,} images", soft_wrap=True, highlight=False)
            return manifest
        for note in plan.notes:
            console.print(note, soft_wrap=True, highlight=False, markup=False)
        encoding = Encoding(
            plan.source,
            str(out),
            tokenizer,
            size,
            job.batch,
            store_images,
            teacher,
            grid,
            os.path.abspath(job.teacher_checkpoint) if job.teacher_checkpoint else None,
            text,
        )
        _work(job, plan, encoding, ledger, console, run)
        for stray in (out / SHARDS).glob(".*.tmp"):  # left by workers that were killed while they wrote
            stray.unlink(missing_ok=True)
        done = [ledger.done[unit.index] for unit in plan.units]
        shards = tuple(d.shard for d in done if d.shard)
        if not shards:
            raise UserError(f"all images are unusable ({_some_bad(ledger)}); see {ledger.path}")
        manifest = write_manifest(
            out,
            name=out.name,
            count=sum(shard.count for shard in shards),
            side=side,
            channels=tokenizer.channels,
            picture_side=size,
            dtype="uint8" if tokenizer.source == PIXELS else "float16",
            has_pictures=store_images or tokenizer.source == PIXELS,
            tokenizer=tokenizer,
            teacher=teacher,
            classes=plan.classes,
            shards=shards,
            skipped=tuple(skipped for d in done for skipped in d.skipped),
            text=text,
        )
    left_out = f", {len(manifest.skipped)} skipped ({_some_bad(ledger)})" if manifest.skipped else ""
    console.print(f"encoded {manifest.count:,} images into {out}{left_out}", soft_wrap=True, highlight=False)
    if text is not None and (cut := sum(d.cut for d in done)):
        console.print(f"captions cut to their first {text.encoder.tokens} tokens: {cut:,}", highlight=False)
    return manifest


def _text(job: EncodeJob) -> StoredText | None:
    """How captions are stored; None without them."""
    if job.captions is None:
        for option in ("caption_column", "text_encoder", "text_tokens", "store_text"):
            if getattr(job, option):
                raise UserError(f"--{option.replace('_', '-')} needs captions; add --captions, or leave it out")
        return None
    name = job.text_encoder or WORDLLAMA
    encoder = load_text_encoder(os.path.abspath(name) if os.path.isdir(name) else name, job.text_tokens)
    return StoredText(encoder=encoder.identity, states=job.store_text)


def _check_captions(job: EncodeJob, plan: Plan) -> None:
    """Raises UserError when more images than --max-bad have no caption, before any is read."""
    images = ((name, captions) for unit in plan.units for name, captions in zip(unit.names, unit.captions, strict=True))
    without = [name for name, captions in images if not captions]
    if len(without) > job.max_bad:
        raise UserError(
            f"{len(without):,} of {len(plan):,} images have no caption, such as {without[0]}; give another --captions, "
            f"or skip them with --max-bad {max(2 * len(without), 1000)}"
        )


def _plan(job: EncodeJob, tokenizer: TokenizerIdentity) -> tuple[Plan, int]:
    """Plan of the images to encode, and the side of their pictures."""
    images = os.path.abspath(job.images) if job.images else None
    if job.latents is None:
        if images is None:
            raise UserError("nothing to encode; give --images or --latents")
        if job.size % tokenizer.factor:
            raise UserError(f"--size {job.size} is not a multiple of {tokenizer.factor}, the VAE's factor; give one")
        return plan_images(images, job.shard_size, job.label_column, job.follow_links), job.size
    if images is None and (job.teacher or job.store_images):
        raise UserError(
            "--teacher and --store-images need pictures; add --images, the folder that the latents were made from"
        )
    if images is not None and not (job.teacher or job.store_images):
        raise UserError("--images with --latents needs --store-images or --teacher; add one of them, or omit --images")
    plan = plan_latents(os.path.abspath(job.latents), images, job.shard_size)
    channels, side = plan.source.latent
    if tokenizer.source == PIXELS or channels != tokenizer.channels:
        raise UserError(
            f"the latents have {channels} channels, but --tokenizer {tokenizer.source} has "
            f"{tokenizer.channels}; name the VAE that made them"
        )
    return plan, side * tokenizer.factor


def _teacher(job: EncodeJob, grid: int) -> CachedTeacher:
    from gat_sweep.vision.teacher import load_teacher  # imports timm

    assert job.teacher is not None
    teacher = load_teacher(job.teacher, job.teacher_checkpoint, grid, torch.device("cpu"))
    return CachedTeacher(name=job.teacher, digest=teacher.digest, tokens=1 + grid * grid, width=teacher.width)


def _work(job: EncodeJob, plan: Plan, encoding: Encoding, ledger: Ledger, console: Console, run: Run) -> None:
    """Encodes the units that are not in the ledger.

    Raises UserError when too many images are unusable; finished units are kept.
    """
    left = [unit for unit in plan.units if unit.index not in ledger.done]
    sizes = {unit.index: len(unit.names) for unit in plan.units}
    _check_bad(job, ledger)
    if not left:
        return
    before = sum(sizes[index] for index in ledger.done)
    # Also closed on an error, which ends the workers.
    with (
        _Shown(console, before, len(plan)) as shown,
        closing(run(encoding, left, job.address, job.cpus, job.gpus)) as finished,
    ):
        for done in finished:
            ledger.add(done)
            shown.add(sizes[done.unit])
            _check_bad(job, ledger)


def _check_bad(job: EncodeJob, ledger: Ledger) -> None:
    bad = sum(len(done.skipped) for done in ledger.done.values())
    if bad > job.max_bad:
        raise UserError(
            f"{bad} images are unusable ({_some_bad(ledger)}; full list in {ledger.path}); fix them and encode into "
            f"another folder, or skip them with --max-bad {max(2 * bad, 1000)}"
        )


def _some_bad(ledger: Ledger) -> str:
    bad = [skipped for _, done in sorted(ledger.done.items()) for skipped in done.skipped]
    more = ", ..." if len(bad) > SHOWN_BAD else ""
    verbs = {NO_CAPTION: "has"}
    return "; ".join(f"{s.source} {verbs.get(s.reason, 'is')} {s.reason}" for s in bad[:SHOWN_BAD]) + more


class _Shown:
    """Progress of an encoding, its rate and the time left: a bar on a terminal, otherwise a line from time to time."""

    def __init__(self, console: Console, before: int, total: int):
        self.console, self.before, self.total = console, before, total
        self.count = before
        self.bar: Any = None
        self.first: tuple[float, int] | None = None  # when the first unit of this launch was done, and images then

    def __enter__(self) -> "_Shown":
        self.spoken = time.monotonic()
        if self.console.is_terminal:
            columns = TextColumn("encode"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
            self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task("", total=self.total, completed=self.before, rate="starting")
            self.bar.start()
        elif self.before:
            self._say(f"{self.before:,} of {self.total:,} images are already done")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def add(self, images: int) -> None:
        self.count += images
        now = time.monotonic()
        if self.first is None:  # the time until now was start-up
            self.first = (now, self.count)
        since, count = self.first
        rate = (self.count - count) / (now - since) if now - since > RATE_AFTER else None
        if self.bar is not None:
            self.bar.update(self.task, completed=self.count, rate=f"{rate:,.0f} images/s" if rate else "")
        elif rate and now - self.spoken > LINE_EVERY:
            self.spoken = now
            left = (self.total - self.count) / rate
            self._say(f"{self.count:,} of {self.total:,} images, {rate:,.0f} images/s, {left:,.0f} s left")

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)
