"""The whole training state: one save, one load."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

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


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*.pt") if re.fullmatch(r"step_\d{8}\.pt", p.name))
