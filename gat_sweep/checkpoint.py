"""The whole training state: one save, one load."""

import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gat_sweep.config import TrialConfig, resolve
from gat_sweep.data.dataset import Dataset, load_dataset
from gat_sweep.errors import UserError

KEEP = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes folder/step_XXXXXXXX.pt atomically and deletes all but the newest KEEP."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial"
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / f"step_{step:08d}.pt")
    for old in _checkpoints(folder)[:-KEEP]:
        old.unlink()


def load_checkpoint(folder: Path, device: torch.device) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint as (step, state), or None when there is none.

    Raises UserError when it is damaged.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    step = int(found[-1].stem.removeprefix("step_"))
    try:
        return step, torch.load(found[-1], map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(
            f"{found[-1]} cannot be read ({type(error).__name__}); delete it to continue from the one before"
        ) from error


def read_trial(path: Path, settings: Mapping[str, Any], device: torch.device) -> tuple[TrialConfig, dict[str, Any]]:
    """A checkpoint <run>/trials/<trial>/checkpoints/step_*.pt, with the config that training wrote beside its folder.

    settings: dotted config values that differ.
    Raises UserError when either is missing or damaged, or the data is not what the trial was trained on.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one of <run>/trials/<trial>/checkpoints/step_*.pt")
    written = path.absolute().parents[1] / "config.json"
    if not written.is_file():
        raise UserError(f"{written} is missing; leave the checkpoint where training wrote it")
    try:
        config = resolve(json.loads(written.read_text(encoding="utf-8")), settings)
    except json.JSONDecodeError as error:
        raise UserError(f"{written} is damaged: {error}") from None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); give another checkpoint") from None
    check_data(state, load_dataset(config.data), str(path))
    return config, state


def check_data(state: dict[str, Any], dataset: Dataset, whose: str) -> None:
    """Raises UserError unless a state was trained on this data."""
    trained_on = state.get("data", "without a digest")
    if trained_on != dataset.digest:
        raise UserError(
            f"{whose} was trained on data {trained_on}, '{dataset.name}' is {dataset.digest}; set data.path to the "
            "data it was trained on"
        )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*.pt") if re.fullmatch(r"step_\d{8}\.pt", p.name))
