"""Figure of samples by size: the same latent codes, one row of pictures for each size."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from analysis.figures.style import STYLE, save_figure

INCH = 0.52  # side of a picture


def plot_samples(rows: Sequence[tuple[str, NDArray[np.uint8]]], path_without_suffix: Path) -> list[Path]:
    """Draw rows of pictures as .svg and .png; return both paths. Equal input gives equal bytes.

    rows: a label, and pictures [n, h, w, 3] side by side; the same n for all.
    """
    count = len(rows[0][1])
    with matplotlib.rc_context(STYLE):
        size = (INCH * count + 1.3, (INCH + 0.04) * len(rows))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.02, hspace=0))
        for axes, (label, pictures) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
            axes.imshow(np.concatenate(list(pictures), axis=1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_ylabel(label, rotation=0, ha="right", va="center")
            axes.spines[:].set_visible(False)
        return save_figure(figure, path_without_suffix)
