"""Time of a law from a large run's files: `python -m benchmarks.tables`. The claim: 500 x 200 rows take 10 s."""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.law import fit_laws
from analysis.reading import load_table
from analysis.scrutiny import scrutinise
from gat_sweep.recipe import load_recipe, resolve
from gat_sweep.run.table import SCHEMA
from gat_sweep.train.recorder import trial_constants

SIZES = ("S", "B", "L", "XL")


def write_runs(folder: Path, runs: int, rows: int) -> None:
    """Write the tables of `runs` trials over four sizes, as imagenet256 trials do, with values that follow a law."""
    random = np.random.default_rng(0)
    recipe = load_recipe("imagenet256")
    known = {}
    for size in SIZES:
        config = resolve(recipe, {"model.generator": size, "model.discriminator": size})
        known[size] = config, trial_constants("r", "s", "t", config)
    for run in range(runs):
        config, constants = known[SIZES[run % len(SIZES)]]
        whole = float(sum(json.loads(constants["flops_per_image"]).values()) * config.train.batch)
        steps = np.linspace(config.train.steps / rows, config.train.steps, rows).astype(int)
        value = 6e5 * (whole * steps / 2e9) ** -0.48 * np.exp(random.normal(0, 0.05, rows))
        shared = {**constants, "trial": f"t{run:03d}", "seed": run // len(SIZES), "metric": "fid", "n": 50_000}
        shared |= {"reference": "r", "protocol": "{}", "reason": ""}
        records = [
            {**shared, "step": int(s), "flops": whole * float(s), "value": float(v), "status": "running"}
            for s, v in zip(steps, value, strict=True)
        ]
        records[-1]["status"] = "done"
        pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), folder / f"t{run:03d}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--rows", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_runs(Path(folder), options.runs, options.rows)
        start = time.perf_counter()
        table = load_table(Path(folder))
        loaded = time.perf_counter()
        (law,) = fit_laws(table).laws
        fitted = time.perf_counter()
        scrutinise(table, law)
        done = time.perf_counter()
    print(
        f"{options.runs} runs of {options.rows} rows: load {loaded - start:.1f} s, fit {fitted - loaded:.2f} s, ",
        end="",
    )
    print(f"every check {done - fitted:.1f} s; b = {law.curve.b:.4f}")


if __name__ == "__main__":
    main()
