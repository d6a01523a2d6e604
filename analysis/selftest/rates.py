"""Self-test of the slope of the best learning rate over width, and of the best rate of a width."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from analysis.fits.parabola import Curves, fit_curves
from analysis.selftest.case import Case, Held

SIZES = {2: (384, 1536), 3: (384, 768, 1536), 4: (384, 768, 1280, 1536), 5: (384, 512, 768, 1024, 1536)}
RATES = {4: (0.5, 1.0, 2.0, 4.0), 5: (0.25, 0.5, 1.0, 2.0, 4.0), 7: (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}
CURVATURE = 0.3
SKEW = 0.1  # of the third power: at the highest of five rates, a value rises 2.4 times, at the lowest 1.4 times

Draw = Callable[[np.random.Generator], Held]


@dataclass(frozen=True)
class Sweep:
    """A planted sweep: every width at the same factors of a rate that goes as 1 / width, unless `absolute`."""

    widths: int = 4
    rates: int = 5
    seeds: int = 1
    noise: float = 0.1  # standard deviation of ln value
    slope: float = -1.0  # of ln optimum over ln width
    optimum: float = 0.0  # ln of the optimum over the middle of the grid, at the mean width
    skew: float = 0.0
    own: float = 0.0  # standard deviation of a width's own ln optimum about the line
    seed_level: float = 0.0  # standard deviation of what a seed adds to all values of a width
    diverging: float = np.inf  # ln of the factor over the optimum above which trials diverge, worse ones earlier
    absolute: bool = False  # the same rates for all widths

    def fit(self, random: np.random.Generator) -> tuple[Curves, np.ndarray]:
        """Draw a sweep and fit it; return the fit and the true ln optimum of each width."""
        factors, n = np.log(RATES[self.rates]), self.widths
        w = np.log(SIZES[n]) - np.mean(np.log(SIZES[n]))
        width = np.repeat(np.arange(n), len(factors) * self.seeds)
        seed = np.tile(np.arange(self.seeds), n * len(factors))
        rate = np.tile(np.repeat(factors, self.seeds), n) - (0 if self.absolute else w[width])
        noise = random.normal(0, 1, len(rate))
        best = self.optimum + self.slope * w + random.normal(0, self.own, n)
        z = rate - best[width]
        value = CURVATURE * z**2 + self.skew * z**3 + self.noise * noise
        value += random.normal(0, self.seed_level, (n, self.seeds))[width, seed]
        kept = z + 0.3 * noise < self.diverging
        columns = (width[kept], np.exp(rate[kept]), np.exp(value[kept]), seed[kept])
        return fit_curves(SIZES[n], *columns), best


def cases() -> Iterator[Case]:
    for widths in (2, 3, 4, 5):
        yield _slope(Sweep(widths))
    for sweep in (Sweep(noise=0.05), Sweep(noise=0.2), Sweep(rates=4, noise=0.05), Sweep(rates=7), Sweep(seeds=3)):
        yield _slope(sweep)
    yield _slope(Sweep(slope=0.0))
    yield _slope(Sweep(absolute=True), "the same rates at all widths")
    yield _slope(Sweep(skew=SKEW), "skewed curves")
    yield _slope(Sweep(skew=SKEW, seeds=3), "skewed curves")
    yield _slope(Sweep(skew=SKEW * 0.8, slope=0.0), "skewed curves")
    yield _slope(Sweep(optimum=float(np.log(3)), seeds=3), "best near the highest rate")
    yield _slope(Sweep(diverging=1.2, seeds=3), "high rates diverge")
    yield _slope(Sweep(own=0.1), "widths stray from the line by .1")
    yield _slope(Sweep(own=0.2), "widths stray from the line by .2")
    yield _slope(Sweep(5, own=0.2), "widths stray from the line by .2")
    yield _slope(Sweep(seeds=3, seed_level=0.2), "a seed shifts all values of a width by .2")
    yield _vertex(Sweep())
    yield _vertex(Sweep(skew=SKEW), "skewed curves")
    yield _vertex(Sweep(diverging=1.2, seeds=3), "high rates diverge")
    yield _vertex(Sweep(own=0.2), "widths stray from the line by .2")


def _slope(sweep: Sweep, planted: str = "") -> Case:
    def draw(random: np.random.Generator) -> Held:
        found = sweep.fit(random)[0].slope
        if found.low is None or found.high is None:
            return Held(True, bounded=False)
        return Held(found.low <= sweep.slope <= found.high)

    return Case(f"slope {sweep.slope:g} of the best rate over width, {_grid(sweep)}", planted, draw, slow=True)


def _vertex(sweep: Sweep, planted: str = "") -> Case:
    def draw(random: np.random.Generator) -> Held:
        fit, best = sweep.fit(random)
        curve = fit.of[0]
        if curve is None or curve.low is None or curve.high is None:
            return Held(True, bounded=False)
        return Held(bool(curve.low <= np.exp(best[0]) <= curve.high))

    return Case(f"best rate of the smallest width, {_grid(sweep)}", planted, draw, slow=True)


def _grid(sweep: Sweep) -> str:
    seeds = f", {sweep.seeds} seeds" if sweep.seeds > 1 else ""
    return f"{sweep.widths} widths at {sweep.rates} rates{seeds}, noise {sweep.noise:g}"
