"""The saved steps of a trial: checkpoints/latest.json, and the checkpoints' manifests with their digests."""

import hashlib
import json
from typing import Any

from gat_sweep.files.storage import Place, children, write

POINTER = "latest.json"


CHECKPOINT_FILE = "checkpoint.json"


class Damaged(Exception):
    """A checkpoint is not what was written; says which file and how."""


def saved_step(folder: Place) -> int:
    """The newest saved step, by latest.json or, when that is missing or damaged, by the folders; 0: none."""
    try:
        step: int = read_sealed(folder / POINTER)["step"]
        return step
    except Damaged:
        return max(saved_steps(folder), default=0)


def step_folder(folder: Place, step: int) -> Place:
    return folder / f"step_{step:08d}"


def saved_steps(folder: Place) -> list[int]:
    """Steps of the checkpoints in a folder, whole or not, in rising order."""
    names = (child.name.removeprefix("step_") for child in children(folder) if child.name.startswith("step_"))
    return sorted(int(name) for name in names if name.isdigit())


def write_sealed(target: Place, values: dict[str, Any]) -> None:
    """Writes JSON together with its own digest."""
    text = json.dumps(values, sort_keys=True)
    write(target, json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "values": values}).encode())


def read_sealed(target: Place) -> dict[str, Any]:
    """Values that write_sealed wrote. Raises Damaged when the file is missing or not what was written."""
    try:
        found = json.loads(target.read_bytes())
        values: dict[str, Any] = found["values"]
        text = json.dumps(values, sort_keys=True)
    except FileNotFoundError:
        raise Damaged(f"{target} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{target} is not a valid checkpoint manifest") from None
    if hashlib.sha256(text.encode()).hexdigest() != found.get("sha256"):
        raise Damaged(f"{target} is not what was written (sha256 differs)")
    return values
