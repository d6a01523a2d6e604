"""A rehearsal from the command line: its launches, one a virtual hour, its faults, its figures."""

import gc
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.mlflow_server import Server
from benchmarks.rehearsal import checks
from benchmarks.rehearsal.cluster import FORK, Nodes
from benchmarks.rehearsal.faults import HOUR, Fault, schedule
from benchmarks.rehearsal.stand_ins import AWAY, FULL, WELL, World, end_with_parent, launch
from benchmarks.rehearsal.trials import planted_fault, rehearsed_sweep
from gat_sweep.config import Workers
from gat_sweep.launch.prepare import check_data
from gat_sweep.monitor.tracking import create_store
from gat_sweep.monitor.ui import default_uri
from gat_sweep.plan import model_info
from gat_sweep.run.record import sweep_trials
from gat_sweep.run.table import FINISHED
from gat_sweep.sweep import Sweep
from gat_sweep.text import duration
from gat_sweep.version import source_commit

RUN = "rehearsal"
Waits = tuple[list[Workers], list[tuple[str, Workers]]]  # the first that waits, packs under way
TICK_S = 0.02
START_S = 300.0  # real seconds that a launch may take to begin, on a busy machine
SHIP_S = 1800.0  # the same for a launch with nothing left to train
AGAIN_S = 600.0  # virtual seconds until a launch that ended is given again
IDLE_LOOKS = 4  # looks of a launch for which the first that waits may wait beside places that are free
HANG_HOURS = 6  # virtual; a hang for which no launch is killed meanwhile, at most
STATUS_S = 2.0  # processor seconds: on a busy machine the wall says nothing
GROWTH = 1.15  # of the memory of launches


