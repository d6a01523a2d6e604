"""Which checkpoints of a trial are whole: checkpoints/latest.json and the manifests."""

import hashlib
import json
from typing import Any

from gat_sweep.files.storage import Place, children, write

POINTER = "latest.json"


CHECKPOINT_FILE = "checkpoint.json"


class Damaged(Exception):
    """A checkpoint is not what was written; says which file and how."""


def saved_step(folder: Place) -> int:
    """The step that the pointer names; 0 when there is none."""
    try:
        step: int = read_sealed(folder / POINTER)["step"]
        return step
    except Damaged:
        return max(saved_steps(folder), default=0)


def step_folder(folder: Place, step: int) -> Place:
    return folder / f"step_{step:08d}"


def saved_steps(folder: Place) -> list[int]:
    """Of the checkpoints in a folder, whole or not, rising."""
    names = (child.name.removeprefix("step_") for child in children(folder) if child.name.startswith("step_"))
    return sorted(int(name) for name in names if name.isdigit())


def write_sealed(target: Place, values: dict[str, Any]) -> None:
    """JSON with its own digest."""
    text = json.dumps(values, sort_keys=True)
    write(target, json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "values": values}).encode())


def read_sealed(target: Place) -> dict[str, Any]:
    try:
        found = json.loads(target.read_bytes())
        values: dict[str, Any] = found["values"]
        text = json.dumps(values, sort_keys=True)
    except FileNotFoundError:
        raise Damaged(f"{target} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{target} is no JSON of ours") from None
    if hashlib.sha256(text.encode()).hexdigest() != found.get("sha256"):
        raise Damaged(f"{target} is not what was written (sha256 differs)")
    return values
