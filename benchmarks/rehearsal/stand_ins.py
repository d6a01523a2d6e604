"""What takes the place of networks, evaluation and Ray in the processes of a rehearsal.

The training loop, driver.py and all that writes files are the product's own. They get an engine that waits for the
virtual clock, an evaluator with planted distances, a Tuner of threads, and worker groups of the simulated cluster.
"""

import builtins
import ctypes
import errno
import itertools
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import RawArray, RawValue
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from ray import tune
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from rich.console import Console

from benchmarks.rehearsal.trials import EVALUATED_S, NAMES, STEP_S, distance, diverges_at, planted_fault, term
from gat_sweep.cluster import Cluster
from gat_sweep.errors import UserError
from gat_sweep.files import storage
from gat_sweep.launch import crowd, driver, run
from gat_sweep.metrics.evaluator import Evaluation
from gat_sweep.run import alive
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep
from gat_sweep.train import loop, watch

LOOK, BEAT = 0.5, 0.5  # real seconds between looks, and signs of life: the product's own divided by ten
WELL, FULL, AWAY = 0, 1, 2  # states of the storage
SILENT = "the bucket does not answer (planted)"


class World:
    """What all processes of a rehearsal share; made before the first one is forked."""

    def __init__(self, speed: float, trials: list[str], nodes: int, home: Path):
        self.speed, self.home, self.number = speed, home, {trial: i for i, trial in enumerate(trials)}
        self._clock, self._storage, self._hang = RawValue("d", 0.0), RawValue("i", WELL), RawValue("i", 0)
        self.draining = RawArray("i", nodes)
        self.trained = RawArray("q", len(trials))  # steps, those of lost attempts included
        self.begun = RawArray("i", len(trials))  # whether the attempt under way has come to its first step
        self.worked = RawArray("d", len(trials))  # GPU seconds, from an attempt's first step to its last

    @property
    def clock(self) -> float:
        """Virtual seconds."""
        return float(self._clock.value)

    def move(self, seconds: float) -> None:
        self._clock.value += seconds

    def wait(self, seconds: float, move: Callable[[], None]) -> None:
        """Waits until the clock has moved by so many virtual seconds. move: called meanwhile; waiting is not a hang."""
        until = self.clock + seconds
        while (left := until - self.clock) > 0:
            time.sleep(max(0.01, left / self.speed))
            move()

    @property
    def storage(self) -> int:
        return int(self._storage.value)

    def set_storage(self, state: int) -> None:
        self._storage.value = state

    def plant_hang(self) -> None:
        """The next worker that comes to a step hangs there."""
        self._hang.value = 1

    def hang_if_planted(self) -> None:
        if self._hang.value:
            self._hang.value = 0
            time.sleep(3600)


# ---------------------------------------------------------------- storage


def plant_storage(world: World) -> None:
    """Lets the storage of this process be full, or not answer, when the world says so."""
    read_bytes = Path.read_bytes

    def opened(file: Any, mode: str = "r") -> Any:
        if world.storage == WELL or (world.storage == FULL and mode == "rb"):
            return builtins.open(file, mode)
        if isinstance(file, int):
            os.close(file)
        if world.storage == AWAY:
            raise OSError(errno.ETIMEDOUT, SILENT)
        return builtins.open("/dev/full", mode)  # every write ends in "No space left on device"

    def read(path: Path) -> bytes:
        if world.storage == AWAY and world.home in path.parents:
            raise OSError(errno.ETIMEDOUT, SILENT)
        return read_bytes(path)

    storage.open = opened  # type: ignore[attr-defined]
    Path.read_bytes = read  # type: ignore[assignment, method-assign]


# ---------------------------------------------------------------- training


