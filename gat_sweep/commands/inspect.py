"""inspect: what the blocks of a checkpoint do."""

from typing import Any

from rich.table import Table


def inspection_table(result: dict[str, Any]) -> Table:
    """A line per block, for the terminal."""
    columns = [
        ("influence", "G", "fake", f"influence_{result['protocol']['distance']}"),
        ("cos in, out", "G", "fake", "similarity_input_output"),
        ("cos z, z'", "G", "fake", "similarity_other_z"),
        ("CKNNA G", "G", "fake", "cknna_patches"),
        ("D, real", "D", "real", "cknna_patches"),
        ("D, fake", "D", "fake", "cknna_patches"),
        (r"D \[cls], real", "D", "real", "cknna_cls"),
        (r"D \[cls], fake", "D", "fake", "cknna_cls"),
    ]
    values = {(r["network"], r["block"], r["data"], r["measure"]): r["value"] for r in result["rows"]}
    table = Table(title=f"{result['trial']}, step {result['step']}", title_justify="left")
    for name in ["block", *(name for name, *_ in columns)]:
        table.add_column(name, justify="right", no_wrap=True)
    for block in range(1, max(result["depth"].values()) + 1):
        found = [values.get((network, block, data, measure)) for _, network, data, measure in columns]
        table.add_row(str(block), *("" if value is None else f"{value:.4f}" for value in found))
    protocol = result["protocol"]
    table.caption = (
        f"influence: {protocol['distance_label']}; CKNNA (k = {protocol['neighbours']}) with {protocol['teacher']}; "
        f"{protocol['images']} images"
    )
    return table
