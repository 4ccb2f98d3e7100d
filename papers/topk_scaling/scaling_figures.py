"""What the figures of the scaling laws share: shades for sizes, and readable log scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shared.figures.style import SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axis import Axis


def shades(count: int) -> list[str]:
    """Return as many colours from dark to light, without the yellow end that paper swallows."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    places = np.linspace(0, 0.85, count)
    return [to_hex(mpl.colormaps[SEQUENTIAL](place)) for place in places]


def fixed_ticks(axis: Axis, ticks: Sequence[int | float]) -> None:
    """Label a log scale at `ticks`, with plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def decade_ticks(axis: Axis, ticks: Sequence[int | float] = (1, 1.5, 2, 3, 5, 7)) -> None:
    """Label a log scale at `ticks` times 10ⁿ, with plain numbers, thousands as 1k."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=ticks, numticks=50))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value / 1000:g}k")
    )
    axis.set_minor_locator(NullLocator())


def power(base: str, exponent: float | None) -> str:
    """Return the text of a power, with a question mark for an exponent that is missing."""
    known = exponent is not None and np.isfinite(exponent)
    return f"${base}^{{{exponent:.2g}}}$" if known else f"${base}^{{?}}$"
