"""What the paper's own five numbers say about the best size at the compute of XL for 50,000 iterations.

    python -m benchmarks.paper_frontier

`allocate` refuses them: four sizes, two lengths, one seed each. So this takes the prior of `design` for the exponents,
the floor and the break, and a spread of FID that is assumed, and draws laws by Metropolis' method. Prints the table of
docs/results.md. Two minutes on one core.
"""

import tempfile
from pathlib import Path

import numpy as np

from analysis.checkpoints import read_checkpoints
from analysis.fits.planned_laws import OF_FRONTIERS, PlannedLaw, Prior
from analysis.fits.reml import covariance
from analysis.reading import load_table
from gat_sweep.results.paper import ITEMISED, write_table

SPREADS = (0.04, 0.1)  # of ln FID between sizes, and between runs of a size; half as much between checkpoints
WALKERS, STEPS, BURNT, EVERY = 200, 8000, 2000, 40
AROUND = (1 / 20, 3.0)  # smallest and largest size, in units of XL's cost, where a break may be


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table3.csv"
        write_table(path, ITEMISED)
        found = read_checkpoints(load_table(path))
    data, labels = found.data, [row.cell.generator_size for row in found.rows]
    at = labels.index("XL")
    u, w = np.log(data.costs[0] / data.costs[0, at]), np.log(data.images / data.images[at])
    of_l = u[labels.index("L")]
    print(f"L costs as much as XL for 50,000 iterations after {50_000 * np.exp(-of_l):,.0f} iterations")
    prior = Prior.of(np.append(u, np.log(AROUND)), float(data.log_value[at]))
    for spread in SPREADS:
        whole = covariance(len(u), [spread, spread], [data.size, data.run], spread / 2)
        for law in OF_FRONTIERS:
            p = drawn(law, prior, u, w, data.log_value, np.linalg.inv(np.linalg.cholesky(whole)))
            best = law.log_best_cost(p)
            here = np.zeros(1)
            values = {
                "XL": law.log_values(p, here, here)[:, 0],
                "L": law.log_values(p, here + of_l, here - of_l)[:, 0],
                "best": law.log_values(p, best[:, None], -best[:, None])[:, 0],
            }
            texts = [f"best c {text(best)} of XL's", *(f"{name} {text(v)}" for name, v in values.items())]
            share = (values["L"] < values["XL"]).mean()
            print(f"spread {spread}, {law.name}: {', '.join(texts)}; L below XL in {share:.0%}", flush=True)


def drawn(
    law: PlannedLaw, prior: Prior, u: np.ndarray, w: np.ndarray, log_value: np.ndarray, root: np.ndarray
) -> np.ndarray:
    """Laws [m, 7] from the posterior."""
    random, own, (low, high) = np.random.default_rng(0), list(law.own), prior.bounds()
    mean, scale = prior.mean[own], prior.spread[own]

    def log_density(p: np.ndarray) -> np.ndarray:
        error = (law.log_values(np.clip(p, low, high), u, w) - log_value) @ root.T
        inside = ((p >= low) & (p <= high))[:, own].all(axis=1)
        return np.where(inside, -((error**2).sum(1) + (((p[:, own] - mean) / scale) ** 2).sum(1)) / 2, -np.inf)

    p = prior.around(law, prior.mean, prior.covariance(law), WALKERS, random)
    density, kept = log_density(p), []
    for step in range(STEPS):
        moved = p.copy()
        size = 0.25 * random.choice([0.1, 0.4, 1.0], size=(WALKERS, 1))
        moved[:, own] += random.normal(size=(WALKERS, len(own))) * scale * size
        new = log_density(moved)
        taken = np.log(random.uniform(size=WALKERS)) < new - density
        p[taken], density[taken] = moved[taken], new[taken]
        if step >= BURNT and step % EVERY == 0:
            kept.append(p.copy())
    return np.concatenate(kept)


def text(logs: np.ndarray) -> str:
    low, middle, high = np.exp(np.quantile(logs, [0.025, 0.5, 0.975]))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    main()
