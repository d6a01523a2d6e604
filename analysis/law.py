"""The scaling law of the paper's Fig. 21, chosen by a test: metric = a C^-b, or metric = E + a C^-b with a floor E.

Without a floor the intervals are Student's t, because a sweep has only a few sizes. But a floor that was not found may
still be there, and it biases b. So every interval covers all curves with E >= 0 that fit as well as the ends of the t
interval do. If the test finds a floor, the intervals are those of the law with a floor.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.fits.curve import Fits, Region, fit_floors, region, scan_floors
from analysis.noise import Noise, estimate_noise
from analysis.points import MIN_SIZES, Point, find_points
from analysis.statistics import CONFIDENCE, ROUNDING
from analysis.table import SAME_COMPUTE, UNIT, Excluded, Protocol, Table, json_head

CHOICES = {
    "free": "a power law without a floor",
    "found": "a power law with a floor",
    "given": "a power law with the given floor",
}
CONVENTIONS = (
    "C and the generator's forward cost are in GFLOPs as the paper and DiT count them: multiply-adds / 1e9. "
    "The run table's flops count 2 per multiply-add, so GFLOPs = flops / 2 / 1e9. C is training compute; a point is a "
    "size at one C: the geometric mean over seeds of the last evaluation, at the mean C. All intervals allow for a "
    "floor E >= 0; a floor that is given with --floor is not doubted. a is the value at C = 1, far from all points, so "
    "it has no interval."
)


@dataclass(frozen=True)
class FloorTest:
    """One-sided F test of E = 0 against E > 0. If E is 0, F is 0 in half of all tables (Self and Liang 1987)."""

    f: float | None
    degrees_of_freedom: int
    p: float | None
    floor: float | None  # the best one
    b: float | None  # with that floor
    not_possible: str = ""  # why the test cannot be made; empty if it was made

    @property
    def found(self) -> bool:
        return self.p is not None and self.p < 1 - CONFIDENCE


@dataclass(frozen=True)
class Curve:
    """value = floor + a C^-b: the law that was chosen, and all curves within the interval."""

    chosen: str  # one of CHOICES
    floor: float
    log10_a: float
    b: float
    b_low: float | None
    b_high: float | None
    floor_low: float
    floor_high: float | None
    points: int
    sizes: int
    degrees_of_freedom: int
    residual_std: float  # of ln value, of a point with the mean variance
    test: FloorTest
    noise: Noise
    mean_variance: float  # of the points, by `noise`; a point's weight is this over its own variance
    best: Fits = field(repr=False)
    region: Region = field(repr=False)

    @property
    def a(self) -> float:
        """The value at C = 1 less the floor; infinite if it is too large for a float."""
        return 10.0**self.log10_a if self.log10_a < 308 else math.inf

    def predict(self, compute: ArrayLike) -> NDArray[np.float64]:
        """Return the value of the law at each C."""
        x = np.log(np.asarray(compute, dtype=np.float64)) - self.region.mean_log_compute
        return np.asarray(self.floor + np.exp(self.best.level[0] - self.b * x))

    def band(self, compute: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (low, high) of the 95 % interval of the law at each C."""
        return self.region.values(compute)

    def new_size(self, compute: ArrayLike, seeds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (low, high) of the 95 % prediction interval at each C, for the mean over the seeds of a new size.

        The number of seeds counts only if the spread between seeds is known.
        """
        return self.region.values(compute, self.mean_variance / self.noise.of_new(compute, seeds))


def fit_curve(
    compute: ArrayLike,
    value: ArrayLike,
    floor: float | None = None,
    noise: Noise | None = None,
    seeds: Sequence[int] | None = None,
    sizes: Sequence[Any] | None = None,
) -> Curve:
    """Choose and fit a law through points [n], all positive; the unit of C is the caller's.

    floor: E if it is known from elsewhere; it is then not tested. noise, seeds [n]: variances of the points; equal by
    default. sizes: label of each point; points of one size are then not independent, so the limit of all
    intervals grows as the variance of b does when it is taken over sizes (Chandler and Bate 2007), and no floor is
    tested.
    Raises ValueError for fewer than three points or sizes, points that all have the same C, or a floor that is negative
    or not below every value.
    """
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    assert c.shape == v.shape and c.ndim == 1 and (c > 0).all() and (v > 0).all()
    labels = list(range(len(c))) if sizes is None else list(sizes)
    n, count = len(c), len(set(labels))
    if count < MIN_SIZES:
        raise ValueError(f"a power law needs at least {MIN_SIZES} sizes, got {count}")
    if np.ptp(np.log(c)) <= SAME_COMPUTE:
        raise ValueError(
            "a power law needs points at different compute, and all points have the same; `allocate` is for that"
        )
    if floor is not None and not 0 <= floor < v.min():
        raise ValueError(f"a floor of {floor:g} is not below the smallest value, {v.min():g}; give a lower one")
    noise = noise or Noise(float(np.log(c).mean()))
    variances = noise.variance(c, np.ones(n) if seeds is None else np.asarray(seeds))
    weights = variances.mean() / variances
    plain = fit_floors(c, v, [floor or 0.0], weights)
    grown = _over_sizes(c, v, plain, weights, labels) if count < n else 1.0
    # A metric that rises does not fall towards a floor.
    rises = bool(plain.b[0] <= 1e-9)
    scanned = plain if floor is not None or rises else scan_floors(c, v, weights)
    free = scanned.some(scanned.rss == scanned.rss.min())
    test = _test_floor(plain, free, n, count, given=floor is not None, rises=rises)
    best = free if test.found else plain
    degrees = count - (3 if test.found else 2)
    rss = float(best.rss[0])
    variance = rss / (n - (3 if test.found else 2))
    # Points exactly on a law leave only rounding errors, which the F distribution does not describe.
    limit = rss + grown * variance * float(stats.f.ppf(CONFIDENCE, 1, degrees)) + n * ROUNDING**2
    allowed = region(c, v, scanned, limit, weights)
    b_low, b_high = allowed.exponents()
    floor_low, floor_high = allowed.floors()
    b = float(best.b[0])
    log10_a = float(best.level[0] + b * np.log(c).mean()) / math.log(10)
    return Curve(
        chosen="given" if floor is not None else "found" if test.found else "free",
        floor=float(best.floors[0]),
        log10_a=log10_a, b=b, b_low=b_low, b_high=b_high, floor_low=floor_low, floor_high=floor_high,
        points=n, sizes=count, degrees_of_freedom=degrees, residual_std=math.sqrt(variance), test=test,
        noise=noise, mean_variance=float(variances.mean()), best=best, region=allowed,
    )  # fmt: skip


def _test_floor(plain: Fits, free: Fits, points: int, sizes: int, given: bool, rises: bool) -> FloorTest:
    why = ""
    if given:
        why = "the floor is given"
    elif rises:
        why = "the metric does not fall"
    elif sizes < points:
        why = "points of one size at several lengths are not independent"
    elif sizes <= MIN_SIZES:
        why = f"{sizes} sizes leave no degree of freedom, it needs {MIN_SIZES + 1}"
    if why:
        return FloorTest(None, 0, None, None, None, why)
    degrees, floor, b = points - 3, float(free.floors[0]), float(free.b[0])
    gain, rest = float(plain.rss[0] - free.rss[0]), float(free.rss[0])
    if gain <= max(1e-9 * float(plain.rss[0]), points * ROUNDING**2):
        return FloorTest(0.0, degrees, 1.0, floor, b)
    f = gain / (rest / degrees) if rest > 0 else math.inf
    return FloorTest(f, degrees, float(stats.f.sf(f, 1, degrees)) / 2, floor, b)


def _over_sizes(
    c: NDArray[np.float64], v: NDArray[np.float64], plain: Fits, weights: NDArray[np.float64], labels: list[Any]
) -> float:
    """Return the variance of b over sizes (a jackknife) in units of its variance over points; at least 1."""
    each = list(dict.fromkeys(labels))
    without = []
    for label in each:
        keep = np.array([other != label for other in labels])
        if np.ptp(np.log(c[keep])) > 0:
            without.append(float(fit_floors(c[keep], v[keep], plain.floors, weights[keep]).b[0]))
    jackknife = (len(each) - 1) / len(each) * float(((np.array(without) - plain.b[0]) ** 2).sum())
    naive = float(plain.rss[0]) / (len(c) - 2) * float(plain.inverse[0, 1, 1])
    return max(1.0, jackknife / naive) if naive > 1e-18 else 1.0


@dataclass(frozen=True)
class Law:
    """The law of one patch size, and its points by rising C."""

    patch: int
    measured: Protocol
    points: tuple[Point, ...]
    curve: Curve
    given_floor: float | None

    def refit(self, points: Sequence[Point], floor: float | None = None) -> Curve:
        """Fit other points in the same way, with the given floor or another one; without one the law is chosen."""
        return fit_points(points, self.given_floor if floor is None else floor)

    def refit_free(self) -> Curve:
        """Fit the law's points as if no floor were given."""
        return fit_points(self.points)

    def refit_at(self, compute: Sequence[float]) -> Curve:
        """Fit the law's points at other values of C [n]."""
        return fit_points(self.points, self.given_floor, compute)

    def to_json(self) -> dict[str, Any]:
        curve = self.curve
        names = (
            "a", "log10_a", "b", "b_low", "b_high", "floor", "floor_low", "floor_high", "sizes", "degrees_of_freedom",
        )  # fmt: skip
        return {
            "patch": self.patch,
            "law": f"{self.measured.metric} = {'' if curve.chosen == 'free' else 'E + '}a C^-b",
            "chosen": CHOICES[curve.chosen],
            **{name: getattr(curve, name) for name in names},
            "floor_test": asdict(curve.test) | {"found": curve.test.found},
            "residual_std_log": curve.residual_std,
            "converged": bool(curve.best.converged[0]),
            "points": [point.to_json() for point in self.points],
        }


def fit_points(points: Sequence[Point], floor: float | None = None, compute: Sequence[float] | None = None) -> Curve:
    """Choose and fit a law through points; compute [n]: their C, if it is counted in another way.

    Raises ValueError as fit_curve does.
    """
    if compute is not None:
        points = [replace(point, gflops=c) for point, c in zip(points, compute, strict=True)]
    seeds, sizes = [len(p.values) for p in points], [p.cell for p in points]
    c, v = [p.gflops for p in points], [p.value for p in points]
    return fit_curve(c, v, floor, estimate_noise(points) if points else None, seeds, sizes)


@dataclass(frozen=True)
class Laws:
    """The laws of a table, one for each patch size with enough sizes."""

    measured: Protocol
    laws: tuple[Law, ...]  # rising patch size
    without: dict[int, str]  # why a patch size has no law
    slopes: dict[str, Any] | None  # test of one exponent for all patch sizes; None for one patch size
    excluded: tuple[Excluded, ...]

    def at(self, patch: int) -> Law | None:
        return next((law for law in self.laws if law.patch == patch), None)

    def head(self) -> dict[str, Any]:
        """Return what the JSON of a law says beside its laws."""
        return {
            **json_head(self.measured),
            "unit": UNIT,
            "conventions": CONVENTIONS,
            "without_law": [{"patch": patch, "reason": reason} for patch, reason in self.without.items()],
            "one_exponent": self.slopes,
            "excluded": [trial.to_json() for trial in self.excluded],
        }


def fit_laws(table: Table, floor: float | None = None, raced: bool = False) -> Laws:
    """Fit a law through the sizes of each patch size in a table (the paper's Fig. 21).

    A patch size changes the number of tokens at nearly equal parameters, so it is not another size: each has a law.
    floor: E, if it is known from elsewhere. raced: fit the survivors of a race all the same.
    Raises ValueError, in one line, as find_points and fit_curve do, if no patch size has three complete sizes, or if a
    race has dropped trials and `raced` was not given.
    """
    if (dropped := table.raced()) and not raced:
        raise ValueError(
            f"a race dropped {len(dropped)} of {len(table.trials)} trials; the survivors were chosen by their values, "
            "so their values are biased downward, and the law with them; fit-law --raced fits them all the same"
        )
    found = find_points(table)
    laws, without = [], {}
    for patch, points in found.by_patch.items():
        sizes = list(dict.fromkeys(point.cell for point in points))
        if len(sizes) < MIN_SIZES:
            without[patch] = f"{len(sizes)} complete sizes ({', '.join(cell.label for cell in sizes)})"
            continue
        laws.append(Law(patch, found.measured, points, fit_points(points, floor), floor))
    if not laws:
        there = "; ".join(without.values()) or "none"
        left_out = "; ".join(f"{e.trial} ({e.cell.label}): {e.reason}" for e in found.excluded) or "none"
        raise ValueError(
            f"a law needs at least {MIN_SIZES} complete sizes of one patch size; this table has {there}; "
            f"left out: {left_out}"
        )
    return Laws(found.measured, tuple(laws), without, _one_exponent(found.by_patch), found.excluded)


def _one_exponent(by_patch: dict[int, tuple[Point, ...]]) -> dict[str, Any] | None:
    """Test whether power laws with an intercept for each patch size have one exponent, by an F test."""
    if len(by_patch) < 2:
        return None
    parts = [(np.log([p.gflops for p in points]), np.log([p.value for p in points])) for points in by_patch.values()]
    parts = [(x - x.mean(), y - y.mean()) for x, y in parts]
    xx, xy = (np.array([float(u @ w) for u, w in pairs]) for pairs in ([(x, x) for x, _ in parts], parts))
    yy = sum(float(y @ y) for _, y in parts)
    vary, points = xx > 1e-12, sum(len(x) for x, _ in parts)
    groups, slopes = len(parts), int(vary.sum())
    common = float(xy.sum() / xx.sum()) if slopes else math.nan
    degrees = points - groups - slopes
    if slopes < 2 or degrees < 1:
        return {"not_possible": f"{points} points of {groups} patch sizes leave no degree of freedom for a test"}
    joint, apart = yy - common * float(xy.sum()), yy - float((xy[vary] ** 2 / xx[vary]).sum())
    f = max(joint - apart, 0.0) / (slopes - 1) / (apart / degrees) if apart > 0 else math.inf
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, points - groups - 1)) * math.sqrt(
        max(joint, 0.0) / (points - groups - 1) / float(xx.sum())
    )
    p = float(stats.f.sf(f, slopes - 1, degrees))
    return {
        "b": -common, "b_low": -common - half, "b_high": -common + half,
        "f": f, "degrees_of_freedom": [slopes - 1, degrees], "p": p, "differ": p < 1 - CONFIDENCE,
    }  # fmt: skip
