"""plan: the trials of a sweep, before they run."""

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from gat_sweep.commands.options import (
    Finite,
    command,
    console,
    device_option,
    json_option,
    make_sweep,
    print_json,
    rates_of,
    sweep_options,
)
from gat_sweep.errors import UserError
from gat_sweep.text import human, short

if TYPE_CHECKING:
    from gat_sweep.plan import Rate
    from gat_sweep.sweep import Sweep


def plan_command(
    sweep: "Sweep",
    calibrated: bool,
    peak: tuple[float, float] | None,
    price: float | None,
    device: str | None,
) -> dict[str, Any]:
    """The plan that `plan --json` prints. peak: MFU and FLOP/s of a worker. Raises UserError as calibrate does."""
    from gat_sweep.plan import trial_plan
    from gat_sweep.sweep import differences

    configs = list(sweep.trials.values())
    rates: list[Rate | None] = [None] * len(configs)
    if calibrated or peak:
        rates = [*rates_of(configs, peak, device)]
    varied = differences(sweep.trials)
    trials = {
        trial: {"varies": varied[trial], **trial_plan(config, rate, price)}
        for (trial, config), rate in zip(sweep.trials.items(), rates, strict=True)
    }
    sums = ["total_flops", "worker_hours", "cost"]
    totals = {key: sum(row[key] for row in trials.values()) for key in sums if key in next(iter(trials.values()))}
    return {"sweep": sweep.name, "about": sweep.about, "recipe": sweep.recipe, **totals, "trials": trials}


def plan_table(plan: dict[str, Any]) -> Table:
    """Table of the trials of a plan, with the totals in the caption."""
    from gat_sweep.sweep import varied_text

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
        table.add_row(trial, varied_text(row["varies"]), *map(human, numbers), *rates, *steps, memory, *hours)
    totals = [f"{len(plan['trials'])} trials, {human(plan['total_flops'])}FLOP of training in all (2 per multiply-add)"]
    totals += [f"{short(plan['worker_hours'])} worker hours"] if "worker_hours" in plan else []
    totals += [f"cost {short(plan['cost'])}"] if "cost" in plan else []
    totals += ["GiB with every block recomputed, and with none"]
    table.caption = "; ".join(totals)
    return table


@command()
@sweep_options
@click.option("--calibrate", is_flag=True, help="Estimate hours from a few steps and samples timed here.")
@device_option
@click.option("--mfu", type=Finite(0, 1, min_open=True), help="Estimate hours at this share of --peak-tflops.")
@click.option("--peak-tflops", type=Finite(0, min_open=True), help="Peak of one worker, in the trial's precision.")
@click.option("--price", type=Finite(0), help="Price of one worker for an hour, in any currency.")
@json_option
def plan(
    sweep: str,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    seeds: str | None,
    calibrate: bool,
    device: str | None,
    mfu: float | None,
    peak_tflops: float | None,
    price: float | None,
    as_json: bool,
) -> None:
    """Show a sweep's trials: parameters, FLOPs, memory, hours.

    Trains nothing. SWEEP is a sweep file, or the name of one that ships with gat-sweep. Memory is given with every
    block recomputed and with none; a trial recomputes only what its device cannot hold.

    \b
    Example:
      gat-sweep plan widths
      gat-sweep plan lr_transfer --mfu 0.4 --peak-tflops 312 --price 2
    """
    if (mfu is None) != (peak_tflops is None) or (calibrate and mfu is not None):
        raise UserError("to estimate hours, give --calibrate, or --mfu and --peak-tflops")
    if price is not None and not (calibrate or mfu):
        raise UserError("--price needs hours: add --calibrate, or --mfu and --peak-tflops")
    spec = make_sweep(sweep, recipe, preset, settings, seeds)
    peak = (mfu, peak_tflops * 1e12) if mfu and peak_tflops else None
    found = plan_command(spec, calibrate, peak, price, device)
    if as_json:
        print_json(found)
    else:
        console().print(plan_table(found))