class Engine:
    """Trains nothing: a step waits for the virtual clock and gives planted losses."""

    def __init__(self, world: World, trial: Trial, workers: int):
        config = trial.config
        if planted_fault(config) == "fails":
            raise RuntimeError("planted: this trial fails in each attempt")
        self.world, self.trial, self.config, self.move = world, trial, config, lambda: None
        self.seconds = STEP_S / (workers if config.workers.elastic else 1)
        self.ema = torch.nn.Module()
        self.ema.register_buffer("style_mean", torch.zeros(1))
        self.ema.register_buffer("steps", torch.zeros(1, dtype=torch.int64))  # the state that checkpoints have to keep
        self.iterated, self.workers, self.since = 0, workers, time.time()

    @property
    def step(self) -> int:
        return int(self.ema.get_buffer("steps"))

    def parts(self) -> dict[str, Any]:
        return {"ema": self.ema}

    def trouble(self) -> tuple[int, str, float] | None:
        beyond = self.step - diverges_at(self.config)
        diverged = planted_fault(self.config) == "diverges" and beyond >= 0
        return (self.iterated - beyond, "discriminator", float("nan")) if diverged else None

    def make_room(self) -> None:
        pass

    def iterate(self, batch: int) -> dict[str, torch.Tensor]:
        self.world.begun[self.world.number[self.trial.id]] = 1
        self.world.hang_if_planted()
        self.since = self.since if self.iterated else time.time()
        self.world.wait(self.seconds, self.move)
        self.ema.steps += 1  # type: ignore[operator, assignment]
        self.iterated += 1
        number, now = self.world.number[self.trial.id], time.time()
        self.world.trained[number] += 1
        self.world.worked[number] += (now - self.since) * self.workers * self.config.workers.gpus
        self.since = now
        return {name: torch.tensor(term(self.config, name, self.step), dtype=torch.float64) for name in NAMES}


class Evaluator:
    """Measures the planted distance, in two chunks."""

    def __init__(self, world: World, trial: Trial):
        self.world, self.trial, self.config = world, trial, trial.config
        self.reference = SimpleNamespace(halves=None)

    def measure(self, ema: Any, extras: bool, between: Callable[[], None]) -> Evaluation:
        self.world.begun[self.world.number[self.trial.id]] = 1
        for _ in range(2):
            self.world.wait(EVALUATED_S / 2, between)
        value = distance(self.config, int(ema.steps))
        return Evaluation(self.config.eval.metric, value, self.config.eval.samples, "planted", "{}")

    def samples(self, ema: Any, seed: int, count: int) -> torch.Tensor:
        return torch.full((count, 3, 8, 8), int(ema.steps) % 256, dtype=torch.uint8)

    def captions(self, start: int, count: int) -> list[str]:
        return []


class Data:
    """A data set of which only the digest and the size are asked for."""

    digest, name = "planted", "planted"

    def __len__(self) -> int:
        return 10**6


def train_stand_in(world: World, workers: int) -> Callable[..., loop.Outcome]:
    """train() with an engine, data and evaluator of planted numbers; this process stands for all workers of a group."""
    agreement = loop.Agreement

    def train(trial: Trial, device: torch.device, asked: Callable[[], str] = lambda: "") -> loop.Outcome:
        engine = Engine(world, trial, workers)

        def watched(*arguments: Any) -> watch.Watch:
            found = watch.Watch(*arguments)
            engine.move = found.move
            return found

        loop.Engine, loop.Watch = lambda *_: engine, watched  # type: ignore[misc, assignment]
        loop.Evaluator = lambda *_, **__: Evaluator(world, trial)  # type: ignore[misc, assignment]
        return loop.train(trial, device, asked)

    loop.dist = SimpleNamespace(  # type: ignore[assignment]
        is_initialized=lambda: True, get_rank=lambda: 0, get_world_size=lambda: workers, broadcast=lambda *_: None
    )
    loop.Agreement = lambda _: agreement(1)  # type: ignore[misc, assignment]
    loop.load_dataset = lambda _: Data()  # type: ignore[assignment, return-value]
    loop.check_needs = lambda *_: None
    loop.Feed = lambda *_, **__: SimpleNamespace(encoder=None, batch=lambda step: step)  # type: ignore[misc, assignment]
    return train


def work(world: World, pack: list[Trial], nodes: list[int], says: Connection) -> NoReturn:
    """A worker group in a process: the product's own _train_pack, which ends with an exit code and its error."""
    alive.BEAT = watch.BEAT = BEAT
    plant_storage(world)
    driver._mind_sigterm()
    driver.train = train_stand_in(world, len(nodes))
    driver._worker_device = lambda _: torch.device("cpu")  # type: ignore[assignment]
    warned = "a node of the trial is being preempted"
    driver._told = lambda: warned if any(world.draining[node] for node in nodes) else ""
    try:
        driver._train_pack({"pack": pack})
    except Exception:  # whatever it is, it goes to the driver, as Ray does it
        says.send(traceback.format_exc())
        os._exit(1)
    os._exit(0)


# ---------------------------------------------------------------- Ray, as the driver sees it


class Wire:
    """The driver's line to the simulated cluster, for all of its threads."""

    def __init__(self, line: Connection):
        self.line, self.lock = line, threading.Lock()
        self.answers: dict[int, SimpleQueue[Any]] = {}
        self.numbers = itertools.count()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            number, answer = self.line.recv()
            self.answers.pop(number).put(answer)

    def tell(self, *words: Any) -> None:
        with self.lock:
            self.line.send(words)

    def ask(self, *words: Any) -> Any:
        queue: SimpleQueue[Any] = SimpleQueue()
        with self.lock:
            number = next(self.numbers)
            self.answers[number] = queue
            self.line.send((*words, number))
        return queue.get()


