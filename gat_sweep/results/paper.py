"""Numbers of the paper itself, as a table that fit-law reads."""

import csv
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.law import fit_laws
from analysis.reading import load_table
from analysis.statistics import pearson
from analysis.table import Table
from gat_sweep.plan import model_info
from gat_sweep.recipe import load_recipe, resolve

# FID-50K by (size, iterations): Table 3, and Table 1 for XL at 100k, the last point of Fig. 21.
FID_50K = {
    ("S", 50_000): 15.237,
    ("B", 50_000): 9.534,
    ("L", 50_000): 4.600,
    ("XL", 50_000): 4.021,
    ("XL", 100_000): 3.02,
}
# Ways to count the cost of an iteration. The paper gives no count, so each is tried.
FORWARDS = "3 G + 15 D forwards"
RECOMPUTED = "5 G + 20 D forwards (every block recomputed)"
ITEMISED = "our items (the alignment projector runs on one of D's four inputs)"
REMARK = (
    "The paper fits 3.52e5 C^-0.456 to these four points (its Fig. 21). That exponent lies inside the interval of "
    "every count above, so four points neither confirm nor refute any count. The counts leave out the VAE decoding, "
    "which the paper's text includes: per sample, it would raise b far above the paper's own value."
)


def write_table(path: Path, count: str) -> None:
    """Write the published points as a CSV with the run table's columns; count: one of the ways above to count C."""
    recipe = load_recipe("imagenet256")
    columns = ["trial", "generator_size", "step", "steps", "flops", "images", "g_forward_flops", "metric", "value", "n"]
    last = {size: max(step for s, step in FID_50K if s == size) for size, _ in FID_50K}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for (size, step), fid in FID_50K.items():
            config = resolve(recipe, {"model.generator": size, "model.discriminator": size})
            info = model_info(config)
            g, d = info["g_forward_flops"], info["d_forward_flops"]
            image = {FORWARDS: 3 * g + 15 * d, RECOMPUTED: 5 * g + 20 * d, ITEMISED: info["iteration_flops_total"]}
            images = config.train.batch * step
            row = [f"GAT-{size}/2", size, step, last[size], float(image[count]) * images, images, g]
            writer.writerow(dict(zip(columns, [*row, "fid", fid, 50_000], strict=True)))


def remarks(table: Table) -> dict[str, Any]:
    """Return what only the report of the paper's law has: exponents by count, and the correlation at 50k iterations."""
    exponents = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (FORWARDS, RECOMPUTED, ITEMISED):
            write_table(Path(folder) / "table.csv", count)
            exponents[count] = fit_laws(load_table(Path(folder) / "table.csv")).laws[0].curve.b
    # Fig. 3c compares the sizes at equal iterations; the law's last point is XL at 100k.
    at_50k = [row for trial in table.trials for row in trial.rows if row.step == 50_000]
    found = pearson([row.g_forward_flops or 0.0 for row in at_50k], [row.value for row in at_50k])
    return {"pearson_at_50k": asdict(found), "counts": exponents, "remark": REMARK}
