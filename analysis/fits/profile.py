"""Profile intervals: how far a value can go from its best one before the fit with the value held is too bad."""

import math
from collections.abc import Callable

import numpy as np

from analysis.fits.descent import Array, Index

WALK, REFINE = 8, 5  # steps from the optimum outwards, and then towards the end of an interval


def intervals(
    fit: Callable[[Array, Index, Array], tuple[Array, Array]],
    best: Array,
    low: Array | float,
    high: Array | float,
    parameters: Array,
    rss: float,
    limit: Array | float,
) -> list[tuple[float | None, float | None]]:
    """Return the interval within [low, high] of each of the values that a fit has at `best` [m].

    An end is None if the interval goes beyond; one wholly below `low` is (None, low), one wholly above `high` is
    (high, None). Each value has two walks from the optimum, walk i down and walk m + i up, in steps that start at the
    fit of the step before. fit(values, walks, p): parameters and residual sums with the values held, from starts p.
    parameters [k], rss: of the optimum. limit: the residual sum at the ends, one or [m].
    """
    m = len(best)
    bar = np.tile(np.sqrt(np.broadcast_to(limit, m) - rss), 2)
    walks, goal = np.arange(2 * m), np.concatenate([np.broadcast_to(low, m), np.broadcast_to(high, m)])
    start = np.tile(np.clip(best, low, high), 2)

    def excess(values: Array, live: Index) -> Array:
        p[live], found = fit(values, live, p[live])
        return np.sqrt(np.maximum(found - rss, 0)) - bar[live]  # nearly linear in the value

    p = np.repeat(parameters[None], 2 * m, axis=0)
    inside, inner = start.copy(), excess(start, walks)
    beyond = inner > 0  # the whole interval is beyond the end from which the walks start
    outside, outer = np.full(2 * m, np.nan), np.full(2 * m, np.nan)
    live = walks[~beyond & (start != goal)]
    for step in range(1, WALK + 1):
        at = start[live] + (goal - start)[live] * step / WALK
        found = excess(at, live)
        out = found > 0
        outside[live[out]], outer[live[out]] = at[out], found[out]
        inside[live[~out]], inner[live[~out]] = at[~out], found[~out]
        live = live[~out]
        if not len(live):
            break
    live, ends, before = walks[np.isfinite(outside)], np.full(2 * m, np.nan), np.zeros(2 * m)
    for _ in range(REFINE if len(live) else 0):
        at = ends[live] = (inside + (outside - inside) * inner / (inner - outer))[live]
        found = excess(at, live)
        # By the Illinois rule an end that stays twice counts half.
        twice = before[live] * found > 0
        before[live], out = found, found > 0
        outside[live[out]], outer[live[out]] = at[out], found[out]
        inside[live[~out]], inner[live[~out]] = at[~out], found[~out]
        inner[live[out & twice]] /= 2
        outer[live[~out & twice]] /= 2
    lower, upper = ([None if math.isnan(end) else end for end in half] for half in ends.reshape(2, m).tolist())
    lows, highs = np.broadcast_to(low, m).tolist(), np.broadcast_to(high, m).tolist()
    for i in np.flatnonzero(beyond[:m]):
        lower[i], upper[i] = (None, lows[i]) if best[i] < lows[i] else (highs[i], None)
    return list(zip(lower, upper, strict=True))
