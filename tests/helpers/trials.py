"""Small trials, and what they leave."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors import safe_open
from safetensors.torch import save_file

from analysis.table import gflops
from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import load_dataset
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec
from gat_sweep.monitor.tracking import Tracker
from gat_sweep.monitor.ui import default_uri
from gat_sweep.plan import iteration_flops
from gat_sweep.recipe import load_recipe, resolve
from gat_sweep.run.checkpoint import save_checkpoint, step_checkpoint
from gat_sweep.run.journal import add_record
from gat_sweep.run.table import SCHEMA, RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.train.engine import Engine
from gat_sweep.train.recorder import trial_constants, write_config

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


def tiny_config(**overrides: Any) -> TrialConfig:
    """Digits at a few steps; keys with `__` for dots."""
    return resolve(load_recipe("digits"), TINY, {k.replace("__", "."): v for k, v in overrides.items()})


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


def assert_same_state(a: Trial, b: Trial, step: int) -> None:
    ours, theirs = tensors(a, step), tensors(b, step)
    assert ours.keys() == theirs.keys() and len(ours) > 300 and "generator/style_mean" in ours
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


SIZES = "[S, B, L, XL]"
SIZES_SWEEP = (
    f"about: sizes\nset: {json.dumps(TINY)}\nzip: {{model.generator: {SIZES}, model.discriminator: {SIZES}}}\n"
)


def compute(trial: Trial) -> float:
    config = trial.config
    return float(sum(iteration_flops(config).values()) * config.train.batch * config.train.steps)


def value_of(trial: Trial) -> float:
    return 3e3 * gflops(compute(trial)) ** -0.4 * [0.97, 1.04][trial.config.seed]


def finish(trial: Trial, value: float) -> None:
    add_record(trial.folder, {"step": 0, "status": "running", "gpus": 0.0})
    table = RunTable(trial.table, trial_constants("sizes", "sizes", trial.id, trial.config))
    shared = {"metric": "fd_x", "n": 64, "reference": "r", "protocol": "{}", "flops": compute(trial), "seconds": 1.0}
    table.put(step=trial.config.train.steps, status="done", reason="", value=value, **shared)


TAGS = {"commit": "abc123", "config_hash": "00ff"}
CONFIG = {"model": {"width": 192, "depth": 12}, "train": {"lr": 2e-4, "betas": [0.0, 0.99]}, "data": "digits"}


class PlantedTrial:
    """Writes a trial's files as train() does."""

    def __init__(self, home: Path, run: str, name: str = "t0") -> None:
        self.home, self.run, self.dir = home, run, home / run / "trials" / name
        self.clock = 1763900000.0
        (self.dir / "samples").mkdir(parents=True)
        (self.dir / "config.json").write_text(json.dumps(CONFIG))

    def write(self, text: str) -> None:
        with (self.dir / "journal.jsonl").open("a") as file:
            file.write(text)

    def record(self, step: int, **fields: object) -> None:
        self.clock += 1.0  # a replayed step has another time, so the store would keep both
        self.write(json.dumps({"step": step, "time": self.clock, **fields}) + "\n")

    def points(self, *steps: int, **metrics: float) -> None:
        for step in steps:
            self.record(step, metrics=metrics or {"loss_g": step / 10, "loss_d": step / 20})

    def tracker(self, launch: str = "launch", uri: str = "") -> Tracker:
        return Tracker(uri or default_uri(self.home), self.home, self.run, launch, TAGS)

    def runs(self, uri: str = "") -> tuple[list[Run], list[Run]]:
        """(parents, children), the newest first."""
        client = MlflowClient(uri or default_uri(self.home))
        experiment = client.get_experiment_by_name(self.run)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return (
            [run for run in runs if "gat_sweep.trial" not in run.data.tags],
            [run for run in runs if "gat_sweep.trial" in run.data.tags],
        )

    def steps(self, key: str = "loss_g", uri: str = "") -> list[int]:
        (child,) = self.runs(uri)[1]
        history = MlflowClient(uri or default_uri(self.home)).get_metric_history(child.info.run_id, key)
        return sorted(point.step for point in history)
