"""The work of `gat-sweep train`: one trial in this process."""

import signal
from functools import partial

from rich.console import Console

from gat_sweep.config import TrialConfig
from gat_sweep.files.storage import Place
from gat_sweep.launch.prepare import check_data
from gat_sweep.monitor.progress import Monitor
from gat_sweep.monitor.status import results_table
from gat_sweep.run.lease import lease
from gat_sweep.run.record import open_run, sweep_trials
from gat_sweep.run.stop import EXIT_STOPPED, clear_stop
from gat_sweep.run.table import FINISHED
from gat_sweep.sweep import Sweep, trial_id
from gat_sweep.train.device import chosen_device
from gat_sweep.train.engine import check_worker
from gat_sweep.train.loop import train


def train_command(config: TrialConfig, home: Place, name: str, device: str | None, console: Console) -> int:
    """Trains one trial in this process; returns the exit code, 0 when it is done.

    On SIGTERM it saves the trial and returns EXIT_STOPPED.
    """
    sweep = Sweep("train", "one trial", config.recipe, {trial_id(config): config})
    (trial,) = sweep_trials(sweep, home, name)
    check_data([config])
    chosen = chosen_device(device)
    check_worker(config, chosen, config.train.batch)
    told: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("SIGTERM"))
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    try:
        with lease(home / name, say):
            open_run(home, name, sweep, extend=True)
            clear_stop(home / name)
            status = trial.status()
            if status not in FINISHED:
                with Monitor([trial], console, lambda folders: ""):
                    status = train(trial, chosen, lambda: told[0] if told else "").status
    except KeyboardInterrupt:
        console.print(
            f"\nstopped; results so far are in {home / name}. Run the same command to continue.", soft_wrap=True
        )
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    console.print(results_table([trial]))
    console.print(f"results  {home / name}", soft_wrap=True, highlight=False)
    return {"done": 0, "stopped": EXIT_STOPPED}.get(status, 1)
