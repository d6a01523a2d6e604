"""coord-check: the change of the outputs in one step, against width (Eq. 11)."""

from typing import Any

import numpy as np
from rich.table import Table

from analysis.coordinates import RULES


def coord_table(result: dict[str, Any]) -> Table:
    """The slopes of a result's JSON."""
    seeds, steps = len(result["seeds"]), (result["warmup"] + 1, result["warmup"] + result["steps"])
    title = f"{result['recipe']}: slope of log change on log width, {seeds} seeds, steps {steps[0]} to {steps[1]}"
    table = Table(title=title, title_justify="left")
    for name in ["network", "layer", "rule", "slope", "95 % interval", "A.11", "relative", "output's size"]:
        table.add_column(name, justify="left" if name in ("network", "layer", "rule") else "right", no_wrap=True)
    for row in result["slopes"]:
        low, high = row["change"]["low"], row["change"]["high"]
        table.add_row(
            row["network"],
            row["layer"],
            RULES[row["rule"]],
            f"{row['change']['slope']:.2f}",
            "one seed: none" if low is None else f"{low:.2f} to {high:.2f}",
            f"{row['theory']:.0f}",
            f"{row['relative']['slope']:.2f}",
            f"{row['size']['slope']:.2f}",
        )
    return table


def _short(values: np.ndarray) -> Any:
    """Nested lists of numbers with six digits."""
    return np.vectorize(lambda value: float(f"{value:.6g}"))(values).tolist()
