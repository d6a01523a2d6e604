"""Checkpoints written while training goes on (train/saver.py)."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gat_sweep.run.checkpoint import Copies, resume, write_checkpoint
from gat_sweep.run.saved import saved_step
from gat_sweep.train import saver as module
from gat_sweep.train.saver import Saver, Unsaved


def parts(seed: int = 0) -> dict[str, Any]:
    """A network and its optimizer, one step trained."""
    torch.manual_seed(seed)
    network = nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(network.named_parameters(), lr=0.1, fused=True)
    train(network, optimizer)
    return {"network": network, "optimizer": optimizer}


def train(network: nn.Linear, optimizer: torch.optim.AdamW) -> None:
    network(torch.ones(3, 7)).square().mean().backward()
    optimizer.step()


def tensors(found: dict[str, Any]) -> list[Tensor]:
    moments = found["optimizer"].state_dict()["state"]
    state = [moments[index][name].clone() for index in sorted(moments) for name in sorted(moments[index])]
    return [tensor.clone() for tensor in found["network"].state_dict().values()] + state


class Gate:
    """Stands for a slow disk: a write waits until it is let through, and then fails if it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: OSError | None = None):
        self.open, self.begun, self.error = threading.Event(), threading.Event(), error
        monkeypatch.setattr(module, "write_checkpoint", self.write)

    def write(self, folder: Path, step: int, copies: Copies, facts: dict[str, Any]) -> None:
        self.begun.set()
        assert self.open.wait(30)
        if self.error:
            raise self.error
        write_checkpoint(folder, step, copies, facts)


def test_the_state_of_the_step_is_saved_however_far_training_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing on disk waits for the loop: weights and moments move on before the first byte is written."""
    gate, found = Gate(monkeypatch), parts()
    at_ten = tensors(found)
    with Saver(tmp_path) as saver:
        saver.start(10, found, {"evaluated": 7})
        assert gate.begun.wait(30) and saved_step(tmp_path) == 0
        for _ in range(3):
            train(found["network"], found["optimizer"])
            saver.look()
        gate.open.set()
        saver.finish()
        assert saved_step(tmp_path) == 10
    assert not torch.equal(tensors(found)[0], at_ten[0])
    restored = parts(seed=1)
    checkpoint = resume(tmp_path, restored, pytest.fail)
    assert checkpoint is not None and checkpoint.facts == {"evaluated": 7}
    assert all(torch.equal(a, b) for a, b in zip(tensors(restored), at_ten, strict=True))


def test_a_failed_write_ends_the_trial_at_its_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a checkpoint that begins later does not hide it, and the one before stays the newest."""
    with Saver(tmp_path) as saver:
        saver.start(10, parts(), {})
        saver.finish()
        for notice in (saver.look, saver.finish, lambda: saver.start(30, parts(), {})):
            gate = Gate(monkeypatch, OSError(28, "No space left on device"))
            saver.start(20, parts(), {})
            assert gate.begun.wait(30)
            saver.look()  # not yet
            gate.open.set()
            while saver._pending and not saver._pending.done():
                pass
            with pytest.raises(Unsaved, match=r"step 20 cannot be written: .*No space left on device.* is whole"):
                notice()
        assert saved_step(tmp_path) == 10


def test_whatever_ends_the_loop_waits_for_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt at the trial, in the same process, begins from that checkpoint."""
    gate = Gate(monkeypatch)
    threading.Timer(0.3, gate.open.set).start()
    with pytest.raises(ZeroDivisionError), Saver(tmp_path) as saver:
        saver.start(10, parts(), {})
        raise ZeroDivisionError
    assert saved_step(tmp_path) == 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_from_a_gpu_are_of_the_step_and_not_of_a_later_one(tmp_path: Path) -> None:
    """They are still under way when the loop goes on, behind a long queue of work."""
    network = nn.Linear(8192, 8192, device="cuda")
    with torch.no_grad(), Saver(tmp_path) as saver:
        network.weight.fill_(0)
        for _ in range(50):
            network.weight.add_(1)
        saver.start(10, {"network": network}, {})
        network.weight.fill_(-1)
        saver.finish()
    restored = nn.Linear(8192, 8192)
    assert resume(tmp_path, {"network": restored}, pytest.fail)
    assert bool((restored.weight == 50).all()) and bool((network.weight == -1).all())
