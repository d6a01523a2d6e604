"""The whole training state on disk: one save, one load.

    checkpoints/latest.json              the newest step; written last
    checkpoints/step_00000200/           a checkpoint
        generator.safetensors ...        one file for each part
        checkpoint.json                  counters, and the digest of each file; written after them

A checkpoint counts once latest.json names it or a later one. Later files, which a crash left, are overwritten.
Every file is checked against its digest before its tensors are used.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import Dataset, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, remove_folder, write
from gat_sweep.language.encoder import TextEncoder
from gat_sweep.recipe import resolve
from gat_sweep.run.saved import CHECKPOINT_FILE, POINTER, Damaged, read_sealed, saved_steps, step_folder, write_sealed

KEEP = 2
MAY_GO = "projector."  # of D: a trial without alignment may start from a trial with it
Copies = dict[str, dict[str, Tensor]]  # part -> its tensors, on the CPU


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest is whole."""

    folder: Place
    step: int
    facts: dict[str, Any]  # counters and the like
    files: dict[str, dict[str, Any]]  # part -> bytes, sha256

    def part(self, name: str) -> dict[str, Tensor]:
        """Tensors of a part, on the CPU. Raises Damaged when the file is not what was written."""
        file = self.folder / f"{name}.safetensors"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise Damaged(f"{file} is missing") from None
        written = self.files[name]
        if len(content) != written["bytes"]:
            raise Damaged(f"{file} has {len(content)} bytes instead of {written['bytes']}")
        if hashlib.sha256(content).hexdigest() != written["sha256"]:
            raise Damaged(f"{file} is not what was written (sha256 differs)")
        try:
            return load(content)
        except SafetensorError:
            raise Damaged(f"{file} is not a safetensors file") from None

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Loads the tensors into networks and optimizers. Raises Damaged; some may be loaded by then."""
        for name, part in parts.items():
            tensors = self.part(name)
            if isinstance(part, torch.optim.Optimizer):
                _restore_moments(part, tensors, f"{self.folder / name}.safetensors")
            else:
                places = part.state_dict()
                part.load_state_dict({k: t for k, t in tensors.items() if k in places or not k.startswith(MAY_GO)})


def _restore_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], file: str) -> None:
    numbers = {name: number for number, name in enumerate(optimizer.param_groups[0]["param_names"])}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parameter, _, kind = key.rpartition(".")
        if parameter in numbers:
            state.setdefault(numbers[parameter], {})[kind] = tensor
        elif not parameter.startswith(MAY_GO):
            raise Damaged(f"{file} holds moments of '{parameter}', which the network does not have")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def copied(parts: Mapping[str, Any]) -> Copies:
    """Copies of the tensors of networks and optimizers, which a later step does not change.

    Copies from a CUDA device are in pinned memory and may be still under way: synchronise before reading them.
    """
    return {name: {key: _copied(tensor) for key, tensor in _tensors(part).items()} for name, part in parts.items()}


def _copied(tensor: Tensor) -> Tensor:
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, memory_format=torch.contiguous_format)
    return copy.copy_(tensor, non_blocking=True)


def write_checkpoint(folder: Place, step: int, copies: Copies, facts: Mapping[str, Any]) -> None:
    """Writes a checkpoint, and deletes all but the newest KEEP. `copies` is empty afterwards.

    Raises OSError when it cannot be written. Then the previous checkpoint stays, and this partial one is removed.
    """
    target = step_folder(folder, step)
    try:
        files = {}
        for name in list(copies):
            content = save(copies.pop(name))  # the copy is freed before the next part is written
            write(target / f"{name}.safetensors", content)
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_sealed(target / CHECKPOINT_FILE, {"step": step, "facts": dict(facts), "files": files})
    except OSError:
        remove_folder(target)
        raise
    write_sealed(folder / POINTER, {"step": step})
    for old in saved_steps(folder)[:-KEEP]:
        remove_folder(step_folder(folder, old))


def resume(folder: Place, parts: Mapping[str, Any], say: Callable[[str], None]) -> Checkpoint | None:
    """Loads the newest whole checkpoint into `parts`; returns None and changes nothing when there is none yet.

    say: receives a line for each damaged checkpoint.
    Raises UserError when there are checkpoints and all of them are damaged.
    """
    steps = saved_steps(folder)
    try:
        newest = read_sealed(folder / POINTER)["step"]
        steps = [step for step in steps if step <= newest]
    except Damaged as damage:
        if steps:
            say(f"{damage}; using the newest whole checkpoint")
    for step in reversed(steps):
        try:
            found = step_checkpoint(folder, step)
            found.restore(parts)
            return found
        except Damaged as damage:
            say(f"checkpoint of step {step} is damaged: {damage}; trying the previous one")
    if steps:
        raise UserError(f"every checkpoint in {folder} is damaged; delete that folder to restart the trial")
    return None


def step_checkpoint(folder: Place, step: int) -> Checkpoint:
    """The checkpoint of a step. Raises Damaged as open_checkpoint does."""
    return open_checkpoint(step_folder(folder, step))


def open_checkpoint(folder: Place) -> Checkpoint:
    """The checkpoint in a folder. Raises Damaged when the manifest is missing or not what was written."""
    values = read_sealed(folder / CHECKPOINT_FILE)
    return Checkpoint(folder, values["step"], values["facts"], values["files"])


def read_trial(folder: Place, settings: Mapping[str, Any]) -> tuple[TrialConfig, Checkpoint, Dataset]:
    """Config, checkpoint and data set of a trial.

    folder: <run>/trials/<trial>/checkpoints/step_XXXXXXXX, as training wrote it; settings: dotted config values that
    replace the trial's own.
    Raises UserError when config or checkpoint is missing or damaged, or the data is not what the trial was trained on.
    """
    if not (folder / CHECKPOINT_FILE).exists():
        raise UserError(f"{folder} is not a checkpoint; give one of <run>/trials/<trial>/checkpoints/step_*")
    written = folder.parents[1] / "config.json"
    if not written.exists():
        raise UserError(f"{written} is missing; leave the checkpoint where training wrote it")
    try:
        config = resolve(json.loads(written.read_text(encoding="utf-8")), settings)
        found = open_checkpoint(folder)
    except json.JSONDecodeError as error:
        raise UserError(f"{written} is damaged: {error}") from None
    except Damaged as damage:
        raise UserError(f"{damage}; give another checkpoint") from None
    dataset = load_dataset(config.data)
    check_data(found, dataset, str(folder))
    return config, found, dataset


def read_network(checkpoint: Checkpoint, name: str, network: torch.nn.Module) -> None:
    """Loads a part's weights into a network. Raises UserError when they are damaged or have other shapes."""
    try:
        network.load_state_dict(checkpoint.part(name))
    except Damaged as damage:
        raise UserError(f"{damage}; give another checkpoint") from None
    except (KeyError, RuntimeError):
        raise UserError(f"{checkpoint.folder} does not hold the networks of the config.json beside it") from None


