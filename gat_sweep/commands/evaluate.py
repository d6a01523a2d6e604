"""evaluate: distances of a checkpoint, of pictures, or of a tokenizer's reconstructions."""

import json

from rich.table import Table

from gat_sweep.metrics.evaluator import (
    Evaluation,
)


def evaluation_table(evaluation: Evaluation) -> Table:
    """What was measured, and the protocol."""
    table = Table(show_header=False)
    for name, value in evaluation.journal().items():
        table.add_row(name, f"{value:.5g}")
    if evaluation.split_half is not None:
        table.add_row("halves of the real pictures", f"{evaluation.split_half:.5g}")
    table.add_section()
    for name, value in json.loads(evaluation.protocol).items():
        if value is not None:
            table.add_row(name, str(value))
    return table
