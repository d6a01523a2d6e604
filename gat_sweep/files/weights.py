"""Files of weights, read without unpickling code, and digests of weights."""

import hashlib
import pickle
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gat_sweep.errors import UserError


def weights_digest(network: nn.Module) -> str:
    """Digest of every tensor of the state dict and its name, 12 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()[:12]


# Errors that torch and safetensors raise on invalid files.
BAD_WEIGHTS = (
    *(pickle.UnpicklingError, SafetensorError, RuntimeError, ValueError, EOFError, LookupError, TypeError),
    *(AttributeError, AssertionError, OverflowError, struct.error),
)


def read_weights(path: str | Path, setting: str) -> dict[str, Tensor]:
    """State dict of tensors from a local file, in safetensors or in torch's format; only tensors are unpickled.

    setting: the config value or option that names the file. Raises UserError when the file contains anything else.
    """
    check_weights_file(path, setting)
    try:
        with only_weights(f"{setting} {path}"):
            if str(path).endswith(".safetensors"):
                found = load_file(path)
            else:
                found = tensors_only(torch.load(path, weights_only=True, map_location="cpu"))
    except OSError as error:
        raise UserError(f"{setting} {path}: {error.strerror or error}") from None
    check_finite(found, f"{setting} {path}")
    return found


def check_weights_file(path: str | Path, setting: str) -> None:
    """Raises UserError, which names `setting`, when there is no such file."""
    if not Path(path).is_file():
        raise UserError(f"{setting} {path}: no such file; set {setting} to a file of weights")


def check_finite(tensors: Mapping[str, Tensor], what: object) -> None:
    """Raises UserError, which begins with `what`, when a weight is infinite or not a number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{what}: '{name}' has values that are not finite; give a file from before they were")


@contextmanager
def only_weights(what: str) -> Iterator[None]:
    """Turns errors of reading a file of weights into a UserError; `what` names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about unusual formats, which are refused anyway
            yield
    except BAD_WEIGHTS as error:
        said = next(iter(str(error).splitlines()), "")[:80]
        raise UserError(
            f"{what} is not a file of the expected weights ({type(error).__name__}: {said}); give a state dict of "
            "tensors, best as safetensors"
        ) from None


def tensors_only(found: Any) -> dict[str, Tensor]:
    """The given state dict. Raises TypeError when it is not a dictionary of tensors."""
    if not (isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())):
        raise TypeError("not a state dict")
    return found
