"""Small trials, and what they leave."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import load_dataset
from gat_sweep.files.storage import Place
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec
from gat_sweep.recipe import load_recipe, resolve
from gat_sweep.run.checkpoint import copied, step_checkpoint, write_checkpoint
from gat_sweep.run.table import SCHEMA
from gat_sweep.run.trial import Trial
from gat_sweep.train.engine import Engine
from gat_sweep.train.recorder import write_config

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "data" / "official_step.safetensors"
TINY: dict[str, Any] = {
    "train.steps": 4,
    "train.batch": 8,
    "train.eval_every": 2,
    "train.log_every": 1,
    "eval.samples": 64,
    "eval.resize": 32,
}
CPU = torch.device("cpu")


@functools.cache
def recipe(name: str) -> dict[str, Any]:
    """A recipe's values, read once: checking every key of one takes half a second."""
    return load_recipe(name)


def tiny_config(**overrides: Any) -> TrialConfig:
    """Digits at a few steps; keys with `__` for dots."""
    return resolve(recipe("digits"), TINY, {k.replace("__", "."): v for k, v in overrides.items()})


def tiny_trial(home: Path, name: str = "run", **overrides: Any) -> Trial:
    return Trial("trial", name, "sweep", tiny_config(**overrides), home)


def rows(trial: Trial) -> list[dict[str, Any]]:
    table = pq.read_table(trial.table)
    assert table.schema.equals(SCHEMA)
    return table.to_pylist()


def tensors(trial: Trial, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: both networks with the running mean of w, EMA, both optimizers."""
    found = step_checkpoint(trial.folder / "checkpoints", step)
    assert sorted(found.files) == ["discriminator", "ema", "generator", "optimizer_d", "optimizer_g"]
    return {f"{part}/{name}": tensor for part in found.files for name, tensor in found.part(part).items()}


def counters(trial: Trial, step: int) -> dict[str, Any]:
    """What a checkpoint holds besides, but the time."""
    facts = step_checkpoint(trial.folder / "checkpoints", step).facts
    return {name: value for name, value in facts.items() if name != "seconds"}


def assert_same_state(a: Trial, b: Trial, step: int, tensors_at_least: int = 300) -> None:
    ours, theirs = tensors(a, step), tensors(b, step)
    assert ours.keys() == theirs.keys() and len(ours) > tensors_at_least and "generator/style_mean" in ours
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    assert counters(a, step) == counters(b, step)


SHARED = {"width": 8, "depth": 4, "heads": 1, "side": 8, "channels": 1, "patch": 2, "levels": 4}


def networks(classes: int = 10) -> tuple[Generator, Discriminator]:
    """Small ones with no tensor at a round value."""
    torch.manual_seed(0)
    generator = Generator(GeneratorSpec(**SHARED, classes=classes, z_dim=6))
    discriminator = Discriminator(DiscriminatorSpec(**SHARED, classes=classes, class_width=12))
    for network in (generator, discriminator):
        for tensor in network.state_dict().values():
            tensor += 0.05 * torch.randn(tensor.shape)
    return generator, discriminator


def new_ema(config: TrialConfig) -> Generator:
    torch.manual_seed(0)
    return Generator(config.generator_spec).requires_grad_(False)


def save_checkpoint(folder: Place, step: int, parts: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """A checkpoint of networks and optimizers, on disk when this returns."""
    write_checkpoint(folder, step, copied(parts), facts)


def checkpoint_of(trial: Trial, step: int = 4) -> Path:
    """A checkpoint of a trial that was not trained, its networks all different."""
    torch.manual_seed(3)
    engine = Engine(trial.config, torch.device("cpu"))
    for part in (engine.generator, engine.discriminator, engine.ema):
        for tensor in part.state_dict().values():
            tensor += 0.05 * torch.randn(tensor.shape)
    facts = {"data": load_dataset(trial.config.data).digest, "images": 8 * step}
    save_checkpoint(trial.folder / "checkpoints", step, engine.parts(), facts)
    write_config(trial)
    return trial.folder / "checkpoints" / f"step_{step:08d}"


def altered_reference(tmp_path: Path, key: str, factor: float) -> Path:
    """The reference with one tensor scaled."""
    with safe_open(REFERENCE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors[key] = tensors[key] * factor
    save_file(tensors, tmp_path / "altered.safetensors", metadata)
    return tmp_path / "altered.safetensors"


TINY_TEXT: dict[str, Any] = {**TINY, "ladder.S": {"width": 16, "depth": 2, "heads": 1}, "model.class_width": 16}


def text_config(**overrides: Any) -> TrialConfig:
    """Emoji at a few steps; keys with `__` for dots."""
    sizes = {"model.generator": "S", "model.discriminator": "S"}
    return resolve(recipe("emoji"), TINY_TEXT, sizes, {k.replace("__", "."): v for k, v in overrides.items()})


def text_trial(home: Path, name: str = "run", **overrides: Any) -> Trial:
    return Trial("trial", name, "sweep", text_config(**overrides), home)
