"""Checks of everything that a sweep needs, before it runs; a failed check names its fix."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gat_sweep import cluster
from gat_sweep.config import TrialConfig
from gat_sweep.data.condition import captioned, trial_encoder
from gat_sweep.data.dataset import check_needs, dataset_decoder, load_dataset
from gat_sweep.errors import UserError, system_line
from gat_sweep.files.storage import Place
from gat_sweep.launch.prepare import check_feasible
from gat_sweep.launch.probe import check_writable, probe_nodes
from gat_sweep.metrics.evaluator import check_evaluation
from gat_sweep.monitor import tracking
from gat_sweep.monitor.ui import tracking_uri
from gat_sweep.plan import parameter_counts
from gat_sweep.run.checkpoint import KEEP
from gat_sweep.sweep import Sweep
from gat_sweep.vision.teacher import trial_teacher

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """Result of one check. ok: whether a sweep can run; found: what there is, or what is wrong and how to fix it."""

    check: str
    ok: bool
    found: str


def examine(sweep: Sweep, home: Place, address: str | None, tracking_uri: str | None) -> list[Finding]:
    """Runs all checks, whatever the result of each."""
    configs = list(sweep.trials.values())
    findings = [
        _finding("storage", lambda: _storage(home)),
        _finding("disk", lambda: _disk(home, configs)),
        _finding("data", lambda: _each(configs, _data)),
        _finding("weights", lambda: _each(configs, _weights)),
        _finding("tracking", lambda: _tracking(home, tracking_uri)),
    ]
    try:
        with cluster.session(address) as there:
            findings.append(Finding("tokens", True, "Ray requires its token"))
            findings.append(_finding("resources", lambda: _resources(sweep, there)))
            findings.append(_finding("nodes", lambda: probe_nodes(home)))
    except UserError as error:
        findings.append(Finding("cluster", False, str(error)))
    return findings


def _finding(check: str, examine_it: Callable[[], str]) -> Finding:
    try:
        return Finding(check, True, examine_it())
    except UserError as error:
        return Finding(check, False, str(error))
    except OSError as error:
        line = system_line(error)
        if line is None:
            raise
        return Finding(check, False, f"{line}; give another --home, or fix that path")


def _each(configs: list[TrialConfig], look: Callable[[TrialConfig], str]) -> str:
    """The findings of all trials as one line, without repetitions."""
    return "; ".join(dict.fromkeys(look(config) for config in configs))


def _storage(home: Place) -> str:
    check_writable(home)
    return f"{home} can be written and read"


def _disk(home: Place, configs: list[TrialConfig]) -> str:
    """Checks the disk space for all checkpoints of a sweep: those that each trial keeps, and one being written."""
    needed = sum((KEEP + 1) * checkpoint_bytes(config) for config in configs)
    if not isinstance(home, Path):
        return f"checkpoints take up to {needed / GIB:.1f} GiB of the bucket"
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"checkpoints take up to {needed / GIB:.1f} GiB, {existing} has {free / GIB:.1f} GiB free; make room, or "
            "use another --home"
        )
    return f"checkpoints take up to {needed / GIB:.2f} GiB of {free / GIB:.1f} GiB free"


def checkpoint_bytes(config: TrialConfig) -> int:
    """Size of a checkpoint in bytes: weights, EMA and the two moments of AdamW, in float32."""
    g, d = parameter_counts(config)
    return 4 * (4 * g + 3 * d)


def _data(config: TrialConfig) -> str:
    dataset = load_dataset(config.data)
    check_needs(config, dataset)
    return f"{dataset.name}: {len(dataset):,} images, digest {dataset.digest}"


def _weights(config: TrialConfig) -> str:
    dataset = load_dataset(config.data)
    check_needs(config, dataset)
    check_evaluation(config, dataset)
    dataset_decoder(config, dataset)
    found = f"{config.eval.extractor}, tokenizer {dataset.identity.source}"
    teacher = trial_teacher(config, torch.device("cpu"))
    if teacher is not None and config.teacher:
        found += f", teacher {config.teacher.name}"
    if encoder := trial_encoder(config):
        captioned(dataset, encoder)
        found += f", text encoder {encoder.identity.name}"
    if config.eval.clip:
        from gat_sweep.vision.clip import Clip  # imports transformers, which takes seconds

        found += f", CLIP {Clip(config.eval.clip).digest}"
    return found


def _tracking(home: Place, uri: str | None) -> str:
    uri = tracking_uri(uri, home)
    if warning := tracking.reachable(uri, home):
        raise UserError(f"{warning}; start the server, or give another --tracking-uri")
    return uri


def _resources(sweep: Sweep, there: cluster.Cluster) -> str:
    check_feasible(sweep.trials, there)
    return f"{there.cpus:g} CPUs, {there.gpus:g} GPUs"
