"""Load of the machine and the GPU of a worker: read beside the training, journaled with the losses, off on request."""

import json
import multiprocessing
import re
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist
from helpers.trials import CPU, tiny_trial

from gat_sweep.run.trial import Trial
from gat_sweep.train import load as module
from gat_sweep.train import watch
from gat_sweep.train.load import Load, metrics
from gat_sweep.train.loop import train

HOST = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"}


def lines(trial: Trial) -> list[dict[str, float]]:
    """The log points of a journal that hold a load."""
    records = [json.loads(line) for line in (trial.folder / "journal.jsonl").read_text().splitlines()]
    found = [record["metrics"] for record in records if "loss_d" in record.get("metrics", {})]
    return [{k: v for k, v in values.items() if k.startswith("system/")} for values in found]


def test_the_machine_is_read_as_psutil_tells_it() -> None:
    load = Load(CPU, print)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:  # this process keeps a processor busy
        pass
    found = load.read()
    assert found.keys() == HOST
    assert 0 < found["cpu_utilization_percentage"] <= 100
    used = psutil.virtual_memory().used / 1e6
    assert found["system_memory_usage_megabytes"] == pytest.approx(used, rel=0.2)


def test_names_are_those_that_mlflow_gives() -> None:
    """Its own monitors are the reference, for the machine and, by its source, for the GPU."""
    from mlflow.system_metrics.metrics import gpu_monitor
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = CPUMonitor()
    monitor.collect_metrics()
    assert set(monitor.aggregate_metrics()) == HOST
    source = Path(gpu_monitor.__file__).read_text()
    assert set(module.GPU) <= set(re.findall(r'f"gpu_\{i\}_(\w+)"', source))
    assert (
        f'_metrics_prefix = "{module.PREFIX}"'
        in Path(sys.modules[SystemMetricsMonitor.__module__].__file__ or "").read_text()
    )


def test_each_of_several_workers_has_a_group() -> None:
    assert metrics({0: {"a": 1.0}}, 1) == {"system/a": 1.0}
    assert metrics({1: {"a": 2.0}, 0: {"a": 1.0}}, 2) == {"system/rank_0/a": 1.0, "system/rank_1/a": 2.0}


@pytest.mark.parametrize("on", [True, False])
def test_a_trial_journals_it_unless_it_is_off(home: Path, monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    monkeypatch.setattr(watch, "EVERY", 0.0)
    monkeypatch.setattr(watch, "BEAT", 0.02)
    trial = tiny_trial(home, workers__system_metrics=on, train__steps=30, train__eval_every=30)
    assert train(trial, CPU).status == "done"
    found = [line for line in lines(trial) if line]
    assert (
        bool(found) is on
        and trial.config.digest() == tiny_trial(home, train__steps=30, train__eval_every=30).config.digest()
    )
    for line in found:
        assert line.keys() == {f"system/{name}" for name in HOST}
        assert 0 < line["system/system_memory_usage_percentage"] <= 100


def worker(rank: int, trial: Trial, store: Path) -> None:
    """One of two, which trains until the load of the second is in the journal."""
    watch.EVERY = watch.BEAT = 0.1
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    journal = trial.folder / "journal.jsonl"
    train(trial, CPU, lambda: "seen" if journal.exists() and "rank_1" in journal.read_text() else "")
    dist.destroy_process_group()


@pytest.mark.slow
def test_both_of_two_workers_are_journaled(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    trial = tiny_trial(home, train__steps=100_000, train__eval_every=100_000)
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=worker, args=(rank, trial, tmp_path / "store")) for rank in (0, 1)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(120)
        each.kill()
    assert [each.exitcode for each in workers] == [0, 0]
    names = {f"system/rank_{rank}/{name}" for rank in (0, 1) for name in HOST}
    assert [line for line in lines(trial) if line][-1].keys() == names


class Missing(Exception):
    pass


def stand_in(monkeypatch: pytest.MonkeyPatch, power: float | None) -> None:
    """NVML with one GPU, of id `mine`; there is none on this machine."""
    nvml = ModuleType("pynvml")

    def handle(uuid: str) -> str:
        if uuid != "GPU-mine":
            raise Missing("not found")
        return "mine"

    def usage(gpu: str) -> float:
        if power is None:
            raise Missing("not supported")
        return power

    nvml.__dict__.update(
        NVMLError=Missing,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=97),
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=20_000_000_000, total=80_000_000_000),
        nvmlDeviceGetPowerUsage=usage,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(module, "find_spec", lambda name: nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="mine"))


def test_a_gpu_has_load_memory_and_power(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, 650_000)
    said: list[str] = []
    found = Load(torch.device("cuda"), said.append).read()
    gpu = {name: value for name, value in found.items() if name.startswith("gpu")}
    assert gpu == {
        "gpu_0_utilization_percentage": 97,
        "gpu_0_memory_usage_megabytes": 20_000,
        "gpu_0_memory_usage_percentage": 25,
        "gpu_0_power_usage_watts": 650,
    }
    assert said == []


def test_what_a_gpu_does_not_tell_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, None)
    said: list[str] = []
    load = Load(torch.device("cuda"), said.append)
    assert [set(load.read()) & {"gpu_0_power_usage_watts"} for _ in range(2)] == [set(), set()]
    assert "gpu_0_utilization_percentage" in load.read()
    assert said == ["system/gpu_0_power_usage_watts is not recorded: not supported"]


def test_a_gpu_without_nvml_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    said: list[str] = []
    assert Load(torch.device("cuda"), said.append).read().keys() == HOST
    assert said == ["the load of the GPU is not recorded: nvidia-ml-py is not installed"]


def test_a_reading_takes_less_than_a_thousandth_of_the_time_between_two() -> None:
    load = Load(CPU, print)
    times = []
    for _ in range(50):
        began = time.thread_time()
        load.read()
        times.append(time.thread_time() - began)
    assert sorted(times)[25] < module.EVERY / 1000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_is_read() -> None:
    load = Load(torch.device("cuda"), print)
    held = torch.zeros(2**28, device="cuda")  # 1 GiB
    found = load.read()
    assert found["gpu_0_memory_usage_megabytes"] > held.numel() * 4 / 1e6 and found["gpu_0_power_usage_watts"] > 10
