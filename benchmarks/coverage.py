"""How often 95 % intervals of the law hold a planted truth: the rules that were replaced, beside those of today.

    python -m benchmarks.coverage --draws 400

Prints the table of docs/results.md. Minutes on one core.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np

from analysis.fits.curve import fit_floors, scan_floors
from analysis.law import Curve, fit_curve, fit_points
from analysis.points import Point
from analysis.scrutiny import fit_clustered
from analysis.selftest.law import A, B, point_of

Row = tuple[str, str, float, float]


def drawn(random: np.random.Generator, compute: np.ndarray, floor: float, noise: float) -> np.ndarray:
    return np.asarray((floor + A * compute**-B) * np.exp(random.normal(0, noise, len(compute))))


def holds(truth: float, low: float | None, high: float | None) -> bool:
    return (low is None or low <= truth) and (high is None or truth <= high)


def exponents(draws: int, sizes: int, floor: float, noise: float) -> Row:
    """Interval of b: Student's t without a floor, and today's."""
    random, compute = np.random.default_rng(0), np.geomspace(1e4, 1e7, sizes)
    before = now = 0
    for _ in range(draws):
        value = drawn(random, compute, floor, noise)
        plain, fit = fit_curve(compute, value, floor=0.0), fit_curve(compute, value)
        before += holds(B, plain.b_low, plain.b_high)
        now += holds(B, fit.b_low, fit.b_high)
    return f"interval of b holds it, {sizes} sizes", f"floor {floor:g}, noise {noise:g}", before / draws, now / draws


def aicc(rss: float, n: int, parameters: int) -> float | None:
    """Akaike's criterion for least squares, corrected for small n, sigma counted; None if n is too small."""
    if n - parameters - 1 < 1:
        return None
    return (
        n * math.log(max(rss, 1e-300) / n) + 2 * parameters + 2 * parameters * (parameters + 1) / (n - parameters - 1)
    )


def floors_found(draws: int, sizes: int, floor: float, noise: float) -> Row:
    """How often a floor is found: by AICc, and by today's F test."""
    random, compute = np.random.default_rng(0), np.geomspace(1e4, 1e7, sizes)
    before = now = 0
    for _ in range(draws):
        value = drawn(random, compute, floor, noise)
        plain, free = (float(f.rss.min()) for f in (fit_floors(compute, value, [0.0]), scan_floors(compute, value)))
        without, with_floor = aicc(plain, sizes, 3), aicc(free, sizes, 4)
        before += without is not None and with_floor is not None and with_floor < without
        now += fit_curve(compute, value).test.found
    return f"a floor is found, {sizes} sizes", f"floor {floor:g}, noise {noise:g}", before / draws, now / draws


def next_size(draws: int, sizes: int, seeds: int = 3) -> Row:
    """A size at ten times C, noise of a seed growing from .03 to .3: equal noise assumed, and today's."""
    random, compute = np.random.default_rng(0), np.geomspace(1e4, 1e4 * 10**sizes, sizes + 1)
    spread = np.geomspace(0.03, 0.3, sizes + 1)
    before = now = 0
    for _ in range(draws):
        points = [
            point_of(i, c, A * c**-B * np.exp(random.normal(0, s, seeds)))
            for i, (c, s) in enumerate(zip(compute, spread, strict=True))
        ]
        last = points[-1]
        plain = fit_curve([p.gflops for p in points[:-1]], [p.value for p in points[:-1]], floor=0.0)
        before, now = (count + _covers(fit, last) for count, fit in ((before, plain), (now, fit_points(points[:-1]))))
    planted = f"noise grows from .03 to .3, {seeds} seeds"
    return f"interval of the next size holds it, {sizes} sizes", planted, before / draws, now / draws


def _covers(fit: Curve, point: Point) -> bool:
    low, high = fit.new_size([point.gflops], len(point.values))
    return bool(low[0] <= point.value <= high[0])


def checkpoints(draws: int, sizes: int = 4, runs: int = 3, each: int = 5) -> Row:
    """Exponent through checkpoints: clustered by run, and by size."""
    random = np.random.default_rng(0)
    size, run = np.repeat(np.arange(sizes), runs * each), np.repeat(np.arange(sizes * runs), each)
    ends = np.geomspace(1e4, 1e6, sizes)[size]
    compute = ends * np.tile(np.linspace(1 / each, 1, each), sizes * runs)
    before = now = 0
    for _ in range(draws):
        effects = random.normal(0, 0.1, sizes)[size] + random.normal(0, 0.05, sizes * runs)[run]
        value = A * compute**-B * np.exp(effects + random.normal(0, 0.02, len(compute)))
        by_run, by_size = fit_clustered(compute, value, run), fit_clustered(compute, value, size)
        before += holds(B, by_run.b_low, by_run.b_high)
        now += holds(B, by_size.b_low, by_size.b_high)
    return (
        "interval of b over checkpoints holds it, 4 sizes",
        "sizes stray by .1, seeds by .05",
        before / draws,
        now / draws,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=400)
    draws = parser.parse_args().draws
    rows: list[Callable[[], Row]] = [
        *(lambda n=n: exponents(draws, n, 4.0, 0.03) for n in (4, 6, 8)),
        *(lambda n=n: exponents(draws, n, 0.0, 0.1) for n in (4, 6, 8)),
        lambda: exponents(draws, 8, 4.0, 0.1),
        lambda: floors_found(draws, 6, 4.0, 0.03),
        lambda: floors_found(draws, 8, 4.0, 0.1),
        lambda: floors_found(draws, 6, 0.0, 0.03),
        lambda: floors_found(draws, 8, 0.0, 0.1),
        *(lambda n=n: next_size(draws, n) for n in (4, 6)),
        lambda: checkpoints(draws),
    ]
    print("| what | planted | before | now |\n|---|---|---|---|")
    for measure in rows:
        what, planted, before, now = measure()
        print(f"| {what} | {planted} | {before:.1%} | {now:.1%} |", flush=True)


if __name__ == "__main__":
    main()
