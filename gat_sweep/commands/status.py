"""status: the runs of a home, or the trials of one."""

from typing import Any

from rich.table import Table

from gat_sweep.text import duration, human


def status_table(status: dict[str, Any]) -> Table:
    """For people."""
    table = Table(title=f"{status['run']} in {status['home']}", title_justify="left")
    for column in ["trial", "status", "step", "saved", "value", "FLOP", "GPU hours", "workers", "remarks"]:
        table.add_column(column, justify="left" if column in ("trial", "status", "workers", "remarks") else "right")
    for row in status["trials"]:
        workers = ", ".join(f"{w['host']}:{w['pid']} {w['phase']} {duration(w['age'])} ago" for w in row["workers"])
        table.add_row(
            row["trial"],
            row["status"],
            f"{row['step']}/{row['steps']}",
            str(row["saved"]),
            "" if row["value"] is None else f"{row['value']:.1f}",
            human(row["flops"]),
            f"{row['gpu_hours']:.3g}",
            workers,
            "; ".join(text for text in (row["reason"], row["flags"]) if text),
        )
    caps = {name: value for name, value in status["budget"].items() if value is not None}
    spent = f"spent {human(status['spent']['flops'])}FLOP, {status['spent']['gpu_hours']:.4g} GPU hours"
    limits = "".join(f"; --{name.replace('_', '-')} {value:g}" for name, value in caps.items())
    asked = f"; asked to stop: {status['stop']}" if status["stop"] else ""
    table.caption = spent + limits + asked
    return table
