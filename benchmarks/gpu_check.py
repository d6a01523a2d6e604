#!/usr/bin/env python3
"""Everything this project wants to know from one GPU, in one run of at most nine minutes.

Run from the project's root: `python3 benchmarks/gpu_check.py --out "$OUT"`. It needs neither Ray nor MLflow, and the
training split of CIFAR-10 (JPEG bytes in a column `image`) as .kit/cifar10.parquet. On a machine without a GPU,
`--rehearse` walks through the same stages on the CPU with networks of nothing.

Every stage is a process of its own with a limit of its own: one that fails, hangs or poisons its CUDA context costs
the others nothing, and what it had found by then is kept. Written below --out, anew after every stage:
    result.json    what every stage found, and how long it took
    log.txt        the same as text, one line at a time
    extras.tar.gz  whole logs of the stages, kernel tables, journals, result tables and sample grids of the sweep
Stages that time something never overlap another one; the compiler works beside those that only check.
"""

import argparse
import contextlib
import io
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path.cwd()
KIT = ROOT / ".kit"  # what travels with the tree: cifar10.parquet
WORK = Path(os.environ.get("GAT_KIT_WORK", Path(tempfile.gettempdir()) / "gat-kit"))
os.environ.update(
    PYTHONUNBUFFERED="1",
    PYTORCH_NVML_BASED_CUDA_CHECK="1",  # the parent must not touch CUDA: children are forked from it
    TORCHINDUCTOR_CACHE_DIR=str(WORK / "inductor"),  # `precompile` fills it, `bench` reads it
    TRITON_CACHE_DIR=str(WORK / "triton"),
    TORCHINDUCTOR_FX_GRAPH_CACHE="1",
    TORCHINDUCTOR_AUTOGRAD_CACHE="1",
    TORCHINDUCTOR_COMPILE_THREADS="4",
    GAT_SWEEP_HOME=str(WORK / "home"),
    COLUMNS="160",
)
os.environ.setdefault("OMP_NUM_THREADS", "8")
sys.path.insert(0, str(ROOT))  # the tree itself; the wheels' gat_sweep holds nothing but its version

SIZES = ("S", "B", "L", "XL")
NOMINAL = {"H100": 989e12, "H200": 989e12}  # dense bf16 FLOP/s by the datasheet
RECIPE = "imagenet256"

# Of the rehearsal: the same recipe, its networks and images shrunk.
TINY: dict[str, Any] = {
    **{f"ladder.{s}.width": w for s, w in zip(SIZES, (16, 24, 32, 48), strict=True)},
    **{f"ladder.{s}.depth": 4 for s in SIZES},
    **{f"ladder.{s}.heads": 2 for s in SIZES},
    **{"data.side": 8, "model.patch": 2, "teacher.width": 24, "model.class_width": 32, "model.projector_width": 32},
}


# ---------------------------------------------------------------- running stages


class Kit:
    """What every stage is told, and where it puts what it finds."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.rehearse: bool = options.rehearse
        self.device_name = "cpu" if options.rehearse else "cuda"
        self.out = Path(options.out)
        self.began = time.time()
        self.deadline = self.began + options.budget
        self.batch = 8 if options.rehearse else options.batch
        self.found: dict[str, Any] = {}
        self.log_lines: list[str] = []
        self.fork = not options.spawn
        for folder in (self.out, WORK / "stages", WORK / "home", WORK / "extras"):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self.deadline - time.time()

    def say(self, text: str) -> None:
        line = f"[{time.time() - self.began:5.0f} s] {text}"
        print(line, flush=True)
        self.log_lines.append(line)
        (self.out / "log.txt").write_text("\n".join(self.log_lines) + "\n", encoding="utf-8")

    def write(self) -> None:
        values = {
            "about": "gat-sweep on one GPU",
            "batch_per_gpu": self.batch,
            "rehearsal": self.rehearse,
            "seconds": round(time.time() - self.began, 1),
            "stages": self.found,
        }
        target = self.out / "result.json"
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(values, indent=1, default=str) + "\n", encoding="utf-8")
        temporary.replace(target)

    # -- a stage as a process

    def start(self, name: str) -> "Running":
        """Begins a stage in a process that is the first of its own session."""
        return Running(self, name)

    def run(self, name: str, cap: float, need: float = 5.0) -> dict[str, Any]:
        """Runs a stage to its end, or for `cap` seconds, unless there are less than `need` left."""
        if self.left < need + 4:
            self.say(f"{name}: left out, {self.left:.0f} s are left")
            self.found[name] = {"status": "left out"}
            self.write()
            return self.found[name]
        running = self.start(name)
        running.wait(min(cap, self.left - 4))
        return running.end()


class Running:
    """A stage under way."""

    def __init__(self, kit: Kit, name: str):
        self.kit, self.name, self.began = kit, name, time.time()
        stem = name.replace(":", "-")
        self.log, self.json = WORK / "stages" / f"{stem}.log", WORK / "stages" / f"{stem}.json"
        self.json.unlink(missing_ok=True)
        self.exit: int | None = None
        if kit.fork:
            sys.stdout.flush(), sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                child(kit, name, self.log, self.json)  # never returns
        else:
            environment = os.environ | {"GAT_KIT_STAGE": name, "GAT_KIT_BEGAN": str(kit.began)}
            with open(self.log, "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, __file__, *sys.argv[1:]],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            self.pid = process.pid

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.exit is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit = os.waitstatus_to_exitcode(status)
                self.took = time.time() - self.began
        return self.exit is not None

    def wait(self, seconds: float) -> None:
        until = time.time() + seconds
        while not self.poll() and time.time() < until:
            time.sleep(0.05)

    def end(self) -> dict[str, Any]:
        """What it found; whatever of it still runs is killed."""
        status = "ended" if self.poll() else "stopped at its limit"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.exit is None:
            os.waitpid(self.pid, 0)
            self.took = time.time() - self.began
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.json.read_text(encoding="utf-8"))
        if self.exit not in (0, None) and not found.get("error"):
            found["error"] = f"exit code {self.exit}"
        found = {"status": "failed" if found.get("error") else status, "seconds": round(self.took, 1), **found}
        self.kit.found[self.name] = found
        self.kit.write()
        said = found.get("line") or found.get("error") or status
        self.kit.say(f"{self.name}: {str(said).splitlines()[-1][:400]} ({found['status']}, {self.took:.0f} s)")
        return found


class Found:
    """What a stage has found so far; kept on disk after each finding."""

    def __init__(self, path: Path):
        self.path, self.values = path, dict[str, Any]()

    def __setitem__(self, key: str, value: Any) -> None:
        self.values[key] = value
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values, default=str), encoding="utf-8")
        temporary.replace(self.path)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def attempt(self, key: str, work: Callable[[], Any]) -> Any:
        """Stores what `work` returns, or in one line what it raised."""
        try:
            value = work()
        except Exception as error:
            traceback.print_exc()
            value = {"error": one_line(error)}
            if "out of memory" in str(error).lower():
                free_memory()
        print(f"{key}: {json.dumps(value, default=str)[:600]}", flush=True)
        self[key] = value
        return value


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def child(kit: Kit, name: str, log: Path, path: Path) -> None:
    """The life of a stage's process."""
    if os.getpid() != os.getsid(0):
        os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
    sys.stderr = sys.stdout
    found, code = Found(path), 0
    found["line"] = ""
    stage, _, argument = name.partition(":")
    try:
        STAGES[stage](kit, found, *([argument] if argument else []))
    except BaseException as error:
        traceback.print_exc()
        found["error"] = one_line(error)
        code = 1
    sys.stdout.flush()
    os._exit(code)


# ---------------------------------------------------------------- helpers of the stages


def torch_device(kit: Kit) -> Any:
    import torch

    if kit.rehearse:
        torch.set_num_threads(1)
    return torch.device("cpu") if kit.rehearse else torch.device("cuda", 0)


