"""The .pt file of the authors' released code: its state dicts, with nothing but tensors unpickled."""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gat_sweep.errors import UserError
from gat_sweep.files.weights import BAD_WEIGHTS

PARTS = ("generator", "discriminator", "ema")
ARGUMENTS = ("model", "modelD", "resolution", "num_classes", "fused_attn", "qk_norm")  # needed to build their networks


def read_official(path: Path) -> dict[str, Any]:
    """The state dicts of a checkpoint, and if present `args` (a dictionary of ARGUMENTS) and `steps`.

    A state dict of G alone counts as `generator`. The prefixes `module.` and `_orig_mod.` of names are taken off.
    Only tensors, plain values and argparse's Namespace (the type of `args`) are unpickled.
    Raises UserError when the file contains anything else, or has no generator.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a checkpoint of the released code (.pt)")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)  # about unusual formats, which are refused anyway
            # With mmap, the optimizers, which are most of the file, are never read.
            found = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except BAD_WEIGHTS as error:
        said = next(iter(str(error).splitlines()), "")[:120]
        raise UserError(
            f"{path} is not a checkpoint of tensors ({type(error).__name__}: {said}); give a .pt of the released code"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values()):
        found = {"generator": found}
    if not isinstance(found, dict) or not ("ema" in found or "generator" in found):
        raise UserError(f"{path} has neither 'ema' nor 'generator'; give a checkpoint of the released code (.pt)")
    content: dict[str, Any] = {}
    for part in PARTS:
        if part not in found:
            continue
        state = found[part]
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise UserError(f"{path}: '{part}' is not a state dict; give a checkpoint with state dicts of tensors")
        content[part] = {}
        for key, tensor in state.items():
            name = _bare(str(key))
            if name in content[part]:
                raise UserError(f"{path}: {part} has '{name}' twice, with and without a prefix; give one of them")
            content[part][name] = tensor.detach().clone()
    if isinstance(found.get("args"), argparse.Namespace):
        arguments = vars(found["args"])
        content["args"] = {name: arguments[name] for name in ARGUMENTS if isinstance(arguments.get(name), str | int)}
    if isinstance(found.get("steps"), int):
        content["steps"] = found["steps"]
    return content


def _bare(name: str) -> str:
    """A name without what DistributedDataParallel sets before all, and torch.compile before what it compiled."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