class Rehearsal:
    """A sweep on a simulated cluster under a virtual clock, which stands still while a launch or workers begin."""

    def __init__(self, sweep: Sweep, home: Path, days: float, speed: float, nodes: int, seed: int):
        self.sweep, self.home, self.days = sweep, home, days
        self.trials = sweep_trials(sweep, home, RUN)
        chance = random.Random(seed)
        self.world = World(speed, [trial.id for trial in self.trials], nodes, home)
        self.nodes = Nodes(self.world, {trial.id: trial for trial in self.trials}, nodes, chance)
        self.faults = schedule(days, nodes, chance)
        create_store(default_uri(home), home)
        self.server = Server(default_uri(home), str(home / "mlartifacts"))
        self.counts = Counter[str]()
        self.codes = Counter[int]()
        self.begins: list[float] = []  # real seconds from a launch's start to its first request
        self.memory: list[int] = []  # bytes of a launch at the end of its hour
        self.status: list[tuple[float, float]] = []  # wall and processor seconds of the command
        self.driver: BaseProcess | None = None
        self.line: Connection | None = None
        self.launches, self.in_place, self.retry = 0, False, False
        self.started = self.next_launch = self.until = 0.0
        self.begun = time.monotonic()
        self.waits: Waits = ([], [])  # as the launch said last
        self.asking: tuple[int, float] | None = None  # pid and start of a `status`
        self.hung_before: int | None = None  # while a hang is waited for: how many there were

    # ---------------------------------------------------------------- launches

    def begin(self) -> None:
        self.launches += 1
        self.line, theirs = FORK.Pipe()
        arguments = (self.world, theirs, self.sweep, RUN, self.server.uri, self.retry, self.home / "launches.log")
        self.driver = FORK.Process(target=_launch, args=arguments, daemon=True)
        self.driver.start()
        theirs.close()
        self.started, self.in_place = time.monotonic(), False

    def kill(self) -> None:
        assert self.driver and self.line
        self.memory.append(psutil.Process(self.driver.pid).memory_info().rss)
        os.kill(self.driver.pid or 0, signal.SIGKILL)
        self.counts["launches killed"] += 1
        self.gone()

    def gone(self) -> None:
        """The launch has ended, or was killed."""
        assert self.driver and self.line
        self.driver.join()
        self.line.close()
        self.driver = self.line = None
        self.in_place, self.waits = False, ([], [])
        self.nodes.orphan()
        if self.hung_before is not None:  # the worker that hung ends with its launch: another one has to
            self.world.plant_hang()

    def hear(self) -> None:
        """Takes what the launch says or asks."""
        while self.line and self.line.poll():
            try:
                word, *rest = self.line.recv()
            except (EOFError, ConnectionResetError):
                return
            if word == "look":
                self.answer(self.launches, rest[0], self.nodes.look())
            elif word == "start":
                self.nodes.ask(rest[2], rest[0], rest[1], self.launches)
            elif word == "waits":
                self.waits = (rest[0], rest[1])
                if not self.in_place:
                    self.begins.append(time.monotonic() - self.started)
                    self.in_place, self.retry = True, False
                    self.until = self.world.clock + HOUR

    def answer(self, number: int, request: int, words: Any) -> None:
        if self.line and number == self.launches:
            try:
                self.line.send((request, words))
            except BrokenPipeError:
                return  # it has just ended

    # ---------------------------------------------------------------- faults

    def plant(self, fault: Fault) -> None:
        self.counts[fault.kind] += fault.kind not in ("notice", "death", "well", "server up")
        if fault.kind == "notice":
            self.nodes.notify(fault.node)
        elif fault.kind == "death":
            self.nodes.die(fault.node)
        elif fault.kind in ("full", "away", "well"):
            self.world.set_storage({"full": FULL, "away": AWAY, "well": WELL}[fault.kind])
            self.retry = fault.kind == "well"  # somebody made room, and looks at what failed
            if self.retry and self.in_place:
                self.kill()
        elif fault.kind == "server down":
            self.server.signal(signal.SIGKILL)
        elif fault.kind == "server up":
            self.server.start()
        elif fault.kind == "hang":
            self.world.plant_hang()
            self.hung_before = self.nodes.counts.hung
        else:
            self.ask_status()

    def ask_status(self) -> None:
        command = [sys.executable, "-m", "gat_sweep.cli", "status", RUN, "--home", str(self.home)]
        null = os.open(os.devnull, os.O_WRONLY)
        actions = [(os.POSIX_SPAWN_DUP2, null, 1)]
        self.asking = os.posix_spawn(command[0], command, os.environ, file_actions=actions), time.monotonic()
        os.close(null)

    def hear_status(self, flags: int = os.WNOHANG) -> None:
        if self.asking:
            pid, code, used = os.wait4(self.asking[0], flags)
            if pid:
                self.counts["status failed"] += code != 0
                self.status.append((time.monotonic() - self.asking[1], used.ru_utime + used.ru_stime))
                self.asking = None

    # ---------------------------------------------------------------- the loop

    def over(self) -> bool:
        return all(t.status() in (*FINISHED, "failed") for t in self.trials) and all(
            planted_fault(t.config) == "fails" for t in self.trials if t.status() == "failed"
        )

    def report(self, day: int) -> None:
        """A line of progress. The trials are made for `days`; a few more may pass."""
        ended = sum(trial.status() in (*FINISHED, "failed") for trial in self.trials)
        passed = time.monotonic() - self.begun
        left = duration(passed / day * max(0.0, self.days - day))
        line = f"day {day} of {self.days:g}: {ended} of {len(self.trials)} trials ended, {self.launches} launches"
        click.echo(f"{line}, {duration(passed)} passed, ETA {left}", err=True)

    def run(self) -> list[str]:
        """Runs until every trial has ended; returns what was broken on the way."""
        self.server.start()  # launches do not wait for it
        before, day = time.monotonic(), 1
        while True:
            wait([line for line in (self.line,) if line], TICK_S) if self.line else time.sleep(TICK_S)
            now = time.monotonic()
            if (self.in_place or not self.driver) and not self.nodes.beginning():
                self.world.move(min(now - before, 0.2) * self.world.speed)
            before = now
            self.hear()
            self.nodes.tick(self.answer)
            self.hear_status()
            while self.faults and self.faults[0].time <= self.world.clock:
                self.plant(self.faults.pop(0))
            if self.in_place:
                self.nodes.look_for_idle(*self.waits)
            if self.hung_before is not None and self.nodes.counts.hung > self.hung_before:
                self.hung_before = None
            if self.driver and self.driver.exitcode is not None:
                self.codes[code := self.driver.exitcode] += 1
                self.gone()
                self.next_launch = self.world.clock + AGAIN_S
                if code in (0, 1) and self.over():
                    return []
            patient = self.hung_before is not None and self.world.clock < self.until + HANG_HOURS * HOUR
            if self.in_place and self.world.clock >= self.until and not patient:
                self.kill()
                self.next_launch = self.world.clock
            # The last launch places nothing: it only ships what is not in MLflow yet.
            patience = SHIP_S if self.over() else START_S
            if self.driver and not self.in_place and now - self.started > patience:
                return [f"launch {self.launches} did not begin, or end, within {patience:.0f} s"]
            if not self.driver and self.world.clock >= self.next_launch:
                if all(trial.status() == "failed" for trial in self.trials):
                    return ["every trial has failed; `gat-sweep status` says why"]
                self.begin()
            if self.world.clock >= day * 24 * HOUR:
                self.report(day)
                day += 1
            if self.world.clock > 2 * self.days * 24 * HOUR:
                left = [t.id for t in self.trials if t.status() not in FINISHED]
                return [f"{len(left)} trials are not finished after twice the days: {left[:5]}"]

    def end(self) -> None:
        """Ends all that the rehearsal started."""
        if self.driver:
            self.kill()
        for group in self.nodes.groups:
            if group.process:
                group.process.kill()
                group.process.join()
        if self.asking:
            os.waitpid(self.asking[0], 0)
        self.server.signal(signal.SIGKILL)

    def checked(self) -> tuple[list[str], dict[str, Any]]:
        """All broken promises, and all figures; every process but the server has ended."""
        for _ in range(2):
            self.ask_status()
            self.hear_status(0)
        broken, figures = list[str](), Counter[str]()
        for check in (checks.check_rows, checks.check_journal, checks.check_checkpoints):
            for trial in self.trials:
                lines, found = check(trial)
                broken += lines
                figures.update(found)
        lines, store = checks.check_store(self.trials, self.home / "mlflow.db")
        worked = sum(self.world.worked) / 3600
        more, spent = checks.check_spending(self.trials, worked, self.nodes.counts.gpu_hours, sum(self.world.trained))
        broken += lines + more + self.broken_counts()
        return broken, {**figures, **store, **spent}

    def broken_counts(self) -> list[str]:
        found = []
        if self.nodes.counts.idle_looks > IDLE_LOOKS:
            found.append(f"a trial waited for {self.nodes.counts.idle_looks} looks beside places that were free")
        if self.memory and max(self.memory[-5:]) > GROWTH * statistics.median(self.memory[:5]):
            found.append("the memory of launches has grown")
        if self.counts["status failed"] or max(used for _, used in self.status) > STATUS_S:
            found.append(f"status took {self.status} s (wall, processor)")
        if self.codes[3]:
            found.append(f"{self.codes[3]} launches ended with a traceback")
        return found

    def figures(self) -> dict[str, Any]:
        counts, mib = self.nodes.counts, [memory / 2**20 for memory in self.memory]
        return {
            "trials": len(self.trials),
            "nodes": len(self.nodes.up),
            "virtual days": round(self.world.clock / 86400, 2),
            **{name: count for name, count in sorted(self.counts.items()) if count},
            "exit codes of launches": dict(self.codes),
            "notices": counts.notices,
            "nodes that died": counts.deaths,
            "groups of workers": counts.groups,
            "workers replaced": counts.replaced,
            "hung workers named": counts.hung,
            "seconds to begin, median and most": [round(statistics.median(self.begins), 1), round(max(self.begins), 1)],
            "seconds of all beginnings": round(sum(self.begins)),
            "longest wait beside free places, looks": counts.idle_looks,
            "the same in seconds": round(counts.idle, 1),
            "MiB of launches, first and last": [round(statistics.median(mib[:5])), round(statistics.median(mib[-5:]))]
            if mib
            else [],
            "status, wall and processor s": [(round(wall, 2), round(used, 2)) for wall, used in self.status],
        }


