"""plan: the trials of a sweep, before they run."""

from typing import Any

from rich.console import Console
from rich.table import Table

from gat_sweep.plan import Rate, rate_at, trial_plan
from gat_sweep.sweep import Sweep, differences, said
from gat_sweep.text import human, short
from gat_sweep.train.device import chosen_device


def plan_command(
    sweep: Sweep,
    calibrated: bool,
    peak: tuple[float, float] | None,
    price: float | None,
    device: str | None,
    console: Console,
) -> dict[str, Any]:
    """What `plan --json` prints. peak: MFU and FLOP/s of a worker. Raises UserError as the calibration does."""
    from gat_sweep.speed.calibration import calibrate

    configs = list(sweep.trials.values())
    rates: list[Rate | None] = [None] * len(configs)
    if calibrated:
        chosen = chosen_device(device)
        rates = list[Rate | None](calibrate(configs, chosen, lambda text: console.print(text, highlight=False)))
    elif peak:
        rates = [rate_at(config, *peak) for config in configs]
    varied = differences(sweep.trials)
    trials = {
        trial: {"varies": varied[trial], **trial_plan(config, rate, price)}
        for (trial, config), rate in zip(sweep.trials.items(), rates, strict=True)
    }
    sums = ["total_flops", "worker_hours", "cost"]
    totals = {key: sum(row[key] for row in trials.values()) for key in sums if key in next(iter(trials.values()))}
    return {"sweep": sweep.name, "about": sweep.about, "recipe": sweep.recipe, **totals, "trials": trials}


def plan_table(plan: dict[str, Any]) -> Table:
    """For people."""
    table = Table(title=f"{plan['sweep']} on {plan['recipe']}: {plan['about']}", title_justify="left")
    names = [
        "trial",
        "varies",
        "G params",
        "D params",
        "G fwd FLOP",
        "D fwd FLOP",
        "lr G",
        "lr D",
        "steps",
        "FLOP",
        "GiB a worker",
    ]
    names += [name for name in ("hours", "cost") if name in next(iter(plan["trials"].values()))]
    for name in names:
        text = name in ("trial", "varies")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    for trial, row in plan["trials"].items():
        numbers = [row[k] for k in ("g_params", "d_params", "g_forward_flops", "d_forward_flops")]
        rates = [f"{row[k]:.3g}" for k in ("lr_g", "lr_d")]
        memory = " to ".join(f"{row[name] / 2**30:.3g}" for name in ("memory_bytes_least", "memory_bytes"))
        hours = [short(row[name]) for name in ("hours", "cost") if name in row]
        steps = [str(row["steps"]), human(row["total_flops"])]
        table.add_row(trial, said(row["varies"]), *map(human, numbers), *rates, *steps, memory, *hours)
    totals = [f"{len(plan['trials'])} trials, {human(plan['total_flops'])}FLOP of training in all (2 per multiply-add)"]
    totals += [f"{short(plan['worker_hours'])} worker hours"] if "worker_hours" in plan else []
    totals += [f"cost {short(plan['cost'])}"] if "cost" in plan else []
    totals += ["GiB with everything recomputed, and with nothing"]
    table.caption = "; ".join(totals)
    return table
