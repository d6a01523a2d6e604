"""Processes of the command line and of training, and what they leave running."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from gat_sweep.run.trial import Trial
from gat_sweep.train.loop import train
from helpers.trials import CPU

Gat = Callable[..., tuple[int, str, str]]  # the fixture gat: a command's exit code, stdout and stderr


def command(home: Path, sweep: Path, *more: str) -> list[str]:
    return ["run", str(sweep), "--recipe", "digits", "--home", str(home), *more]


def start(cwd: Path, *args: str) -> subprocess.Popen[str]:
    """gat-sweep in a process group of its own, as a terminal starts it; Ray and its workers start from nothing."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    args = (sys.executable, "-m", "gat_sweep.cli", *args)
    return subprocess.Popen(args, cwd=cwd, env=marked(cwd), start_new_session=True, preexec_fn=mind_ctrl_c, **pipes)


def mind_ctrl_c() -> None:
    """A suite that was started in the background of a shell ignores it, and its children would."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def marked(mark: Path) -> dict[str, str]:
    """An environment that every process started from a command inherits, Ray's daemons included."""
    return {**os.environ, "GAT_SWEEP_TEST": str(mark)}


def left_behind(mark: Path) -> list[str]:
    """Processes with the mark that still run, after a moment to end in."""
    deadline = time.monotonic() + 20
    while True:
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("GAT_SWEEP_TEST") == str(mark):
                    found.append(process.info["name"])
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def stopping_at(step: int) -> Callable[[], str]:
    """Asked once before every step, and between the chunks of an evaluation, of which there is one here."""
    asked = [0]

    def stop() -> str:
        asked[0] += 1
        return "cut" if asked[0] > step else ""

    return stop


def _worker(rank: int, world: int, trial: Trial, file: Path, cut: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    # One rank is asked; the others agree a step later.
    train(trial, CPU, stopping_at(cut) if rank == world - 1 and cut else lambda: "")
    dist.destroy_process_group()


def together(trial: Trial, store: Path, cut: int = 0, world: int = 2) -> None:
    """Trains on several processes, to the end or until one of them is asked to stop."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=_worker, args=(rank, world, trial, store, cut)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