class Trainer:
    """In the place of Ray Train's trainer: a group of workers of the simulated cluster."""

    def __init__(self, wire: Wire, pack: list[Trial], count: int):
        self.wire, self.pack, self.count = wire, pack, count

    def fit(self) -> None:
        kind, text = self.wire.ask("start", [trial.id for trial in self.pack], self.count)
        if kind == "no place":
            raise ControllerError(WorkerGroupStartupTimeoutError(self.count))
        if kind != "ended":
            raise WorkerGroupError(text, {0: RuntimeError(text)})


class Tuner:
    """In the place of Ray Tune: asks the product's searcher for packs, and drives each in a thread."""

    def __init__(self, wire: Wire, drive: Any, tune_config: Any, run_config: Any):
        self.wire, self.drive, self.search = wire, drive, tune_config.search_alg
        self.most, self.left = tune_config.max_concurrent_trials, tune_config.num_samples
        (self.callback,) = run_config.callbacks
        self.failures = run_config.failure_config.max_failures
        self.ended: SimpleQueue[tuple[str, Any, int, Exception | None]] = SimpleQueue()

    def fit(self) -> None:
        running = 0
        while self.left or running:
            while self.left and running < self.most:
                name = uuid.uuid4().hex
                if (found := self.search.suggest(name)) is None:
                    break
                self._start(name, found, 0)
                running, self.left = running + 1, self.left - 1
            queue = self.search.queue
            under_way = [(group.pack[0].id, group.workers) for group in queue.under_way.values()]
            self.wire.tell("waits", queue.ready()[:1], under_way)
            time.sleep(0.1)
            while not self.ended.empty():
                running -= self._take(*self.ended.get())

    def _take(self, name: str, config: dict[str, Any], failures: int, error: Exception | None) -> int:
        """What Tune does when the function of a pack has ended; returns how many packs are over, 0 or 1."""
        pack = SimpleNamespace(config=config, get_pickled_error=lambda: error)
        if error and failures <= self.failures:
            self.callback.on_trial_recover(0, [pack], pack)
            self._start(name, config, failures)
            return 0
        if error:
            self.callback.on_trial_error(0, [pack], pack)
        self.search.on_trial_complete(name, error=error is not None)
        return 1

    def _start(self, name: str, config: dict[str, Any], failures: int) -> None:
        def run() -> None:
            try:
                self.drive(config)
                self.ended.put((name, config, failures, None))
            except Exception as error:  # Tune starts the function of a pack again, whatever it raised
                self.ended.put((name, config, failures + 1, error))

        threading.Thread(target=run, daemon=True).start()


def launch(world: World, line: Connection, sweep: Sweep, run_name: str, uri: str, retry: bool, log: Path) -> NoReturn:
    """A launch in a process: the product's own `run`, on the simulated cluster."""
    wire = Wire(line)
    plant_storage(world)

    def look(_: str | None = None) -> Cluster:
        found: Cluster = wire.ask("look")
        return found

    @contextmanager
    def session(*_: Any, **__: Any) -> Iterator[Cluster]:
        yield look()

    alive.BEAT, crowd.LOOK, driver.LOOK = BEAT, LOOK, LOOK
    crowd.SETTLE, crowd.REST = 2 * LOOK, max(4 * LOOK, crowd.REST / world.speed)
    crowd.look = driver.look = look  # type: ignore[assignment]
    run.session, run.probe_nodes = session, lambda _: ""  # type: ignore[assignment]
    driver.measure_reference = lambda _: None  # type: ignore[assignment]
    driver._trainer = lambda _, pack, __, count: Trainer(wire, pack, count)  # type: ignore[assignment]
    tune.Tuner = lambda *args, **more: Tuner(wire, *args, **more)  # type: ignore[misc, assignment]
    how = run.Launch("rehearsal:1", uri, ("failed",) if retry else ())
    with log.open("a", encoding="utf-8") as file:
        try:
            code = run.run_command(sweep, world.home, run_name, how, Console(file=file, width=200))
        except (UserError, OSError) as error:
            file.write(f"gat-sweep: {error}\n")
            code = 2
        except Exception:
            file.write(traceback.format_exc())
            code = 3
    os._exit(code)


def end_with_parent() -> None:
    """Lets this process end when the rehearsal does, also when that is killed."""
    ctypes.CDLL(None).prctl(1, 9)
