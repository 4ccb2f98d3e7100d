"""One look for every figure: widths, colours that survive colour blindness, readable type.

Experiments draw through `subplots`, so that a stage that only trains never loads matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FULL_WIDTH = 5.5
"""Inches: the text block of a page. Draw at the size of print, so that points stay points."""

HALF_WIDTH = 3.3
"""Inches: one column of a two-column page."""

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000"]
"""Okabe and Ito's colours, without the yellow that white paper swallows."""

SEQUENTIAL = "viridis"
"""Colour map for amounts: its lightness rises evenly, so it also reads in grey."""

DIVERGING = "RdBu_r"
"""Colour map for signed values: white at the middle, blue below and red above."""

_RC = {
    "axes.edgecolor": "0.35",
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.figsize": (FULL_WIDTH, 3.2),
    "figure.titlesize": 9,
    # The face that matplotlib brings along: the same bytes on every machine.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "image.cmap": SEQUENTIAL,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.title_fontsize": 7.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "patch.linewidth": 0.5,
    "savefig.bbox": "standard",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "sae-reproductions",
    "xtick.bottom": True,
    "xtick.labelsize": 7,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "xtick.minor.size": 1.5,
    "xtick.minor.width": 0.4,
    "ytick.labelsize": 7,
    "ytick.left": True,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
    "ytick.minor.size": 1.5,
    "ytick.minor.width": 0.4,
}


@contextmanager
def use_style() -> Iterator[None]:
    """Draw in the house style inside the block, whatever the reader's own matplotlib settings."""
    from cycler import cycler
    from matplotlib.style import context, library

    # seaborn's look, as matplotlib brings it along: importing seaborn takes longer than a figure.
    seaborn = library["seaborn-v0_8-whitegrid"]
    rc: dict[Any, Any] = {**seaborn, **_RC, "axes.prop_cycle": cycler(color=PALETTE)}
    with context(rc, after_reset=True):
        yield


def subplots(
    rows: int = 1, columns: int = 1, height: float = 2.4, width: float = FULL_WIDTH, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure of `width` by `height` inches and its panels, always as [rows, columns].

    `options` go to `matplotlib.pyplot.subplots`.
    """
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)


def panel_labels(axes: Sequence[Axes] | np.ndarray) -> None:
    """Letter the panels a, b, c … in bold above their left edges, row by row."""
    for index, panel in enumerate(np.ravel(np.asarray(axes, dtype=object))):
        panel.set_title(ascii_lowercase[index], loc="left", fontweight="bold")