def sync(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trial_config(kit: Kit, size: str, **changed: Any) -> Any:
    """imagenet256 at a size on one worker; `__` for dots."""
    from gat_sweep.recipe import load_recipe, resolve

    settings: dict[str, Any] = {
        "model.generator": size,
        "model.discriminator": size,
        "workers.count": 1,
        "workers.cuda_graph": False,
        "workers.compile": False,
        "train.batch": kit.batch,
        **(TINY if kit.rehearse else {}),
    }
    return resolve(load_recipe(RECIPE), settings | {key.replace("__", "."): v for key, v in changed.items()})


def measure(step: Callable[[], Any], device: Any, seconds: float, least: int = 2, most: int = 20) -> dict[str, Any]:
    """Milliseconds of a call: alone (device idle before and after), and in a row, as training runs it.

    enqueue: until the call returned, from an idle device; near `ms` or above, the host is what limits. The caller has
    warmed up.
    """
    alone, enqueue = [], []
    until = time.perf_counter() + seconds / 2
    while len(alone) < least or (time.perf_counter() < until and len(alone) < most):
        sync(device)
        start = time.perf_counter()
        step()
        enqueue.append(time.perf_counter() - start)
        sync(device)
        alone.append(time.perf_counter() - start)
    count = max(least, min(most, int(seconds / 2 / statistics.median(alone))))
    start = time.perf_counter()
    for _ in range(count):
        step()
    sync(device)
    row = (time.perf_counter() - start) / count
    return {
        "ms": round(1000 * row, 3),
        "ms_alone": round(1000 * statistics.median(alone), 3),
        "ms_alone_min": round(1000 * min(alone), 3),
        "ms_enqueue": round(1000 * statistics.median(enqueue), 3),
        "calls": len(alone) + count,
    }


def kernel_ms(work: Callable[[], Any], device: Any, repeats: int = 10) -> float:
    """Median milliseconds of a few kernels, by the device's own events; a host's clock on CPU."""
    import torch

    work(), sync(device)
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - start)
    for _ in range(2):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        times.append((begin, end))
    sync(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in times)


