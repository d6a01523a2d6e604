"""Shared small configs. One thread: results are compared bit for bit, and tests share two cores with Ray."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest
import torch

from gat_sweep.config import TrialConfig, load_recipe, resolve
from gat_sweep.train import Trial

torch.set_num_threads(1)

REFERENCE = Path(__file__).parent / "data" / "official_step.safetensors"
TINY: dict[str, Any] = {
    "train.steps": 4,
    "train.batch": 8,
    "train.eval_every": 2,
    "train.log_every": 1,
    "eval.samples": 64,
    "eval.resize": 32,
}


@pytest.fixture(scope="session")
def home_with_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose reference statistics are computed already."""
    from gat_sweep.metrics.evaluate import load_reference

    home = tmp_path_factory.mktemp("reference")
    load_reference(tiny_config(), home)
    return home


def tiny_config(**overrides: Any) -> TrialConfig:
    """Digits at a few steps; keys with `__` for dots."""
    return resolve(load_recipe("digits"), TINY, {k.replace("__", "."): v for k, v in overrides.items()})


def tiny_trial(home: Path, name: str = "run", **overrides: Any) -> Trial:
    return Trial("trial", name, "sweep", tiny_config(**overrides), home)
