"""Style that all figures share, and helpers for ticks, numbers and files.

Figures are drawn with matplotlib's Figure alone: no pyplot, so no state is shared.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

STYLE: Any = {  # Any: matplotlib's own type lists every key
    "font.size": 9,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "gat-sweep",  # otherwise the ids in an SVG are random
}
# Okabe and Ito's colours; markers and line styles distinguish the sizes in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES: tuple[Any, ...] = (
    "-",
    (0, (6, 1.5)),
    (0, (3, 1, 1, 1)),
    (0, (1.5, 1)),
    (0, (8, 2, 1, 2)),
    (0, (4, 3)),
)


def set_ticks(axis: Axis, low: float, high: float) -> None:
    """Set ticks with readable labels for any range; a plain log axis may have no label within a decade."""
    decades = math.log10(high / low)
    powers = decades >= 0.6 and (high >= 1e5 or low < 1e-3)  # all labels of an axis are of one kind
    axis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value, 6, powers)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(LogLocator(subs=range(2, 10)))
    if decades < 0.6:
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(NullLocator())
    elif decades < (2 if isinstance(axis, XAxis) else 3):  # beside each other, labels need more room
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axis.set_major_locator(LogLocator())


def number_text(value: float, digits: int, powers: bool = False) -> str:
    """A number as text for a figure: plain if that is short, else m x 10^k in matplotlib's mathematics.

    powers: never plain.
    """
    if not math.isfinite(value):
        return str(value)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if -3 <= int(exponent) < 5 and not powers:
        return f"{float(f'{value:.{digits}g}'):g}"  # 2680 rather than 2.68e+03
    mantissa = f"{float(mantissa):g}"
    factor = "" if mantissa == "1" else rf"{mantissa}\times "
    return rf"${factor}10^{{{int(exponent)}}}$"


def plain(text: str) -> str:
    """A user's text with dollar signs escaped, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write .svg and .png and return the paths; a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    # Dates and versions in the metadata would make equal figures differ.
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        target = path.with_name(f"{path.name}.{suffix}")  # with_suffix would eat a dot in the name
        partial = target.with_name(f".{target.name}.partial")
        try:
            figure.savefig(partial, format=suffix, metadata=metadata)
            os.replace(partial, target)
        except OSError:  # a full disk
            partial.unlink(missing_ok=True)
            raise
        written.append(target)
    return written


# Where a label may stand beside its point, in points: the first place that is free is taken.
PLACES = tuple(
    (dx, dy, ha, va)
    for reach in (1.0, 2.2, 3.6)
    for dx, dy, ha, va in (
        (7 * reach, 5 * reach, "left", "bottom"), (-7 * reach, -6 * reach, "right", "top"),
        (7 * reach, -6 * reach, "left", "top"), (-7 * reach, 5 * reach, "right", "bottom"),
        (0.0, 8 * reach, "center", "bottom"), (0.0, -8 * reach, "center", "top"),
    )
)  # fmt: skip


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], others: Sequence[tuple[float, float]] = ()
) -> None:
    """Write a label beside each point, where it lies on no other label and on no point.

    Call it when the limits and the layout are final. others: further points that labels keep off.
    """
    size, dots = 8.0, axes.figure.dpi / 72
    to_dots = axes.transData.transform
    taken = [_box(x - 5 * dots, y - 5 * dots, 10 * dots, 10 * dots) for x, y in map(to_dots, [*points, *others])]
    frame = axes.get_window_extent()
    for (x, y), text in zip(points, texts, strict=True):
        px, py = to_dots((x, y))
        wide, high = 0.64 * size * len(text) * dots, 1.15 * size * dots  # of DejaVu Sans, bold
        boxes = []
        for dx, dy, ha, va in PLACES:
            left = px + dx * dots - {"left": 0.0, "right": wide, "center": wide / 2}[ha]
            below = py + dy * dots - {"bottom": 0.0, "top": high}[va]
            boxes.append(_box(left, below, wide, high))
        inside = [frame.contains(b.x0, b.y0) and frame.contains(b.x1, b.y1) for b in boxes]
        crossed = [
            sum(b.overlaps(other) for other in taken) + 100 * (not ok) for b, ok in zip(boxes, inside, strict=True)
        ]
        best = crossed.index(min(crossed))
        taken.append(boxes[best])
        dx, dy, ha, va = PLACES[best]
        far = best >= 6  # a line leads to a label that stands far from its point
        axes.annotate(
            plain(text), (x, y), xytext=(dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=size,
            fontweight="bold", zorder=6, path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkB": 4} if far else None,
        )  # fmt: skip


def _box(left: float, below: float, wide: float, high: float) -> Bbox:
    return Bbox.from_bounds(left, below, wide, high)