def check_data(checkpoint: Checkpoint, dataset: Dataset, whose: str) -> None:
    """Raises UserError when a checkpoint was trained on other data. whose: begins the error."""
    trained_on = checkpoint.facts["data"]
    if trained_on != dataset.digest:
        raise UserError(
            f"{whose} was trained on data {trained_on}, '{dataset.name}' is {dataset.digest}; set data.path to the "
            "data it was trained on"
        )


def check_text_encoder(checkpoint: Checkpoint, encoder: TextEncoder | None, whose: str) -> None:
    """Raises UserError when a checkpoint was trained with another text encoder. whose: begins the error."""
    trained_with = checkpoint.facts.get("text")
    if encoder and trained_with and trained_with != encoder.identity.digest:
        raise UserError(
            f"{whose} was trained with a text encoder {trained_with}, '{encoder.identity.name}' is "
            f"{encoder.identity.digest}; set text.folder to the one it was trained with"
        )


def _tensors(part: Any) -> dict[str, Tensor]:
    """Tensors of a network or optimizer that training changes. An optimizer's rates and betas are the config's."""
    state = part.state_dict()
    if isinstance(part, torch.optim.Optimizer):
        names = part.param_groups[0]["param_names"]
        return {f"{names[i]}.{kind}": t for i, values in state["state"].items() for kind, t in values.items()}
    return dict(state)
