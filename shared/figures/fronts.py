"""Drawing fronts: a measure of autoencoders against their L0, on a log scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


class Look(NamedTuple):
    """How a method is called and drawn, the same in every figure."""

    label: str
    colour: str
    marker: str = "o"
    line: str = "-"


def floats(values: Any) -> np.ndarray:
    """Return numbers that were read from JSON, with nan for null."""
    return np.array(values, dtype=float)


def draw_curve(panel: Axes, look: Look, data: Mapping[str, Any]) -> None:
    """Draw a method: its points, the mean of seeds as a line, least to greatest seed as a band."""
    band = {key: floats(value) for key, value in data["band"].items()}
    panel.fill_between(
        band["l0"], band["low"], band["high"], color=look.colour, alpha=0.2, linewidth=0
    )
    panel.plot(band["l0"], band["mean"], look.line, color=look.colour, linewidth=1)
    panel.plot(
        floats(data["l0"]),
        floats(data["value"]),
        look.marker,
        color=look.colour,
        markersize=3,
        markeredgewidth=0,
    )
    panel.plot([], [], look.line, marker=look.marker, color=look.colour, label=look.label)


def draw_curves(
    panel: Axes, looks: Mapping[str, Look], data: Mapping[str, Mapping[str, Any]], ylabel: str
) -> None:
    """Draw methods against L0, which is on a log scale with plain numbers as ticks.

    `data` is what `shared.metrics.fronts.curves` returns.
    """
    for method, one in data.items():
        draw_curve(panel, looks[method], one)
    l0_axis(panel)
    panel.set(ylabel=ylabel)


def l0_axis(panel: Axes, ticks: Sequence[int] = (1, 2, 5)) -> None:
    """Make the x-axis one of L0, on a log scale; `ticks` are times 10ⁿ."""
    panel.set(xscale="log", xlabel="L0")
    plain_ticks(panel.xaxis, ticks)


def plain_ticks(axis: Axis, ticks: Sequence[int] = (1, 2, 5)) -> None:
    """Label a log scale with plain numbers, at `ticks` times 10ⁿ."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axis.get_view_interval()[0] <= 0:  # of a linear scale, which a panel without data would keep
        axis.set_view_interval(1, 10, ignore=True)
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
