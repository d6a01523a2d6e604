"""Directions of the style w, and their file: of each its vector [D], what it is, and the digest of the weights."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, write

FILE = "directions.safetensors"
ENTRY = "gat_sweep_directions"  # of its metadata


@dataclass(frozen=True)
class Direction:
    """A step of w; strength 1 adds `vector` [D]."""

    name: str
    vector: Tensor
    about: str  # for the figure


def write_directions(file: Place, directions: list[Direction], digest: str) -> None:
    """Writes directions with the digest of the generator's weights, in whose w alone they mean something."""
    about = {"weights": digest, "about": {direction.name: direction.about for direction in directions}}
    # One entry: safetensors writes several in any order, and the same edit gives the same bytes.
    write(file, save({d.name: d.vector.cpu().contiguous() for d in directions}, {ENTRY: json.dumps(about)}))


def read_directions(file: Path, digest: str, width: int) -> list[Direction]:
    """Directions of a file, in its order. Raises UserError when it is damaged or belongs to other weights."""
    try:
        with safe_open(file, "pt") as opened_file:
            metadata = opened_file.metadata() or {}
            tensors = {name: opened_file.get_tensor(name) for name in opened_file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"--direction {file}: no such file; give {FILE} of an edit") from None
    except (SafetensorError, OSError):
        raise UserError(f"--direction {file} is not a safetensors file; give {FILE} of an edit") from None
    try:
        described = json.loads(metadata[ENTRY])
        weights, about = str(described["weights"]), dict(described["about"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"--direction {file} holds no directions; give {FILE} of an edit") from None
    if weights != digest:
        raise UserError(f"--direction {file} is of other weights ({weights}, these are {digest}); make it again")
    for name, vector in tensors.items():
        if vector.shape != (width,) or not vector.isfinite().all():
            raise UserError(f"--direction {file}: '{name}' is not a direction of {width} finite numbers; make it again")
    return [Direction(name, vector, about.get(name, name)) for name, vector in tensors.items()]
