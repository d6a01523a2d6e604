"""Files that a trial writes: result rows, journal, sample grids and config."""

import io
import json
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from gat_sweep.config import TrialConfig
from gat_sweep.files.storage import write
from gat_sweep.metrics.evaluator import Evaluation
from gat_sweep.plan import model_info
from gat_sweep.run.alive import signs
from gat_sweep.run.journal import add_record
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import GRID, Trial
from gat_sweep.train.counters import Counters
from gat_sweep.version import source_commit


class Recorder:
    """Writes a trial's files; rank 0 only."""

    def __init__(self, trial: Trial, counters: Counters, data_images: int, world: int):
        """Opens the trial's files.

        counters: the loop's own; every line and row gets their current step. data_images: those of the data set.
        world: number of workers of this attempt.
        """
        self.folder, self.counters = trial.folder, counters
        write_config(trial)
        constants = trial_constants(trial.run, trial.sweep, trial.id, trial.config)
        self.table = RunTable(trial.table, {**constants, "data_images": data_images})
        self.table.truncate(counters.step)
        line: dict[str, Any] = {"status": "running", "workers": world, "gpus": world * trial.config.workers.gpus}
        if earlier := signs(self.folder / "alive").get(0):
            line["previous"] = {"step": earlier["step"], "time": earlier["time"]}  # how far the previous attempt came
        self._append(line)

    def journal(self, metrics: dict[str, float]) -> None:
        self._append({"metrics": metrics})

    def note(self, text: str) -> None:
        """Adds a journal line for people who watch the trial; it is not a result."""
        self._append({"note": text})

    def status(self, status: str, reason: str) -> None:
        self._append({"status": status, "reason": reason})

    def evaluation(self, result: Evaluation) -> None:
        progress = self.counters.progress()
        self._row(self.table.put, progress, status="running", reason="", **vars(result))
        self.journal({**result.journal(), **progress})

    def samples(self, pictures: Tensor, captions: list[str]) -> None:
        """Writes a grid of uint8 pictures [n, 3, h, w], enlarged by a whole factor if small, and a line per caption."""
        rows, height = len(pictures) // GRID, pictures.shape[2]
        grid = pictures[: rows * GRID].unflatten(0, (rows, GRID)).permute(0, 3, 1, 4, 2)  # rows, y, columns, x, rgb
        grid = grid.flatten(2, 3).flatten(0, 1)
        image = Image.fromarray(grid.cpu().numpy())
        factor = max(1, 64 // height)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        content = io.BytesIO()
        image.save(content, format="PNG")
        write(self.folder / "samples" / f"step_{self.counters.step:08d}.png", content.getvalue())
        if captions:
            write(self.folder / "samples" / "captions.txt", ("\n".join(captions) + "\n").encode())

    def close(self, status: str, reason: str) -> None:
        self._row(self.table.close, self.counters.progress(), status=status, reason=reason)
        self.status(status, reason)

    def _row(self, write_row: Callable[..., None], progress: dict[str, float], **values: Any) -> None:
        counts = {"images": progress["images"], "flops": float(progress["flops"]), "seconds": progress["seconds"]}
        write_row(step=self.counters.step, flags=self.counters.collapse.flag, **values, **counts)

    def _append(self, values: dict[str, Any]) -> None:
        add_record(self.folder, {"step": self.counters.step, **values})


def leave_note(trial: Trial, text: str) -> None:
    """Adds a journal line from outside the loop, such as before a trial's first step."""
    add_record(trial.folder, {"step": 0, "note": text})


def record_failure(trial: Trial, reason: str) -> None:
    """Writes a row and a journal line with the reason why a trial failed, after an exception anywhere in it."""
    table = RunTable(trial.table, trial_constants(trial.run, trial.sweep, trial.id, trial.config))
    step = table.rows[-1]["step"] if table.rows else 0
    table.put(step=step, status="failed", reason=reason)
    write_config(trial)  # the trial may have failed before it wrote one
    add_record(trial.folder, {"step": step, "status": "failed", "reason": reason})


def write_config(trial: Trial) -> None:
    write(trial.folder / "config.json", trial.config.model_dump_json(indent=1).encode())


def trial_constants(run: str, sweep: str, trial: str, config: TrialConfig) -> dict[str, Any]:
    """Columns that are the same on every row of a trial."""
    info = model_info(config)
    return {
        "run": run,
        "sweep": sweep,
        "trial": trial,
        "recipe": config.recipe,
        "generator_size": config.model.generator,
        "discriminator_size": config.model.discriminator,
        "patch": config.model.patch,
        "seed": config.seed,
        "commit": source_commit(),
        "config": json.dumps(config.identity(), sort_keys=True),
        "config_hash": config.digest(),
        "steps": config.train.steps,
        "g_forward_flops": float(info["g_forward_flops"]),
        "d_forward_flops": float(info["d_forward_flops"]),
        "flops_per_image": json.dumps(info["iteration_flops"]),
        "params_g": info["g_params"],
        "params_d": info["d_params"],
        "lr_g": config.lr_g,
        "lr_d": config.lr_d,
    }