def replayed(work: Callable[[], Any], device: Any) -> Callable[[], Any]:
    """The same work as one CUDA graph, as training runs it, so that a host's launches are not timed; itself on CPU."""
    import torch

    if device.type != "cuda":
        return work
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def peak_gib(step: Callable[[], Any], device: Any) -> dict[str, float]:
    """Peak of a call, everything held included: allocated, and reserved with what fragments cost."""
    import torch

    if device.type != "cuda":
        step()
        return {}
    sync(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    sync(device)
    stats = torch.cuda.memory_stats(device)
    return {
        "peak_allocated_gib": round(stats["allocated_bytes.all.peak"] / 2**30, 2),
        "peak_reserved_gib": round(stats["reserved_bytes.all.peak"] / 2**30, 2),
        "retries": stats.get("num_alloc_retries", 0),
    }


def kernel_table(step: Callable[[], Any], device: Any, steps: int = 2, top: int = 20) -> dict[str, Any]:
    """Time by kernel (torch.profiler), by kind of kernel, and how much of the wall time the device was busy."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    step(), sync(device)
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        sync(device)
        wall = time.perf_counter() - start
    rows: dict[str, list[float]] = {}
    for event in profiler.events():
        if cuda and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        if cuda and getattr(event, "is_user_annotation", False):
            continue
        spent = event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
        row = rows.setdefault(event.name, [0.0, 0.0])
        row[0] += spent / 1000 / steps
        row[1] += 1 / steps
    total = sum(row[0] for row in rows.values()) or 1.0
    kinds: dict[str, list[float]] = {}
    for name, (spent, calls) in rows.items():
        kind = kinds.setdefault(kind_of(name), [0.0, 0.0])
        kind[0] += spent
        kind[1] += calls
    ranked = sorted(rows.items(), key=lambda item: -item[1][0])
    return {
        "wall_ms_per_step_profiled": round(1000 * wall / steps, 2),
        "kernel_ms_per_step": round(total, 2),
        "kernels_per_step": round(sum(row[1] for row in rows.values())),
        "kinds": {
            k: {"ms": round(v[0], 2), "share": round(v[0] / total, 3), "calls": round(v[1])}
            for k, v in sorted(kinds.items(), key=lambda item: -item[1][0])
        },
        "top": [
            {"kernel": name[:140], "ms": round(row[0], 3), "share": round(row[0] / total, 4), "calls": round(row[1])}
            for name, row in ranked[:top]
        ],
    }


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    for kind, words in {
        "attention": ("flash", "fmha", "sdpa", "attention", "mha"),
        "matrix products": ("gemm", "cutlass", "nvjet", "cublas", "xmma", "wgmma", "splitk", "aten::mm", "aten::addmm"),
        "convolution": ("conv", "cudnn", "nchw", "nhwc", "implicit"),
        "optimizer and averages": ("adam", "multi_tensor", "foreach", "lpnorm"),
        "norm": ("rms_norm", "layer_norm", "rmsnorm"),
        "compiled": ("triton_",),
        "copies and fills": ("memcpy", "memset", "copy", "fill", "catarray"),
        "reductions": ("reduce",),
        "elementwise": ("elementwise", "vectorized", "unrolled"),
    }.items():
        if any(word in name for word in words):
            return kind
    return "other"


def flops_per_step(config: Any) -> int:
    from gat_sweep.gat import flops

    return sum(flops.iteration(config.generator_spec, config.discriminator_spec).values()) * config.train.batch


def plan_of(kit: Kit, config: Any, device: Any) -> Any:
    """What the engine would choose for this device's memory."""
    from gat_sweep.train.engine import worker_memory

    return worker_memory(config, device, config.train.batch)


def set_plan(engine: Any, plan: Any) -> None:
    """Chunks of both steps and recomputed blocks, as an experiment."""
    engine.memory = plan
    engine.generator.checkpointed = plan.checkpointed


# ---------------------------------------------------------------- stages


def stage_info(kit: Kit, found: Found) -> None:
    import platform
    import shutil
    from importlib import metadata

    import torch

    device = torch_device(kit)
    found["machine"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "git": shutil.which("git") is not None,
        "packages": {
            name: metadata.version(name)
            for name in "triton timm numpy scipy pyarrow pydantic diffusers torch-fidelity rich click".split()
            if any(True for _ in metadata.distributions(name=name))
        },
    }
    if shutil.which("nvidia-smi"):
        query = "name,memory.total,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
        asked = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
        found["nvidia_smi"] = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
    if device.type == "cuda":
        torch.cuda.init()
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        found["device"] = {
            "name": properties.name,
            "capability": torch.cuda.get_device_capability(device),
            "multiprocessors": properties.multi_processor_count,
            "total_gib": round(total / 2**30, 2),
            "free_gib": round(free / 2**30, 2),
            "cudnn": torch.backends.cudnn.version(),
            "nccl": torch.cuda.nccl.version(),
            "tf32": {
                "matmul": torch.backends.cuda.matmul.allow_tf32,
                "cudnn": torch.backends.cudnn.allow_tf32,
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
            },
        }
        source = torch.randn(2**30, device=device)
        target = torch.empty_like(source)
        ms = kernel_ms(lambda: target.copy_(source), device)
        found["copy_bytes_per_second"] = 2 * source.nbytes / (ms / 1000)
        del source, target
    sides = (4096, 8192) if device.type == "cuda" else (256,)
    ceilings: dict[str, float] = {}
    for name, dtype, precision in [
        ("bfloat16", torch.bfloat16, "highest"),
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ]:
        torch.set_float32_matmul_precision(precision)
        for side in sides:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            rate = 2 * side**3 / (kernel_ms(lambda a=a, b=b: a @ b, device) / 1000)
            ceilings[name] = max(ceilings.get(name, 0.0), rate)
    torch.set_float32_matmul_precision("highest")
    found["ceilings"] = ceilings
    where = found.values.get("device", {"name": "CPU"})
    rates = ", ".join(f"{k} {v / 1e12:.4g}" for k, v in ceilings.items())
    copied = found.values.get("copy_bytes_per_second", 0) / 1e12
    found["line"] = f"{where['name']}, torch {torch.__version__}; TFLOP/s {rates}; copy {copied:.2f} TB/s"


def stage_precompile(kit: Kit, found: Found, size: str) -> None:
    """Compiles every graph that `bench` will use into the cache, on networks of the same widths and of four blocks."""
    import torch

    from gat_sweep.plan import memory_plan
    from gat_sweep.speed import clock
    from gat_sweep.train.engine import Engine

    device = torch_device(kit)
    whole = trial_config(kit, size)
    # Of the whole card's memory: what is free now depends on the stages beside this one.
    plan = memory_plan(whole, whole.train.batch, device.type == "cpu", memory_total(device) * 2**30)
    torch._dynamo.config.recompile_limit = 64
    config = trial_config(kit, size, **{f"ladder__{size}__depth": 4, "workers__compile": True})
    with device:
        engine = Engine(config, device)
    random = torch.Generator(device).manual_seed(0)
    start = time.perf_counter()
    set_plan(engine, replace(plan, checkpointed=min(plan.checkpointed, 2)))
    engine.iterate(clock.make_batch(config, random))
    sync(device)
    found["seconds"] = round(time.perf_counter() - start, 1)
    found["line"] = f"{size}: {found['seconds']} s"


REFERENCES = ("official_step", "official_iteration")


def stage_parity(kit: Kit, found: Found) -> None:
    """The two reference files of the released code, on the device."""
    from dataclasses import asdict
    from functools import partial

    import torch

    from gat_sweep.pretrained.parity import LIMITS, check_parity

    device = torch_device(kit)

    def compare(name: str) -> dict[str, Any]:
        result = check_parity(ROOT / "tests" / "data" / f"{name}.safetensors", device)
        return {**asdict(result), "passed": result.passed}

    found["tf32 of cudnn and products"] = [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]
    for name in REFERENCES:
        found.attempt(name, partial(compare, name))
    found["limits"] = LIMITS
    found["line"] = f"passed: {[found.values[name].get('passed') for name in REFERENCES]}"


def stage_precision(kit: Kit, found: Found) -> None:
    """One iteration: bfloat16 against float32, and the engine against the straightforward step."""
    import torch

    from gat_sweep.speed import bench, clock
    from gat_sweep.speed.straightforward import Straightforward
    from gat_sweep.train.engine import Engine

    device = torch_device(kit)
    results: dict[str, dict[str, float]] = {}

    def iteration(precision: str, plain: bool) -> dict[str, Any]:
        config = trial_config(kit, "S", train__batch=8, train__precision=precision, train__eps=1e-3)
        engine = Engine(config, device)
        batch = clock.make_batch(config, torch.Generator(device).manual_seed(0))
        other = Straightforward(config, engine.generator, engine.discriminator, device).step(batch) if plain else None
        terms = engine.iterate(batch)
        results[precision] = {name: value.mean().item() for name, value in terms.items()}
        shown: dict[str, Any] = {name: float(f"{value:.6g}") for name, value in results[precision].items()}
        if other is not None:
            shown["loss_difference_to_straightforward"] = bench.loss_difference(terms, other)
        shown["trouble"] = engine.trouble()
        return shown

    found.attempt("attention in bfloat16 against float64, relative", lambda: attention_errors(device))
    found.attempt("float32", lambda: iteration("float32", True))
    found.attempt("bfloat16", lambda: iteration("bfloat16", True))
    torch.backends.cudnn.allow_tf32 = False
    found.attempt("float32 without TF32 in convolutions", lambda: iteration("float32", True))
    both = results.get("float32", {}), results.get("bfloat16", {})
    relative = {n: abs(both[1][n] - v) / max(abs(v), 1e-6) for n, v in both[0].items() if n in both[1]}
    found["bfloat16_to_float32_relative"] = {name: float(f"{value:.3g}") for name, value in relative.items()}
    worst = max(relative, key=lambda n: relative[n], default="")
    found["line"] = f"bfloat16 against float32: {found['bfloat16_to_float32_relative']}, worst {worst}"


def attention_errors(device: Any) -> dict[str, Any]:
    """The product's `attend` as it lays out q, k, v: largest error of output and gradients, per tensor's norm."""
    import torch

    from gat_sweep.gat.layers import attend

    found = {}
    for heads, head in ((2, 64), (6, 64), (16, 72)):
        for length, queries in ((64, 64), (65, 65), (256, 256), (257, 257), (257, 1), (1025, 1025)):
            packed = torch.randn(4, length, 3, heads, head, device=device)
            packed[:, :, :2] /= packed[:, :, :2].square().mean(-1, keepdim=True).sqrt()  # qk-norm
            packed[:, :, 0] *= head**-0.5
            low = packed.bfloat16()
            ours = [t.transpose(1, 2).detach().requires_grad_() for t in low.unbind(2)]
            theirs = [t.double().detach().requires_grad_() for t in ours]
            out = attend(ours[0][:, :, :queries], ours[1], ours[2])
            exact = (theirs[0][:, :, :queries] @ theirs[1].transpose(-1, -2)).softmax(-1) @ theirs[2]
            grad = torch.randn_like(out)
            pairs = [(out, exact)]
            pairs += zip(
                torch.autograd.grad(out, ours, grad), torch.autograd.grad(exact, theirs, grad.double()), strict=True
            )
            errors = [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]
            found[f"{heads}x{head}, {queries} of {length}"] = (
                float(f"{max(errors):.2g}") if all(map(math.isfinite, errors)) else "not finite"
            )
    return found


def tiny_trial(kit: Kit, name: str, recipe: str, settings: dict[str, Any]) -> Any:
    from gat_sweep.recipe import load_recipe, resolve
    from gat_sweep.run.trial import Trial

    config = resolve(load_recipe(recipe), settings)
    return Trial("trial", name, "kit", config.placed(), WORK / "home")


def tensors_of(trial: Any) -> dict[str, Any]:
    from gat_sweep.run.checkpoint import step_checkpoint
    from gat_sweep.run.saved import saved_step

    folder = trial.folder / "checkpoints"
    checkpoint = step_checkpoint(folder, saved_step(folder))
    return {f"{part}.{name}": t for part in checkpoint.files for name, t in checkpoint.part(part).items()}


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    import torch

    unequal = [name for name in a if not torch.equal(a[name], b[name])]
    largest = max(((a[n].float() - b[n].float()).abs().max().item() for n in unequal), default=0.0)
    return {"tensors": len(a), "unequal": len(unequal), "largest": largest, "first": unequal[:3]}


def stage_resume(kit: Kit, found: Found) -> None:
    """Straight, straight again, and cut in the middle: the same weights?"""
    from gat_sweep.train.loop import train

    device = torch_device(kit)
    steps = 4 if kit.rehearse else 20
    common: dict[str, Any] = {"train.steps": steps, "train.eval_every": steps, "train.log_every": 5}
    common |= {"eval.samples": 64, "eval.resize": 32, "model.generator": "XL", "model.discriminator": "XL"}

    def run(name: str, cut: int | None, precision: str, graph: bool = False) -> Any:
        settings = common | {"train.precision": precision, "workers.cuda_graph": graph}
        trial = tiny_trial(kit, f"resume-{precision}-{name}", "digits", settings)
        if cut is not None:
            asked = [0]

            def stop() -> str:
                asked[0] += 1
                return "cut" if asked[0] > cut else ""

            outcome = train(trial, device, stop)
            assert (outcome.status, outcome.step) == ("stopped", cut), outcome
        outcome = train(trial, device)
        assert outcome.status == "done", outcome
        return tensors_of(trial)

    for precision in ("float32", "bfloat16"):
        straight = run("straight", None, precision)
        found.attempt(
            f"{precision}: two straight runs", lambda s=straight, p=precision: difference(s, run("again", None, p))
        )
        found.attempt(
            f"{precision}: cut and resumed",
            lambda s=straight, p=precision: difference(s, run("cut", steps // 2, p)),
        )
        if device.type == "cuda":
            found.attempt(
                f"{precision}: cut and resumed, with a CUDA graph",
                lambda s=straight, p=precision: difference(s, run("graph", steps // 2, p, True)),
            )
    if device.type == "cuda":
        found.attempt("float32: what does not add in one order", lambda: unordered(device))
    kept = {key: value for key, value in found.values.items() if key != "line"}
    found["line"] = "; ".join(
        f"{key}: {value.get('unequal')} of {value.get('tensors')} differ" for key, value in kept.items()
    )


def unordered(device: Any) -> dict[str, Any]:
    """How much three iterations of digits differ from themselves, and the operations torch calls nondeterministic."""
    import warnings

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from gat_sweep.recipe import load_recipe, resolve
    from gat_sweep.speed import clock
    from gat_sweep.train.engine import Engine

    config = resolve(load_recipe("digits"), {"model.generator": "XL", "model.discriminator": "XL"})

    def weights() -> dict[str, Any]:
        engine = Engine(config, device)
        random = torch.Generator(device).manual_seed(0)
        for _ in range(3):
            engine.iterate(clock.make_batch(config, random))
        parts = {"g": engine.generator, "d": engine.discriminator}
        return {f"{part}.{name}": t for part, network in parts.items() for name, t in network.state_dict().items()}

    found: dict[str, Any] = {"default": difference(weights(), weights())}
    with sdpa_kernel(SDPBackend.MATH):
        found["plain attention"] = difference(weights(), weights())
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found["deterministic algorithms"] = difference(weights(), weights())
    torch.use_deterministic_algorithms(False)
    found["warnings"] = sorted({str(w.message).splitlines()[0][:160] for w in said})
    return found


def stage_ddp(kit: Kit, found: Found) -> None:
    """The engine as one of several workers, in a process group of one: DDP, no_sync and NCCL, eager and compiled."""
    import torch
    import torch.distributed as dist

    from gat_sweep.speed import clock
    from gat_sweep.train.engine import Engine
    from gat_sweep.train.loop import Agreement

    device = torch_device(kit)
    store = WORK / "store"
    store.unlink(missing_ok=True)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{store}", rank=0, world_size=1
    )

    def iterations(world: int, compiled: bool) -> dict[str, float]:
        changed: dict[str, Any] = {"train__batch": 8, "train__eps": 1e-3, "ladder__S__depth": 4}
        config = trial_config(kit, "S", **changed, workers__compile=compiled)
        engine = Engine(config, device, world)
        object.__setattr__(engine.memory, "chunk", 4)
        random = torch.Generator(device).manual_seed(0)
        for _ in range(2):
            terms = engine.iterate(clock.make_batch(config, random))
        assert engine.trouble() is None
        return {name: terms[name].mean().item() for name in ("loss_d", "loss_g", "grad_norm_d", "grad_norm_g")}

    found.attempt("alone", lambda: iterations(1, False))
    found.attempt("DDP", lambda: iterations(2, False))

    def agree() -> bool:
        with Agreement(2) as agreement:
            return agreement.reached(True, False) == (False, False) and agreement.reached(False, False) == (True, False)

    found.attempt("agreement, one step late", agree)
    if not kit.rehearse:
        import faulthandler

        faulthandler.dump_traceback_later(70)  # it once did not end: the log then says where it waits
        found.attempt("DDP, compiled", lambda: iterations(2, True))
        faulthandler.cancel_dump_traceback_later()
    dist.destroy_process_group()
    kept = {
        k: v.get("loss_d", v.get("error")) if isinstance(v, dict) else v for k, v in found.values.items() if k != "line"
    }
    found["line"] = f"loss_d after two iterations: {kept}"


def local_units(encoding: Any, units: list[Any], *machines: Any) -> Iterator[Any]:
    """What `encode` gives to Ray Data, without Ray: unit after unit."""
    from gat_sweep.encode.encoder import Encoder
    from gat_sweep.encode.sources import read_unit

    encoder = Encoder(encoding, "cpu")
    for unit in units:
        yield encoder.write(unit.index, read_unit(encoding.source, unit, encoding.picture_side, encoding.store_images))


def stage_data(kit: Kit, found: Found) -> None:
    """CIFAR-10's JPEGs to a data set of pixels, by the product's own encoder (its command needs Ray)."""
    from rich.console import Console

    from gat_sweep.encode.job import EncodeJob, encode

    source = KIT / "cifar10.parquet"
    if kit.rehearse:  # a few pictures do
        import pyarrow.parquet as pq

        small = WORK / "cifar10-small.parquet"
        pq.write_table(pq.read_table(source).slice(0, 256), small)
        source = small
    start = time.perf_counter()
    job = EncodeJob(out=WORK / "cifar10", tokenizer="pixels", images=str(source), size=32)
    manifest = encode(job, Console(), run=local_units)  # type: ignore[arg-type]
    found["images"], found["digest"] = manifest.count, manifest.digest
    found["seconds_encoding"] = round(time.perf_counter() - start, 2)
    found["line"] = f"{manifest.count:,} pictures, digest {manifest.digest}, {found['seconds_encoding']} s"


def sweep_settings(kit: Kit, size: str) -> dict[str, Any]:
    """The recipe cifar10 at a size. Equal steps and rows for all; bfloat16, since float32 has no tensor cores."""
    settings: dict[str, Any] = {
        "model.generator": size,
        "model.discriminator": size,
        "data.path": str(WORK / "cifar10"),
        "train.precision": "bfloat16",
        "train.eval_every": 300,
        "train.log_every": 50,
        "eval.samples": 5000,
        "workers.cpus": 3,
        "workers.save_minutes": 60,
    }
    if kit.rehearse:
        settings |= {f"ladder.{s}.width": w for s, w in zip(SIZES, (16, 24, 32, 48), strict=True)}
        settings |= {f"ladder.{s}.depth": 4 for s in SIZES} | {f"ladder.{s}.heads": 2 for s in SIZES}
        settings |= {"train.batch": 8, "train.eval_every": 4, "train.log_every": 2, "eval.samples": 64}
        settings |= {"eval.resize": 32, "train.precision": "float32", "workers.cpus": 1}
    return settings


def stage_reference(kit: Kit, found: Found) -> None:
    """The reference statistics of the sweep, seen once; and the floor they set."""
    from gat_sweep.data.dataset import load_dataset
    from gat_sweep.metrics.reference import load_reference

    trial = tiny_trial(kit, "cifar10", "cifar10", sweep_settings(kit, "S"))
    start = time.perf_counter()
    reference = load_reference(trial.config, load_dataset(trial.config.data), trial.home, torch_device(kit), say=print)
    found["seconds_measuring"] = round(time.perf_counter() - start, 1)
    found["halves"], found["reference"] = reference.halves, reference.reference
    found["line"] = f"{reference.reference}: halves {reference.halves:.3f} apart, {found['seconds_measuring']} s"


def stage_evaluate(kit: Kit, found: Found) -> None:
    """The same checkpoint evaluated on the device and on the CPU: reference, samples, extractor, distances."""
    import torch

    from gat_sweep.pretrained.evaluate import evaluate_checkpoint
    from gat_sweep.train.loop import train

    device = torch_device(kit)
    extras = ["kernel_distance", "precision_recall"]
    settings: dict[str, Any] = {"train.steps": 30, "train.eval_every": 30, "eval.samples": 1797, "eval.extras": extras}
    settings |= {"model.generator": "XL", "model.discriminator": "XL"}
    if kit.rehearse:
        settings |= {"train.steps": 2, "train.eval_every": 2, "eval.samples": 1000, "eval.resize": 32}
    trial = tiny_trial(kit, "evaluate", "digits", settings)
    outcome = train(trial, device)
    found["training"] = vars(outcome)
    checkpoint = trial.folder / "checkpoints" / f"step_{outcome.step:08d}"
    measured: dict[str, dict[str, float]] = {}
    for where in (device, torch.device("cpu")):
        for cached in (trial.home / "cache").glob("fd_efficientnet*"):
            cached.unlink()  # each measures the reference itself
        start = time.perf_counter()
        result = found.attempt(
            f"on {where.type}", lambda w=where: evaluate_checkpoint(checkpoint, {}, w, say=print).journal()
        )
        found[f"seconds on {where.type}"] = round(time.perf_counter() - start, 1)
        measured[where.type] = result
    a, b = measured[device.type], measured["cpu"]
    relative = {n: abs(a[n] - v) / max(abs(v), 1e-9) for n, v in b.items() if isinstance(v, float) and n in a}
    found["relative_difference"] = relative
    found["line"] = f"on the device against the CPU, relative: { ({n: f'{v:.1e}' for n, v in relative.items()}) }"


def stage_pytest(kit: Kit, found: Found) -> None:
    """Tests with the marker gpu; only the files that have some are collected (others may import ray or mlflow)."""
    files = [str(f) for f in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in f.read_text(encoding="utf-8")]
    files.sort(key=lambda file: "/train/" not in file)  # the iteration first: the stage may be cut
    found["files"] = files
    if not files:
        found["line"] = "no test carries the marker gpu"
        return
    asked = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", "--tb=short"]
    lines = ["nothing"]
    with subprocess.Popen([*asked, *files], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        for line in filter(str.strip, run.stdout):
            print(line, end="", flush=True)
            lines.append(line.rstrip())
            found["last_lines"] = lines[-40:]  # kept on disk, line by line
    found["exit_code"] = run.returncode
    found["line"] = f"exit code {run.returncode}: {lines[-1]}"


def stage_cli(kit: Kit, found: Found) -> None:
    """The commands themselves, as a user types them."""
    device = kit.device_name
    size = ["--size", "S"]
    tiny = ["--set", "train.steps=6", "--set", "train.eval_every=3", "--set", "eval.samples=64"]
    small = [f"--set={key}={value}" for key, value in TINY.items()] if kit.rehearse else []
    folder = WORK / "cli"
    commands: dict[str, list[str]] = {
        "train": ["train", "--recipe", "digits", "--name", "cli", "--device", device, *tiny],
        "parity": ["parity", "tests/data/official_step.safetensors", "--json"],
        "bench": ["bench", "--recipe", "digits", *size, "--iterations", "3", "--device", device, "--json"],
        "latency": ["latency", *size, "--images", "8", "--repeats", "3", "--device", device, "--json", *small],
    }
    with ThreadPoolExecutor(1 if kit.rehearse else 4) as pool:
        running = {name: pool.submit(cli, command) for name, command in commands.items()}
        for name, future in running.items():
            found.attempt(name, future.result)
        steps = sorted((WORK / "home" / "cli" / "trials").glob("*/checkpoints/step_*"))
        if steps:
            at = str(steps[-1])
            after = {
                "evaluate": ["evaluate", at, "--device", device, "--json"],
                "sample": ["sample", at, "--out", str(folder), "--count", "64", "--device", device],
                "inspect": ["inspect", at, "--images", "64", "--device", device, "--json"],
            }
            running = {name: pool.submit(cli, command) for name, command in after.items()}
            for name, future in running.items():
                found.attempt(name, future.result)
    codes = {k: v.get("exit_code", v.get("error")) for k, v in found.values.items() if isinstance(v, dict)}
    found["line"] = "exit codes " + ", ".join(f"{name} {code}" for name, code in codes.items())


def cli(arguments: list[str]) -> dict[str, Any]:
    start = time.perf_counter()
    asked = [sys.executable, "-m", "gat_sweep.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, timeout=60)
    print("$ gat-sweep", *arguments, "\n", done.stdout[-3000:], done.stderr[-3000:])
    last = (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""
    return {"exit_code": done.returncode, "seconds": round(time.perf_counter() - start, 1), "said": last[:300]}


def stage_bench(kit: Kit, found: Found, size: str) -> None:
    """Engine (eager, compiled, with experiments) beside the straightforward step: time, MFU, memory, kernels."""
    import torch

    from gat_sweep.speed import bench, clock
    from gat_sweep.speed.straightforward import Straightforward
    from gat_sweep.train.engine import Engine, _compile_blocks

    device = torch_device(kit)
    config = trial_config(kit, size)
    random = torch.Generator(device).manual_seed(0)
    plan = plan_of(kit, config, device)
    seconds = {"S": 2.0, "B": 2.5, "L": 4.0, "XL": 5.0}[size] if not kit.rehearse else 0.2
    work, plain_work = flops_per_step(config), bench.straightforward_flops(config) * config.train.batch
    ceiling = kit.found.get("info", {}).get("ceilings", {}).get("bfloat16") or clock.matmul_ceiling(device, "bfloat16")
    nominal = next(
        (v for k, v in NOMINAL.items() if device.type == "cuda" and k in torch.cuda.get_device_name(device)), None
    )
    found["plan"] = {
        "chunk": plan.chunk,
        "chunk_g": plan.chunk_g,
        "checkpointed": plan.checkpointed,
        "planned_gib": round(plan.total / 2**30, 2),
        "flops_per_step": work,
        "straightforward_flops_per_step": plain_work,
        "ceiling": ceiling,
    }
    batches = [clock.make_batch(config, random) for _ in range(2)]
    turn = [0]

    def fed(work_of: Callable[..., Any]) -> Callable[[], Any]:
        def once() -> Any:
            turn[0] += 1
            return work_of(batches[turn[0] % 2])

        return once

    def timed(once: Callable[[], Any], flops: int) -> dict[str, Any]:
        once()
        memory = peak_gib(once, device)
        row = measure(once, device, seconds)
        rate = flops / (row["ms"] / 1000)
        row |= {"images_per_second": round(config.train.batch / (row["ms"] / 1000), 1), "tflops": round(rate / 1e12, 2)}
        row |= {
            "mfu_measured": round(rate / ceiling, 4),
            **({"mfu_nominal": round(rate / nominal, 4)} if nominal else {}),
        }
        return row | memory

    start = time.perf_counter()
    with device:  # initialised there: a billion random numbers take a host twenty seconds
        engine = Engine(config, device)
    found["seconds_building"] = round(time.perf_counter() - start, 1)
    set_plan(engine, plan)
    once = fed(engine.iterate)
    eager = found.attempt("eager", lambda: timed(once, work))
    if "out of memory" in eager.get("error", ""):
        smaller = plan_of(kit, trial_config(kit, size, workers__memory_gib=0.7 * memory_total(device)), device)
        set_plan(engine, smaller)
        found["smaller_plan"] = {"chunk": smaller.chunk, "checkpointed": smaller.checkpointed}
        found.attempt("eager, planned for 0.7 of the memory", lambda: timed(once, work))
    if size in ("S", "L"):
        found.attempt("kernels eager", lambda: kernel_table(once, device))

    def plain() -> dict[str, Any]:
        other = Straightforward(config, engine.generator, engine.discriminator, device)
        return timed(fed(other.step), plain_work)

    found.attempt("straightforward", plain)
    free_memory()

    if not kit.rehearse or size == "S":
        start = time.perf_counter()
        try:
            _compile_blocks(engine.generator, engine.discriminator)
        except Exception as error:
            found["compile_error"] = one_line(error)
        set_plan(engine, plan)
        found.attempt("compiled", lambda: timed(once, work))
        found["seconds_compiling_and_timing"] = round(time.perf_counter() - start, 1)
        found.attempt("graphs", compiled_graphs)  # of torch's limit of 8
        if size in ("S", "L"):
            found.attempt("kernels compiled", lambda: kernel_table(once, device))
        if device.type == "cuda":
            key = "compiled, whole iteration in one CUDA graph"
            found.attempt(key, lambda: graphed(engine, once, lambda: timed(once, work)))
    parts = []
    for name in ("eager", "straightforward", "compiled", "compiled, whole iteration in one CUDA graph"):
        row = found.values.get(name, {})
        parts.append(f"{name} {row.get('ms', row.get('error'))} ms, MFU {row.get('mfu_measured')}")
    ratio = [found.values.get(n, {}).get("ms") for n in ("straightforward", "eager", "compiled")]
    if all(ratio):
        found["ratio_eager"], found["ratio_compiled"] = round(ratio[0] / ratio[1], 2), round(ratio[0] / ratio[2], 2)
    found["line"] = f"{size}/2: " + "; ".join(parts)


def compiled_graphs() -> dict[str, Any]:
    """How many versions of the blocks torch keeps, and what it gave up on."""
    import torch
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

    from gat_sweep.gat.discriminator import DiscriminatorBlock
    from gat_sweep.gat.generator import GeneratorBlock

    counts = {
        b.__name__: len(_debug_get_cache_entry_list(b.forward.__code__)) for b in (GeneratorBlock, DiscriminatorBlock)
    }
    frames = dict(torch._dynamo.utils.counters["frames"])
    return counts | {"limit": torch._dynamo.config.recompile_limit, "frames": frames}


def memory_total(device: Any) -> float:
    import torch

    return torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else 8.0


def graphed(engine: Any, once: Callable[[], Any], timed: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The same iterations as one CUDA graph each: what launching costs."""
    from gat_sweep.train.graph import IterationGraph

    engine._graph = IterationGraph(engine.launch, [engine.optimizer_g, engine.optimizer_d])
    start = time.perf_counter()
    for _ in range(IterationGraph.WARM_UP + 1):
        terms = once()
    captured = round(time.perf_counter() - start, 2)
    row = timed()
    engine._graph = None
    loss = {name: terms[name].mean().item() for name in ("loss_d", "loss_g")}
    return row | {"seconds_capturing": captured, "losses": loss, "trouble": engine.trouble()}


def stage_micro(kit: Kit, found: Found) -> None:
    """What the step's parts cost, and what some changes of them would gain; each by itself."""
    import torch

    device = torch_device(kit)
    tokens = 64 * 257 if not kit.rehearse else 64

    # ------------------------------------------------ a step of recipe cifar10, by precision
    def cifar_step(size: str, precision: str, high: bool, compiled: bool, graph: bool) -> dict[str, Any]:
        from gat_sweep.recipe import load_recipe, resolve
        from gat_sweep.speed import clock
        from gat_sweep.train.engine import Engine

        settings = sweep_settings(kit, size) | {"train.precision": precision}
        settings |= {"workers.cuda_graph": graph, "workers.compile": compiled}
        config = resolve(load_recipe("cifar10"), settings)
        torch.set_float32_matmul_precision("high" if high else "highest")
        engine = Engine(config, device)
        batch = clock.make_batch(config, torch.Generator(device).manual_seed(0))
        try:
            for _ in range(4):
                engine.iterate(batch)
            return measure(lambda: engine.iterate(batch), device, 1.0)
        finally:
            torch.set_float32_matmul_precision("highest")

    on = device.type == "cuda"
    steps = [
        ("float32", "float32", False, False, False),
        ("float32, one CUDA graph", "float32", False, False, on),
        ("tf32, one CUDA graph", "float32", True, False, on),
        ("bfloat16", "bfloat16", False, False, False),
        ("bfloat16, one CUDA graph", "bfloat16", False, False, on),
    ]
    low = ("bfloat16, compiled, one CUDA graph", "bfloat16", False, on, on)
    for size, step in [*((s, step) for s in ("S", "XL") for step in steps), ("S", low), ("XL", low)]:
        name, *settings = step
        found.attempt(f"cifar10 {size}/4 step, {name}", lambda s=size, v=settings: cifar_step(s, *v))

    # ------------------------------------------------ attention
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attention(count: int, heads: int, length: int, head: int, backend: Any) -> dict[str, float]:
        qkv = torch.randn(count, length, 3, heads, head, device=device, dtype=torch.bfloat16)
        q, k, v = (t.transpose(1, 2).detach().requires_grad_() for t in qkv.unbind(2))
        grad = torch.randn(count, heads, length, head, device=device, dtype=torch.bfloat16)
        context = sdpa_kernel(backend) if backend is not None else contextlib.nullcontext()
        with context:
            forward = kernel_ms(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0), device)

            def both() -> None:
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
                torch.autograd.grad(out, (q, k, v), grad)

            whole = kernel_ms(both, device)
        count_flops = 4 * count * heads * length**2 * head
        return {
            "forward_ms": round(forward, 3),
            "both_ms": round(whole, 3),
            "forward_tflops": round(count_flops / forward / 1e9, 1),
            "both_tflops": round(3.5 * count_flops / whole / 1e9, 1),
        }

    images = 64 if not kit.rehearse else 2
    backends: dict[str, Any] = {"default": None}
    if device.type == "cuda":
        backends |= {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for heads, head in ((6, 64), (16, 64), (16, 72)):
        for length in (256, 257):
            for name, backend in backends.items():
                key = f"attention {heads}x{head}, {length} tokens, {name}"
                found.attempt(key, lambda h=heads, t=length, e=head, b=backend: attention(images, h, t, e, b))

    # ------------------------------------------------ qk-norm and RoPE, forward and backward
    def rotation(width: int, heads: int, way: str) -> dict[str, float]:
        from gat_sweep.gat.layers import Attention, rope_table

        layer = Attention(width, heads)
        call = torch.compile(layer._rotated, dynamic=False) if way == "compiled" else layer._rotated
        if way == "kernel":
            from gat_sweep.gat.qk_kernel import qk_norm_rope

            layer.kernel = qk_norm_rope
        rope = rope_table(width // heads, 16, 1).to(device)
        qkv = torch.randn(images, len(rope), 3, width, device=device, dtype=torch.bfloat16)
        x = qkv[:, :, :2].detach().requires_grad_()
        gain = torch.ones(2, width // heads, device=device, requires_grad=True)
        grad = torch.randn(2, images, heads, len(rope), width // heads, device=device, dtype=torch.bfloat16)
        ms = kernel_ms(replayed(lambda: torch.autograd.grad(call(x, gain, rope), (x, gain), grad), device), device)
        # Read x, write y; read x and the gradient of y, write that of x: 2 bytes each. S fits in the cache of the chip.
        return {"ms": round(ms, 4), "gb_per_s_of_needed_bytes": round(10 * x.numel() / ms / 1e6, 1)}

    heads_of = {"S": (384, 6), "B": (768, 12), "L": (1024, 16), "XL": (1152, 16)}
    for way in ("eager", "kernel", "compiled") if device.type == "cuda" else ("eager",):
        for name, (width, heads) in heads_of.items() if not kit.rehearse else [("S", heads_of["S"])]:
            key = f"qk-norm and RoPE, {name}/2, {way}"
            found.attempt(key, lambda w=width, h=heads, how=way: rotation(w, h, how))

    # ------------------------------------------------ matrix products of a block, by size
    def products(width: int, hidden: int, count: int) -> dict[str, float]:
        rates = {}
        for name, n, k in [
            ("qkv", 3 * width, width),
            ("proj", width, width),
            ("in", 2 * hidden, width),
            ("out", width, hidden),
        ]:
            x = torch.randn(count, k, device=device, dtype=torch.bfloat16)
            w = torch.randn(n, k, device=device, dtype=torch.bfloat16)
            g = torch.randn(count, n, device=device, dtype=torch.bfloat16)
            for what, call in [
                ("forward", lambda x=x, w=w: x @ w.T),
                ("dgrad", lambda g=g, w=w: g @ w),
                ("wgrad", lambda g=g, x=x: g.T @ x),
            ]:
                rates[f"{name} {what}"] = round(2 * count * n * k / kernel_ms(call, device) / 1e9, 1)
        return rates

    shapes = {
        "S": (384, 1024),
        "B": (768, 2048),
        "L": (1024, 2730),
        "L padded to 2736": (1024, 2736),
        "L padded to 2816": (1024, 2816),
        "XL": (1152, 3072),
    }
    for name in ("L", "L padded to 2736", "S", "XL", "B", "L padded to 2816"):
        width, hidden = shapes[name]
        found.attempt(f"TFLOP/s of products, {name}, {tokens} tokens", lambda w=width, h=hidden: products(w, h, tokens))
    for few in (8 * 257, 16 * 257, 32 * 257) if not kit.rehearse else (65,):
        found.attempt(f"TFLOP/s of products, XL, {few} tokens", lambda c=few: products(1152, 3072, c))

    # ------------------------------------------------ fp8 products
    def fp8(n: int, k: int) -> float:
        x = torch.randn(tokens // 16 * 16, k, device=device).to(torch.float8_e4m3fn)
        w = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
        one = torch.ones((), device=device)
        call = lambda: torch._scaled_mm(x, w.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
        return round(2 * len(x) * n * k / kernel_ms(call, device) / 1e9, 1)

    if device.type == "cuda":
        for name, width, hidden in (("S", 384, 1024), ("L", 1024, 2736), ("XL", 1152, 3072)):
            found.attempt(
                f"TFLOP/s of fp8 products, {name}",
                lambda w=width, h=hidden: {"qkv": fp8(3 * w, w), "in": fp8(2 * h, w), "out": fp8(w, h)},
            )

    # ------------------------------------------------ patch embedding: a convolution, or a product
    def embedding(width: int) -> dict[str, float]:
        x = torch.randn(64, 16, 32, 32, device=device)
        conv = torch.nn.Conv2d(16, width, 2, 2).to(device)
        line = torch.nn.Linear(64, width).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            a = kernel_ms(lambda: conv(x).flatten(2).transpose(1, 2).sum().backward(), device)
            patches = lambda: (
                x.unflatten(3, (16, 2)).unflatten(2, (16, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
            )
            b = kernel_ms(lambda: line(patches()).sum().backward(), device)
        return {"convolution_ms": round(a, 3), "linear_ms": round(b, 3)}

    found.attempt("patch embedding, forward and backward, S", lambda: embedding(384))

    # ------------------------------------------------ teachers
    def teacher(kind: str) -> dict[str, float]:
        import timm

        from gat_sweep.vision.teacher import Teacher, load_teacher

        if kind == "dinov2":
            network = timm.create_model("vit_base_patch14_dinov2.lvd142m", img_size=224, num_classes=0).to(device)
            half = torch.full((3, 1, 1), 0.5, device=device)
            made, pictures = (
                Teacher(network, 768, 1, half, half, 16),
                torch.randint(0, 256, (images, 3, 256, 256), device=device).float(),
            )
        else:
            made, pictures = (
                load_teacher("efficientnet_lite0", None, 8, device),
                torch.randint(0, 256, (2 * images, 3, 32, 32), device=device).float(),
            )
        with torch.autocast(device.type, torch.bfloat16):
            ms = kernel_ms(lambda: made.tokens(pictures), device, 5)
        return {"images": len(pictures), "ms": round(ms, 2)}

    if not kit.rehearse:
        found.attempt("teacher DINOv2-B (random weights), 256x256", lambda: teacher("dinov2"))
    found.attempt("teacher EfficientNet-Lite0, 32x32", lambda: teacher("efficientnet"))

    # ------------------------------------------------ an evaluation's parts
    def decoding(precision: str) -> dict[str, float]:
        from diffusers import AutoencoderKL

        from gat_sweep.data.tokenizer import Vae

        channels = (128, 256, 512, 512) if not kit.rehearse else (8, 8, 8, 8)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        groups = 32 if not kit.rehearse else 8
        model = AutoencoderKL(
            block_out_channels=channels, layers_per_block=2, latent_channels=4, norm_num_groups=groups, **blocks
        )
        model = model.to(device).eval().requires_grad_(False)
        side = 32 if not kit.rehearse else 4
        latents = torch.randn(8, 4, side, side, device=device)
        moved = {}
        if precision in ("float32", "tf32"):  # as eval.decoder says
            exact, vae = Vae(model, "random").decode(latents), Vae(model, "random", tf32=precision == "tf32")
            ms = kernel_ms(lambda: vae.decode(latents), device, 3)
            off = (vae.decode(latents).int() - exact.int()).abs()
            moved = {"values_moved": (off > 0).float().mean().item(), "most_levels": off.max().item()}
        else:
            model = model.to(memory_format=torch.channels_last)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                ms = kernel_ms(lambda: model.decode(latents).sample, device, 3)
        return {"ms_per_image": round(ms / 8, 3), "minutes_for_50k": round(ms / 8 * 50_000 / 60_000, 2)} | moved

    for precision in ("float32", "tf32", "bfloat16"):
        found.attempt(f"SD-VAE's decoder at 256x256, {precision}", lambda p=precision: decoding(p))

    def sampling(size: str) -> dict[str, float]:
        from gat_sweep.gat.generator import Generator

        config = trial_config(kit, size)
        with device:
            generator = Generator(config.generator_spec).requires_grad_(False)
        z, y = torch.randn(64, config.model.z_dim, device=device), torch.zeros(64, dtype=torch.long, device=device)
        ms = kernel_ms(lambda: generator.sample(z, y), device, 3)
        with torch.autocast(device.type, torch.bfloat16):
            low = kernel_ms(lambda: generator.sample(z, y), device, 3)
        return {"float32_ms_per_image": round(ms / 64, 4), "bfloat16_ms_per_image": round(low / 64, 4)}

    for size in ("S", "XL"):
        found.attempt(f"samples of {size}/2, 64 at once", lambda s=size: sampling(s))

    done = sum("error" not in v for v in found.values.values() if isinstance(v, dict))
    found["line"] = f"{done} of {len(found.values) - 1} measured"


def stage_sweep(kit: Kit, found: Found, size: str) -> None:
    """One size of the widths sweep on CIFAR-10, trained until the time is up; rows at equal steps of all sizes."""
    from gat_sweep.run.journal import read_records
    from gat_sweep.run.table import read_rows
    from gat_sweep.run.trial import Trial
    from gat_sweep.train.loop import train

    trial = tiny_trial(kit, "cifar10", "cifar10", sweep_settings(kit, size))
    trial = Trial(size, trial.run, trial.sweep, trial.config, trial.home)
    until = min(kit.deadline - 22, time.time() + 45) if kit.rehearse else kit.deadline - 22
    outcome = train(trial, torch_device(kit), lambda: "the machine's time is up" if time.time() > until else "")
    found["outcome"] = vars(outcome)
    records = [record for _, record in read_records(trial.folder, 0)]
    rates = [r["metrics"]["images_per_second"] for r in records if "images_per_second" in r.get("metrics", {})]
    found["images_per_second"] = [round(rate, 1) for rate in rates[-5:]]
    rows = read_rows(trial.table) if trial.table.exists() else []
    names = (
        "step",
        "images",
        "flops",
        "params_g",
        "params_d",
        "lr_g",
        "metric",
        "value",
        "n",
        "status",
        "flags",
        "seconds",
    )
    found["rows"] = [{name: row[name] for name in names} for row in rows]
    values = ", ".join(f"{row['step']}: {row['value']:.1f}" for row in rows if row["value"] is not None)
    found["line"] = f"{size}/4 {outcome.status} at step {outcome.step}; {values}"


def stage_noise(kit: Kit, found: Found, size: str) -> None:
    """The penalties of a trained discriminator on real and generated images, in float32 and in bfloat16.

    They are squares of differences of nearly equal logits over sigma = 0.01, so rounding of the logits shows.
    """
    import torch

    from gat_sweep.data.dataset import load_dataset
    from gat_sweep.gat.augment import augment
    from gat_sweep.gat.discriminator import Discriminator
    from gat_sweep.gat.generator import Generator
    from gat_sweep.gat.losses import discriminator_losses
    from gat_sweep.gat.mng import make_perturb
    from gat_sweep.run.checkpoint import read_network, step_checkpoint
    from gat_sweep.run.saved import saved_step
    from gat_sweep.train.engine import draw

    device = torch_device(kit)
    trial = tiny_trial(kit, "cifar10", "cifar10", sweep_settings(kit, size))
    folder = trial.run_folder / "trials" / size / "checkpoints"
    state = step_checkpoint(folder, saved_step(folder))
    config, spec = trial.config, trial.config.generator_spec
    generator, discriminator = Generator(spec), Discriminator(config.discriminator_spec)
    read_network(state, "generator", generator)
    read_network(state, "discriminator", discriminator)
    generator.to(device).requires_grad_(False), discriminator.to(device).requires_grad_(False)
    random = torch.Generator(device).manual_seed(0)
    rows = load_dataset(config.data).rows(list(range(64)))
    real, y = rows.mean.to(device), rows.labels.to(device)
    fakes, _ = generator(torch.randn(64, config.model.z_dim, generator=random, device=device), y)
    draws = draw(config, 64, random, penalty=True)
    perturb = make_perturb(config.mng.schedule, spec.levels, config.mng.mixing, device)

    def losses() -> dict[str, Any]:
        return discriminator_losses(
            discriminator,
            real,
            fakes,
            y,
            None,
            draws,
            lambda x, d: augment(x, config.augment, d),
            perturb,
            config.objective,
        )

    def both_ways() -> None:
        torch.autograd.grad(losses()["loss_d"].sum(), list(discriminator.parameters()), allow_unused=True)

    discriminator.requires_grad_(True)
    for name, low, high in (("float32", False, False), ("tf32", False, True), ("bfloat16", True, False)):
        torch.set_float32_matmul_precision("high" if high else "highest")
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            with torch.no_grad():
                terms = losses()
            found[f"{name}: ms forward and backward"] = round(kernel_ms(both_ways, device, 5), 2)
        torch.set_float32_matmul_precision("highest")
        found[name] = {n: float(f"{v.float().mean().item():.4g}") for n, v in terms.items()}
    names = ("penalty_real", "penalty_fake", "logit_real")
    shown = {n: (found["float32"][n], found["tf32"][n], found["bfloat16"][n]) for n in names}
    found["line"] = f"{size}/4 at step {state.step}, (float32, tf32, bfloat16): {shown}"


STAGES: dict[str, Callable[..., None]] = {
    name.removeprefix("stage_"): work for name, work in list(globals().items()) if name.startswith("stage_")
}


# ---------------------------------------------------------------- the whole


def warm_imports() -> None:
    """What the stages import, once, in the process that they are forked from. Nothing here may touch CUDA."""
    import torch
    import torch._dynamo
    import torch._inductor.compile_fx
    import torch.profiler
    import torch.utils.flop_counter

    import gat_sweep.encode.job
    import gat_sweep.pretrained.evaluate
    import gat_sweep.speed.bench
    import gat_sweep.speed.straightforward
    import gat_sweep.train.loop  # noqa: F401

    assert not torch.cuda.is_initialized()


def summary(kit: Kit) -> None:
    """The table that a reader sees first."""
    bench = {size: kit.found.get(f"bench:{size}", {}) for size in SIZES}
    kit.say(
        "size | straightforward ms | eager ms | compiled ms | MFU eager | MFU compiled | nominal | peak GiB | images/s"
    )
    for size, row in bench.items():
        plain, eager, fast = (row.get(name, {}) for name in ("straightforward", "eager", "compiled"))
        cells = [plain.get("ms"), eager.get("ms"), fast.get("ms"), eager.get("mfu_measured"), fast.get("mfu_measured")]
        cells += [fast.get("mfu_nominal"), fast.get("peak_allocated_gib"), fast.get("images_per_second")]
        kit.say(f"{size:4} | " + " | ".join(str(cell) for cell in cells))
        for name, other in row.items():
            if name.startswith("compiled, ") and isinstance(other, dict):
                kit.say(f"     {name}: {other.get('ms', other.get('error'))} ms, MFU {other.get('mfu_measured')}")
    rows = {size: kit.found.get(f"sweep:{size}", {}).get("rows", []) or saved_rows(size) for size in SIZES}
    common = set.intersection(*({r["step"] for r in found if r["value"] is not None} for found in rows.values()))
    for step in sorted(common):
        values = {size: next(r["value"] for r in found if r["step"] == step) for size, found in rows.items()}
        kit.say(f"cifar10 p=4, step {step}: " + ", ".join(f"{size} {value:.1f}" for size, value in values.items()))
    if not common:
        kit.say(
            f"cifar10: no step that all sizes evaluated; { ({s: [r['step'] for r in f] for s, f in rows.items()}) }"
        )


def saved_rows(size: str) -> list[dict[str, Any]]:
    """Those of a trial that was killed before it could report."""
    from gat_sweep.run.table import read_rows

    table = WORK / "home" / "cifar10" / "table" / f"{size}.parquet"
    return read_rows(table) if table.exists() else []


def pack(kit: Kit) -> None:
    """Logs, journals, tables and samples in one file."""
    with tarfile.open(kit.out / "extras.tar.gz", "w:gz") as archive:
        for log in sorted((WORK / "stages").glob("*.log")):
            archive.add(log, f"logs/{log.name}")
        for pattern in (
            "cifar10/table/*.parquet",
            "cifar10/trials/*/journal.jsonl",
            "cifar10/trials/*/config.json",
            "cifar10/trials/*/samples/*.png",
        ):
            files = sorted((WORK / "home").glob(pattern))
            if pattern.endswith(".png"):  # the last of each trial
                files = list({file.parent: file for file in files}.values())
            for file in files:
                archive.add(file, str(file.relative_to(WORK / "home")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.environ.get("OUT", "kit-out"))
    parser.add_argument("--budget", type=float, default=525.0, help="seconds from the start to the end of everything")
    parser.add_argument("--batch", type=int, default=64, help="images per GPU of the bench")
    parser.add_argument("--only", default="", help="comma-separated stages, such as info,bench:S")
    parser.add_argument("--spawn", action="store_true", help="start each stage anew instead of forking it")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with networks of nothing")
    kit = Kit(parser.parse_args())
    if name := os.environ.get("GAT_KIT_STAGE"):
        kit.began = float(os.environ["GAT_KIT_BEGAN"])
        kit.deadline = kit.began + kit.options.budget
        with contextlib.suppress(OSError, ValueError):
            kit.found = json.loads((kit.out / "result.json").read_text())["stages"]
        stem = name.replace(":", "-")
        child(kit, name, WORK / "stages" / f"{stem}.log", WORK / "stages" / f"{stem}.json")
    if kit.fork:
        warm_imports()
    kit.say("imports done")

    if kit.options.only:
        for name in kit.options.only.split(","):
            kit.run(name, kit.left)
    else:
        everything(kit)
    pack(kit)
    kit.write()
    kit.say(f"written to {kit.out}: {', '.join(sorted(file.name for file in kit.out.iterdir()))}")


def everything(kit: Kit) -> None:
    first = kit.run("info", 45)
    if kit.fork and "error" in first and not kit.rehearse:
        kit.say("a forked process cannot use the device; starting each stage anew")
        kit.fork = False
        kit.run("info", 60)

    # The compiler takes processors, hardly the device: beside it only what is not timed, in chains side by side.
    patience = 8 if kit.rehearse else 1
    compiling = [kit.start(f"precompile:{size}") for size in (SIZES if not kit.rehearse else SIZES[:1])]
    until = min(time.time() + 165 * patience, kit.deadline - 200)
    chains: list[list[tuple[str, float]]] = [
        [("parity", 40), ("precision", 60)],
        [("data", 40), ("reference", 60)],
        [("resume", 80)],
        [("cli", 120)],
        [("evaluate", 90)],
        [("pytest", 90), ("ddp", 150)],
    ]
    side_by_side(kit, chains, 1 if kit.rehearse else len(chains), until, patience)
    for running in compiling:
        running.wait(max(0.0, until - time.time()))
        running.end()

    for size, cap in (("S", 50), ("L", 75), ("XL", 90), ("B", 45)):
        kit.run(f"bench:{size}", cap * patience, need=20)
    kit.run("micro", max(20.0, min(80.0, kit.left - 110)) * patience, need=20)

    # Four trials at once: each is limited by launches, so they share the device well.
    if kit.left > 60:
        trials = [kit.start(f"sweep:{size}") for size in SIZES]
        for trial in trials:
            trial.wait(max(1.0, kit.left - 9))
        for trial in trials:
            trial.end()
        for size in ("S", "XL"):
            kit.run(f"noise:{size}", 10 * patience, need=2)
    summary(kit)


def side_by_side(kit: Kit, chains: list[list[tuple[str, float]]], places: int, until: float, patience: float) -> None:
    """Runs chains of stages, `places` of them at once; none goes on beyond `until`."""
    waiting, under_way = list(chains), list[tuple[Running, float, list[tuple[str, float]]]]()
    while waiting or under_way:
        while waiting and len(under_way) < places and time.time() < until - 5:
            (name, cap), *rest = waiting.pop(0)
            under_way.append((kit.start(name), time.time() + cap * patience, rest))
        if not under_way:
            break
        for entry in list(under_way):
            running, limit, rest = entry
            if running.poll() or time.time() > min(limit, until + 25):
                running.end()
                under_way.remove(entry)
                if rest:
                    waiting.insert(0, rest)
        time.sleep(0.05)
    for name, _ in (stage for chain in waiting for stage in chain):
        kit.found[name] = {"status": "left out"}


if __name__ == "__main__":
    main()