def _launch(*arguments: Any) -> None:
    end_with_parent()
    launch(*arguments)


def warm(sweep: Sweep) -> None:
    """Does once what every process would do at its start: git, imports, counts of parameters."""
    source_commit()
    check_data(list(sweep.trials.values()))
    for config in sweep.trials.values():
        model_info(config)
    gc.freeze()  # what is not touched stays shared


@click.command()
@click.option("--days", default=14.0, show_default=True, help="Virtual days that the trials should take.")
@click.option("--trials", default=200, show_default=True, help="A multiple of 4.")
@click.option("--nodes", default=64, show_default=True, help="Of 8 GPUs each.")
@click.option("--speed", default=1000.0, show_default=True, help="Virtual seconds in a real one.")
@click.option("--seed", default=0, show_default=True, help="Of the faults.")
@click.option("--work", type=click.Path(path_type=Path), help="Where to work [default: a folder in /dev/shm].")
@click.option("--out", type=click.Path(path_type=Path), help="File for the figures.")
def main(days: float, trials: int, nodes: int, speed: float, seed: int, work: Path | None, out: Path | None) -> None:
    """Rehearse a sweep under faults; exit code 1 if a promise was broken."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        home = work or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        sweep = rehearsed_sweep(home, trials, nodes, days, speed)
        warm(sweep)
        rehearsal = Rehearsal(sweep, home, days, speed, nodes, seed)
        try:
            broken = rehearsal.run()
            lines, found = rehearsal.checked()
        finally:
            rehearsal.end()
        figures = {**rehearsal.figures(), **found, "real seconds": round(time.monotonic() - began)}
        broken += lines
    click.echo(json.dumps(figures, indent=1))
    for line in broken[:50]:
        click.echo(f"broken: {line}")
    if out:
        out.write_text(json.dumps({**figures, "broken": broken}, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
